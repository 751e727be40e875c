#!/bin/sh
# Compiles the fused kernels for every target, without a GPU, with the installed Triton release and with the newest one,
# and prints one table of it all. For sm_90, for which tiles are chosen: every kernel in every form with its default tile,
# and one call for each prologue and epilogue with every candidate; for other targets that call with its default tile.
# The tests compile with the installed release; this tells ahead of time what the next one refuses, spills or multiplies
# without tensor cores.
#
#   scripts/compile-with-newest-triton.sh [REPORTS [PAGE]]
#
# REPORTS is a folder for one report for each release and target (by default a temporary one); a report that is there
# already is not made again, so an interrupted run goes on, within a report too. PAGE is where to write the page docs/kernels-compiled.md.
# It takes about six minutes of one core for each report on sm_90, and one for each other. The newest release is laid over
# the environment for its own runs and changes nothing in it. PYTHON chooses the interpreter, TRITON_REQUIREMENT another release, such as
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

for target in ${TARGETS:-sm_90 sm_80 sm_86 sm_89 sm_100 sm_120}; do
    for release in installed newest; do
        report=$reports/$release-$target.json
        [ -s "$report" ] && continue
        packages=
        [ "$release" = newest ] && packages=$temporary/packages:
        configs=few
        [ "$target" = sm_90 ] && configs=sample
        # in a cache of its own, so that nothing that another release compiled is taken for this one's, kept until the
        # report is whole; the command fails where a kernel is wrong, which the table below repeats
        cache=$reports/cache-$release-$target
        TRITON_CACHE_DIR=$cache PYTHONPATH=$packages$root TRITON_INTERPRET=0 \
            "$python" -m benchmarks.compiled_kernels --target "$target" --configs "$configs" ${JOBS:+--jobs "$JOBS"} --json "$report" |
            tail -n 2 || true
        rm -rf "$cache"
    done
done
PYTHONPATH=$root "$python" -m benchmarks.compiled_kernels.matrix "$reports"/*.json ${2:+--output "$2"}
