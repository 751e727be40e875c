"""Outputs are complete or not there, whatever ends the process."""

from __future__ import annotations

import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rescompile.errors import OutputError
from rescompile.files import (
    atomic_directory,
    atomic_stream,
    atomic_write,
    check_room,
    renaming,
    sha256_of,
    writing,
)


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def engine_at(target: Path, content: str) -> None:
    with atomic_directory(target, force=True) as staging:
        (staging.folder / "manifest.json").write_text(content)


def test_hash_is_sha256_across_block_boundaries(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "large").write_bytes(b"\0" * ((1 << 20) + 1))
    assert sha256_of(tmp_path / "empty").startswith("e3b0c442")
    assert sha256_of(tmp_path / "large").startswith("2cb74edba754")


def test_atomic_write_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content in (b"old", b"new"):
        atomic_write(path, content)
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.json"]


def test_atomic_write_into_a_missing_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="its folder does not exist"):
        atomic_write(tmp_path / "no" / "a.json", b"")


def test_directory_appears_complete_and_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "new" / "engine"
    with atomic_directory(target) as staging:
        (staging.folder / "file").write_text("x")
        assert staging.folder.parent == target.parent
        assert staging.folder.name.startswith(".engine.partial-")
        assert not target.exists()
    assert (target / "file").read_text() == "x"
    assert names(target.parent) == ["engine"]


def test_directory_has_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with atomic_directory(tmp_path / "engine"):
        pass
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "engine")}
    assert len(modes) == 1


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_nothing_and_the_old_engine_intact(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    target = tmp_path / "engine"
    engine_at(target, "old")

    def build() -> None:
        with atomic_directory(target, force=True) as staging:
            (staging.folder / "manifest.json").write_text("new")
            raise failure

    with pytest.raises(failure):
        build()
    assert (target / "manifest.json").read_text() == "old"
    assert names(tmp_path) == ["engine"]


def test_existing_engine_needs_force(tmp_path: Path) -> None:
    target = tmp_path / "engine"
    engine_at(target, "old")
    with pytest.raises(OutputError, match="exists already; pass --force"), atomic_directory(target):
        pytest.fail("the body ran")
    engine_at(target, "new")
    assert (target / "manifest.json").read_text() == "new"
    assert names(tmp_path) == ["engine"]


def test_force_replaces_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    engine_at(tmp_path / "engine", "new")
    assert (tmp_path / "engine" / "manifest.json").exists()


def test_force_never_replaces_what_is_no_engine(tmp_path: Path) -> None:
    home, file, link = tmp_path / "home", tmp_path / "file", tmp_path / "link"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    file.write_text("x")
    engine_at(tmp_path / "engine", "old")
    link.symlink_to(tmp_path / "engine")
    with pytest.raises(OutputError, match="something other than an engine"):
        engine_at(home, "new")
    for target in (file, link, Path("/")):
        with pytest.raises(OutputError, match="not a directory that can be replaced"):
            engine_at(target, "new")
    assert (home / "thesis.tex").exists()


def test_target_that_appears_during_the_build_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "engine"

    def build() -> None:
        with atomic_directory(target, force=True):
            target.mkdir()
            (target / "precious").write_text("x")

    with pytest.raises(OutputError, match="something other"):
        build()
    assert names(tmp_path) == ["engine"]
    assert names(target) == ["precious"]


def failed_at(target: Path, content: str) -> None:
    with atomic_directory(target) as staging:
        (staging.folder / "manifest.json").write_text(content)
        staging.divert(".failed")


def test_a_result_that_may_not_ship_goes_beside_its_target(tmp_path: Path) -> None:
    for content in ("first", "second"):
        failed_at(tmp_path / "engine", content)
        assert names(tmp_path) == ["engine.failed"]
        assert (tmp_path / "engine.failed" / "manifest.json").read_text() == content


def test_a_diverted_result_leaves_an_earlier_engine_in_place(tmp_path: Path) -> None:
    engine_at(tmp_path / "engine", "good")
    with atomic_directory(tmp_path / "engine", force=True) as staging:
        (staging.folder / "manifest.json").write_text("bad")
        staging.divert(".failed")
    assert (tmp_path / "engine" / "manifest.json").read_text() == "good"
    assert names(tmp_path) == ["engine", "engine.failed"]


def test_a_diverted_result_never_replaces_what_is_no_engine(tmp_path: Path) -> None:
    (tmp_path / "engine.failed").mkdir()
    (tmp_path / "engine.failed" / "precious").write_text("x")
    with pytest.raises(OutputError, match="something other than an engine"):
        failed_at(tmp_path / "engine", "bad")
    assert names(tmp_path) == ["engine.failed"]


def test_a_diverted_engine_moved_away_by_a_killed_replacement_is_swept(tmp_path: Path) -> None:
    failed_at(tmp_path / "engine", "first")
    (tmp_path / ".engine.failed.replaced-0123abcd").mkdir()
    failed_at(tmp_path / "engine", "second")
    assert names(tmp_path) == ["engine.failed"]


def test_a_file_in_the_path_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(OutputError, match="part of the path is a file"),
        atomic_directory(tmp_path / "file" / "e"),
    ):
        pytest.fail("the body ran")


