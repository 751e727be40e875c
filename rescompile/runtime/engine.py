"""``Engine``, which ``rescompile.load`` returns. Needs neither torch nor onnx, only the backend's own library."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from rescompile.backends.base import Concurrent, Runner, SeveralOutputs, ZeroCopyRunner
from rescompile.backends.zero_copy import DeviceImages, as_array, on_cuda
from rescompile.errors import EngineError, UsageError
from rescompile.manifest import Manifest
from rescompile.runtime.answers import most_probable
from rescompile.runtime.inputs import IMAGES, part, preprocess_at, refuse, refuse_not_finite

if TYPE_CHECKING:
    from PIL.Image import Image

    from calibration.preprocess import Size
    from rescompile.backends.zero_copy import SupportsCudaArray, SupportsDLPack

    Given = NDArray[Any] | SupportsDLPack | SupportsCudaArray
    Answer = NDArray[np.float32] | dict[str, NDArray[np.float32]]

MOST_WAITING = 4096
"""Most requests that may wait in one engine; each keeps its images in memory."""
_CLOSED = "this engine is closed; load it again"


class Engine:
    """An engine in memory: images in, logits (or other outputs) out. Use it in a ``with`` statement, or ``close`` it.

    Any number of threads may call one engine. Engines of OpenVINO, TensorRT and Triton that were loaded with
    ``hint="throughput"`` work on several calls at once; others on one.
    """

    def __init__(self, manifest: Manifest, runner: Runner, *, check_finite: bool = True) -> None:
        self.manifest, self._check_finite = manifest, check_finite
        self._dtype = np.dtype(manifest.inputs[0].dtype)
        self._runner: Runner | None = runner
        self._concurrent, self._zero_copy = isinstance(runner, Concurrent), isinstance(runner, ZeroCopyRunner)
        self._lock = threading.Lock()
        self._closed = False
        if len(manifest.outputs) > 1 and not isinstance(runner, SeveralOutputs):
            raise EngineError(
                f"the {manifest.backend} backend runs engines of one output, and this one has "
                f"{len(manifest.outputs)}; build it with --backend openvino"
            )
        self.parallel = runner.parallel if isinstance(runner, Concurrent) else 1
        """Calls that the engine works on at the same time."""
        self._process = os.getpid()
        self._submitting = threading.Lock()
        self._submitted: WeakSet[Future[Answer]] = WeakSet()
        # it starts threads when they are needed
        self._pool = ThreadPoolExecutor(self.parallel, thread_name_prefix="rescompile")

    def __call__(self, images: Given) -> Any:
        """Logits [N, classes] of ``images`` [N, ...] in the manifest's input layout and dtype, N >= 1.

        An engine with ``manifest.sizes`` takes images of any height and width in that range, one size in each call.
        ``manifest.outputs`` says what is returned: one float32 array [N, C] or [N, C, H, W] for one output, a dict of
        arrays by name for several. More images than the engine takes at once are run in several parts, fewer are
        padded; the logits are those of the given images alone. Objects with ``__dlpack__`` on the CPU, such as torch
        tensors, are treated like arrays. Neither is copied if it is contiguous and has a batch size of the engine.
        Engines on a GPU also take objects that are there already, with ``__dlpack__`` or ``__cuda_array_interface__``,
        and read them in place after the stream that writes them.

        Raises:
            UsageError: the shape, layout or dtype is not that of the engine, there is no image, an image has NaN or
                infinite values (``RunOptions.check_finite``), or a tensor is on another device.
            EngineError: the engine is closed.
            BackendError: the library could not run the engine.
        """
        return self._answer(self._checked(images))

    def submit(self, images: Given) -> Future[Any]:
        """The same without waiting: ``submit(images).result()`` are the logits that a call would return.

        The images are checked at once, and must not be changed before the result is there. Requests start in the
        order of submission; the class says how many run at the same time.

        Raises:
            UsageError: see ``__call__``; later errors are raised by ``result``.
            EngineError: the engine is closed, ``MOST_WAITING`` requests wait already, or the process was forked.
        """
        if self._process != os.getpid():
            raise EngineError(
                "this engine was loaded before the process was forked, and its threads were not copied; start "
                "processes by spawn"
            )
        checked = self._checked(images)
        with self._submitting:
            if len(self._submitted) >= MOST_WAITING:
                self._submitted = WeakSet(each for each in self._submitted if not each.done())
            if len(self._submitted) >= MOST_WAITING:
                raise EngineError(
                    f"{MOST_WAITING:,} requests wait already; wait for the results of some before you submit more"
                )
            try:
                pending = self._pool.submit(self._answer, checked)
            except RuntimeError:
                if not self._closed:
                    raise
                raise EngineError(_CLOSED) from None
            self._submitted.add(pending)
            return pending

    def _answer(self, images: NDArray[Any] | DeviceImages) -> Answer:
        """Outputs for checked images."""
        with nullcontext() if self._concurrent else self._lock:
            runner = self._runner
            if runner is None:
                raise EngineError(_CLOSED)
            if self._fits(len(images)):
                return self._outputs(runner, images)
            most = self.manifest.batch.max
            parts = [part(images, start, start + most) for start in range(0, len(images), most)]
            return _joined([self._run(runner, some) for some in parts])

    def _outputs(self, runner: Runner, images: NDArray[Any] | DeviceImages) -> Answer:
        if len(self.manifest.outputs) > 1 and isinstance(runner, SeveralOutputs):
            named = runner.tensors(images)
            return {output.name: named[output.name] for output in self.manifest.outputs}
        found = runner(images)
        output = self.manifest.outputs[0]
        # runners on a GPU return each image's numbers in a row, but for outputs whose size they alone know
        return found if output.resizable else found.reshape(len(found), *output.shape[1:])

    def _fits(self, count: int) -> bool:
        return self.manifest.batch.min <= count <= self.manifest.batch.max

    def preprocess(
        self, image: Path | str | Image | NDArray[np.uint8], size: Size | None = None
    ) -> NDArray[Any]:
        """Turn one photograph (path, PIL image or uint8 [H, W, 3] in RGB) into an input batch of one image.

        ``size`` is a side, or height and width, for an engine that takes a range of sizes; None is the size that it
        was calibrated for. The photograph is resized in the same proportion.

        Raises:
            UsageError: the engine does not take this ``size``.
            ImageSetError: the image cannot be read or is too small.
        """
        from calibration.images.files import decode
        from calibration.preprocess import normalize, to_uint8

        steps = self.manifest.preprocess if size is None else preprocess_at(self.manifest, size)
        if isinstance(image, (str, Path)):
            pixels = decode(Path(image), steps, remedy="pass an image file")
        else:
            pixels = to_uint8(image, steps)
        return pixels[None] if self.manifest.inputs[0].dtype == "uint8" else normalize(pixels[None], steps)

    def classify(
        self, image: Path | str | Image | NDArray[np.uint8], k: int = 5, size: Size | None = None
    ) -> list[tuple[str, float]]:
        """The ``k`` most probable classes of one photograph, best first, with their probability.

        If there are fewer than ``k`` classes, all are returned. A binary engine returns both of its decisions, a
        multilabel engine its labels, each with its own probability. ``size`` as in ``preprocess``.

        Raises:
            UsageError: ``k`` is less than 1, the engine returns values or features, or does not take this ``size``.
            ImageSetError: the image cannot be read or is too small.
        """
        if k < 1:
            raise UsageError(f"the {k} most probable classes are none; ask for 1 or more")
        output, *more = self.manifest.outputs
        if more or output.kind in ("values", "features"):
            kinds = " and ".join(dict.fromkeys(each.kind for each in self.manifest.outputs))
            raise UsageError(
                f"this engine returns {kinds}, not classes; call it with engine.preprocess(image)"
            )
        found = most_probable(self(self.preprocess(image, size))[0], output, k)
        return [(each.name, each.probability or 0.0) for each in found]

    def close(self) -> None:
        """Free memory and devices after all submitted requests are answered; calling it twice is harmless."""
        self._closed = True
        self._pool.shutdown(wait=True)
        with self._lock:
            runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, runner: Runner, images: NDArray[Any] | DeviceImages) -> Answer:
        count = len(images)
        missing = max(0, self.manifest.batch.min - count)
        if missing and isinstance(images, np.ndarray):  # images on a GPU are padded there
            images = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])
        found = self._outputs(runner, images)
        if isinstance(found, dict):
            return {name: values[:count] for name, values in found.items()}
        return found[:count]

    def _checked(self, given: object) -> NDArray[Any] | DeviceImages:
        """Check ``given``, and return it as images that this engine takes."""
        images = given if isinstance(given, np.ndarray) else self._shared(given)
        array = isinstance(images, IMAGES) and images.ndim > 0 and len(images) > 0
        if not (array and images.dtype == self._dtype and self.manifest.takes(images.shape)):
            refuse(images, self.manifest)
        if self._check_finite and isinstance(images, np.ndarray):
            refuse_not_finite(images)
        return images

    def _shared(self, given: object) -> Any:
        """View an array or tensor of another package without copying it."""
        runner = self._runner
        if not (self._zero_copy and on_cuda(given)):
            return as_array(given)
        if not isinstance(runner, ZeroCopyRunner):
            raise EngineError(_CLOSED)
        return runner.import_images(given)


def _joined(parts: Sequence[Answer]) -> Answer:
    """Outputs of all images from those of consecutive ones."""
    arrays = [part for part in parts if not isinstance(part, dict)]
    if arrays:
        return np.concatenate(arrays)
    named = [part for part in parts if isinstance(part, dict)]
    return {name: np.concatenate([part[name] for part in named]) for name in named[0]}
