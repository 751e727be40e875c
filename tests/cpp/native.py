"""librescompile through its C API."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE, POINTER = ctypes.c_size_t, ctypes.c_void_p


class Options(ctypes.Structure):
    _fields_ = [
        ("skip_verification", ctypes.c_int),
        ("threads", ctypes.c_int),
        ("hint", ctypes.c_int),
        ("cache", ctypes.c_char_p),
        ("trusted_keys", POINTER),
        ("trusted_keys_count", SIZE),
        ("batch", ctypes.c_int),
    ]


class Facts(ctypes.Structure):
    _fields_ = [
        ("dtype", ctypes.c_int),
        ("layout", ctypes.c_int),
        ("shape", SIZE * 3),
        *(
            (name, SIZE)
            for name in ("image_size", "batch_min", "batch_opt", "batch_max", "classes", "concurrency")
        ),
    ]


class Sizes(ctypes.Structure):
    _fields_ = [(f"{end}_{side}", SIZE) for end in ("min", "max", "own") for side in ("height", "width")]


class Output(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("kind", ctypes.c_int),
        ("rank", SIZE),
        ("shape", SIZE * 3),
        ("size", SIZE),
    ]


class NativeError(Exception):
    """``code`` and the library's sentence."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Library:
    """The shared library at ``path``, which is loaded into this process."""

    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        self.c.rescompile_last_error.restype = ctypes.c_char_p
        self.c.rescompile_version.restype = ctypes.c_char_p
        self.c.rescompile_class_name.restype = ctypes.c_char_p
        self.c.rescompile_class_name.argtypes = [POINTER, SIZE]
        self.c.rescompile_free.argtypes = [POINTER]
        for kind in ("float", "bytes"):
            infer = [POINTER, POINTER, SIZE, SIZE, POINTER, SIZE]
            getattr(self.c, f"rescompile_infer_{kind}").argtypes = infer
            infer_all = [POINTER, POINTER, SIZE, SIZE, POINTER, POINTER, SIZE]
            getattr(self.c, f"rescompile_infer_all_{kind}").argtypes = infer_all
            preprocess = [POINTER, POINTER, SIZE, SIZE, POINTER, SIZE]
            getattr(self.c, f"rescompile_preprocess_{kind}").argtypes = preprocess
            infer_at = [POINTER, POINTER, SIZE, SIZE, SIZE, SIZE, POINTER, POINTER, SIZE]
            getattr(self.c, f"rescompile_infer_at_{kind}").argtypes = infer_at
        self.c.rescompile_get_sizes.argtypes = [POINTER, ctypes.POINTER(Sizes)]
        self.c.rescompile_get_output_at.argtypes = [POINTER, SIZE, SIZE, SIZE, ctypes.POINTER(Output)]
        self.c.rescompile_get_facts.argtypes = [POINTER, ctypes.POINTER(Facts)]
        self.c.rescompile_output_count.argtypes = [POINTER]
        self.c.rescompile_output_count.restype = SIZE
        self.c.rescompile_get_output.argtypes = [POINTER, SIZE, ctypes.POINTER(Output)]
        self.c.rescompile_top_k.argtypes = [POINTER, SIZE, SIZE, POINTER, POINTER, POINTER]

    def check(self, status: int) -> None:
        if status:
            raise NativeError(status, self.c.rescompile_last_error().decode())

    def load(self, directory: Path, **options: Any) -> NativeEngine:
        engine = POINTER()
        wanted = Options(**options)
        load = self.c.rescompile_load
        self.check(load(str(directory).encode(), ctypes.byref(wanted), ctypes.byref(engine)))
        return NativeEngine(self, engine)

    def top_k(self, logits: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
        indices, probabilities, found = np.zeros(k, np.uintp), np.zeros(k), SIZE()
        self.check(
            self.c.rescompile_top_k(
                logits.ctypes.data, len(logits), k, indices.ctypes.data, probabilities.ctypes.data,
                ctypes.addressof(found),
            )
        )  # fmt: skip
        return [(int(indices[rank]), float(probabilities[rank])) for rank in range(found.value)]


class NativeEngine:
    """An engine that the library loaded; freed with the object."""

    def __init__(self, library: Library, engine: ctypes.c_void_p) -> None:
        self.library, self.engine, self.facts = library, engine, Facts()
        library.check(library.c.rescompile_get_facts(engine, ctypes.byref(self.facts)))

    def __del__(self) -> None:
        self.library.c.rescompile_free(self.engine)

    def __call__(self, images: NDArray[Any], count: int | None = None) -> NDArray[np.float32]:
        count = len(images) if count is None else count
        logits = np.full((count, self.facts.classes), np.nan, np.float32)
        kind = "bytes" if images.dtype == np.uint8 else "float"
        infer = getattr(self.library.c, f"rescompile_infer_{kind}")
        images = np.ascontiguousarray(images)
        self.library.check(
            infer(self.engine, images.ctypes.data, images.size, count, logits.ctypes.data, logits.size)
        )
        return logits

    def outputs(self) -> list[Output]:
        """All outputs; their names live as long as this engine."""
        found = []
        for index in range(self.library.c.rescompile_output_count(self.engine)):
            found.append(Output())
            self.library.check(
                self.library.c.rescompile_get_output(self.engine, index, ctypes.byref(found[-1]))
            )
        return found

    def infer_all(self, images: NDArray[Any], missing: int = 0) -> dict[str, NDArray[np.float32]]:
        """All outputs; the buffers lack ``missing`` values each."""
        kind, images = "bytes" if images.dtype == np.uint8 else "float", np.ascontiguousarray(images)
        specs, count = self.outputs(), len(images)
        made = [np.full((count, *spec.shape[: spec.rank]), np.nan, np.float32) for spec in specs]
        places = (POINTER * len(made))(*(array.ctypes.data for array in made))
        sizes = (SIZE * len(made))(*(array.size - missing for array in made))
        infer_all = getattr(self.library.c, f"rescompile_infer_all_{kind}")
        self.library.check(
            infer_all(self.engine, images.ctypes.data, images.size, count, places, sizes, len(made))
        )
        return {spec.name.decode(): array for spec, array in zip(specs, made, strict=True)}

    def sizes(self) -> Sizes:
        found = Sizes()
        self.library.check(self.library.c.rescompile_get_sizes(self.engine, ctypes.byref(found)))
        return found

    def outputs_at(self, size: tuple[int, int]) -> list[Output]:
        found = []
        for index in range(self.library.c.rescompile_output_count(self.engine)):
            found.append(Output())
            ask = self.library.c.rescompile_get_output_at
            self.library.check(ask(self.engine, index, *size, ctypes.byref(found[-1])))
        return found

    def infer_at(self, images: NDArray[Any], size: tuple[int, int]) -> dict[str, NDArray[np.float32]]:
        """All outputs of images of this height and width."""
        kind, images = "bytes" if images.dtype == np.uint8 else "float", np.ascontiguousarray(images)
        specs, count = self.outputs_at(size), len(images)
        made = [np.full((count, *spec.shape[: spec.rank]), np.nan, np.float32) for spec in specs]
        places = (POINTER * len(made))(*(array.ctypes.data for array in made))
        sizes = (SIZE * len(made))(*(array.size for array in made))
        infer_at = getattr(self.library.c, f"rescompile_infer_at_{kind}")
        self.library.check(
            infer_at(self.engine, images.ctypes.data, images.size, count, *size, places, sizes, len(made))
        )
        return {spec.name.decode(): array for spec, array in zip(specs, made, strict=True)}

    def preprocess(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        height, width, _ = pixels.shape
        pixels = np.ascontiguousarray(pixels)
        dtype, kind = (np.uint8, "bytes") if self.facts.dtype else (np.float32, "float")
        image = np.zeros(tuple(self.facts.shape), dtype)
        preprocess = getattr(self.library.c, f"rescompile_preprocess_{kind}")
        self.library.check(
            preprocess(self.engine, pixels.ctypes.data, width, height, image.ctypes.data, image.size)
        )
        return image[None]

    def class_name(self, index: int) -> str | None:
        name = self.library.c.rescompile_class_name(self.engine, index)
        return None if name is None else name.decode()
