"""One table for each pass: bytes by block for eager, torch.compile, the fused operators and the floor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.traffic import compiled, eager, floors, ours
from benchmarks.traffic.footprint import Bytes
from benchmarks.traffic.shapes import NetworkShape


@dataclass(frozen=True)
class Row:
    """Bytes of one part of the network, each by kind of work."""

    name: str
    eager: Bytes
    compiled: Bytes
    ours: Bytes
    floor: Bytes

    @property
    def totals(self) -> tuple[int, int, int, int]:
        """eager, compiled, ours, floor."""
        return self.eager.total(), self.compiled.total(), self.ours.total(), self.floor.total()

    @property
    def ratio(self) -> float:
        """ours / floor."""
        return self.ours.total() / self.floor.total()

    def to_json(self) -> dict[str, Any]:
        """Everything in plain types, bytes."""
        columns = {"eager": self.eager, "compiled": self.compiled, "ours": self.ours, "floor": self.floor}
        totals = {name: column.total() for name, column in columns.items()}
        kinds = {"ours_by_kind": dict(self.ours), "floor_by_kind": dict(self.floor)}
        return {"name": self.name, **totals, "ratio": round(self.ratio, 4), **kinds}


@dataclass(frozen=True)
class Table:
    """A training step or an inference pass of one network."""

    network: NetworkShape
    batch: int
    dtype: torch.dtype
    training: bool
    rows: tuple[Row, ...]

    @property
    def total(self) -> Row:
        """The whole network."""
        return added("total", self.rows)

    @property
    def blocks(self) -> Row:
        """All residual blocks together."""
        return added("blocks", (row for row in self.rows if row.name.startswith("layer")))

    def row(self, name: str) -> Row:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)

    @property
    def title(self) -> str:
        """Such as ``resnet50, training step, batch 256, bfloat16``."""
        what = "training step" if self.training else "inference"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.network.name}, {what}, batch {self.batch}, {dtype}"

    def to_json(self) -> dict[str, Any]:
        """Everything in plain types, bytes."""
        head = {
            "model": self.network.name,
            "image": self.network.stem.h,
            "batch": self.batch,
            "dtype": str(self.dtype).removeprefix("torch."),
            "pass": "training" if self.training else "inference",
        }
        return {**head, "total": self.total.to_json(), "rows": [row.to_json() for row in self.rows]}


def added(name: str, rows: Iterable[Row]) -> Row:
    """The sum of rows."""
    rows = tuple(rows)
    columns = ([getattr(row, column) for row in rows] for column in ("eager", "compiled", "ours", "floor"))
    return Row(name, *(sum(column, Bytes()) for column in columns))


def training(network: NetworkShape, n: int, dtype: torch.dtype) -> Table:
    """Forward, backward and SGD with momentum, from images to logits and back from the logits' gradient."""
    blocks = network.blocks
    before, after = (None, *blocks[:-1]), (*blocks[1:], None)
    fused = [part for stage in ours.operators(network) for part in ours.stage_training(stage, n, dtype)]
    rows = []
    for block, previous, following, counted in zip(blocks, before, after, fused, strict=True):
        floor = floors.block_training(block, previous, n, dtype)
        if following is None:
            floor += floors.entry(block, n, dtype)
        inductor = compiled.block_training(block, following, n, dtype)
        rows.append(Row(block.name, eager.block(block, n, dtype, training=True), inductor, counted, floor))
    stem = Row(
        "stem",
        eager.stem(network, n, dtype, training=True),
        compiled.stem_training(network, n, dtype),
        ours.stem_training(network, n, dtype),
        floors.stem_training(network, n, dtype),
    )
    classifier = eager.head(
        network, n, dtype, training=True
    )  # the fused network's head trains in plain PyTorch
    inductor = compiled.head_training(network, n, dtype)
    head = Row("head", classifier, inductor, classifier, floors.head_training(network, n, dtype))
    sgd = Bytes({"update": floors.UPDATE * network.parameters})
    update = Row("update", sgd, sgd, sgd, floors.update(network, dtype))
    return Table(network, n, dtype, True, (stem, *rows, head, update))


def inference(network: NetworkShape, n: int, dtype: torch.dtype) -> Table:
    """Images to logits in evaluation mode; weights are folded and in ``dtype`` before it begins."""
    fused = [part for stage in ours.operators(network) for part in ours.stage_inference(stage, n, dtype)]
    rows = [
        Row(
            block.name,
            eager.block(block, n, dtype, training=False),
            compiled.block_inference(block, n, dtype),
            counted,
            floors.block_inference(block, n, dtype),
        )
        for block, counted in zip(network.blocks, fused, strict=True)
    ]
    stem = Row(
        "stem",
        eager.stem(network, n, dtype, training=False),
        compiled.stem_inference(network, n, dtype),
        ours.stem_forward(network, n, dtype),
        floors.stem_inference(network, n, dtype),
    )
    head = Row(
        "head",
        eager.head(network, n, dtype, training=False),
        compiled.head_inference(network, n, dtype),
        ours.head_forward(network, n, dtype),
        floors.head_inference(network, n, dtype),
    )
    return Table(network, n, dtype, False, (stem, *rows, head))
