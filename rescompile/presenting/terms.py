"""The terms that pages use beyond the field's own, each with one sentence; docs/glossary.md says more."""

from __future__ import annotations

TERMS = {
    "agreement": "Share of the images for which the engine and the fp32 network name the same class. Where "
    "images have several labels, it is the share of labels given by both among those given by at least one of the two.",
    "relative RMS": "Error of the outputs: the RMS of their difference from fp32, divided by the RMS of the fp32 "
    "outputs. 0 means equal.",
    "largest error": "The largest difference of one output of one image from fp32, in the output's own unit. It grows "
    "with the number of images and of outputs; relative RMS is the figure to judge by.",
    "cosine": "Cosine of the angle between the engine's outputs and the fp32 outputs. 1 means the same direction.",
    "SQNR": "Signal-to-quantization-noise ratio of a tensor in dB. 20 dB is an error of a tenth of its RMS.",
    "fusion contract": "The rules that a quantized graph must follow so that an engine can fuse its quantizers into "
    "INT8 kernels.",
    "residual add": "The addition at the end of a residual block. Fused, it is part of a convolution's kernel.",
    "reformat": "A kernel that only converts an activation between INT8 and floating point.",
    "sensitivity": "How much the outputs change when one block alone is quantized to INT8.",
    "full range": "Zero is stored as -128 in a tensor that follows a ReLU or ReLU6, so that all 256 values of INT8 "
    "are used instead of 128.",
    "exact pixels": "The first quantizer has one step for each value of a byte, so that quantizing the image loses "
    "nothing.",
    "constant channels": "Extra channels, zero everywhere, with which convolutions pad full-range tensors exactly.",
    "zero sums": "Sums of weights that Triton kernels start from, so that they pad full-range tensors exactly.",
    "floor": "The shortest time in which this machine can do a block's arithmetic and memory traffic, at rates "
    "measured in the same run.",
    "cold start": "Time from the start of a process to its first answer, with no compiled engine in the cache.",
    "warm start": "Time from the start of a process to its first answer, with a compiled engine in the cache.",
}
