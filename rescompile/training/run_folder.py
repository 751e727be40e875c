"""The folder of one training: its settings, history, checkpoint and weights, each written at once or not at all.

run.json                 what was asked, which --resume compares
history.jsonl            one line for each checkpoint
checkpoint.safetensors   all that the next step needs
last.safetensors, best.safetensors   weights with their preprocessing, for rescompile build
report.html, curves.png  the curves
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rescompile.errors import OutputError, TrainingError
from rescompile.files import atomic_write, writing
from rescompile.training_report import EpochRecord

RUN, HISTORY, CHECKPOINT = "run.json", "history.jsonl", "checkpoint.safetensors"
LAST, BEST = "last.safetensors", "best.safetensors"
_STATE = "rescompile.state"
_RESTART = "repeat the options of that run, or choose another --output"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings that decide the final weights of a run."""

    model: str
    shortcut: str
    classes: int
    data: str
    data_sha256: str
    recipe: dict[str, object]
    seed: int
    precision: str
    fused: bool
    sync_bn: bool
    weights_sha256: str | None
    kind: str = "train"


class Progressed(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of a checkpoint, beside its tensors."""

    step: int
    best_step: int
    best: float
    slow: bool
    """Whether the learning rate still is that of a slow start."""
    scaler: dict[str, float] = {}


@dataclass(frozen=True)
class RunFolder:
    """The files of one training."""

    path: Path
    locks: list[int] = field(default_factory=list, repr=False, compare=False)

    def open(self, settings: Settings, *, resume: bool) -> None:
        """Make the folder, or find in it the run that ``settings`` describe.

        Raises:
            OutputError: it holds something, and ``resume`` was not asked; or it cannot be written.
            TrainingError: it holds another run.
        """
        run = self.path / RUN
        if resume and run.is_file():
            self._compare(settings)
            self._lock()
            return
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            if resume:
                raise TrainingError(f"{self.path} holds no training to resume (no {RUN}): leave --resume out")
            raise OutputError(f"{self.path} is not empty: pass --resume to go on, or another --output")
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        atomic_write(run, msgspec.json.format(msgspec.json.encode(settings), indent=2))
        self._lock()

    def _lock(self) -> None:
        """Keep other processes out until this one ends."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise TrainingError(
                f"another process is training in {self.path}: wait for it, or choose another --output"
            ) from None
        self.locks.append(handle)

    def close(self) -> None:
        """Let other processes in."""
        while self.locks:
            os.close(self.locks.pop())

    def _compare(self, settings: Settings) -> None:
        try:
            before = json.loads((self.path / RUN).read_bytes())
        except (OSError, ValueError):
            raise TrainingError(f"{self.path / RUN} is damaged: choose another --output") from None
        now = json.loads(msgspec.json.encode(settings))
        old, new = ({**fields, **fields["recipe"]} for fields in (before, now))
        for name, value in new.items():
            if name not in ("recipe", "about") and old.get(name) != value:
                raise TrainingError(
                    f"{self.path} was begun with {name} {old.get(name)}, and this command asks for {value}: {_RESTART}"
                )

    def save(self, tensors: Mapping[str, Tensor], progressed: Progressed) -> None:
        """Write the checkpoint."""
        self.write_tensors(CHECKPOINT, tensors, {_STATE: msgspec.json.encode(progressed).decode()})

    def load(self) -> tuple[dict[str, Tensor], Progressed] | None:
        """The checkpoint; None before the first.

        Raises:
            TrainingError: it is damaged.
        """
        path = self.path / CHECKPOINT
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                progressed = msgspec.json.decode((file.metadata() or {})[_STATE], type=Progressed)
                return {name: file.get_tensor(name) for name in file.keys()}, progressed  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, msgspec.DecodeError):
            raise TrainingError(
                f"{path} is damaged: remove it to begin again, or choose another --output"
            ) from None

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
        """Write a .safetensors file.

        Raises:
            OutputError: the disk is full, or the folder may not be written.
        """
        held = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
        atomic_write(self.path / name, save(held, metadata))

    def history(self, until: int) -> list[EpochRecord]:
        """The lines up to step ``until``; later ones were written by a process that ended before its checkpoint."""
        path = self.path / HISTORY
        lines = path.read_bytes().splitlines() if path.is_file() else []
        found = []
        for line in lines:
            try:
                found.append(msgspec.json.decode(line, type=EpochRecord))
            except msgspec.DecodeError:
                break
        return [record for record in found if record.step <= until]

    def write_history(self, records: Sequence[EpochRecord]) -> None:
        """Replace the history."""
        atomic_write(self.path / HISTORY, b"".join(msgspec.json.encode(record) + b"\n" for record in records))


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors by parameter number and name."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{number}.{name}": torch.as_tensor(value)
        for number, values in state.items()
        for name, value in values.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Undo ``flatten_optimizer``."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".", 2)
            state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
