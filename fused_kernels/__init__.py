"""Fused Triton kernels for ResNets: convolution, batch norm, ReLU and residual add in few passes over memory."""
