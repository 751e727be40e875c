"""The training loop: steps, tests and checkpoints, all of them functions of recipe, seed and step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rescompile.errors import TrainingError
from rescompile.progress import TrainingProgress
from rescompile.training.feed import Feed
from rescompile.training.processes import Process
from rescompile.training.recipe import Recipe
from rescompile.training.run_folder import (
    CHECKPOINT,
    Progressed,
    RunFolder,
    flatten_optimizer,
    restore_optimizer,
)
from rescompile.training_report import EpochRecord

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[str, ...] = ("fp32", "bf16", "fp16")
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LOOK = {"cuda": 20}
"""Steps between looks at the loss; a look waits for the device."""
_SLOW_UNTIL = 80.0
_SLOW_WINDOW = 50
"""A slow start ends when the error of so many steps of one epoch, in percent, is below ``_SLOW_UNTIL``."""

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Logits, images and labels to the mean loss."""


class Keeper(Protocol):
    """Writes the weights for use elsewhere."""

    def keep(self, network: nn.Module, record: EpochRecord, *, best: bool) -> None:
        """Write those of ``network``, as the last and perhaps as the best."""


@dataclass(kw_only=True)
class Loop:
    """One training. ``run`` goes on from the checkpoint in ``folder``, if there is one."""

    network: nn.Module
    recipe: Recipe
    feed: Feed
    process: Process
    folder: RunFolder
    keeper: Keeper
    progress: TrainingProgress
    name: str
    precision: Precision = "fp32"
    compiled: bool = False
    slow_start: bool = False
    epochs_per_checkpoint: int = 1
    stop_after: int | None = None
    """Step to stop at as if the process ended; for tests."""
    loss: Loss | None = None
    """None: cross entropy with the recipe's smoothing. Another loss is what tests and the best weights go by, too, and
    then the beginning is one of the states to choose from."""
    history: list[EpochRecord] = field(default_factory=list)
    best_step: int = 0
    _best: float = math.inf
    _slow: bool = False

    def __post_init__(self) -> None:
        self.total = self.recipe.total_steps(self.feed.order.steps_per_epoch)
        self._device = self.process.device
        self._optimizer = make_optimizer(self.network, self.recipe)
        self._average = (
            AveragedModel(self.network, multi_avg_fn=_averaging(self.recipe.average), use_buffers=True)
            if self.recipe.average
            else None
        )
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self.precision == "fp16")

    def run(self) -> None:
        """Train to the end.

        Raises:
            TrainingError: the loss is not a number.
            OutputError: a file cannot be written.
        """
        step = self._restored()
        self.progress.begun(self.name, self.total, step)
        if self.loss is not None and not self.history:
            self._checkpoint(self._beginning())
        forward = self._forward()
        while step < self.total:
            size = self.feed.order.steps_per_epoch * self.epochs_per_checkpoint
            # a short rest belongs to the last epoch, so that the last errors are not those of a few batches
            end = step + size if step + 1.5 * size <= self.total else self.total
            record = self._epoch(forward, range(step, end))
            step = end
            self._checkpoint(record)
            if self.stop_after is not None and step >= self.stop_after:
                return

    @property
    def tested(self) -> nn.Module:
        """The network that is tested and kept: the moving average, where there is one."""
        return self.network if self._average is None else self._average.module

    def _forward(self) -> nn.Module:
        forward: nn.Module = self.network
        if not self.process.alone:
            ids = [self._device.index] if self._device.type == "cuda" else None
            forward = nn.parallel.DistributedDataParallel(forward, device_ids=ids)
        if self.compiled:
            forward = torch.compile(forward)  # type: ignore[assignment]
        return forward

    def _beginning(self) -> EpochRecord:
        """The state before the first step, which can be the best; its training figures are those of one batch."""
        test_loss, test_error = self._test()
        started = time.perf_counter()
        with torch.inference_mode(), self._autocast():
            images, labels = next(self.feed.training(range(1)))
            logits = self.tested(images).float()
            wrong = (logits.argmax(1) != labels).float().mean()
            seen = torch.stack([self._loss(logits, images, labels), wrong]).double()
        train_loss, wrong_share = (self.process.summed(seen) / self.process.share.world).tolist()
        seconds = time.perf_counter() - started
        return EpochRecord(
            epoch=0.0,
            step=0,
            learning_rate=self._rate(0),
            train_loss=train_loss,
            train_error=100 * wrong_share,
            test_loss=test_loss,
            test_error=test_error,
            seconds=seconds,
            images_per_second=self.feed.order.batch_size / seconds,
        )

    def _epoch(self, forward: nn.Module, steps: range) -> EpochRecord:
        self.network.train()
        window: list[float] = []
        sums, started = torch.zeros(2, dtype=torch.float64), time.perf_counter()
        waiting: list[Tensor] = []
        done = 0
        for step, (images, labels) in zip(steps, self.feed.training(steps), strict=True):
            waiting.append(self._step(forward, step, images, labels))
            if len(waiting) < _LOOK.get(self._device.type, 1) and step + 1 < steps.stop:
                continue
            seen = self.process.summed(torch.stack(waiting).double()).cpu() / self.process.share.world
            self._refuse_nan(seen[:, 0], step + 1 - len(waiting))
            done, sums = done + len(waiting), sums + seen.sum(0)
            window = [*window, *seen[:, 1].tolist()][-_SLOW_WINDOW:]
            enough = len(window) >= min(_SLOW_WINDOW, len(steps))
            if self._slow and enough and 100 * sum(window) / len(window) < _SLOW_UNTIL:
                self._slow = False
            waiting = []
            speed = done * self.feed.order.batch_size / (time.perf_counter() - started)
            self.progress.stepped(step + 1, float(sums[0]) / done, 100 * float(sums[1]) / done, speed)
        seconds = time.perf_counter() - started
        test_loss, test_error = self._test()
        return EpochRecord(
            epoch=steps.stop / self.feed.order.steps_per_epoch,
            step=steps.stop,
            learning_rate=self._rate(steps.stop - 1),
            train_loss=float(sums[0]) / len(steps),
            train_error=100 * float(sums[1]) / len(steps),
            test_loss=test_loss,
            test_error=test_error,
            seconds=seconds,
            images_per_second=len(steps) * self.feed.order.batch_size / seconds,
        )

    def _step(self, forward: nn.Module, step: int, images: Tensor, labels: Tensor) -> Tensor:
        """Loss and share of wrong answers [2] of one step."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(step)
        with self._autocast():
            logits = forward(images)
        logits = logits.float()
        loss = self._loss(logits, images, labels, smoothing=self.recipe.label_smoothing)
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.update_parameters(self.network)
        wrong = (logits.argmax(1) != labels).float().mean()
        return torch.stack([loss.detach(), wrong])

    def _loss(self, logits: Tensor, images: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
        if self.loss is not None:
            return self.loss(logits, images, labels)
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)

    def _rate(self, step: int) -> float:
        return self.recipe.rate(step, self.total) * (0.1 if self._slow else 1.0)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self._device.type, _TYPES[self.precision])

    def _test(self) -> tuple[float, float]:
        """Mean loss and error in percent on all test images."""
        network = self.tested.eval()
        self.process.follow_first(network)
        sums = torch.zeros(3, dtype=torch.float64, device=self._device)
        with torch.inference_mode(), self._autocast():
            for images, labels in self.feed.testing():
                logits = network(images).float()
                wrong = (logits.argmax(1) != labels).sum()
                loss = self._loss(logits, images, labels) * len(labels)
                sums += torch.stack(
                    [loss.double(), wrong.double(), torch.full_like(loss, len(labels)).double()]
                )
        loss_sum, wrong_sum, count = self.process.summed(sums).tolist()
        return loss_sum / count, 100 * wrong_sum / count

    def _refuse_nan(self, losses: Tensor, first: int) -> None:
        bad = (~torch.isfinite(losses)).nonzero()
        if not len(bad):
            return
        step = first + int(bad[0])
        done = self.history[-1].step if self.history else 0
        good = f"the last good checkpoint is {self.folder.path / CHECKPOINT}, of step {done}"
        raise TrainingError(
            f"the loss is not a number at step {step + 1}, with a learning rate of {self._rate(step):g}; "
            f"{good if done else 'there is no checkpoint before'}: pass a smaller --learning-rate, or --set warmup=0.05"
        )

    def _checkpoint(self, record: EpochRecord) -> None:
        score = record.test_error if self.loss is None else record.test_loss
        best = score < self._best
        if best:
            self._best, self.best_step = score, record.step
        self.history.append(record)
        if self.process.writes:
            # before the checkpoint: where the process ends in between, the same files are written once more
            self.keeper.keep(self.tested, record, best=best)
            self.folder.write_history(self.history)
            self.folder.save(self._tensors(), self._progressed(record.step))
        self.progress.recorded(record)

    def _tensors(self) -> dict[str, Tensor]:
        found = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        if self._average is not None:
            found |= {f"average.{name}": tensor for name, tensor in self._average.state_dict().items()}
        return found | flatten_optimizer(self._optimizer)

    def _progressed(self, step: int) -> Progressed:
        state: Mapping[str, Any] = self._scaler.state_dict()
        return Progressed(
            step=step,
            best_step=self.best_step,
            best=self._best,
            slow=self._slow,
            scaler={name: float(value) for name, value in state.items()},
        )

    def _restored(self) -> int:
        found = self.folder.load()
        if found is None:
            self._slow = self.slow_start
            return 0
        tensors, progressed = found
        self.network.load_state_dict(_below("network.", tensors))
        if self._average is not None:
            self._average.load_state_dict(_below("average.", tensors))
        restore_optimizer(self._optimizer, tensors)
        if progressed.scaler:
            state = dict(progressed.scaler)
            whole = {name: int(state[name]) for name in ("growth_interval", "_growth_tracker")}
            self._scaler.load_state_dict({**state, **whole})
        self._slow, self.best_step, self._best = progressed.slow, progressed.best_step, progressed.best
        self.history = self.folder.history(progressed.step)
        return progressed.step


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer for the parameters that are trained."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    free = (
        [] if recipe.decay_norms_and_biases else [parameter for parameter in trained if parameter.ndim <= 1]
    )
    names = {id(parameter) for parameter in free}
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trained if id(parameter) not in names]},
        *([{"params": free, "weight_decay": 0.0}] if free else []),
    ]
    if recipe.optimizer == "adam":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        groups,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )


def _averaging(decay: float) -> Any:
    return get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
