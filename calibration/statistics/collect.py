"""One pass over the images: run the fp32 graph in ONNX Runtime and histogram every named tensor.

Two batches at a time are run and observed, each by a thread of its own: these do not wait for each other, as threads
that share the work of one batch do. Only two batches of activations are alive.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from calibration.cores import available_cores
from calibration.errors import CalibrationError
from calibration.onnx_session import open_session
from calibration.statistics.channels import ChannelHistograms, ChannelObserver, part_of
from calibration.statistics.half import HalfNetwork
from calibration.statistics.observers import Histogram, RangeObserver

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

_AT_ONCE = 2
"""Batches that are run and observed at once."""

Batches = Iterable[NDArray[np.float32]]
Progress = Callable[[int], None]


def collect(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Batches, progress: Progress | None = None
) -> dict[str, Histogram]:
    """Histogram of each of ``tensors`` (the graph input may be one) over ``batches`` [N, C, H, W].

    ``model`` is an fp32 graph. ``progress`` is called with the number of images run so far.

    Raises:
        CalibrationError: a tensor that the graph does not have, no batches, images of the wrong shape, or activations
            that are not finite.
    """
    observers = {name: RangeObserver(name) for name in tensors}
    _observe(model, observers, batches, progress)
    return {name: observer.histogram() for name, observer in observers.items()}


def collect_channels(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    batches: Batches,
    progress: Progress | None = None,
    *,
    half: HalfNetwork | None = None,
) -> dict[str, ChannelHistograms]:
    """Like ``collect``, with one histogram for every channel; ``half``, ``model`` in bfloat16, runs in its place.

    Raises:
        CalibrationError: as ``collect``.
    """
    observers = {name: ChannelObserver(name) for name in tensors}
    if half is not None:
        _check_names(model, observers)
        _observe_half(half, observers, batches, progress)
    else:
        _observe(model, observers, batches, progress)
    # each observer is dropped as soon as it was copied: together they are as large as the network
    return {name: observers.pop(name).histograms() for name in list(observers)}


class _Observer(Protocol):
    def update(self, array: NDArray[np.float32]) -> None: ...


def _observe(
    model: onnx.ModelProto,
    observers: Mapping[str, _Observer],
    batches: Batches,
    progress: Progress | None,
) -> None:
    input_name = model.graph.input[0].name
    _check_names(model, observers)
    inner = [name for name in observers if name != input_name]
    session = _session(model, inner) if inner else None

    def observe(batch: NDArray[np.float32]) -> int:
        if input_name in observers:
            observers[input_name].update(batch)
        arrays = [] if session is None else list(_run(session, inner, batch))
        for name in reversed(inner):
            observers[name].update(arrays.pop())  # nothing else holds the array
        return len(batch)

    seen = 0
    for count in _in_threads(observe, batches):
        seen += count
        if progress:
            progress(seen)
    if not seen:
        raise _no_images()


def _in_threads(observe: Callable[[NDArray[np.float32]], int], batches: Batches) -> Iterator[int]:
    """The results of ``observe`` for all ``batches`` in their order, ``_AT_ONCE`` of them computed at once."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        running: deque[Future[int]] = deque()
        for batch in batches:
            if len(running) > _AT_ONCE:  # one waits, so that no thread does
                yield running.popleft().result()
            running.append(pool.submit(observe, batch))
            del batch
        while running:
            yield running.popleft().result()


def _observe_half(
    network: HalfNetwork,
    observers: Mapping[str, ChannelObserver],
    batches: Batches,
    progress: Progress | None,
) -> None:
    """The network in bfloat16; ranges and means are taken at once, and the values counted beside it."""
    seen = 0
    with ThreadPoolExecutor(1) as pool:
        observing: list[Future[None]] = []
        for batch in batches:
            started = [
                pool.submit(observers[name].update, batch) for name in network.inputs & observers.keys()
            ]

            def observe(name: str, value: Tensor, started: list[Future[None]] = started) -> None:
                if name in observers:
                    started.append(pool.submit(observers[name].add, part_of(value)))

            network.run(batch, observe)
            _finish(observing)
            observing, seen = started, seen + len(batch)
            if progress:
                progress(seen)
        _finish(observing)
    if not seen:
        raise _no_images()


def _no_images() -> CalibrationError:
    return CalibrationError("there are no calibration images to run: pass at least one")


def _finish(observing: list[Future[None]]) -> None:
    for future in observing:
        future.result()


def _check_names(model: onnx.ModelProto, wanted: Iterable[str]) -> None:
    known = {model.graph.input[0].name, *(name for node in model.graph.node for name in node.output)}
    missing = [name for name in wanted if name not in known]
    if missing:
        close = get_close_matches(missing[0], known, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise CalibrationError(f"the model has no tensor '{missing[0]}' to calibrate.{hint}")


_WRONG_OPTIMIZERS = ("Pad_Fusion",)
"""ONNX Runtime's rewrites that change values: zeros around an image become minus infinity in a max pool."""


def _session(model: onnx.ModelProto, names: list[str]) -> Any:
    """ONNX Runtime session for the tensors ``names``; nodes that they do not need are not computed."""
    import onnxruntime

    def options() -> Any:
        made = onnxruntime.SessionOptions()
        made.log_severity_level = 3
        # each run has its caller's thread, and all runs share those that are left
        made.intra_op_num_threads = max(1, available_cores() - _AT_ONCE + 1)
        # idle threads would spin on the core that the observers need: 0.12 against 0.14 s per image of ResNet-101
        made.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return made

    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        return open_session(
            model, options, outputs=names, providers=providers, disabled_optimizers=_WRONG_OPTIMIZERS
        )
    except Exception as error:
        raise CalibrationError(f"ONNX Runtime refuses the fp32 graph: {error}") from error


def _run(session: Any, names: list[str], batch: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
    try:
        outputs: Sequence[NDArray[np.float32]] = session.run(names, {session.get_inputs()[0].name: batch})
    except Exception as error:  # onnxruntime's exception classes share no public base
        shape = tuple(batch.shape)
        raise CalibrationError(f"ONNX Runtime could not run a batch of shape {shape}: {error}") from error
    return outputs
