"""``python -m benchmarks.gpu visit|model``: measure on a GPU, or predict the times of one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from benchmarks.gpu import visit
from rescompile.errors import OutputError

EXTRA = ("--device", "cpu", "--tiny", "--batch", "2")
"""Options of a trial without a GPU."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    visiting = commands.add_parser("visit", help="measure, in one of three slices", description=visit.__doc__)
    visiting.formatter_class = argparse.RawDescriptionHelpFormatter
    visiting.add_argument("--slice", type=int, choices=sorted(visit.SECONDS), required=True)
    visiting.add_argument("--folder", type=Path, required=True, help="for all figures, of all slices")
    visiting.add_argument(
        "--engine", type=Path, help="a prebuilt engine directory of the backend triton (slice 1)"
    )
    visiting.add_argument("--seconds", type=float, help="for the whole slice, in place of the page's")
    visiting.add_argument("--only", help="only cases of the kernels' script whose name matches this pattern")
    visiting.add_argument("--tiny", action="store_true", help="a tiny network on the CPU, to try the code")
    modelling = commands.add_parser("model", help="predict times of ResNet-50 without a GPU")
    modelling.add_argument("--network", choices=["resnet50"], default="resnet50", help="the only one so far")
    modelling.add_argument("--batch", type=_count, default=256)
    modelling.add_argument("--device", choices=["h100", "h200"], default="h100")
    modelling.add_argument(
        "--measured", type=Path, help="a visit's report, whose rates take the place of published ones"
    )
    modelling.add_argument(
        "--inference", action="store_true", help="fp16 inference in place of a bf16 training step"
    )
    modelling.add_argument(
        "--materialize", action="store_true", help="training that writes relu(bn(y)) before 3x3 convolutions"
    )
    modelling.add_argument(
        "--tiles",
        action="store_true",
        help="compare the default tile of each product with its other candidates",
    )
    modelling.add_argument(
        "--programs",
        action="store_true",
        help="compare tiles of which a processor holds one program with tiles of which it holds several, as Markdown",
    )
    modelling.add_argument("--part", default="", help="a block or stage alone, such as layer1.1")
    modelling.add_argument("--jobs", type=_count, help="compiling processes; default: one a core")
    asked = parser.parse_args(arguments)
    if asked.command == "model":
        _model(asked, modelling)
        raise SystemExit(0)
    extra = (*(EXTRA if asked.tiny else ()), *(() if asked.only is None else ("--only", asked.only)))
    engine = None if asked.engine is None else asked.engine.resolve()
    wanted = visit.Visit(asked.slice, asked.folder.resolve(), engine, asked.seconds, extra)
    try:
        right = visit.run(wanted)
    except OutputError as error:
        visiting.exit(1, f"error: {error}\n")
    raise SystemExit(0 if right else 1)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of 1 or more")
    return int(text)


def _model(asked: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    # imported late: a visit is counted in seconds, and torch takes several of them
    import torch

    from benchmarks.gpu import devices, model, model_programs, model_tiles
    from benchmarks.gpu.launches import network_launches
    from benchmarks.gpu.networks import FULL
    from benchmarks.gpu.workloads import parts_of
    from fused_kernels.compiling.pool import default_jobs

    if asked.part and asked.part not in parts_of(FULL):
        parser.error(f"--part {asked.part} is none of {', '.join(parts_of(FULL))}")
    device, training = devices.DEVICES[asked.device], not asked.inference
    if asked.measured is not None:
        try:
            device = devices.measured(device, asked.measured)
        except ValueError as error:
            parser.error(f"--measured {error}")
    dtype = torch.bfloat16 if training else torch.float16
    record = partial(
        network_launches,
        FULL,
        asked.batch,
        dtype,
        training=training,
        part=asked.part,
        materialize=asked.materialize,
    )
    jobs = asked.jobs or default_jobs()
    if asked.programs:
        print(model_programs.as_markdown(model_programs.compare(record, device, jobs)))
    elif asked.tiles:
        print(model_tiles.as_text(model_tiles.compare(record, device, jobs)))
    else:
        print(model.as_text(model.predict(record(), device, jobs), device))


if __name__ == "__main__":
    main()
