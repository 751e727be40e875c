"""Names that all stages of the graph agree on, and the ONNX version that they write.

A tensor has the name of the node that makes it: ``layer3.22.conv2``, ``layer3.22.add``, ``layer3.22.relu``
(the block's output), ``conv1``, ``relu1``, ``maxpool``, ``avgpool``, ``flatten``. So one name means the same values
in a calibration table, a lint message, a plot and an engine's layer list.
"""

from __future__ import annotations

INPUT = "input"
OUTPUT = "logits"

PIXELS = "pixels"
"""The input of the first convolution in graphs that ``graph.pixels`` has rewritten: (byte - 128) * PIXEL_STEP."""
PIXELS_PAD, PIXELS_MULTIPLY = f"{PIXELS}.pad", f"{PIXELS}.multiply"
"""The nodes in front of the Add that makes ``pixels``."""
PIXEL_STEP = 2.0**-6
"""Scale of the quantizer of ``pixels``; a power of two, so every float type holds its multiples exactly."""

OPSET = 19
"""First opset whose QuantizeLinear takes FP16 scales; TensorRT 10.12, OpenVINO and ONNX Runtime all read it."""
IR_VERSION = 9
"""The IR version that came with opset 19."""

SHAPES = "shape."
"""Prefix of the names of nodes that compute sizes, outside of all blocks."""

QUANTIZE_SUFFIX = ".quantize"
DEQUANTIZE_SUFFIX = ".dequantize"

METADATA_PREFIX = "rescompile."
"""Prefix of our keys in ``ModelProto.metadata_props``; the stages keep these entries and drop all others."""
