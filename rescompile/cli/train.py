"""``rescompile train`` and ``rescompile experiment``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rescompile.cli.option_groups import takes_groups
from rescompile.cli.options import Json
from rescompile.cli.output import show
from rescompile.errors import UsageError


def _option(panel: str, text: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar)


_network = partial(_option, "Network")
_images = partial(_option, "Images")
_recipe = partial(_option, "Recipe")
_run = partial(_option, "Run")


@dataclass(frozen=True)
class RecipeOptions:
    """The recipe, and what differs from it."""

    recipe: Annotated[
        str | None,
        _recipe(
            "paper-cifar, paper-imagenet, torchvision-v1, modern, digits, or a .json file. Default: by the network.",
            metavar="NAME|FILE",
        ),
    ] = None
    steps: Annotated[int | None, _recipe("Length in steps; the schedule keeps its proportions.")] = None
    epochs: Annotated[float | None, _recipe("Length in passes through all images.")] = None
    batch_size: Annotated[int | None, _recipe("Images of one step, in all processes together.")] = None
    learning_rate: Annotated[float | None, _recipe("Highest learning rate.")] = None
    changes: Annotated[
        list[str] | None,
        _recipe(
            "Another value, such as weight_decay=0.0005; may be repeated.",
            "--set",
            metavar="KEY=VALUE",
        ),
    ] = None

    def all_changes(self) -> list[str]:
        """The options as KEY=VALUE.

        Raises:
            UsageError: two lengths.
        """
        if self.steps is not None and self.epochs is not None:
            raise UsageError("--steps and --epochs both say how long to train; pass one of them")
        named = ("steps", "epochs", "batch_size", "learning_rate")
        given = [f"{name}={getattr(self, name)}" for name in named if getattr(self, name) is not None]
        return [*(self.changes or []), *given]


@dataclass(frozen=True)
class RunOptions:
    """How the training is carried out."""

    precision: Annotated[
        Literal["fp32", "bf16", "fp16"], _run("Type that convolutions are computed in; weights stay in fp32.")
    ] = "fp32"
    fuse: Annotated[
        Literal["auto", "on", "off"], _run("Fused kernels in residual blocks. auto: on a GPU with Triton.")
    ] = "auto"
    compile: Annotated[bool, _run("Compile the network with torch.compile.", "--compile")] = False
    sync_bn: Annotated[bool, _run("Batch norms share their statistics among all processes.", "--sync-bn")] = (
        False
    )
    fastest: Annotated[
        bool, _run("Allow faster GPU kernels whose last bits differ from run to run.", "--fastest")
    ] = False
    workers: Annotated[int, _run("Processes that read photographs.")] = 4
    seed: Annotated[int, _run("Seed of the weights, the order and the augmentation.")] = 0


@takes_groups
def train(
    recipe: RecipeOptions,
    run: RunOptions,
    model: Annotated[str | None, _network("Network by name: resnet20-cifar, resnet50.")] = None,
    shortcut: Annotated[
        Literal["A", "B", "C"] | None, _network("Kind of shortcut; by default the network's own.")
    ] = None,
    weights: Annotated[Path | None, _network("Go on from this checkpoint.")] = None,
    new_head: Annotated[
        bool, _network("With --weights: begin with a new classifier, for other classes.", "--new-head")
    ] = False,
    qat: Annotated[
        bool, _network("With --weights: fine-tune for INT8, in the graph that a build makes.", "--qat")
    ] = False,
    qat_scales: Annotated[
        Literal["fixed", "learned"],
        _network("With --qat: scales of activations learned, or left as calibrated."),
    ] = "learned",
    qat_labels: Annotated[
        bool, _network("With --qat: learn from labels instead of the fp32 network's answers.", "--qat-labels")
    ] = False,
    weight_bits: Annotated[
        int,
        _network(
            "With --qat: bits of the weights of all layers but the first and the last, 2 to 8. The engine stores "
            "them as int8; fewer bits are an experiment."
        ),
    ] = 8,
    backend: Annotated[
        Literal["auto", "tensorrt", "tensorrt-rtx", "triton", "openvino", "onnxruntime"],
        _network("With --qat: the backend of the engine."),
    ] = "auto",
    data: Annotated[
        str | None,
        _images(
            "Images with labels: CIFAR's binary files, an .npz, a folder with train/ and val/, or digits (small, comes "
            "with scikit-learn).",
            metavar="PATH|digits",
        ),
    ] = None,
    validation_set: Annotated[Path | None, _images("Images to test on, where --data has none.")] = None,
    classes: Annotated[Path | None, _images("Text file with one class name per line.")] = None,
    output: Annotated[Path, _run("Folder for checkpoints, weights and curves.", "--output", "-o")] = Path(
        "run"
    ),
    resume: Annotated[bool, _run("Go on with the run in --output, or begin it.", "--resume")] = False,
    show_recipe: Annotated[bool, _recipe("Print the recipe and end.", "--show-recipe")] = False,
    json: Json = False,
) -> None:
    """Train a network, and write weights that `rescompile build --weights` takes.

    Examples:

    - `rescompile train --model resnet20-cifar --data cifar-10-batches-bin --output run`

    - `rescompile train --model resnet20-cifar --data digits --steps 200`

    - `rescompile train --model resnet50 --data imagenet/ --recipe torchvision-v1 --precision bf16`

    - `rescompile train --weights my.pth --new-head --data photos/ --recipe modern --epochs 20 --learning-rate 0.01`

    - `rescompile train --recipe modern --show-recipe`

    - `rescompile train --weights run/best.safetensors --qat --data cifar-10-batches-bin --output int8`

    - `rescompile train --weights run/best.safetensors --qat --weight-bits 4 --data cifar-10-batches-bin --output int4`

    - `torchrun --nproc-per-node 8 -m rescompile train --model resnet50 --data imagenet/ --sync-bn`
    """
    from rescompile.training.recipe import as_json, find_recipe

    chosen = find_recipe(recipe.recipe or ("qat" if qat else _usual(model, data)), recipe.all_changes())
    if show_recipe:
        typer.echo(as_json(chosen))
        return
    if data is None:
        raise UsageError("no images to train on were named: pass --data PATH, or --data digits to try it")

    from rescompile.presenting.terminal.training import TerminalTraining, print_training
    from rescompile.training.train import TrainConfig
    from rescompile.training.train import train as run_training

    config = TrainConfig(
        data=data, output=output, model=model, shortcut=shortcut, weights=weights, new_head=new_head,
        validation_set=validation_set, classes=classes, recipe=chosen,
        precision=run.precision, fuse=run.fuse, compile=run.compile, resume=resume, seed=run.seed,
        sync_bn=run.sync_bn, reproducible=not run.fastest, workers=run.workers, qat=qat, backend=backend,
        fixed_scales=qat_scales == "fixed", distill=not qat_labels, weight_bits=weight_bits,
    )  # fmt: skip
    with TerminalTraining() as progress:
        report = run_training(config, progress)
    show(report, print_training, json=json)


@takes_groups
def experiment(
    recipe: RecipeOptions,
    run: RunOptions,
    name: Annotated[
        str, typer.Argument(help="degradation, depth, shortcut or preactivation.", metavar="NAME")
    ],
    data: Annotated[
        str,
        _images(
            "Training images, in the forms that train takes; digits takes minutes on a CPU.",
            metavar="PATH|digits",
        ),
    ] = "digits",
    validation_set: Annotated[Path | None, _images("Images to test on, where --data has none.")] = None,
    networks: Annotated[
        str | None,
        _network(
            "Networks in place of the experiment's own: plain20-cifar,resnet20-cifar:B.", metavar="NAMES"
        ),
    ] = None,
    seeds: Annotated[int | None, _run("Trainings of each network. Default: 3 on digits, else 1.")] = None,
    jobs: Annotated[int, _run("Trainings at the same time.")] = 1,
    output: Annotated[
        Path, _run("Folder for the page and one run for each training.", "--output", "-o")
    ] = Path("experiment"),
    resume: Annotated[bool, _run("Go on with the experiment in --output, or begin it.", "--resume")] = False,
    json: Json = False,
) -> None:
    """Repeat one of the papers' comparisons: train a set of networks with the same recipe, and compare them on a page.

    Examples:

    - `rescompile experiment degradation --jobs 2`

    - `rescompile experiment depth --data cifar-10-batches-bin --output depth`

    - `rescompile experiment degradation --data train.npz --networks plain20-cifar,resnet20-cifar --steps 4000`
    """
    from rescompile.presenting.terminal.training import TerminalExperiment, print_experiment
    from rescompile.training.experiment import ExperimentConfig, run_experiment
    from rescompile.training.recipe import find_recipe

    config = ExperimentConfig(
        name=name,
        data=data,
        output=output,
        recipe=find_recipe(recipe.recipe or _usual(None, data), recipe.all_changes()),
        networks=tuple(each.strip() for each in networks.split(",")) if networks else (),
        seeds=seeds if seeds is not None else 3 if data == "digits" else 1,
        jobs=jobs,
        resume=resume,
        validation_set=validation_set,
        options={
            "precision": run.precision,
            "fuse": run.fuse,
            "compile": run.compile,
            "reproducible": not run.fastest,
            "workers": run.workers,
        },
    )
    report = run_experiment(config, TerminalExperiment())
    show(report, partial(print_experiment, directory=output), json=json)


def _usual(model: str | None, data: str | None) -> str:
    """The recipe of the paper that a network is from."""
    if data == "digits":
        return "digits"
    return "paper-imagenet" if model is not None and "cifar" not in model else "paper-cifar"
