"""Engines for inference servers: model repositories of NVIDIA Triton Inference Server and OpenVINO Model Server."""
