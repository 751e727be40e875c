"""Options of running an engine are refused where they mean nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rescompile.backends.base import RunOptions
from rescompile.errors import UsageError


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"threads": -1}, "-1 threads compute nothing; pass 1 or more, or None"),
        ({"threads": 1.5}, "threads=1.5 is not a whole number; pass one, or None"),
        ({"threads": True}, "threads=True is not a whole number; pass one, or None"),
        ({"streams": 0}, "0 streams can answer nothing; pass 1 or more"),
        ({"streams": "2"}, "streams='2' is not a whole number; pass one, or None"),
        ({"batch": 2.0}, "batch=2.0 is not a whole number; pass one, or None"),
        ({"batch": -1}, "a batch of -1 images has no answer; pass 1 or more"),
        ({"hint": "fast"}, "the hint 'fast' is unknown; choose latency or throughput"),
        ({"check_finite": "no"}, "check_finite='no' is neither True nor False; pass one of them"),
        ({"cache": 0}, "cache=0 is not a path; pass the folder for compiled engines, or None"),
    ],
)
def test_what_means_nothing_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        RunOptions(**options)
    assert str(caught.value) == sentence


def test_paths_may_be_texts_and_numbers_numpy_s() -> None:
    assert RunOptions(cache="engines").cache_folder == RunOptions(cache=Path("engines")).cache_folder
    assert RunOptions().cache_folder is None
    assert type(RunOptions(threads=np.int64(2)).threads) is int
