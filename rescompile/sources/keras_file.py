"""Keras files read without TensorFlow: .h5 (Keras 2) and .keras (Keras 3), and weights alone of one known network.

A layer's weights are found by its name in the file. The graph is NCHW: kernels are transposed, and a Flatten of more
than one pixel keeps Keras's order, which is height, width, channel.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.file_names import text_of
from calibration.preprocess import CHANNELS, Color, Preprocess
from rescompile.errors import CheckpointError, reason_of
from rescompile.files import sha256_of
from rescompile.manifest import CheckpointRef
from rescompile.optional import require
from rescompile.sources.graph_writer import INPUT, GraphWriter
from rescompile.sources.keras_example import example_layers
from rescompile.sources.keras_layers import LAYERS, Layer
from rescompile.sources.network import SourceNetwork
from rescompile.wording import brief

_WAY = "save the whole model with model.save('model.keras') in the program that made it, and pass that file"
_OTHER_WAY = "export the model to ONNX with Keras (model.export('model.onnx', format='onnx')) or tf2onnx, and pass that"
_INFLATION = 4
"""A file that unpacks to more than this many times its size is refused; trained weights hardly compress."""
_MEBIBYTE = 1 << 20
_DEEPEST = 8
"""Models nested in models."""
_MODELS = {"Functional", "Sequential", "Model"}
_COLOR_OF: dict[int, Color] = {1: "GRAY", 3: "RGB", 4: "RGBA"}

_EXAMPLE_NOTE = (
    "the file holds weights alone; their shapes are those of Keras's own CIFAR ResNet, so its structure was taken "
    "(padding 'same', stride in a stage's first convolutions, epsilon 0.001)"
)

Weights = Callable[[str], list[NDArray[Any]]]
"""Gives the arrays of the layer with a name, in Keras's order."""


def read_keras(path: Path, size: tuple[int, int] | None = None) -> SourceNetwork:
    """The network in a Keras file; ``size`` is the input's height and width where the file leaves them open.

    Raises:
        CheckpointError: the file cannot be read, has no structure, or has a layer that rescompile does not know.
        BackendUnavailable: h5py is not installed.
    """
    h5py = require("h5py", f"reading {path}")
    try:
        file = _File(path, h5py)
        graph = _Converter(file, size)
        graph.convert()
    except RecursionError:
        raise CheckpointError(
            f"{path} nests its layers too deeply to be a network: pass another file"
        ) from None
    except (OSError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is damaged or incomplete ({brief(reason_of(error))}): copy it again"
        ) from None
    preprocess = graph.preprocess()
    return SourceNetwork(
        graph=graph.writer.model(graph.outputs, path),
        name=graph.name,
        checkpoint=CheckpointRef(sha256_of(path), text_of(path.name)),
        preprocess=preprocess,
        preprocess_from="the first layer of the Keras model" if preprocess else None,
        notes=(_EXAMPLE_NOTE,) if file.is_example else (),
    )


