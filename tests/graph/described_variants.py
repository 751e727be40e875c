"""The variants as our graphs, and a table of what is found in them.

``variants.txt`` has for each network its blocks, how many residual additions can run inside of a convolution, and the
operations that stay in floating point with the reason. To write it anew: ``python -m tests.graph.described_variants``;
read the difference before committing it.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.preprocess import Color
from rescompile.building.deployable import floating_operations
from rescompile.building.opening import open_source
from rescompile.building.quantize import grouped_nodes
from rescompile.building.source import Source
from rescompile.config import ModelConfig, PreprocessOptions
from rescompile.graph.lint import fusable_adds
from rescompile.graph.quantize import quantize
from rescompile.graph.shared.topology import block_outputs, quantized_tensors, reading_all_of_int8
from rescompile.progress import Silent
from tests.graph.conftest import run
from tests.graph.variants import VARIANTS, shape, variant

TABLE = Path(__file__).with_name("variants.txt")


def images(name: str, count: int = 3) -> NDArray[np.float32]:
    """Random images [N, C, H, W]."""
    return np.random.default_rng(5).standard_normal((count, *shape(name)), dtype=np.float32)


@cache
def opened(name: str, folder: Path) -> Source:
    """The variant as the source stage reads its file."""
    path, (channels, *_) = folder / f"{name}.onnx", shape(name)
    onnx.save(variant(name)[1], path)
    color: Color | None = "RGBA" if channels == 4 else None
    own = PreprocessOptions(mean=(0.5,) * channels, std=(0.5,) * channels, color=color)
    return open_source(ModelConfig(onnx=path, preprocess=own), Silent())


@cache
def quantized(name: str, folder: Path) -> onnx.ModelProto:
    """Its INT8 graph, with scales of the largest values of ``images``."""
    graph = opened(name, folder).graph
    tensors = quantized_tensors(graph)
    seen = run(graph, images(name), tensors)
    scales = {tensor: float(np.abs(seen[tensor]).max()) / 127 for tensor in tensors}
    signed = reading_all_of_int8(graph, ())
    return quantize(graph, scales, narrow=[node for node in grouped_nodes(graph) if node in signed])


def described(name: str, folder: Path) -> str:
    """The table's entry for the variant."""
    source, graph = opened(name, folder), quantized(name, folder)
    lines = [
        name,
        f"    blocks: {' '.join(block_outputs(source.graph))}",
        f"    fused: {fusable_adds(graph)} of {source.residual_adds}",
        *(f"    {entry.reason}: {' '.join(entry.nodes)}" for entry in floating_operations(graph)),
    ]
    return "\n".join(lines) + "\n"


def stored() -> dict[str, str]:
    """The table by variant."""
    parts = TABLE.read_text().split("\n\n")
    return {part.split("\n")[0]: part.rstrip("\n") + "\n" for part in parts}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        TABLE.write_text("\n".join(described(name, Path(folder)) for name in VARIANTS))