def test_too_long_a_name_is_explained(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="name is too long"), atomic_directory(tmp_path / ("e" * 250)):
        pytest.fail("the body ran")


def test_errors_of_other_files_keep_their_own_kind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_directory(tmp_path / "engine"):
        (tmp_path / "elsewhere" / "image.png").read_bytes()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (13, r"engine cannot be written \(permission denied\)"),
        (30, r"engine cannot be written \(read-only disk\)"),
        (28, r"disk full at .*engine: [\d,]+ bytes free, 1,234 bytes needed; make room"),
        (122, "disk full"),
    ],
)
def test_refusals_of_the_system_become_sentences(tmp_path: Path, number: int, words: str) -> None:
    path = tmp_path / "engine"
    with pytest.raises(OutputError, match=words), writing(path, needed=1234):
        raise OSError(number, "as the system says it", str(path))


LIMITED = """
import resource, sys
from pathlib import Path
from rescompile.files import renaming
from rescompile.errors import OutputError
from rescompile.files import atomic_directory, atomic_stream, atomic_write, check_room
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with atomic_directory(Path(sys.argv[1])) as staging:
        atomic_write(staging.folder / "small", bytes(1000))
        {write}
except OutputError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "write", ["atomic_write(staging.folder / 'large', bytes(1001))", "check_room(staging.folder, 1001)"]
)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, write: str) -> None:
    process = child(LIMITED.format(write=write), tmp_path / "engine")
    said, complaints = process.communicate(timeout=60)
    assert complaints == ""
    assert "file size limit" in said
    assert "1,001 bytes needed" in said
    assert names(tmp_path) == []


def test_room_that_is_there_is_found_and_left_empty(tmp_path: Path) -> None:
    check_room(tmp_path, (1 << 20) + 1)
    assert names(tmp_path) == []


SLOW = """
import sys, time
from pathlib import Path
from rescompile.files import atomic_directory
with atomic_directory(Path(sys.argv[1]), force=True) as staging:
    (staging.folder / "manifest.json").write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


def started(target: Path) -> subprocess.Popen[str]:
    process = child(SLOW, target)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def test_sigterm_during_a_build_cleans_up(tmp_path: Path) -> None:
    process = started(tmp_path / "engine")
    process.terminate()
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert names(tmp_path) == []


def test_kill_leaves_the_old_engine_and_the_next_build_sweeps(tmp_path: Path) -> None:
    target = tmp_path / "engine"
    engine_at(target, "old")
    process = started(target)
    process.kill()
    process.communicate(timeout=120)
    assert (target / "manifest.json").read_text() == "old"
    assert len(names(tmp_path)) == 2
    engine_at(target, "new")
    assert (target / "manifest.json").read_text() == "new"
    assert names(tmp_path) == ["engine"]


def test_work_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    process = started(tmp_path / "engine")
    engine_at(tmp_path / "engine", "mine")
    assert len(names(tmp_path)) == 2
    process.kill()
    process.communicate(timeout=120)


def test_an_engine_moved_away_by_a_killed_replacement_comes_back(tmp_path: Path) -> None:
    target = tmp_path / "engine"
    engine_at(target, "old")
    target.rename(tmp_path / ".engine.replaced-0123abcd")
    with pytest.raises(OutputError, match="exists already"), atomic_directory(target):
        pytest.fail("the body ran")
    assert (target / "manifest.json").read_text() == "old"


def test_sweeping_touches_only_its_own_leftovers(tmp_path: Path) -> None:
    others = [".engine2.partial-0123abcd", ".engine.partial-short", ".engine.cache"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / ".engine.partial-1-0123abcd").mkdir()
    engine_at(tmp_path / "engine", "new")
    assert names(tmp_path) == sorted([*others, "engine"])