class _File:
    """The configuration and the weights in one file."""

    def __init__(self, path: Path, h5py: Any) -> None:
        self.path = path
        self.layers: list[dict[str, Any]] = []
        self._dataset = h5py.Dataset
        self._limit = _INFLATION * path.stat().st_size + _MEBIBYTE
        self._unpacked = 0
        """Bytes of all weights that were read."""
        self.is_example = False
        """Whether the structure is that of Keras's example, and not of the file."""
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                config = self._member(archive, "config.json")
                self.root = h5py.File(io.BytesIO(self._member(archive, "model.weights.h5")), "r")
        else:
            self.root = h5py.File(path, "r")
            config = self.root.attrs.get("model_config")
        self.is_keras3 = "layers" in self.root or "_layer_checkpoint_dependencies" in self.root
        self.config: dict[str, Any] = self._example() if config is None else self._parsed(config)
        self.name = brief(self.config["config"].get("name", "keras"))
        self.layers = self.config["config"]["layers"]

    def _parsed(self, text: Any) -> dict[str, Any]:
        try:
            config: dict[str, Any] = json.loads(text)
            for layer in config["config"]["layers"]:
                layer["class_name"], layer["config"]["name"]
        except (ValueError, KeyError, TypeError):
            raise CheckpointError(
                f"{self.path} has a structure that is neither a Sequential nor a Functional Keras model: {_OTHER_WAY}"
            ) from None
        return config

    def _example(self) -> dict[str, Any]:
        """The configuration of Keras's CIFAR ResNet, if the weights are its."""
        _, group = self.weights()
        shapes = {name: [data.shape for data in self._datasets(group[name])] for name in group}
        layers = example_layers({name: found for name, found in shapes.items() if found})
        if layers is None:
            raise CheckpointError(f"{self.path} holds Keras weights without the model's structure: {_WAY}")
        self.is_example = True
        return {"class_name": "Functional", "config": {"name": "keras", "layers": layers}}

    def _member(self, archive: zipfile.ZipFile, name: str) -> bytes:
        try:
            if archive.getinfo(name).file_size > self._limit:
                raise CheckpointError(
                    f"{self.path} unpacks to far more than its size: pass the file that Keras saved"
                )
            return archive.read(name)
        except KeyError:
            raise CheckpointError(f"{self.path} is a zip archive without Keras's {name}: {_WAY}") from None
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise CheckpointError(f"{self.path} is damaged or incomplete ({error}): copy it again") from None

    def _datasets(self, group: Any) -> list[Any]:
        """The weights of one layer, unread."""
        if self.is_keras3:
            variables = group.get("vars", {})
            return [variables[name] for name in sorted(variables, key=int)]
        return [group[_text(name)] for name in group.attrs.get("weight_names", ())]

    def arrays(self, owner: Any, names: list[str]) -> list[NDArray[Any]]:
        """Datasets ``names`` of the group ``owner`` as float32."""
        found = []
        for name in names:
            data = owner.get(name)
            if not isinstance(data, self._dataset) or data.file.filename != self.root.filename:
                raise ValueError(f"weights '{name}' are missing in the file")
            if data.is_virtual or data.external:
                raise ValueError(f"weights '{name}' lie in another file")
            self._unpacked += data.nbytes
            if self._unpacked > self._limit or data.dtype.kind != "f":
                raise ValueError(f"weights '{name}' are {data.dtype} {list(data.shape)}, which cannot be")
            values = np.asarray(data[()], np.float32)
            if not np.isfinite(values).all():
                raise ValueError(f"weights '{name}' have values that are NaN or infinite")
            found.append(values)
        return found

    def weights(self) -> tuple[Weights, Any]:
        """How the layers of the outermost model find their weights, and the group that holds them."""
        if self.is_keras3:
            group = self.root["layers" if "layers" in self.root else "_layer_checkpoint_dependencies"]
            return self.weights_of(self.layers, group), group
        group = self.root.get("model_weights", self.root)
        return self.weights_of(self.layers, group), group

    def weights_of(self, layers: list[dict[str, Any]], group: Any) -> Weights:
        """How ``layers`` find their weights in ``group``."""
        if not self.is_keras3:
            return lambda name: self._keras2(group, name)
        if self.is_example:
            return lambda name: self._keras3(group.get(name))
        places = _places(layers, group)
        return lambda name: self._keras3(places[name])

    def _keras2(self, group: Any, layer: str) -> list[NDArray[Any]]:
        own = group.get(layer)
        if own is not None and "weight_names" in own.attrs:
            return self.arrays(own, [_text(name) for name in own.attrs.get("weight_names", ())])
        # layers of a nested model lie together in its group, by their own names
        names = [_text(name) for name in group.attrs.get("weight_names", ())]
        return self.arrays(group, [name for name in names if layer in name.split("/")[:-1]])

    def _keras3(self, group: Any) -> list[NDArray[Any]]:
        variables = group.get("vars") if group is not None else None
        if variables is None:
            return []
        return self.arrays(variables, sorted(variables, key=int))

    def inner(self, layers: list[dict[str, Any]], group: Any, name: str) -> Any:
        """The group of the nested model ``name``."""
        if not self.is_keras3:
            return group.get(name, group)
        own = _places(layers, group)[name]
        return own.get("layers") if own is not None else None


