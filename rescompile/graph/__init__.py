"""ONNX in, ONNX out: every stage of the graph is one module, and no stage knows another."""
