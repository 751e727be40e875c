"""The Triton engine: a plan of fused kernel launches, compiled ahead of time, which needs the CUDA driver alone.

    model.onnx ── lower ──> steps ── chains ──> steps ── record ──> launches ── memory ──> plan.json
                            weights.safetensors                      └── compile ──> *.cubin

A step is a fused operation (convolution + bias + residual + ReLU + requantization, say), a launch one kernel on
memory that is planned. The steps can be executed by plain PyTorch, the launches by Triton's interpreter and by a GPU.
"""
