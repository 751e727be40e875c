"""The parts of ``benchmarks/gpu_kernels.py``; they need torch, NumPy and, on a GPU, Triton, and nothing else."""
