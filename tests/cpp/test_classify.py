"""The example classifies a file as Python does: same pixels, same logits, same classes."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rescompile
from rescompile.backends.base import RunOptions
from rescompile.manifest import read_manifest
from tests.cpp.building import ROOT, Native, run

pytestmark = pytest.mark.slow

PHOTOGRAPH = ROOT / "calibration/photographs/chelsea.jpg"
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def engine(engines: dict[str, Path]) -> Any:
    with rescompile.load(engines["int8"], options=RunOptions(threads=1)) as loaded:
        yield loaded


def photograph(mode: str = "RGB") -> Image.Image:
    with Image.open(PHOTOGRAPH) as image:
        return image.resize((90, 61)).convert(mode)


def jpeg(mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    photograph(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


def png(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def translucent() -> Image.Image:
    image = photograph("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def sixteen_bit() -> Image.Image:
    return Image.fromarray((np.arange(64 * 64).reshape(64, 64) * 16 + 7).astype(np.uint16))


FILES: dict[str, Callable[[], bytes]] = {
    "jpeg": jpeg,
    "jpeg 4:4:4": lambda: jpeg(subsampling="4:4:4"),
    "jpeg 4:2:2": lambda: jpeg(subsampling="4:2:2"),
    "jpeg progressive": lambda: jpeg(progressive=True, quality=50),
    "jpeg gray": lambda: jpeg("L"),
    "jpeg cmyk": lambda: jpeg("CMYK"),
    "png": lambda: png(photograph()),
    "png gray": lambda: png(photograph("L")),
    "png gray and alpha": lambda: png(translucent().convert("LA")),
    "png one bit": lambda: png(photograph("1")),
    "png palette": lambda: png(photograph().quantize(16)),
    "png palette with transparency": lambda: png(photograph().quantize(16), transparency=3),
    "png transparent colour": lambda: png(photograph("L"), transparency=90),
    "png alpha": lambda: png(translucent()),
    "png sixteen bits": lambda: png(sixteen_bit()),
    **{f"jpeg orientation {turn}": lambda turn=turn: jpeg(exif=oriented(turn)) for turn in range(1, 9)},
    "png orientation 6": lambda: png(photograph(), exif=oriented(6)),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_gives_pythons_logits(
    native: Native, engines: dict[str, Path], engine: Any, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "image"
    path.write_bytes(FILES[name]())
    found = json.loads(run(native.classify, "--json", "--threads", 1, engines["int8"], path))
    expected = engine(engine.preprocess(path))[0]
    np.testing.assert_array_equal(np.array(found["logits"], np.float32), expected)
    best = engine.classify(path, 5)
    assert [each["class"] for each in found["predictions"]] == [name for name, _ in best]
    assert [each["probability"] for each in found["predictions"]] == pytest.approx(
        [share for _, share in best]
    )


def test_the_table_is_that_of_the_command_line(native: Native, engines: dict[str, Path]) -> None:
    shown = run(native.classify, engines["int8"], PHOTOGRAPH)
    expected = run("rescompile", "run", engines["int8"], PHOTOGRAPH)
    assert [line.split() for line in shown.splitlines()] == [
        line.split() for line in expected.splitlines()[1:]
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"GIF89a", "it is neither JPEG nor PNG"),
        (b"", "it is neither JPEG nor PNG"),
        (jpeg()[:900], "Premature end of JPEG file"),
        (b"\xff\xd8\xff\xe0", "cannot be read ("),
        (png(photograph())[:2000], "it was cut"),
        (png(photograph()).replace(b"IDAT", b"IDAX"), "cannot be read ("),
    ],
)
def test_a_damaged_file_is_one_sentence(
    native: Native, engines: dict[str, Path], tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "image").write_bytes(content)
    refused = subprocess.run(
        [native.classify, engines["int8"], tmp_path / "image"], capture_output=True, text=True, check=False
    )
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"classify: image {tmp_path}/image cannot be read (")
    assert words in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "holds no .jpg, .jpeg or .png file"),
        ({"note.txt": b"text"}, "holds no .jpg, .jpeg or .png file"),
        ({"a.jpg": jpeg(), "b.JPG": b"GIF89a", "c.png": png(photograph())}, "b.JPG cannot be read ("),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_folder_that_cannot_be_classified_is_one_sentence(
    native: Native, engines: dict[str, Path], tmp_path: Path, files: dict[str, bytes] | None, words: str
) -> None:
    for name, content in (files or {}).items():
        (tmp_path / name).write_bytes(content)
    folder = tmp_path if files is not None else tmp_path / "missing"
    refused = subprocess.run(
        [native.classify_folder, engines["int8"], folder], capture_output=True, text=True, check=False
    )
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("classify-folder: ")
    assert words in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("engine_name", ["int8", "pixels", "fixed"])
@pytest.mark.parametrize(
    "options", [[], ["--threads", "3", "--batch", "2"], ["--threads", "1", "--batch", "100"]]
)
def test_a_folder_gets_the_same_answers_however_it_is_divided(
    native: Native, engines: dict[str, Path], tmp_path: Path, engine_name: str, options: list[str]
) -> None:
    for index in range(5):
        (tmp_path / f"{index}.png").write_bytes(png(photograph().rotate(40 * index)))
    with rescompile.load(engines[engine_name]) as engine:
        best = [(path, *engine.classify(path, 1)[0]) for path in sorted(tmp_path.iterdir())]
    done = subprocess.run(
        [native.classify_folder, *options, engines[engine_name], tmp_path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [f"{100 * share:6.2f} %  {name}  {path}" for path, name, share in best]
    *said, rate = done.stderr.splitlines()
    most = read_manifest(engines[engine_name]).batch.max
    too_many = (
        f"this engine takes at most {most} photographs in a request, not 100; build it with a larger --batch"
    )
    assert said == ([f"classify-folder: {too_many} for more"] if "100" in options else [])
    assert rate.startswith("5 photographs in ")


@pytest.mark.parametrize("program", ["classify", "classify-folder", "rescompile-check", "rescompile-soak"])
def test_an_output_that_cannot_be_written_is_one_sentence(
    native: Native, engines: dict[str, Path], program: str
) -> None:
    folder = engines["int8"]
    command: dict[str, list[object]] = {
        "classify": [native.classify, folder, PHOTOGRAPH],
        "classify-folder": [native.classify_folder, folder, PHOTOGRAPH.parent],
        "rescompile-check": [native.soak.with_name("rescompile-check"), folder],
        "rescompile-soak": [native.soak, folder, 1, 10],
    }
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [str(word) for word in command[program]],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.endswith(
        "the output cannot be written (No space left on device); send it to another place\n"
    )
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["one"], "it takes 2 paths, not 1"),
        (["a", "b", "c"], "it takes 2 paths, not 3"),
        (["a", "b", "--threads"], "--threads takes a whole number"),
        (["--threads", "-1", "a", "b"], "not -1"),
        (["--unknown", "a", "b"], "there is no option --unknown"),
    ],
)
def test_wrong_usage_is_named_and_the_right_one_shown(native: Native, words: list[str], problem: str) -> None:
    for program in (native.classify, native.classify_folder):
        refused = subprocess.run([program, *words], capture_output=True, text=True, check=False)
        assert refused.returncode == 2
        said, usage, *_ = refused.stderr.splitlines()
        assert said.startswith(f"{program.name}: ")
        assert problem in said
        assert usage.startswith(f"usage: {program.name} ")


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("rescompile-check", "it takes engine directories, and none is named"),
        ("rescompile-check --no-verfy one", "there is no option --no-verfy"),
        ("rescompile-check one --trusted-key", "--trusted-key takes a file, not nothing"),
        ("rescompile-soak one 2", "it takes DIR THREADS INFERENCES, not 2 words"),
        ("rescompile-soak one two 3", "THREADS is a whole number from 1 on, not two"),
        ("rescompile-soak one 2 0", "INFERENCES is a whole number from 1 on, not 0"),
        ("rescompile-soak --threads one 2 3", "there is no option --threads"),
    ],
)
def test_wrong_usage_of_a_tool_is_named_and_the_right_one_shown(
    native: Native, command: str, problem: str
) -> None:
    tool, *words = command.split()
    refused = subprocess.run(
        [native.soak.with_name(tool), *words], capture_output=True, text=True, check=False
    )
    assert (refused.returncode, refused.stdout) == (2, "")
    said, usage, *_ = refused.stderr.splitlines()
    assert said == f"{tool}: {problem}"
    assert usage.startswith(f"usage: {tool} ")
