"""A process that compiles variants: ``python -m fused_kernels.compiling.worker NICENESS``.

It reads pickled (variant, capability) pairs from stdin and answers each with a pickled ``Code`` on stdout, as a plain
tuple. It is a process of its own because Triton's compiler holds the interpreter lock and may crash, and because
kernels that were imported for Triton's interpreter cannot be compiled.
"""

from __future__ import annotations

import os
import pickle
import sys


def main() -> None:
    """Answer until stdin ends."""
    os.environ["TRITON_INTERPRET"] = "0"  # before any kernel is imported
    os.nice(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # so that nothing the compiler prints comes between answers
    from fused_kernels.compiling.compiler import compile_variant

    while True:
        try:
            variant, capability = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(tuple(compile_variant(variant, capability)), answers)
        answers.flush()


if __name__ == "__main__":
    main()
