"""Progress through nested phases only ever goes forward, and ends at one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rescompile.backends.tensorrt.callbacks import Phases, joined_messages, make_monitor
from tests.backends.tensorrt.fake_trt import FakeTrt


def test_a_nested_phase_is_a_part_of_the_next_step() -> None:
    phases = Phases()
    phases.start("outer", 2)
    phases.complete("outer", 0)
    phases.start("inner", 4)
    phases.complete("inner", 1)
    assert phases.fraction() == (1 + 2 / 4) / 2
    phases.finish("inner")
    assert phases.fraction() == 1 / 2


def test_finishing_a_phase_closes_what_is_open_inside() -> None:
    phases = Phases()
    phases.start("outer", 1)
    phases.start("inner", 1)
    phases.finish("outer")
    assert phases.fraction() == 1.0


def test_unknown_phases_and_no_steps_do_no_harm() -> None:
    phases = Phases()
    assert phases.fraction() == 0.0
    phases.complete("never started", 3)
    phases.start("empty", 0)
    phases.complete("empty", 7)
    assert phases.fraction() == 1.0


@given(st.lists(st.tuples(st.sampled_from("sxf"), st.sampled_from("abc"), st.integers(0, 5)), max_size=60))
def test_whatever_the_builder_calls_progress_never_goes_back(events: list[tuple[str, str, int]]) -> None:
    seen: list[int] = []
    monitor = make_monitor(FakeTrt(), lambda done, total: seen.append(done))
    for kind, name, number in events:
        if kind == "s":
            monitor.phase_start(name, None, number)
        elif kind == "x":
            assert monitor.step_complete(name, number)
        else:
            monitor.phase_finish(name)
    assert seen == sorted(set(seen))
    assert all(0 <= done <= 1000 for done in seen)


def test_without_a_listener_nothing_is_reported() -> None:
    monitor = make_monitor(FakeTrt(), None)
    monitor.phase_start("build", None, 1)
    assert monitor.step_complete("build", 0)
    monitor.raise_pending()


def test_messages_are_joined_on_one_line_and_once() -> None:
    assert joined_messages(["a\n b", "a b", "c"]) == "a b; c"
    assert joined_messages([]) == "it gave no reason"
