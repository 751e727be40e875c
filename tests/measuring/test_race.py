"""Races take turns, check answers and end in time."""

from __future__ import annotations

import gc

import pytest

from rescompile.measuring.race import FEWEST_ROUNDS, MOST_ROUNDS, TURN_SECONDS, Contender, race


class Clock:
    """Moves on only when a scripted call says so."""

    def __init__(self) -> None:
        self.now, self.order = 0.0, ""

    def __call__(self) -> float:
        return self.now

    def contender(self, name: str, seconds: float) -> Contender:
        def call() -> str:
            self.now += seconds
            self.order += name
            return name

        def check(answer: object) -> None:
            assert answer == name

        return Contender(call, check)


def test_contenders_take_turns() -> None:
    clock = Clock()
    slow = TURN_SECONDS * 2
    race({name: clock.contender(name, slow) for name in "AB"}, seconds=0.0, clock=clock)
    timed = clock.order[-2 * FEWEST_ROUNDS :]
    assert all(set(timed[i : i + 2]) == {"A", "B"} for i in range(0, len(timed), 2))


def test_no_contender_always_follows_the_same_one() -> None:
    clock = Clock()
    contenders = {name: clock.contender(name, TURN_SECONDS * 2) for name in "ABC"}
    race(contenders, seconds=12.0, clock=clock, rest=lambda seconds: None)
    timed = clock.order[-3 * FEWEST_ROUNDS * 2 :]
    followers = {timed[i : i + 2] for i in range(len(timed) - 1)}
    assert followers >= {"AB", "AC", "BA", "BC", "CA", "CB"}


def test_the_rest_before_each_turn_is_not_timed() -> None:
    clock = Clock()

    def rest(seconds: float) -> None:
        clock.now += 100 * seconds
        clock.order += "."

    found = race(
        {name: clock.contender(name, TURN_SECONDS) for name in "AB"}, seconds=0.0, clock=clock, rest=rest
    )
    assert set(clock.order[-4 * FEWEST_ROUNDS :: 2]) == {"."}
    assert found["A"].p50 == found["B"].p50 == pytest.approx(1e3 * TURN_SECONDS)


def test_a_fast_contender_runs_often_in_its_turn() -> None:
    clock = Clock()
    found = race({"A": clock.contender("A", TURN_SECONDS / 10)}, seconds=0.0, clock=clock)
    assert found["A"].runs == 10 * FEWEST_ROUNDS
    assert found["A"].p50 == pytest.approx(TURN_SECONDS * 100)


def test_a_race_ends_with_its_time_and_never_lasts_for_ever() -> None:
    clock = Clock()
    slow = TURN_SECONDS * 2
    timed = race({"A": clock.contender("A", slow)}, seconds=8.5 * slow, clock=clock)
    assert len(timed["A"].rounds) == 9
    endless = race({"A": clock.contender("A", slow)}, seconds=1e9, clock=clock, rest=lambda seconds: None)
    assert len(endless["A"].rounds) == MOST_ROUNDS


def wrong(answer: object) -> None:
    raise ValueError(f"{answer} is wrong")


def test_a_wrong_answer_is_found_before_anything_is_timed() -> None:
    clock = Clock()
    contenders = {"A": clock.contender("A", 1.0), "B": Contender(lambda: 7, wrong)}
    with pytest.raises(ValueError, match="7 is wrong"):
        race(contenders, seconds=1.0, clock=clock)
    assert "AAAAA" not in clock.order, "only the warm-up has run"


def test_an_answer_that_turns_wrong_during_the_race_is_found() -> None:
    clock = Clock()
    good = clock.contender("A", TURN_SECONDS)

    def check(answer: object) -> None:
        if clock.order.count("A") > FEWEST_ROUNDS:
            wrong(answer)

    with pytest.raises(ValueError, match="A is wrong"):
        race({"A": Contender(good.call, check)}, seconds=0.0, clock=clock)


def test_the_collector_rests_during_a_race_and_comes_back() -> None:
    seen = []
    clock = Clock()
    inner = clock.contender("A", TURN_SECONDS)

    def call() -> object:
        seen.append(gc.isenabled())
        return inner.call()

    race({"A": Contender(call, inner.check)}, seconds=0.0, clock=clock)
    assert not any(seen[-FEWEST_ROUNDS:])
    assert gc.isenabled()
    gc.disable()
    try:
        race({"A": clock.contender("A", TURN_SECONDS)}, seconds=0.0, clock=clock)
        assert not gc.isenabled(), "what a caller has switched off stays off"
    finally:
        gc.enable()
