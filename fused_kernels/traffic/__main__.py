"""``python -m fused_kernels.traffic``."""

from fused_kernels.traffic.command import main

main()
