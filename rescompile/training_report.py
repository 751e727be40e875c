"""The results of ``rescompile train`` and ``rescompile experiment``. Terminal and HTML show the same report."""

from __future__ import annotations

import msgspec

from rescompile.report import JsonReport


class EpochRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``history.jsonl``: the state at a checkpoint. Errors are in percent."""

    epoch: float
    step: int
    learning_rate: float
    train_loss: float
    train_error: float
    """Error on the training images since the previous line, augmented as in training."""
    test_loss: float
    test_error: float
    seconds: float
    """Duration of the training since the previous line."""
    images_per_second: float


class TrainingReport(JsonReport, frozen=True, kw_only=True):
    """The result of one training."""

    model: str
    data: str
    recipe: str
    directory: str
    parameters: int
    train_images: int
    test_images: int
    history: tuple[EpochRecord, ...]
    best_step: int
    notes: tuple[str, ...] = ()

    @property
    def last(self) -> EpochRecord:
        """The state at the end."""
        return self.history[-1]

    @property
    def best(self) -> EpochRecord:
        """The state with the lowest test error, the first of several."""
        return next(record for record in self.history if record.step == self.best_step)


class ExperimentNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """One network of an experiment: errors in percent at the end, means over the seeds."""

    name: str
    depth: int
    plain: bool
    train_error: float
    test_error: float
    train_errors: tuple[float, ...]
    """One for each seed."""
    test_errors: tuple[float, ...]
    parameters: int
    paper_error: float | None
    """Test error in percent that the paper gives for CIFAR-10, at 64,000 steps on 45,000 or 50,000 images; None on the
    digits."""
    histories: tuple[tuple[EpochRecord, ...], ...]
    responses: tuple[float, ...]
    """Standard deviation of each 3x3 layer's output after its norm, in the order of execution (first seed)."""


class ExperimentReport(JsonReport, frozen=True, kw_only=True):
    """The result of ``rescompile experiment``."""

    experiment: str
    question: str
    data: str
    recipe: str
    steps: int
    seeds: tuple[int, ...]
    networks: tuple[ExperimentNetwork, ...]
    seconds: float
    environment: dict[str, str]
    notes: tuple[str, ...] = ()