def test_the_old_engine_is_there_until_the_new_one_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, exchange, seen = tmp_path / "engine", renaming.exchange, []
    engine_at(target, "old")

    def watched(one: Path, other: Path) -> bool:
        seen.append((target / "manifest.json").read_text())
        done = exchange(one, other)
        seen.append((target / "manifest.json").read_text())
        return done

    monkeypatch.setattr(renaming, "exchange", watched)
    engine_at(target, "new")
    assert seen == ["old", "new"]
    assert names(tmp_path) == ["engine"]


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cannot exchange two names."""
    monkeypatch.setattr(renaming, "exchange", lambda *_: False)


@pytest.mark.usefixtures("no_exchange")
def test_without_exchange_the_old_engine_is_replaced_in_two_steps(tmp_path: Path) -> None:
    for content in ("old", "new"):
        engine_at(tmp_path / "engine", content)
        assert (tmp_path / "engine/manifest.json").read_text() == content
        assert names(tmp_path) == ["engine"]


@pytest.mark.usefixtures("no_exchange")
def test_a_failed_last_rename_brings_the_old_engine_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, rename = tmp_path / "engine", Path.rename
    engine_at(target, "old")

    def broken(self: Path, other: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(5, "input/output error")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(OutputError, match="input/output error"):
        engine_at(target, "new")
    assert (target / "manifest.json").read_text() == "old"


def test_a_directory_put_there_at_the_last_moment_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, exchange = tmp_path / "engine", renaming.exchange
    engine_at(target, "old")

    def late(one: Path, other: Path) -> bool:
        if (
            (target / "manifest.json").exists()
            and not (target / "precious").exists()
            and "partial" in one.name
        ):
            (target / "manifest.json").unlink()
            (target / "precious").write_text("x")
        return exchange(one, other)

    monkeypatch.setattr(renaming, "exchange", late)
    with pytest.raises(OutputError, match="something other than an engine"):
        engine_at(target, "new")
    assert names(tmp_path) == ["engine"]
    assert names(target) == ["precious"]


def test_without_force_an_engine_put_there_at_the_last_moment_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, check = tmp_path / "engine", renaming.refuse_existing

    def late(place: Path, *, force: bool, known_by: str = "manifest.json") -> None:
        check(place, force=force, known_by=known_by)
        if any("partial" in path.name for path in tmp_path.iterdir()):  # the new one is complete by now
            target.mkdir(exist_ok=True)
            (target / "manifest.json").write_text("of another process")

    def build() -> None:
        with atomic_directory(target) as staging:
            (staging.folder / "manifest.json").write_text("new")
            monkeypatch.setattr(renaming, "refuse_existing", late)

    with pytest.raises(OutputError, match="exists already"):
        build()
    assert names(tmp_path) == ["engine"]
    assert (target / "manifest.json").read_text() == "of another process"


FINISHING = """
import sys
from pathlib import Path
from rescompile.errors import OutputError
from rescompile.files import atomic_directory
target, content, force = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "force"
try:
    with atomic_directory(target, force=force) as staging:
        (staging.folder / "manifest.json").write_text(content)
        print("ready", flush=True)
        sys.stdin.readline()
except OutputError as error:
    print(error)
    raise SystemExit(1)
"""


@pytest.mark.parametrize("force", ["force", "careful"])
def test_two_builds_that_finish_together_end_in_one_engine_and_no_traceback(
    tmp_path: Path, force: str
) -> None:
    target = tmp_path / "engine"
    for _ in range(3):
        builders = [
            subprocess.Popen(
                [sys.executable, "-c", FINISHING, target, str(number), force],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for number in range(4)
        ]  # fmt: skip
        for each in builders:
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"
        for each in builders:
            assert each.stdin is not None
            each.stdin.write("\n")
            each.stdin.flush()
        said = [each.communicate(timeout=60) for each in builders]
        assert [errors for _, errors in said] == [""] * 4
        good = [each.returncode == 0 for each in builders]
        assert sum(good) == (4 if force == "force" else 1)
        assert all("exists already" in out for (out, _), done in zip(said, good, strict=True) if not done)
        assert good[int((target / "manifest.json").read_text())]
        assert names(tmp_path) == ["engine"]
        shutil.rmtree(target)


def test_leftovers_of_killed_writers_of_a_file_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    (tmp_path / ".file.json.0123abcd").write_text("half")
    (tmp_path / ".other.json.0123abcd").write_text("of another file")
    with atomic_stream(path) as stream:
        living = [name for name in names(tmp_path) if name.startswith(".file.json.")]
        atomic_write(path, b"another process meanwhile")
        assert living[0] in names(tmp_path), "what is being written is left alone"
        stream.write(b"mine")
    assert path.read_bytes() == b"mine"
    assert names(tmp_path) == [".other.json.0123abcd", "file.json"]


def test_sigterm_handler_is_put_back(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "engine"):
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
