"""Every fused operation in plain PyTorch: the definition of what the kernels compute, and what runs where they cannot.

Files, names, arguments and results are those of ``ops``. Arithmetic between convolutions is fp32 (fp64 for fp64
tensors), and results are rounded to the activation's dtype where the kernels round them.
"""
