"""``python -m fused_kernels.aot``."""

from fused_kernels.aot.command import main

if __name__ == "__main__":  # the compiling processes import this module too
    main()
