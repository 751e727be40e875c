"""Every fused operation in plain PyTorch: it defines the kernel's result, and runs where no kernel can.

An operation has the same file, name, arguments and result as in ``ops``, which documents it. Arithmetic between
convolutions is fp32 (fp64 for fp64 tensors), and results are rounded where the kernels round them.
"""
