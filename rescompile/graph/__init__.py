"""ONNX in, ONNX out: each module here is one stage, which knows no other; ``shared`` is what they share."""
