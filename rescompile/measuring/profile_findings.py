"""Findings of a profile as sentences: blocks bound by memory, time of reformats, why INT8 gains little."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rescompile.measuring.profile_report import BlockProfile, EngineProfile
from rescompile.measuring.roofline import Roofline

SMALL_GAIN = 1.3
"""An INT8 block that is less than this times faster than its floating-point counterpart is named."""
LARGE_SHARE = 0.05
"""Smaller shares of the whole time are not reported."""
FAR_FROM_FLOOR = 3.0
_MOST_NAMED = 5
_EXPECTED_RATE = 3.0
"""Least ratio of INT8 to FP32 rate on a CPU with VNNI or AMX."""


def findings(engines: Sequence[EngineProfile], rates: Roofline) -> Iterator[str]:
    """One sentence for each finding: engine by engine, then INT8 against FP32, else FP16."""
    for engine in engines:
        yield from _one_engine(engine)
    integer = next((engine for engine in engines if engine.engine.precision == "int8"), None)
    floating = next((e for wanted in ("fp32", "fp16") for e in engines if e.engine.precision == wanted), None)
    if integer is not None and floating is not None:
        yield from _int8_gain(integer, floating, rates)


def _one_engine(engine: EngineProfile) -> Iterator[str]:
    name, total = engine.engine.precision, engine.layers_ms
    if not total:
        return
    memory = [block for block in engine.blocks if block.bound == "memory"]
    if memory:
        share = sum(block.ms for block in memory) / total
        yield f"{name}: memory-bound blocks take {100 * share:.0f} % of the time: {_named(memory)}"
    reformats = [layer for layer in engine.layers if layer.kind == "reformat"]
    spent = sum(layer.ms for layer in reformats)
    if spent > LARGE_SHARE * total:
        worst = ", ".join(layer.name for layer in sorted(reformats, key=lambda one: -one.ms)[:3])
        yield (
            f"{name}: {len(reformats)} reformats (layout or type changed, nothing computed) take "
            f"{100 * spent / total:.0f} % of the time; the longest: {worst}"
        )
    between = 1 - total / engine.wall.p50
    if between > LARGE_SHARE:
        launches = sum(block.launches for block in engine.blocks)
        yield (
            f"{name}: {100 * between:.0f} % of the call is spent outside of its {launches} launches; a larger batch "
            "spreads that over more images"
        )
    far = [
        b
        for b in engine.blocks
        if b.floor_ms and b.ms > FAR_FROM_FLOOR * b.floor_ms and b.ms > LARGE_SHARE * total
    ]
    if far:
        yield f"{name}: blocks at {FAR_FROM_FLOOR:g} x their floor or more: {_named(far)}"


def _int8_gain(integer: EngineProfile, floating: EngineProfile, rates: Roofline) -> Iterator[str]:
    other = floating.engine.precision
    gain = floating.wall.p50 / integer.wall.p50
    yield f"INT8 is {gain:.2f} x as fast as {other} as a whole"
    rate = rates.int8_ops_per_second / rates.float_ops_per_second
    if rate < _EXPECTED_RATE:
        yield (
            f"this CPU multiplies INT8 only {rate:.1f} x as fast as FP32 (measured), so arithmetic cannot gain more; "
            "CPUs with VNNI or AMX gain 4 x and more"
        )
    pairs = list(zip(integer.blocks, floating.blocks, strict=True))
    slow = [
        a
        for a, b in pairs
        if a.ms and b.ms / a.ms < SMALL_GAIN and a.ms > LARGE_SHARE * integer.layers_ms / 2
    ]
    if slow:
        yield f"blocks that gain less than {SMALL_GAIN:g} x from INT8: {_named(slow)}"
    floats = [name for block in integer.blocks for name in block.float_layers]
    if floats:
        more = f" and {len(floats) - _MOST_NAMED} more" if len(floats) > _MOST_NAMED else ""
        yield f"layers of the INT8 engine that run in floating point: {', '.join(floats[:_MOST_NAMED])}{more}"
    extra = [(a, a.launches - b.launches) for a, b in pairs if a.launches > b.launches]
    if extra:
        words = ", ".join(f"{block.block} {count}" for block, count in extra[:_MOST_NAMED])
        yield f"launches that INT8 has and {other} does not have, by block: {words}"


def _named(blocks: Sequence[BlockProfile]) -> str:
    """The blocks that take longest, with their milliseconds."""
    longest = sorted(blocks, key=lambda block: -block.ms)
    words = [f"{block.block} ({block.ms:.3g} ms)" for block in longest[:_MOST_NAMED]]
    more = [f"{len(blocks) - _MOST_NAMED} more"] if len(blocks) > _MOST_NAMED else []
    return ", ".join([*words, *more])
