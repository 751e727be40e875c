"""The command's ways to end, without compiling anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.compiled_kernels import command
from benchmarks.compiled_kernels.command import main
from benchmarks.compiled_kernels.compiled import Compiled, Work
from benchmarks.compiled_kernels.sass import Machine

ONE = ["--configs", "default", "--kernels", "passes.join_kernel", "--jobs", "1"]


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A compiler whose kernels are as large as the test says."""
    sizes = {"shared": 1024}

    def compile_in_processes(work: Work, jobs: int) -> Iterator[Compiled]:
        for variant, target in work:
            yield Compiled(variant, target.name, registers=40, shared=sizes["shared"], machine=Machine())

    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(command, "compile_in_processes", compile_in_processes)
    return sizes


def run(*options: str) -> int:
    """The exit code."""
    with pytest.raises(SystemExit) as stop:
        main([*options])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_a_table_a_summary_and_0_where_all_is_well(
    compiler: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*ONE) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("target  kernel  operation")
    assert lines[1].startswith("sm_90   join    join")
    assert lines[-2].startswith("sm_90: 4 compiled, 0 wrong")
    assert lines[-1].startswith("4 compilations in ")


def test_1_where_a_kernel_is_wrong(compiler: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    compiler["shared"] = 200_000
    assert run(*ONE, "--target", "sm_90", "--target", "sm_86") == 1
    out = capsys.readouterr().out
    assert "200000 bytes of shared memory, 101376 exist" in out
    assert "sm_90: 4 compiled, 0 wrong" in out
    assert "sm_86: 4 compiled, 4 wrong" in out


def test_files_hold_everything(compiler: dict[str, int], tmp_path: Path) -> None:
    as_json, page = tmp_path / "new" / "kernels.json", tmp_path / "kernels.md"
    assert run(*ONE, "--json", str(as_json), "--output", str(page)) == 0
    data = json.loads(as_json.read_text("utf-8"))
    assert data["passed"]
    assert len(data["kernels"]) == 4
    assert "python -m benchmarks.compiled_kernels --configs default" in page.read_text("utf-8")
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "sm_70"], "invalid choice: 'sm_70'"),
        (["--configs", "some"], "invalid choice: 'some'"),
        (["--jobs", "0"], "--jobs 0: at least one process is needed"),
        (
            ["--kernels", "nothing", "--kernels", "none"],
            "no kernel or operation of such a dtype matches nothing, none",
        ),
    ],
)
def test_2_where_the_command_is_not_understood(
    options: list[str], message: str, compiler: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*options) == 2
    assert message in capsys.readouterr().err


def test_an_interpreter_compiles_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*ONE) == 2
    assert "TRITON_INTERPRET is on, and the interpreter compiles nothing: unset it" in capsys.readouterr().err


def test_one_tile_takes_the_place_of_all_others(
    compiler: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    tile = '{"m": 64, "n": 32, "k": 32, "warps": 8, "stages": 2, "registers": 96}'
    assert run("--kernels", "wgrad 3x3", "--dtype", "bfloat16", "--jobs", "1", "--tile", tile) == 1
    rows = capsys.readouterr().out.splitlines()
    assert "64x32x32 8w 2s 96r" in rows[1]
    assert rows[2].startswith("sm_90: 1 compiled")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("64x32", "'64x32' is no JSON object with the sizes of a tile"),
        ("64", "'64' is no JSON object with the sizes of a tile"),
        ('{"m": 64, "width": 32}', "a tile has no field 'width'"),
    ],
)
def test_what_is_no_tile_is_refused(words: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*ONE, "--tile", words) == 2
    assert sentence in capsys.readouterr().err
