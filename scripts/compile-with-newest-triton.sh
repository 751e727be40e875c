#!/bin/sh
# Compiles every fused kernel with every candidate tile for every target, without a GPU, with the installed Triton
# release and with the newest one, and prints one table of it all. The tests compile with the installed release; this
# tells ahead of time what the next one refuses, spills or multiplies without tensor cores.
#
#   scripts/compile-with-newest-triton.sh [REPORTS [PAGE]]
#
# REPORTS is a folder for one report for each release and target (by default a temporary one); a report that is there
# already is not made again, so an interrupted run goes on. PAGE is where to write the page docs/kernels-compiled.md.
# It takes about nine minutes of one core for each report. The newest release is laid over the environment for its own
# runs and changes nothing in it. PYTHON chooses the interpreter, TRITON_REQUIREMENT another release, such as
# "triton==3.8.0", TARGETS some targets, JOBS how many processes compile (default: one a core).
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
trap 'exit 1' INT TERM
reports=${1:-$temporary/reports}
mkdir -p "$reports"

"$python" -m pip install --quiet --no-deps --target "$temporary/packages" "${TRITON_REQUIREMENT:-triton}"

for target in ${TARGETS:-sm_80 sm_86 sm_89 sm_90 sm_100 sm_120}; do
    for release in installed newest; do
        report=$reports/$release-$target.json
        [ -s "$report" ] && continue
        packages=
        [ "$release" = newest ] && packages=$temporary/packages:
        # in a cache of its own, so that nothing that another release compiled is taken for this one's; the command
        # fails where a kernel is wrong, which the table below repeats
        TRITON_CACHE_DIR=$temporary/cache PYTHONPATH=$packages$root TRITON_INTERPRET=0 \
            "$python" -m benchmarks.compiled_kernels --target "$target" ${JOBS:+--jobs "$JOBS"} --json "$report" |
            tail -n 2 || true
        rm -rf "$temporary/cache"
    done
done
PYTHONPATH=$root "$python" -m benchmarks.compiled_kernels.matrix "$reports"/*.json ${2:+--output "$2"}
