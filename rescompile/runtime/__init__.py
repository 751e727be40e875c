"""Engines in memory: loaded from their directory, checked, and answering. Needs neither torch nor ONNX tools."""
