"""The Triton backend, whose engine is a plan of fused kernel launches, compiled ahead of time for one kind of GPU.

    model.onnx ── lowering ──> steps ── planning ──> plan.json, *.cubin
                          └──> weights.safetensors

A step is a fused operation, such as convolution + bias + residual + ReLU + requantization. A launch is one kernel on
planned memory. ``runner`` executes the launches on a GPU, ``reference`` the steps in plain PyTorch.
"""
