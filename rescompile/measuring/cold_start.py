"""One start of an engine in a new process, which prints JSON.

It includes all that a user's program does before its first answer: Python, imports, hashes, the library's compilation
or its cache, the golden self-test, and one image.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from rescompile.errors import BackendError

_PACKAGES = Path(__file__).parents[2]


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds and bytes of one start."""

    process_seconds: float
    """From the start of the process to the first answer."""
    load_seconds: float
    """``rescompile.load``."""
    first_seconds: float
    """The first answer after loading."""
    rss_bytes: int
    """Resident memory after the first answer; 0 where the system has no /proc."""
    peak_rss_bytes: int


def start_once(directory: Path, environment: Mapping[str, str], *, threads: int | None = None) -> Start:
    """Start an engine in a new process that has ``environment``.

    Raises:
        BackendError: the process could not load or run the engine; the message holds its last line.
    """
    # not -m, which would import modules from the working directory; this process may have found its own there
    code = f"import sys; sys.path = [*filter(None, sys.path), {str(_PACKAGES)!r}]; from {__name__} import main; main()"
    command = [sys.executable, "-c", code, str(directory), str(threads or 0)]
    began = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(environment)
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        elapsed = time.perf_counter() - began
        _, said = process.communicate()
    if process.returncode or not line:
        words = said.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        raise BackendError(f"a new process could not start the engine in {directory}: {words[0]}")
    return msgspec.convert({"process_seconds": elapsed, **json.loads(line)}, type=Start)


def resident_bytes(status: Path = Path("/proc/self/status")) -> int:
    """Resident memory of this process now; 0 where the system has no /proc."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)


def main() -> None:
    """Load the engine of the first argument, run one golden image, and print times and memory."""
    from rescompile.backends.base import RunOptions
    from rescompile.progress import peak_memory_bytes
    from rescompile.runtime.golden import read_golden
    from rescompile.runtime.loading import load

    directory, threads = Path(sys.argv[1]), int(sys.argv[2]) or None
    began = time.perf_counter()
    with load(directory, options=RunOptions(threads=threads)) as engine:
        loaded = time.perf_counter()
        images, _ = read_golden(directory, engine.manifest)
        ready = time.perf_counter()
        engine(images[:1])
        answered = time.perf_counter()
        found = {
            "load_seconds": loaded - began,
            "first_seconds": answered - ready,
            "rss_bytes": resident_bytes(),
            "peak_rss_bytes": peak_memory_bytes(),
        }
        print(json.dumps(found), flush=True)
