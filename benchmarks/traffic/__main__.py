"""``python -m benchmarks.traffic``."""

from benchmarks.traffic.command import main

main()
