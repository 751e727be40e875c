#!/bin/sh
# Compiles every fused kernel with the newest Triton release, without a GPU. The tests compile with the pinned release;
# this tells ahead of time what the next one refuses, spills or multiplies without tensor cores.
#
#   scripts/compile-with-newest-triton.sh [options of python -m fused_kernels.aot]
#
# Without options: every target, every kernel, every candidate tile. Run it where the project is installed: the release
# is laid over that environment's Triton for this one command, and changes nothing in it. PYTHON chooses the
# interpreter, TRITON_REQUIREMENT another release, such as "triton==3.8.0".
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
overlay=$(mktemp -d)
trap 'rm -rf "$overlay"' EXIT
trap 'exit 1' INT TERM

"$python" -m pip install --quiet --no-deps --target "$overlay/packages" "${TRITON_REQUIREMENT:-triton}"

if [ $# -eq 0 ]; then
    set -- --target sm_80 --target sm_86 --target sm_89 --target sm_90 --target sm_100 --target sm_120
fi
# in a cache of its own, so that nothing that another release compiled is taken for this one's
TRITON_CACHE_DIR=$overlay/cache PYTHONPATH=$overlay/packages:$root TRITON_INTERPRET=0 \
    "$python" -m fused_kernels.aot "$@"