def _places(layers: list[dict[str, Any]], group: Any) -> dict[str, Any]:
    """Layer names to groups. Keras 3 numbers the layers of each class, whatever they are called."""
    if group is None:
        return {str(layer["config"]["name"]): None for layer in layers}
    counts: dict[str, int] = {}
    found = {}
    for layer in layers:
        snake = re.sub(r"\W+", "", str(layer["class_name"]))
        snake = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", snake)
        snake = re.sub(r"([a-z])([A-Z])", r"\1_\2", snake).lower()
        number = counts.get(snake, 0)
        counts[snake] = number + 1
        found[str(layer["config"]["name"])] = group.get(f"{snake}_{number}" if number else snake)
    return found


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class _Converter:
    """Writes a model's layers, and those of models nested in it, into one graph."""

    def __init__(self, file: _File, size: tuple[int, int] | None) -> None:
        self.file = file
        self.name = file.name
        self.outputs: list[str] = []
        self.writer = GraphWriter(_input_shape(file, size))
        self._normalization: tuple[NDArray[Any], NDArray[Any]] | None = None

    def convert(self) -> None:
        """Write the whole model."""
        weights, group = self.file.weights()
        self.outputs = self._model(self.file.config, weights, group, [INPUT], "", 0)

    def preprocess(self) -> Preprocess | None:
        """Images to pixels of 0 to 255 and through the first layer's normalization; None where there is none."""
        if self._normalization is None:
            return None
        scale, shift = self._normalization
        channels, *size = self.writer.shapes[INPUT]
        spread = 1 / (255 * scale)
        return Preprocess(
            resize=(size[0], size[1]),
            crop=size[0] if size[0] == size[1] else (size[0], size[1]),
            interpolation="bilinear",
            mean=tuple(float(f"{value:.7g}") for value in -shift * spread),
            std=tuple(float(f"{value:.7g}") for value in spread),
            color=_COLOR_OF[channels],
        )

    def _model(
        self,
        model: Mapping[str, Any],
        weights: Weights,
        group: Any,
        inputs: list[str],
        prefix: str,
        depth: int,
    ) -> list[str]:
        """Write one model that reads ``inputs``; its outputs."""
        if depth > _DEEPEST:
            raise RecursionError
        config = model["config"]
        layers: list[dict[str, Any]] = config["layers"]
        tensors: dict[str, list[str]] = {}
        waiting = iter(inputs)
        last = inputs
        for entry in layers:
            kind, name = str(entry["class_name"]), str(entry["config"]["name"])
            try:
                if kind == "InputLayer":
                    last = [next(waiting)]
                else:
                    read = list(_sources(entry.get("inbound_nodes", [])))
                    x = [tensors[source][index] for source, index in read] if read else last
                    if kind in _MODELS:
                        inner_group = self.file.inner(layers, group, name)
                        inner = self.file.weights_of(entry["config"]["layers"], inner_group)
                        last = self._model(entry, inner, inner_group, x, f"{prefix}{name}.", depth + 1)
                    else:
                        last = [self._layer(kind, entry["config"], weights(name), x, prefix + name)]
            except CheckpointError:
                raise
            except (
                LookupError,
                TypeError,
                ValueError,
                AttributeError,
                ArithmeticError,
                StopIteration,
            ) as error:
                raise CheckpointError(
                    f"{self.file.path}: the layer '{brief(prefix + name)}' ({brief(kind)}) cannot be read "
                    f"({type(error).__name__}: {brief(error)}): {_OTHER_WAY}"
                ) from None
            tensors[name] = last
        ends = list(_ends(config.get("output_layers")))
        return [tensors[name][index] for name, index in ends] if ends else last

    def _layer(
        self, kind: str, config: dict[str, Any], weights: list[NDArray[Any]], x: list[str], name: str
    ) -> str:
        convert = LAYERS.get(kind)
        if convert is None:
            raise CheckpointError(
                f"{self.file.path} has a layer that rescompile does not know, '{brief(name)}' ({brief(kind)}): "
                f"{_OTHER_WAY}"
            )
        layer = Layer(self.writer, config, weights, x, name)
        if x == [INPUT] and kind in {"Rescaling", "Normalization"} and self._take_normalization(layer, kind):
            return INPUT
        return convert(layer)

    def _take_normalization(self, layer: Layer, kind: str) -> bool:
        """Move the first layer's normalization of pixels into the preprocessing, which is exact there."""
        scale, shift = layer.scale_and_shift(kind)
        channels = self.writer.shapes[INPUT][0]
        known = channels in _COLOR_OF and bool((scale > 0).all()) and self._normalization is None
        if known:
            assert len(scale) == channels == CHANNELS[_COLOR_OF[channels]]
            self._normalization = (scale, shift)
        return known


