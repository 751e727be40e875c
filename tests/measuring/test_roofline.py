"""Rates of the machine, and floors computed from them."""

from __future__ import annotations

from pathlib import Path

from rescompile.measuring.roofline import Roofline, last_level_cache, measure_roofline

ROOF = Roofline(
    memory_bytes_per_second=1e9, cache_bytes_per_second=4e9, cache_bytes=1000,
    float_ops_per_second=1e9, int8_ops_per_second=2e9, threads=1,
)  # fmt: skip


def test_a_floor_is_the_longer_of_arithmetic_and_memory() -> None:
    assert ROOF.arithmetic_ms(1e6, 2e6) == 2.0
    assert ROOF.floor_ms(1e6, 2e6, 1e6) == 2.0
    assert ROOF.floor_ms(1e6, 2e6, 5e6) == 5.0


def test_what_fits_into_half_of_the_cache_comes_from_it() -> None:
    assert ROOF.bandwidth(499) == 4e9
    assert ROOF.bandwidth(500) == 1e9


def test_the_largest_cache_counts(tmp_path: Path) -> None:
    for index, size in enumerate(("32K", "1M", "32768K", "strange")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}/size").write_text(size + "\n")
    assert last_level_cache(tmp_path) == 32 * 2**20
    assert last_level_cache(tmp_path / "none") == 8 * 2**20


def test_this_machine_has_rates() -> None:
    found = measure_roofline(threads=1, quick=True)
    assert found.threads == 1
    assert min(found.memory_bytes_per_second, found.cache_bytes_per_second) > 1e7
    assert min(found.float_ops_per_second, found.int8_ops_per_second) > 1e7
