"""Report on every kernel with every tile, compiled for every target without a GPU.

catalogue   every operation on tensors without values; ``operands`` makes those
units       each distinct compilation of the catalogue's launches
compiled    the compilations, and what their machine code shows (``sass``)
expected    what a good kernel looks like on each target
report      one row per compilation and its verdict
command     ``python -m benchmarks.compiled_kernels``
matrix      reports of several targets and Triton releases as docs/kernels-compiled.md
"""
