"""``python -m fused_kernels.tune``."""

from fused_kernels.tune.command import main

if __name__ == "__main__":
    main()
