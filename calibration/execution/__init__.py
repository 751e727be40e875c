"""ONNX operations on PyTorch tensors: each takes the node's attributes, then its inputs, None where one is left out.

They follow ONNX Runtime, which the tests compare them with, in whatever a residual network uses of an operator. A use
that is not covered raises ``Unsupported``.
"""
