"""Names that all stages of the graph agree on, and the ONNX version that they write.

A tensor is named after the node that makes it: ``layer3.22.conv2``, ``layer3.22.add``, ``layer3.22.relu``
(the block's output), ``conv1``, ``relu1``, ``maxpool``, ``avgpool``, ``flatten``. So the same name means the
same values in a calibration table, a lint message, a plot and an engine's layer list.
"""

from __future__ import annotations

INPUT = "input"
OUTPUT = "logits"

PIXELS = "pixels"
"""What the first convolution reads in graphs that ``graph.pixels`` has rewritten: (byte - 128) * PIXEL_STEP."""
PIXELS_PAD, PIXELS_MULTIPLY = f"{PIXELS}.pad", f"{PIXELS}.multiply"
"""Nodes that make it; ``pixels.scale`` is its quantizer's."""
PIXEL_STEP = 2.0**-6
"""Scale of its quantizer, of which every binary type holds all multiples."""

OPSET = 19
"""First opset whose QuantizeLinear takes FP16 scales; TensorRT 10.12, OpenVINO and ONNX Runtime all read it."""
IR_VERSION = 9
"""The IR version that came with opset 19."""

QUANTIZE_SUFFIX = ".quantize"
DEQUANTIZE_SUFFIX = ".dequantize"

METADATA_PREFIX = "rescompile."
"""Of the keys in ``ModelProto.metadata_props`` that are ours; the stages keep these and drop foreign ones."""
