"""``config.json`` of OpenVINO Model Server: the fields of its configuration file that an export writes."""

from __future__ import annotations

import msgspec


class Model(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model; its versions are the numbered folders in ``base_path``, which is relative to the file."""

    name: str
    base_path: str
    target_device: str
    plugin_config: dict[str, str]
    """Settings of OpenVINO."""
    nireq: int = 0
    """Requests that run at the same time; 0 leaves the number to the server."""


class Entry(msgspec.Struct, frozen=True):
    """A model as the list holds it."""

    config: Model


class ServerConfig(msgspec.Struct, frozen=True):
    """The whole file."""

    model_config_list: tuple[Entry, ...]

    def to_json(self) -> bytes:
        """The file's contents."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def config_of(name: str, *, instances: int) -> ServerConfig:
    """The configuration of one model on the CPU.

    It infers in f32, as our own runtime does: what was verified is what answers, also on processors with bfloat16.
    """
    plugin = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if instances > 1:
        plugin |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": str(instances)}
    model = Model(
        name=name,
        base_path=name,
        target_device="CPU",
        plugin_config=plugin,
        nireq=instances if instances > 1 else 0,
    )
    return ServerConfig((Entry(model),))
