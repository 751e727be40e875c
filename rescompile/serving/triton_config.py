"""``config.pbtxt`` of NVIDIA Triton Inference Server: the fields of its ``ModelConfig`` that an export writes.

Names and types are those of the server's ``model_config.proto``. What its types cannot say is checked when a
``ModelConfig`` is made, so that no repository is written that the server would refuse.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class DataType(Enum):
    """Element types of an engine's inputs and outputs."""

    TYPE_UINT8 = 2
    TYPE_FP32 = 11


class Format(Enum):
    """Layouts of images."""

    FORMAT_NHWC = 1
    FORMAT_NCHW = 2


class Kind(Enum):
    """Where an instance runs; AUTO is a GPU where there is one."""

    KIND_AUTO = 0
    KIND_GPU = 1
    KIND_CPU = 2


@dataclass(frozen=True, kw_only=True)
class ModelInput:
    """``dims`` is without the batch dimension where the server batches."""

    name: str
    data_type: DataType
    format: Format | None
    """None where the server does not batch: it knows image layouts of three dimensions only."""
    dims: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ModelOutput:
    """``label_filename`` lies beside ``config.pbtxt``: one class name a line."""

    name: str
    data_type: DataType
    dims: tuple[int, ...]
    label_filename: str


@dataclass(frozen=True, kw_only=True)
class ModelDynamicBatching:
    """Requests are gathered into batches, and wait at most so long for others."""

    max_queue_delay_microseconds: int


@dataclass(frozen=True, kw_only=True)
class ModelInstanceGroup:
    """So many copies of the engine run at the same time, on each GPU for GPUs."""

    count: int
    kind: Kind


@dataclass(frozen=True, kw_only=True)
class ModelParameter:
    """A setting of the backend."""

    string_value: str


@dataclass(frozen=True, kw_only=True)
class WarmupInput:
    """``input_data_file`` lies in the folder ``warmup``: raw numbers, as many as ``dims`` says."""

    data_type: DataType
    dims: tuple[int, ...]
    input_data_file: str


@dataclass(frozen=True, kw_only=True)
class ModelWarmup:
    """One request that the server makes before it says that it is ready."""

    name: str
    batch_size: int
    inputs: dict[str, WarmupInput]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What the server is told of one model.

    Raises:
        ValueError: the server would refuse it.
    """

    name: str
    backend: str
    default_model_filename: str
    max_batch_size: int
    """0 where the server does not batch."""
    input: tuple[ModelInput, ...]
    output: tuple[ModelOutput, ...]
    instance_group: tuple[ModelInstanceGroup, ...]
    dynamic_batching: ModelDynamicBatching | None
    model_warmup: tuple[ModelWarmup, ...]
    parameters: dict[str, ModelParameter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for broken in _broken_rules(self):
            raise ValueError(f"Triton Inference Server would refuse this configuration: {broken}")


def _broken_rules(config: ModelConfig) -> list[str]:
    tensors: list[ModelInput | ModelOutput] = [*config.input, *config.output]
    largest = max(config.max_batch_size, 1)
    rules = {
        "a model has a name": bool(config.name),
        "max_batch_size is not negative": config.max_batch_size >= 0,
        "a model has inputs and outputs": bool(config.input and config.output),
        "a tensor has a name": all(tensor.name for tensor in tensors),
        "a tensor has dimensions": all(tensor.dims for tensor in tensors),
        "a dimension is positive": all(size > 0 for tensor in tensors for size in tensor.dims),
        "an image layout has three dimensions": all(
            tensor.format is None or len(tensor.dims) == 3 for tensor in config.input
        ),
        "there is at least one instance": all(group.count > 0 for group in config.instance_group),
        "requests are gathered only where there are batches": config.dynamic_batching is None
        or config.max_batch_size > 0,
        "a warm-up request is a batch that the model takes": all(
            1 <= request.batch_size <= largest for request in config.model_warmup
        ),
        "a warm-up request has every input": all(
            request.inputs.keys() == {tensor.name for tensor in config.input}
            for request in config.model_warmup
        ),
    }
    return [words for words, kept in rules.items() if not kept]
