"""Ends a process, or fails, at the k-th call that changes the disk.

Calls are: open for writing, write, fsync, mkdir and rename; for the end of a process also unlink and rmdir.

``at_call`` runs an action in a process that is forked from one with all imports and no threads: a process that tests
have run in has threads of its own, and whatever lock one of them holds at a fork stays locked in the child for ever.
"""

from __future__ import annotations

import builtins
import errno
import io
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rescompile.errors import USER_ERRORS
from rescompile.files import renaming

CRASHED, DONE, REFUSED, TRACEBACK = 9, 0, 1, 2
"""Exit codes: at the call; the action ended before it; one sentence; anything else."""
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO}
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.conftest", "onnxruntime"])
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class _Calls:
    """Counts the calls, and does to the last one what is asked."""

    def __init__(self, last: int, effect: str, below: Path) -> None:
        self.made, self.last, self.effect, self.below = 0, last, effect, str(below)

    def come(self, path: object, *, halfway: Callable[[], object] | None = None) -> None:
        """One call that changes ``path`` is about to happen."""
        if not isinstance(path, int) and not os.path.abspath(os.fsdecode(path)).startswith(self.below):  # type: ignore[arg-type]  # noqa: PTH100
            return
        self.made += 1
        if self.made != self.last:
            return
        if self.effect == "crash":
            if halfway is not None:
                halfway()
            os._exit(CRASHED)
        number = ERRORS[self.effect]
        raise OSError(number, os.strerror(number), path if isinstance(path, str) else None)


class _Counted:
    """A file that is being written."""

    def __init__(self, file: Any, path: object, calls: _Calls) -> None:
        self._file, self._path, self._calls = file, path, calls

    def write(self, data: Any) -> Any:
        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._calls.come(self._path, halfway=half)
        return self._file.write(data)

    def __enter__(self) -> _Counted:
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> Any:
        return self._file.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _watch(calls: _Calls) -> None:
    """Replace Python's calls of the system for the rest of this process."""
    opened, system_open = io.open, os.open

    def counted_open(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if not set(mode) & set("wxa+"):
            return opened(file, mode, *rest, **options)
        if options.get("opener") is None:  # else os.open counts it
            calls.come(file)
        return _Counted(opened(file, mode, *rest, **options), file, calls)

    def counted_os_open(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & _WRITING:
            calls.come(path)
        return system_open(path, flags, *rest, **options)

    builtins.open = io.open = counted_open
    os.open = counted_os_open
    # a disk that cannot even remove a file keeps it
    removing = ("unlink", "rmdir") if calls.effect == "crash" else ()
    for name in ("mkdir", "rename", "replace", "fsync", *removing):
        original = getattr(os, name)

        def counted(path: Any, *rest: Any, _original: Any = original, **options: Any) -> Any:
            calls.come(path)
            return _original(path, *rest, **options)

        setattr(os, name, counted)
    exchange = renaming.exchange

    def counted_exchange(one: Path, other: Path) -> bool:
        calls.come(str(one))
        return exchange(one, other)

    renaming.exchange = counted_exchange  # type: ignore[assignment]


def count_calls(effect: str, below: Path, action: Callable[[], object]) -> int:
    """The number of calls to which ``effect`` may happen."""
    code, said = at_call(0, effect, below, action)
    assert code == DONE, said
    return int(said.rpartition("calls:")[2])


def at_call(number: int, effect: str, below: Path, action: Callable[[], object]) -> tuple[int, str]:
    """Exit code and output of ``action`` in a process where ``effect`` happens to call ``number`` below ``below``.

    The action is pickled: a function of a module, or a ``partial`` of one.
    """
    reading, writing = _CONTEXT.Pipe(duplex=False)
    child = _CONTEXT.Process(target=_act, args=(writing, number, effect, below, action))
    child.start()
    writing.close()
    with os.fdopen(os.dup(reading.fileno()), "rb") as stream:
        said = stream.read().decode(errors="replace")
    reading.close()
    child.join()
    assert child.exitcode is not None
    return child.exitcode, said


def _act(output: Connection, number: int, effect: str, below: Path, action: Callable[[], object]) -> None:
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, closefd=False)
    code = TRACEBACK
    try:
        calls = _Calls(number, effect, below)
        _watch(calls)
        action()
        code = DONE
        if not number:
            print(f"calls:{calls.made}")
    except USER_ERRORS as error:
        print(error)
        code = REFUSED
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
