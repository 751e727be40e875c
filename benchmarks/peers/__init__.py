"""Contenders of a race: our engines and their peers, each a function from a network to a call, or the reason why it
cannot run."""

from __future__ import annotations

from benchmarks.peers.base import Entrant, Missing
from benchmarks.peers.onnxruntime import Fp32Session, Int8Session
from benchmarks.peers.openvino import OurEngine, QuantizedByNncf
from benchmarks.peers.torch import ChannelsLast, Compiled, Eager

ENTRANTS: tuple[Entrant, ...] = (
    OurEngine("int8"),
    OurEngine("fp16"),
    OurEngine("fp32"),
    QuantizedByNncf(),
    Int8Session(),
    Fp32Session(),
    Eager(),
    ChannelsLast(),
    Compiled(),
)
"""In the order in which they take their turns."""

__all__ = ["ENTRANTS", "Entrant", "Missing"]
