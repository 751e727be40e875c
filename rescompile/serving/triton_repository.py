"""The configuration of one engine for Triton Inference Server, made from its manifest."""

from __future__ import annotations

from dataclasses import dataclass

from rescompile.errors import EngineError, UsageError
from rescompile.manifest import Manifest, TensorSpec
from rescompile.serving.payload import Payload
from rescompile.serving.triton_config import (
    DataType,
    Format,
    Kind,
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
    ModelParameter,
    ModelWarmup,
    WarmupInput,
)

LABELS = "labels.txt"
_TYPES = {"float32": DataType.TYPE_FP32, "uint8": DataType.TYPE_UINT8}
_KINDS = {"openvino": Kind.KIND_CPU, "tensorrt": Kind.KIND_GPU, "onnxruntime": Kind.KIND_AUTO}


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How the server gathers requests."""

    max_batch: int | None = None
    """Most images at once; None takes the engine's."""
    queue_delay: int = 0
    """Microseconds that a request may wait for others."""


def config_of(
    name: str, manifest: Manifest, payload: Payload, *, instances: int, batching: Batching
) -> ModelConfig:
    """What Triton Inference Server is told of the engine.

    Raises:
        UsageError: ``batching`` is not what the engine takes.
        EngineError: the engine takes no single image, and no fixed number either.
    """
    largest = _max_batch_size(manifest, payload, batching.max_batch)
    fed, answered = manifest.inputs[0], manifest.outputs[0]
    return ModelConfig(
        name=name,
        backend=payload.backend,
        default_model_filename=next(iter(payload.files)),
        max_batch_size=largest,
        input=(
            ModelInput(
                name=fed.name,
                data_type=_TYPES[fed.dtype],
                format=Format[f"FORMAT_{fed.layout}"] if largest else None,
                dims=_dims(fed, batched=largest > 0),
            ),
        ),
        output=(
            ModelOutput(
                name=answered.name,
                data_type=_TYPES[answered.dtype],
                dims=_dims(answered, batched=largest > 0),
                label_filename=LABELS,
            ),
        ),
        instance_group=(ModelInstanceGroup(count=instances, kind=_KINDS[payload.backend]),),
        # a batch of one has nothing to wait for
        dynamic_batching=ModelDynamicBatching(max_queue_delay_microseconds=batching.queue_delay)
        if largest > 1
        else None,
        model_warmup=_warmup(manifest, largest),
        parameters=_openvino_parameters(instances, largest) if payload.backend == "openvino" else {},
    )


def warmup_images(manifest: Manifest, config: ModelConfig) -> int:
    """How many golden images the file of each warm-up request holds."""
    return 1 if config.max_batch_size else manifest.batch.max


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
    # the server's OpenVINO backend fills every batch up to the largest
    least, usual = (batch.min, batch.opt) if payload.backend == "openvino" else (1, batch.max)
    if asked is not None and not least <= asked <= batch.max:
        raise UsageError(
            f"--max-batch {asked}: this engine takes {least} to {batch.max} images at once; choose one of these "
            "or build with another --batch"
        )
    return asked or usual


def _dims(tensor: TensorSpec, *, batched: bool) -> tuple[int, ...]:
    return tensor.shape[1:] if batched else tensor.shape


def _warmup(manifest: Manifest, largest: int) -> tuple[ModelWarmup, ...]:
    """A request for each batch size that libraries may prepare on its own."""
    fed = manifest.inputs[0]
    sizes = sorted({size for size in (1, manifest.batch.opt, largest) if size <= largest}) if largest else [1]
    return tuple(
        ModelWarmup(
            name=f"golden images at batch {size}" if largest else "golden images",
            batch_size=size,
            inputs={
                fed.name: WarmupInput(
                    data_type=_TYPES[fed.dtype],
                    dims=_dims(fed, batched=largest > 0),
                    input_data_file=f"golden-{index}",
                )
            },
        )
        for index, size in enumerate(sizes)
    )


def _openvino_parameters(instances: int, largest: int) -> dict[str, ModelParameter]:
    settings = {
        "PERFORMANCE_HINT": "LATENCY" if instances == 1 else "THROUGHPUT",
        "NUM_STREAMS": str(instances),
    }
    if largest > 1:
        settings["ENABLE_BATCH_PADDING"] = "YES"  # smaller batches are an error to the server otherwise
    return {name: ModelParameter(string_value=value) for name, value in settings.items()}
