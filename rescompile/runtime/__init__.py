"""Loads engines from their directory, checks them and runs them. Needs neither torch nor ONNX tools."""
