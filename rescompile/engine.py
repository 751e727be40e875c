"""An engine in memory, and its way there: the directory is checked, loaded, and proves itself on its golden inputs.

Loading needs neither torch nor onnx, only the library of the engine's own backend.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rescompile.backends import get_backend
from rescompile.backends.base import (
    RUN_DEFAULTS,
    Concurrent,
    Hint,
    Keeps,
    Lends,
    Runner,
    RunOptions,
    Simulates,
)
from rescompile.backends.sharing import DeviceImages, as_array, on_cuda
from rescompile.engine_inputs import IMAGES, part, refuse
from rescompile.errors import EngineError, UsageError
from rescompile.golden_file import read_golden
from rescompile.intactness import checked_manifest
from rescompile.manifest import Manifest
from rescompile.metrics import relative_rms
from rescompile.submissions import Submissions

if TYPE_CHECKING:
    from PIL.Image import Image

    from rescompile.backends.sharing import SupportsCudaArray, SupportsDLPack

    Given = NDArray[Any] | SupportsDLPack | SupportsCudaArray


class Engine:
    """An engine in memory: images in, logits out. Use it in a ``with`` statement, or ``close`` it.

    Any number of threads may call one engine, and every answer is that of its own images. Engines of OpenVINO,
    TensorRT and Triton that were loaded with ``hint="throughput"`` work on several calls at once; others on one.
    """

    def __init__(self, manifest: Manifest, runner: Runner) -> None:
        self.manifest = manifest
        self._dtype, self._image = np.dtype(manifest.inputs[0].dtype), manifest.inputs[0].shape[1:]
        self._runner: Runner | None = runner
        self._concurrent, self._lends = isinstance(runner, Concurrent), isinstance(runner, Lends)
        self._lock = threading.Lock()
        self._submissions = Submissions(runner.parallel if isinstance(runner, Concurrent) else 1)

    def __call__(self, images: Given) -> NDArray[np.float32]:
        """Logits [N, classes] of ``images`` [N, ...] in the manifest's input layout and dtype, N >= 1.

        More images than the engine takes at once are run in several parts, fewer are filled up; the logits are
        those of the given images alone. Objects with ``__dlpack__`` on the CPU, torch tensors for one, are taken as
        arrays are; neither is copied where it is contiguous and needs no part or filling, on OpenVINO not at all.
        Engines on a GPU also take what is there already, with ``__dlpack__`` or ``__cuda_array_interface__``, and
        read it where it is once its writer's stream has come so far.

        Raises:
            UsageError: another shape, layout or dtype than the engine was built for, no image at all, or a tensor on
                another device.
            EngineError: the engine is closed.
            BackendError: the library could not run the engine.
        """
        return self._answer(self._checked(images))

    def submit(self, images: Given) -> Future[NDArray[np.float32]]:
        """The same without waiting: ``submit(images).result()`` are the logits that a call would return.

        The images are checked at once, and must not be changed before the result is there. Requests begin in the
        order in which they came; how many run at the same time is the runner's choice (see the class).

        Raises:
            UsageError: as a call; what goes wrong later is raised by ``result``.
            EngineError: the engine is closed.
        """
        return self._submissions.submit(self._answer, self._checked(images))

    def _answer(self, images: NDArray[Any] | DeviceImages) -> NDArray[np.float32]:
        """Logits of checked images."""
        with nullcontext() if self._concurrent else self._lock:
            runner = self._runner
            if runner is None:
                raise EngineError("this engine is closed; load it again")
            if self._fits(len(images)):
                return runner(images)
            most = self.manifest.batch.max
            parts = [part(images, start, start + most) for start in range(0, len(images), most)]
            return np.concatenate([self._run(runner, some) for some in parts])

    def _fits(self, count: int) -> bool:
        return self.manifest.batch.min <= count <= self.manifest.batch.max

    def preprocess(self, image: Path | str | Image | NDArray[np.uint8]) -> NDArray[Any]:
        """One photograph (path, PIL image or uint8 [H, W, 3] in RGB) as input batch of one image.

        Raises:
            ImageSetError: the image cannot be read or is too small.
        """
        from calibration.images.files import decode
        from calibration.preprocess import normalize, to_uint8

        steps = self.manifest.preprocess
        if isinstance(image, (str, Path)):
            pixels = decode(Path(image), steps, remedy="pass an image file")
        else:
            pixels = to_uint8(image, steps)
        return pixels[None] if self.manifest.inputs[0].dtype == "uint8" else normalize(pixels[None], steps)

    def classify(self, image: Path | str | Image | NDArray[np.uint8], k: int = 5) -> list[tuple[str, float]]:
        """The ``k`` most probable classes of one photograph, best first, with their softmax probability.

        All classes where there are fewer than ``k``.

        Raises:
            UsageError: ``k`` is less than 1.
            ImageSetError: the image cannot be read or is too small.
        """
        if k < 1:
            raise UsageError(f"the {k} most probable classes are none; ask for 1 or more")
        logits = self(self.preprocess(image))[0].astype(np.float64)
        powers = np.exp(logits - logits.max())
        probabilities = powers / powers.sum()
        best = np.argsort(-probabilities, kind="stable")[:k]
        return [(self.manifest.classes[index], float(probabilities[index])) for index in best]

    def close(self) -> None:
        """Give back memory and devices, after what was submitted is answered; calling it twice is harmless."""
        self._submissions.close()
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

    def _run(self, runner: Runner, images: NDArray[Any] | DeviceImages) -> NDArray[np.float32]:
        count = len(images)
        missing = max(0, self.manifest.batch.min - count)
        if missing and isinstance(images, np.ndarray):  # what is on a GPU is filled up there
            images = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])
        return runner(images)[:count]

    def _checked(self, given: object) -> NDArray[Any] | DeviceImages:
        """``given`` as images that this engine takes."""
        images = given if isinstance(given, np.ndarray) else self._shared(given)
        array = isinstance(images, IMAGES) and images.ndim > 0 and len(images) > 0
        if not (array and images.dtype == self._dtype and images.shape[1:] == self._image):
            refuse(images, self.manifest.inputs[0])  # its words take longer than the rest of a call
        return images

    def _shared(self, given: object) -> Any:
        """``given``, something of another package, over the same memory."""
        runner = self._runner
        if not (self._lends and on_cuda(given)):
            return as_array(given)
        if not isinstance(runner, Lends):
            raise EngineError("this engine is closed; load it again")
        return runner.lend(given)


def load(
    directory: Path | str,
    *,
    verify: bool = True,
    hint: Hint | None = None,
    options: RunOptions = RUN_DEFAULTS,
) -> Engine:
    """Load the engine in ``directory`` and let it prove itself on its golden inputs.

    ``verify=False`` skips the hashes and the golden self-test: a faster start, for directories that were loaded
    before. ``hint="throughput"`` lets an engine on the CPU work on several calls at once, each with fewer threads, and
    one on a GPU on as many as ``options`` gives streams; ``"latency"`` gives one call all of it, and None leaves it to
    ``options``.

    Raises:
        UsageError: the hint is unknown.
        EngineError: the directory is damaged or incomplete, or the engine does not reproduce its golden answers.
        BackendUnavailable: the engine cannot run on this machine.
        BackendError: the backend's library refused the payload.
    """
    directory = Path(directory)
    if hint is not None:
        options = replace(options, hint=hint)
    manifest = checked_manifest(directory, hashes=verify)
    runner = get_backend(manifest.backend).load(directory, manifest, options)
    engine = Engine(manifest, runner)
    if verify:
        _prove(directory, engine)
        if isinstance(runner, Keeps):
            runner.keep()
    return engine


def simulate(directory: Path) -> Engine | None:
    """The engine in ``directory``, executed by its backend's stand-in for a device that is not here.

    It proves itself on its golden inputs, as ``load`` has it. None where the backend has no stand-in.

    Raises:
        EngineError: the directory is damaged or incomplete, or the golden answers are not reproduced.
        BackendError: the payload was refused.
    """
    manifest = checked_manifest(directory, hashes=True)
    backend = get_backend(manifest.backend)
    if not isinstance(backend, Simulates):
        return None
    engine = Engine(manifest, backend.simulate(directory, manifest))
    _prove(directory, engine)
    return engine


def _prove(directory: Path, engine: Engine) -> None:
    """The golden self-test; an engine that fails it is closed."""
    try:
        _self_test(directory, engine)
    except BaseException:
        engine.close()
        raise


def _self_test(directory: Path, engine: Engine) -> None:
    """Run the golden inputs.

    Raises:
        EngineError: the answers are not the golden ones.
    """
    images, expected = read_golden(directory, engine.manifest)
    # in batches that the engine was tuned for: libraries prepare each size when they first see it
    size = engine.manifest.batch.opt
    parts = [engine(images[start : start + size]) for start in range(0, len(images), size)]
    error = relative_rms(expected, np.concatenate(parts))
    allowed = engine.manifest.golden_relative_rms
    if not error <= allowed:  # NaN, too
        raise EngineError(
            f"the engine in {directory} does not reproduce its golden answers on this machine (relative RMS "
            f"{error:.3g}, allowed {allowed:g}); build it again here"
        )