def _input_shape(file: _File, size: tuple[int, int] | None) -> tuple[int, int, int]:
    """(C, H, W) of the only input."""
    shapes = [
        entry["config"].get("batch_shape", entry["config"].get("batch_input_shape"))
        for entry in file.layers
        if isinstance(entry, dict) and entry.get("class_name") == "InputLayer"
    ]
    if not shapes and file.layers:
        # a Sequential of Keras 2 keeps it in its first layer
        first = file.layers[0].get("config", {})
        shapes = [first.get("batch_input_shape") or file.config["config"].get("build_input_shape")]
        shapes = [shape for shape in shapes if shape]
    if len(shapes) != 1 or not isinstance(shapes[0], list) or len(shapes[0]) != 4:
        said = shapes[0] if len(shapes) == 1 else f"{len(shapes)} inputs"
        raise CheckpointError(f"{file.path} is not a network of one image: its input is {brief(said)}")
    _, height, width, channels = shapes[0]
    if channels in (1, 3, 4) or height not in (1, 3, 4):
        if size is not None and (height is None or width is None):
            height, width = size
        if not all(isinstance(side, int) and 0 < side <= 8192 for side in (height, width, channels)):
            raise CheckpointError(
                f"{file.path} leaves the size of its input open: pass --crop, such as --crop 224"
            )
        return channels, height, width
    raise CheckpointError(
        f"{file.path} takes images with channels first, which is not supported: {_OTHER_WAY}"
    )


def _sources(nodes: Any) -> Iterator[tuple[str, int]]:
    """(layer, output) of each tensor that a layer reads, in the forms of Keras 2 and 3."""
    if isinstance(nodes, list) and len(nodes) > 1 and all(_is_node(node) for node in nodes):
        raise ValueError("it is used more than once")
    yield from _walk(nodes)


def _is_node(node: object) -> bool:
    """Whether ``node`` is one call of the layer."""
    return (isinstance(node, dict) and "args" in node) or (
        isinstance(node, list) and bool(node) and isinstance(node[0], list)
    )


def _walk(item: Any) -> Iterator[tuple[str, int]]:
    if isinstance(item, dict):
        history = (
            item.get("config", {}).get("keras_history") if isinstance(item.get("config"), dict) else None
        )
        if history is not None:
            yield str(history[0]), int(history[2])
            return
        for value in item.values():
            yield from _walk(value)
    elif isinstance(item, list):
        if len(item) >= 3 and isinstance(item[0], str) and isinstance(item[1], int):
            yield item[0], int(item[2])
            return
        for value in item:
            yield from _walk(value)


def _ends(outputs: Any) -> Iterator[tuple[str, int]]:
    """(layer, output) of each output of a model: one triple, or a list of them."""
    return _walk(outputs)
