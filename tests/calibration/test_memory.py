"""Collections in a build leave alone what was there before it, and what is there after it is collected as ever."""

from __future__ import annotations

import gc
import weakref

import pytest

from calibration.memory import free_memory, pass_over_what_is_alive, quick_collections


class Knot:
    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def thawed() -> None:
    assert gc.get_freeze_count() == 0


def test_knots_of_the_body_are_freed_and_older_objects_only_after_it() -> None:
    older = Knot()
    seen = weakref.ref(older)
    with quick_collections():
        assert gc.get_freeze_count() > 0
        own = weakref.ref(Knot())
        del older
        free_memory()
        assert own() is None
        assert seen() is not None
    assert gc.get_freeze_count() == 0
    free_memory()
    assert seen() is None


def test_what_is_passed_over_later_is_freed_after_the_body_and_elsewhere_nothing_is_passed_over() -> None:
    with quick_collections():
        loaded = Knot()
        seen = weakref.ref(loaded)
        pass_over_what_is_alive()
        del loaded
        free_memory()
        assert seen() is not None
    pass_over_what_is_alive()
    assert gc.get_freeze_count() == 0
    free_memory()
    assert seen() is None


def test_objects_come_back_after_an_error_and_a_programs_own_freeze_stays() -> None:
    with pytest.raises(ValueError, match="wrong"), quick_collections():
        raise ValueError("wrong")
    assert gc.get_freeze_count() == 0
    gc.freeze()
    try:
        with quick_collections():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
