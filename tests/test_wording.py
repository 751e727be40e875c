from __future__ import annotations

import pytest

from rescompile.wording import counted, duration, percent, plain, points, size


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(1.0, "100 %"), (0.97333, "97.333 %"), (0.96, "96 %"), (0.0, "0 %"), (-1e-9, "0 %")],
)
def test_percent(fraction: float, text: str) -> None:
    assert percent(fraction) == text


@pytest.mark.parametrize(("value", "text"), [(0.2, "0.2 points"), (1.0, "1 point"), (-0.66, "-0.66 points")])
def test_points(value: float, text: str) -> None:
    assert points(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.00 s"), (9.99, "9.99 s"), (9.999, "10.0 s"), (99.96, "1 min 40 s"), (185, "3 min 05 s")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 MB"),
        (77_331, "77.3 kB"),
        (999_400, "999 kB"),
        (999_600, "1.0 MB"),
        (9_949_999, "9.9 MB"),
        (9_950_000, "10 MB"),
        (640_000_000, "640 MB"),
        (1_250_000_000, "1.25 GB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text


def test_plain_makes_control_characters_visible_and_leaves_letters_alone() -> None:
    assert plain("Größe 漢 a\nb\x1b[0m") == "Größe 漢 a\\x0ab\\x1b[0m"


@pytest.mark.parametrize(("count", "text"), [(0, "0 images"), (1, "1 image"), (300, "300 images")])
def test_counted(count: int, text: str) -> None:
    assert counted(count, "image") == text
