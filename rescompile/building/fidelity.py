"""Checks that our graph of a network computes what the user's own file or framework computes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from rescompile.backends.onnxruntime import reference_session
from rescompile.errors import BackendError, CheckpointError, GraphError
from rescompile.graph.image_sizes import with_open_sizes
from rescompile.graph.simplify.ends import Intake
from rescompile.graph.simplify.opening import leaves_batch_open
from rescompile.manifest import SizeRange
from rescompile.metrics import relative_rms

TOLERANCE = 1e-4
"""Largest relative RMS between the user's network and our graph; float32 rounding alone stays below 1e-5."""
HALF_TOLERANCE = 2e-2
"""The same for a file that computes in FP16, where our graph computes in FP32."""
MOST_TOLERANCE = 1e-3
"""The same for a network in which rounding grows from layer to layer, as in deep random ones."""
NOISE_MARGIN = 3
"""Times that the difference may be larger than that of two right executions."""


SAMPLED_SIZES = 5
"""Sizes besides the ends of a range at which a network is tried; paddings depend on whether a side is even."""
Answers = Callable[[NDArray[np.float32]], Sequence[NDArray[Any]]]
"""The user's network: images [N, C, H, W] to its outputs."""


def tolerance_beside(noise: float) -> float:
    """Largest relative RMS between two forms of a network whose own executions differ by ``noise``."""
    return max(TOLERANCE, min(NOISE_MARGIN * noise, MOST_TOLERANCE))


def rounding_noise(graph: onnx.ModelProto, images: NDArray[np.float32]) -> float:
    """Relative RMS between two executions of ``graph`` that sum in another order; of several outputs the largest."""
    exact, fused = (reference_session(graph, optimize=optimize).tensors(images) for optimize in (False, True))
    return max(relative_error(exact[name], fused[name]) for name in exact)


