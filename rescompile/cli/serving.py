"""The command that exports an engine to an inference server: export-server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rescompile.cli.options import Directory, Json
from rescompile.cli.output import show


def export_server(
    directory: Directory,
    server: Annotated[
        Literal["triton", "openvino"],
        typer.Option(help="triton: NVIDIA Triton Inference Server; openvino: OpenVINO Model Server."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Model repository to write.", metavar="REPO")
    ],
    name: Annotated[
        str | None,
        typer.Option(help="The model's name on the server; by default, from network and precision."),
    ] = None,
    instances: Annotated[
        int, typer.Option(min=1, max=1024, help="Requests that run at the same time, for each GPU.")
    ] = 1,
    max_batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Triton: largest batch; by default, the engine's largest, or for OpenVINO the one it is tuned for.",
        ),
    ] = None,
    queue_delay: Annotated[
        int,
        typer.Option(min=0, max=60_000_000, help="Triton: microseconds that a request may wait for others."),
    ] = 0,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Serve the deployable graph model.onnx instead of the engine.")
    ] = False,
    python: Annotated[
        bool,
        typer.Option(
            "--python",
            help="Triton: serve by rescompile's own runtime in the server's Python backend; triton and tensorrt-rtx "
            "engines always are.",
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Replace an existing export, and allow an engine that failed its limits."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Write a model repository for an inference server: engine, configuration, labels, warm-up.

    Examples:

    - `rescompile export-server resnet50-int8-openvino --server openvino --output repository`

    - `rescompile export-server resnet50-int8-openvino --server triton --python --output models`

    - `rescompile export-server resnet50-int8-tensorrt --server triton --instances 2 --queue-delay 500 --output models`
    """
    from rescompile.presenting.terminal.serving import print_export
    from rescompile.serving.export import ExportConfig, export
    from rescompile.serving.triton_repository import Batching

    exported = export(
        directory,
        ExportConfig(
            server=server,
            output=output,
            name=name,
            onnx=onnx,
            python=python,
            instances=instances,
            batching=Batching(max_batch=max_batch, queue_delay=queue_delay),
            force=force,
        ),
    )
    show(exported, lambda result: print_export(result, output), json=json)
