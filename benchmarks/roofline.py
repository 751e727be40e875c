"""Measures and prints the machine's limits (memory and arithmetic rates): ``python -m benchmarks.roofline``"""

from __future__ import annotations

import argparse

import msgspec

from rescompile.measuring.disturbance import Watch
from rescompile.measuring.roofline import Roofline, measure_roofline

__all__ = ["Roofline", "measure_roofline"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, help="cores to use (default: all of this process)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    asked = parser.parse_args()
    watch = Watch()
    found = measure_roofline(threads=asked.threads)
    if asked.json:
        print(msgspec.json.encode(found).decode())
        return
    print(f"memory   {found.memory_bytes_per_second / 1e9:8.1f} GB/s")
    print(
        f"cache    {found.cache_bytes_per_second / 1e9:8.1f} GB/s within {found.cache_bytes / 2**20:.0f} MiB"
    )
    print(f"fp32     {found.float_ops_per_second / 1e9:8.1f} Gop/s")
    print(f"int8     {found.int8_ops_per_second / 1e9:8.1f} Gop/s on {found.threads} cores")
    for note in watch.notes({}):
        print(f"note: {note}")


if __name__ == "__main__":
    main()