def random_images(
    graph: onnx.ModelProto, limit: float | None, count: int = 2, sides: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """Random images [N, C, H, W] for ``graph``: normal ones, or whole numbers from 0 to ``limit``.

    ``sides`` are another height and width than the graph's own.
    """
    _, channels, *own = (dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim)
    rng, size = np.random.default_rng(0), (count, channels, *(sides or own))
    if limit is None:
        return rng.standard_normal(size, dtype=np.float32)
    bytes_ = rng.integers(0, 256, size).astype(np.float32)
    return bytes_ if limit == 255 else bytes_ / np.float32(255)


def check_against_file(
    graph: onnx.ModelProto,
    original: onnx.ModelProto,
    intake: Intake,
    origins: Mapping[str, str],
    limit: float | None,
) -> None:
    """Refuse a ``graph`` that does not compute what the ``original`` file computes; the message names the first node.

    Args:
        graph: folded fp32 graph.
        original: the user's file.
        intake: how the file takes its images.
        origins: tensors of ``graph`` to their names in the file.
        limit: as in ``random_images``.

    Raises:
        CheckpointError: the answers are not finite, or all of them are zeros.
        GraphError: an output differs by more than the tolerance, or takes one batch size alone.
    """
    outputs = [_copied(graph, output.name) for output in graph.graph.output]
    wanted = [origins[name] for name in outputs]
    images = random_images(graph, limit)
    expected = _values(original, wanted, images, intake)
    try:
        found = reference_session(graph, optimize=True).tensors(images)
        one = [reference_session(graph, optimize=True).tensors(x[None]) for x in images]
    except BackendError as refusal:
        raise GraphError(_one_at_a_time(original, wanted, images, intake, refusal)) from None
    if not any(map(np.any, expected.values())):
        raise CheckpointError(
            "the network answers only zeros, whatever the image, so nothing can be judged: its last layer was never "
            "trained; load trained weights, or random ones for timing"
        )
    tolerance = HALF_TOLERANCE if _computes_in_half(original) else TOLERANCE
    for index, (name, theirs, mine) in enumerate(zip(outputs, wanted, found.values(), strict=True)):
        _check_finite(expected[theirs])
        error = relative_error(expected[theirs], mine)
        apart = relative_error(np.concatenate([list(each.values())[index] for each in one]), mine)
        allowed = TOLERANCE
        if not (error <= tolerance and apart <= allowed):
            fused = _values(original, [theirs], images, intake, optimize=True)[theirs]
            allowed = tolerance_beside(relative_error(expected[theirs], fused))
        if not error <= max(tolerance, allowed):
            place = _first_difference(graph, original, images, intake, origins, tolerance) or name
            raise GraphError(
                f"our graph of this network differs from the file by {error:.2g} (relative RMS on random images, at "
                f"most {tolerance:g}), first at {place}: please report this file, and export it another way meanwhile"
            )
        if not apart <= allowed:
            raise GraphError(
                "the network answers differently to two images at once than to each alone: export it in eval mode and "
                "with a dynamic batch"
            )


def check_against_function(
    graph: onnx.ModelProto, reference: Callable[[NDArray[Any]], NDArray[Any]], limit: float | None
) -> None:
    """Refuse a ``graph`` that does not compute what the framework's own ``reference`` computes.

    Raises:
        CheckpointError: the framework's answers are not finite.
        GraphError: the answers differ by more than the tolerance.
    """
    images = random_images(graph, limit)
    expected = np.asarray(reference(images))
    found = reference_session(graph, optimize=False)(images)
    _check_finite(expected)
    error = relative_error(expected, found)
    if not error <= TOLERANCE and not error <= tolerance_beside(rounding_noise(graph, images)):
        raise GraphError(
            f"the exported graph differs from the network itself by {error:.2g} (relative RMS of its outputs, at most "
            f"{TOLERANCE:g}): a batch norm with a vanishing variance is the usual cause"
        )


def check_at_sizes(
    graph: onnx.ModelProto,
    sizes: SizeRange,
    references: Sequence[Answers],
    limit: float | None,
    tolerance: float = MOST_TOLERANCE,
) -> None:
    """Refuse a ``graph`` that is made for one size, or computes something else than the user's network at another.

    Args:
        graph: folded fp32 graph of one size.
        sizes: heights and widths to try: the ends, and a few between them.
        references: the user's network in one form or more, each with the first outputs of ``graph``, or all.
        limit: as in ``random_images``.
        tolerance: largest relative RMS of the difference.

    Raises:
        GraphError: names the size and the node, or the difference.
    """
    opened = reference_session(with_open_sizes(graph), optimize=False)
    rows = [len(output.type.tensor_type.shape.dim) == 2 for output in graph.graph.output]
    widths: list[set[int]] = [set() for _ in rows]
    for size in _sizes_to_try(sizes):
        images, words = random_images(graph, limit, 1, size), f"{size[0]}x{size[1]}"
        try:
            found = list(opened.tensors(images).values())
        except BackendError as refusal:
            raise GraphError(_made_for_one_size(words, refusal)) from None
        for row, seen, values in zip(rows, widths, found, strict=True):
            seen.add(values.shape[1] if row else 0)
        if any(len(seen) > 1 for seen in widths):
            raise GraphError(
                f"the network's outputs have other numbers of values for images of {words}; leave --dynamic-size out"
            )
        for reference in references:
            try:
                expected = reference(images)
            except Exception as error:  # a framework may raise anything
                first = (str(error).splitlines() or [type(error).__name__])[0]
                raise GraphError(
                    f"the network does not take images of {words} ({first}); {_NARROW}"
                ) from None
            apart = max(relative_error(*pair) for pair in zip(expected, found, strict=False))
            if not apart <= tolerance:
                raise GraphError(
                    f"for images of {words} the network computes something else than at its own size ({apart:.2g} "
                    f"relative RMS from our graph): something in it depends on the size, such as a padding; {_NARROW}"
                )


_NARROW = "leave --dynamic-size out, or narrow it"


def _sizes_to_try(sizes: SizeRange) -> list[tuple[int, int]]:
    rng = np.random.default_rng(0)
    between = rng.integers(sizes.min, sizes.max, (SAMPLED_SIZES, 2), endpoint=True).tolist()
    return list(dict.fromkeys([*sizes.ends, *((height, width) for height, width in between)]))


def _made_for_one_size(words: str, refusal: BackendError) -> str:
    """The sentence about a graph that ONNX Runtime refuses to run on images of another size."""
    at = _refused_node(refusal)
    where = f"node {at} is made for one size" if at else str(refusal)
    return f"the network does not take images of {words}: {where}; {_NARROW}"


def _one_at_a_time(
    original: onnx.ModelProto,
    wanted: list[str],
    images: NDArray[np.float32],
    intake: Intake,
    refusal: BackendError,
) -> str:
    """The sentence about a graph that ONNX Runtime refuses to run on two ``images``."""
    where = _refused_node(refusal) or str(refusal)
    takes_any = leaves_batch_open(original)
    if takes_any:
        try:
            _values(original, wanted, np.concatenate([images, images[:1]]), intake)
        except GraphError:
            takes_any = False
    if not takes_any:
        return (
            f"the file is made for one number of images, because of {where}: export it with a dynamic batch"
        )
    return (
        "the network takes any number of images, but rescompile's graph of it does not, because of "
        f"{where}: please report this network"
    )


def _refused_node(refusal: BackendError) -> str:
    """Name and operator of the node that ONNX Runtime could not run; empty where it does not say it."""
    at = re.search(r"running (\w+) node\. Name:'([^']*)'", str(refusal))
    return f"'{at[2]}' ({at[1]})" if at else ""


def size_tolerance(original: onnx.ModelProto) -> float:
    """Largest relative RMS between the user's file and our graph at other sizes."""
    return HALF_TOLERANCE if _computes_in_half(original) else MOST_TOLERANCE


def file_answers(
    original: onnx.ModelProto, graph: onnx.ModelProto, intake: Intake, origins: Mapping[str, str]
) -> Answers:
    """The user's file with open sizes, as ``check_at_sizes`` takes it; ``origins`` as in ``check_against_file``."""
    opened, names = (
        with_open_sizes(original),
        [origins[_copied(graph, each.name)] for each in graph.graph.output],
    )

    def answers(images: NDArray[np.float32]) -> list[NDArray[Any]]:
        found = _values(opened, names, images, intake)
        return [found[name] for name in names]

    return answers


def _check_finite(values: NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        raise CheckpointError(
            "the network's logits are not finite: the weights overflow, so check the checkpoint"
        )


def relative_error(expected: NDArray[Any], found: NDArray[Any]) -> float:
    """Relative RMS of ``found`` [N, ...]; infinite where the sizes differ."""
    if expected.size != found.size:
        return float("inf")
    return relative_rms(
        expected.reshape(len(expected), -1).astype(np.float32),
        found.reshape(len(expected), -1).astype(np.float32),
    )


def _copied(graph: onnx.ModelProto, output: str) -> str:
    """The inner tensor that ``output`` copies by an Identity; ``output`` itself where there is no Identity."""
    for node in graph.graph.node:
        if node.op_type == "Identity" and node.output[0] == output:
            return str(node.input[0])
    return output


def _values(
    original: onnx.ModelProto,
    names: list[str],
    images: NDArray[np.float32],
    intake: Intake,
    *,
    optimize: bool = False,
) -> dict[str, NDArray[Any]]:
    """Tensors of the user's file by name, for each image alone where its batch is fixed."""
    model = onnx.ModelProto()
    model.CopyFrom(original)
    present = {output.name: output for output in model.graph.output}
    del model.graph.output[:]
    model.graph.output.extend(
        present.get(name, onnx.ValueInfoProto(name=name)) for name in dict.fromkeys(names)
    )
    given = intake.of(images)
    try:
        session = reference_session(model, optimize=optimize)
        constants = {tensor.name for tensor in model.graph.initializer}
        image = next(entry for entry in model.graph.input if entry.name not in constants)
        batch = image.type.tensor_type.shape.dim[0].dim_value
        if batch in (0, len(given)):
            return session.tensors(given)
        parts = [session.tensors(np.repeat(each[None], batch, axis=0)) for each in given]
    except BackendError as error:
        raise GraphError(
            f"the file itself cannot be executed, so nothing can be compared with it: {error}"
        ) from None
    return {name: np.concatenate([part[name][:1] for part in parts]) for name in parts[0]}


def _computes_in_half(model: onnx.ModelProto) -> bool:
    return any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)


def _first_difference(
    graph: onnx.ModelProto,
    original: onnx.ModelProto,
    images: NDArray[np.float32],
    intake: Intake,
    origins: Mapping[str, str],
    tolerance: float,
) -> str | None:
    """The first node of ``graph`` whose tensor differs from that of the file; None where no inner tensor does."""
    known = {name for node in original.graph.node for name in node.output}
    mine = [str(node.output[0]) for node in graph.graph.node if origins.get(node.output[0]) in known]
    theirs = _values(original, [origins[name] for name in mine], images, intake)
    found = reference_session(graph, optimize=False, outputs=mine).tensors(images)
    for name in mine:
        if not relative_error(theirs[origins[name]], found[name]) <= tolerance:
            return f"'{origins[name]}' ({name} in our graph)"
    return None
