"""``python -m benchmarks.compiled_kernels``."""

from benchmarks.compiled_kernels.command import main

if __name__ == "__main__":  # the compiling processes import this module too
    main()
