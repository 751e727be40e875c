"""An engine's folder in a model repository of Triton Inference Server: configuration, labels, warm-up requests.

Names of fields and values are those of ``ModelConfig`` in the server's ``model_config.proto``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from rescompile.engine_files import EngineSource
from rescompile.errors import EngineError, UsageError
from rescompile.manifest import Manifest, TensorSpec
from rescompile.runtime.golden import read_golden
from rescompile.serving import python_backend
from rescompile.serving.payload import LABELS, Payload
from rescompile.serving.pbtxt import Name, map_entries, to_text

_TYPES = {"float32": Name("TYPE_FP32"), "uint8": Name("TYPE_UINT8")}
_KINDS = {
    "openvino": Name("KIND_CPU"), "tensorrt": Name("KIND_GPU"), "onnxruntime": Name("KIND_AUTO"),
    "python": Name("KIND_AUTO"),
}  # fmt: skip
_WARMUP_FILE = "golden-{}"
"""In the folder ``warmup``: the raw numbers of one request's images."""


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How the server gathers requests into batches."""

    max_batch: int | None = None
    """Most images at once; None takes the engine's number."""
    queue_delay: int = 0
    """Microseconds that a request may wait for others."""


def write_model(
    model: Path,
    source: EngineSource,
    manifest: Manifest,
    payload: Payload,
    *,
    instances: int,
    batching: Batching,
) -> int:
    """Write the folder ``model`` for the engine in ``source``, and return the most images of one request.

    Raises:
        UsageError: the engine does not take ``batching``.
        EngineError: the engine takes neither single images nor a fixed number of them.
    """
    largest = _max_batch_size(manifest, payload, batching.max_batch)
    # a request of each batch size that libraries may prepare separately
    sizes = sorted({size for size in (1, manifest.batch.opt, largest) if size <= largest}) if largest else [1]
    images, _ = read_golden(source, manifest)
    config = _config(
        model.name, manifest, payload, image=images.shape[1:],
        largest=largest, warmup_sizes=sizes, instances=instances, queue_delay=batching.queue_delay,
    )  # fmt: skip
    (model / "config.pbtxt").write_text(to_text(config), "utf-8")
    (model / "warmup").mkdir()
    count = 1 if largest else manifest.batch.max
    for index in range(len(sizes)):
        picked = [(index + offset) % len(images) for offset in range(count)]
        (model / "warmup" / _WARMUP_FILE.format(index)).write_bytes(images[picked].tobytes())
    return largest or manifest.batch.max


def _config(
    name: str,
    manifest: Manifest,
    payload: Payload,
    *,
    image: tuple[int, ...],
    largest: int,
    warmup_sizes: list[int],
    instances: int,
    queue_delay: int,
) -> dict[str, Any]:
    fed = manifest.inputs[0]
    # requests of the server's own have one size
    warm = msgspec.structs.replace(fed, shape=(fed.shape[0], *image))

    def tensor(spec: TensorSpec, layout: Name | None = None) -> dict[str, Any]:
        dims = (
            spec.shape[1:] if largest else spec.shape
        )  # the server adds the batch dimension where it batches
        return {"data_type": _TYPES[spec.dtype], "format": layout, "dims": list(dims)}

    labelled = bool(manifest.classes)
    # the server knows image layouts of three dimensions only
    layout = Name(f"FORMAT_{fed.layout}") if largest else None
    warmup = [
        {
            "name": f"golden images at batch {size}" if largest else "golden images",
            "batch_size": size,
            "inputs": map_entries(
                {fed.name: {**tensor(warm), "input_data_file": _WARMUP_FILE.format(index)}}
            ),
        }
        for index, size in enumerate(warmup_sizes)
    ]
    return {
        "name": name,
        "backend": payload.backend,
        "default_model_filename": next(iter(payload.files), python_backend.MODEL),
        "max_batch_size": largest,
        "input": [{"name": fed.name, **tensor(fed, layout)}],
        "output": [
            {
                "name": output.name,
                **tensor(output),
                "label_filename": LABELS if labelled and index == 0 else None,
            }
            for index, output in enumerate(manifest.outputs)
        ],
        "instance_group": [{"count": instances, "kind": _KINDS[payload.backend]}],
        # a batch of one has nothing to wait for
        "dynamic_batching": {"max_queue_delay_microseconds": queue_delay} if largest > 1 else None,
        "model_warmup": warmup,
        "parameters": _openvino_parameters(instances, largest) if payload.backend == "openvino" else None,
    }


def _max_batch_size(manifest: Manifest, payload: Payload, asked: int | None) -> int:
    """The server's ``max_batch_size``; 0 where every request is the engine's one batch."""
    batch = manifest.batch
    if payload.backend == "tensorrt" and 1 < batch.min < batch.max:
        raise EngineError(
            f"this engine takes {batch.min} to {batch.max} images at once, but the server may have only one; "
            f"build with --batch 1:{batch.opt}:{batch.max}"
        )
    if payload.backend == "tensorrt" and batch.min == batch.max:
        if asked is not None:
            raise UsageError(
                f"--max-batch {asked}: this engine takes exactly {batch.max} images; build with --batch 1:{batch.opt}:"
                f"{max(batch.max, asked)}"
            )
        return 0
    if payload.backend == "openvino" and manifest.sizes is not None:
        return _single_images(manifest, asked)
    # the server's OpenVINO backend fills every batch up to the largest
    least, usual = (batch.min, batch.opt) if payload.backend == "openvino" else (1, batch.max)
    if asked is not None and not least <= asked <= batch.max:
        raise UsageError(
            f"--max-batch {asked}: this engine takes {least} to {batch.max} images at once; choose one of these "
            "or build with another --batch"
        )
    return asked or usual


def _single_images(manifest: Manifest, asked: int | None) -> int:
    """One image in each request: the server's OpenVINO backend fills batches up in memory of one image size."""
    if manifest.batch.min > 1:
        raise EngineError(
            f"this engine takes {manifest.batch.min} images or more, and the server feeds images of several sizes one "
            f"by one; build with --batch 1:{manifest.batch.opt}:{manifest.batch.max}"
        )
    if asked not in (None, 1):
        raise UsageError(
            f"--max-batch {asked}: the server feeds images of several sizes one by one; leave --max-batch out, or "
            "build without --dynamic-size"
        )
    return 1


def _openvino_parameters(instances: int, largest: int) -> list[dict[str, Any]]:
    settings = {
        "PERFORMANCE_HINT": "LATENCY" if instances == 1 else "THROUGHPUT",
        "NUM_STREAMS": str(instances),
    }
    if largest > 1:
        settings["ENABLE_BATCH_PADDING"] = "YES"  # smaller batches are an error to the server otherwise
    return map_entries({name: {"string_value": value} for name, value in settings.items()})
