"""The compilations: every launch of the catalogue with every tile, each distinct one once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Literal, get_args

import torch

from benchmarks.compiled_kernels.catalogue import Entry
from fused_kernels.candidates import candidates
from fused_kernels.choice import choosing, default_tile
from fused_kernels.compiling.variant import CONSTANT, Type, Variant, variant_of
from fused_kernels.gpus import Target
from fused_kernels.launch import Launch, recording
from fused_kernels.problem import Problem
from fused_kernels.tiles import Tile

Configs = Literal["few", "default", "sample", "kernels", "all"]
CONFIGS: tuple[Configs, ...] = get_args(Configs)
"""``default``: every kernel, functor and dtype on one shape with the tile that runs without a tuning table.
``kernels``: with every candidate too. ``all``: every candidate on every shape of the catalogue. ``few``: of the
defaults, one call for each kernel, prologue, epilogue and dtype, and in fp32 one for each kernel. ``sample``: the
defaults, and these calls with every candidate, those of fp32 aside. The call is the one that passes the most arguments,
and of several the first, whose window is the largest."""

_FP32 = {"float32", "tf32"}
_SHAPING = {"STEP", "WIDTH", "NEXT"}
"""Numbers among a kernel's constants that make another kernel of it."""


@dataclass(frozen=True)
class Unit:
    """One compilation, and the first call that leads to it."""

    entry: str
    dtype: str
    kernel: str
    tile: Tile
    variant: Variant


def units_of(
    entries: Iterable[Entry],
    target: Target,
    configs: Configs,
    patterns: Collection[str] = ("*",),
    dtypes: Collection[str] = (),
    tile: Tile | None = None,
) -> list[Unit]:
    """The compilations for ``target``.

    Args:
        entries: the catalogue.
        target: its shared memory decides which tiles are candidates.
        configs: see ``CONFIGS``.
        patterns: matched, as file names are, with kernels and entries; one of them must fit.
        dtypes: names of dtypes that entries must have, or none for all.
        tile: the only one, in place of those of ``configs``.
    """
    if tile is None and configs in {"few", "sample"}:
        defaults = units_of(entries, target, "default", patterns, dtypes)
        return _heaviest(defaults) if configs == "few" else _sample(entries, target, defaults)
    found: dict[object, Unit] = {}
    for entry in entries:
        if dtypes and _name(entry.dtype) not in dtypes:
            continue
        choose = None if tile is None else partial(_always, tile)
        for launch in _recorded(entry, choose) if choose else _launches(entry, target, configs):
            if any(
                fnmatchcase(name, pattern) for name in (launch.kernel, entry.name) for pattern in patterns
            ):
                unit = _unit(entry, launch)
                found.setdefault(_identity(unit, configs), unit)
    return list(found.values())


def _heaviest(defaults: Iterable[Unit]) -> list[Unit]:
    """The units of ``few``."""
    found: dict[object, Unit] = {}
    for unit in defaults:
        key: tuple[object, ...] = (unit.kernel, unit.dtype)
        if unit.dtype not in _FP32:
            key += tuple(unit.variant.constant(name) for name in ("PROLOGUE", "EPILOGUE"))
        if unit.dtype != _name(torch.float16):
            found[key] = max(found.get(key, unit), unit, key=_arguments)
    return list(found.values())


def _sample(entries: Iterable[Entry], target: Target, defaults: list[Unit]) -> list[Unit]:
    """The units of ``sample``."""
    calls = {(unit.entry, unit.dtype) for unit in _heaviest(defaults) if unit.dtype not in _FP32}
    kernels = {unit.kernel for unit in defaults}
    called = [entry for entry in entries if (entry.name, _name(entry.dtype)) in calls]
    candidates = [unit for unit in units_of(called, target, "kernels") if unit.kernel in kernels]
    return list({unit.variant: unit for unit in [*candidates, *defaults]}.values())


def _arguments(unit: Unit) -> int:
    """The number of values that are passed when the kernel is launched, those in tuples too."""
    return sum(map(_values, dict(unit.variant.types).values()))


def _values(kind: Type) -> int:
    return sum(map(_values, kind)) if isinstance(kind, tuple) else int(kind != CONSTANT)


def _unit(entry: Entry, launch: Launch) -> Unit:
    dtype = "tf32" if launch.arguments.get("PRECISION") == "tf32" else _name(entry.dtype)
    return Unit(entry.name, dtype, launch.kernel, launch.tile, variant_of(launch))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _launches(entry: Entry, target: Target, configs: Configs) -> Iterator[Launch]:
    """The launches that run without a tuning table, then those with every candidate."""
    problems: list[Problem] = []

    def default(problem: Problem) -> Tile:
        problems.append(problem)
        return default_tile(problem, shared=target.shared_limit)

    yield from _recorded(entry, default)
    if configs == "default" or entry.dtype == torch.float16:
        return  # fp16 compiles to bf16's code but for the type in its instructions
    tiles = [tile for problem in problems for tile in candidates(problem, shared=target.shared_limit)]
    for tile in dict.fromkeys(tiles):
        yield from _recorded(entry, partial(_always, tile))


def _recorded(entry: Entry, choose: Callable[[Problem], Tile]) -> Iterator[Launch]:
    with choosing(choose), recording() as launches:
        entry.run()
    for launch in launches:
        if launch.arguments.get("PRECISION") == "ieee" and entry.dtype == torch.float32:
            # torch's flags choose at run time; by default they choose TF32
            yield replace(launch, arguments={**launch.arguments, "PRECISION": "tf32"})
        yield launch


def _always(tile: Tile, _: Problem) -> Tile:
    return tile


def _identity(unit: Unit, configs: Configs) -> object:
    """The key of a compilation: the variant; or kernel, functors, types, tile and which arguments are None.

    In the second form, tensor sizes and a tile's grouping and splits are left out: they change numbers in the
    instructions, not the instructions.
    """
    variant = unit.variant
    if configs == "all":
        return variant
    names = [name for name, _ in variant.types]
    constants = tuple(
        (path, value)
        for path, value in variant.constants
        if not isinstance(value, int) or isinstance(value, bool) or names[path[0]] in _SHAPING
    )
    types = str(variant.types).replace("*fp16", "*bf16")
    tile = None if configs == "default" else replace(unit.tile, group=0, splits=0)
    return variant.kernel, constants, types, tile
