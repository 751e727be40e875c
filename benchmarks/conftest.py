"""``pytest benchmarks/ --benchmark-only``: options, the shared session, and the results at the end."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.artifact_cache import ArtifactCache
from benchmarks.engine_races import SECONDS, EngineRaces
from benchmarks.networks import TINY, Budget, Network, network
from benchmarks.result_files import result_path
from benchmarks.rows import RESULTS, Results, Row, measured_targets, with_ratios
from benchmarks.table import lines
from benchmarks.targets import TARGETS
from rescompile.measuring.disturbance import Watch
from rescompile.measuring.origin import origin
from rescompile.measuring.roofline import Roofline, measure_roofline

DEFAULT_NETWORKS = "resnet50,resnet18,resnet101,resnet152"
"""The most informative ones first: where time runs out, the last are skipped, with a note."""
ORDER = ("test_kernels", "test_calibration", "test_engines", "test_build")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the suites."""
    group = parser.getgroup("rescompile's suites")
    group.addoption("--networks", default=DEFAULT_NETWORKS, help="names, separated by commas, in this order")
    group.addoption("--minutes", type=float, default=12.0, help="time for the whole run (12)")
    group.addoption(
        "--threads", type=int, default=None, help="CPU threads of every contender (default: all cores)"
    )
    group.addoption(
        "--results", type=Path, default=None, help="default: benchmarks/results/<device>/<date>-<commit>.json"
    )
    group.addoption(
        "--tiny", action="store_true", help="a tiny network, to try the code; its times mean nothing"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Allow warnings of peers; only our own tests turn warnings into errors."""
    config.addinivalue_line("filterwarnings", "default")


class Session:
    """One run: its budget, its artifacts, and every row."""

    def __init__(self, config: pytest.Config) -> None:
        self.tiny: bool = config.getoption("tiny")
        self.threads: int = config.getoption("threads") or len(os.sched_getaffinity(0))
        self.started = time.monotonic()
        self.watch = Watch()
        self.folder = Path(tempfile.mkdtemp(prefix="rescompile-suites-"))
        self.budget = Budget(config.getoption("minutes"))
        self.artifacts = ArtifactCache(self.folder)
        self.rows: list[Row] = []
        self._roofline: Roofline | None = None
        self._races: EngineRaces | None = None
        self._networks: dict[str, Network] = {}

    @property
    def roofline(self) -> Roofline:
        """The machine's limits, measured on first use."""
        if self._roofline is None:
            self._roofline = measure_roofline(threads=self.threads, quick=self.tiny)
        return self._roofline

    @property
    def races(self) -> EngineRaces:
        """The races of the engines."""
        if self._races is None:
            seconds = 0.2 if self.tiny else SECONDS
            self._races = EngineRaces(self.artifacts, self.budget, self.roofline, self.threads, seconds)
        return self._races

    def network(self, name: str) -> Network:
        """The network called ``name``; its weights are unpacked once."""
        if name not in self._networks:
            self._networks[name] = network(name, self.folder)
        return self._networks[name]

    def all_rows(self) -> list[Row]:
        """Rows of every suite, with their ratios."""
        raced = [row for rows in (self._races.rows.values() if self._races else ()) for row in rows]
        return with_ratios([*self.rows, *raced])

    def results(self, command: str) -> Results:
        """The results of this run."""
        rows = self.all_rows()
        timings = {f"{r.case}: {r.contender}": r.timing for r in rows if r.timing and r.timing.runs > 1}
        return Results(
            command=command,
            seconds=time.monotonic() - self.started,
            origin=origin(self.threads),
            roofline=self._roofline,
            rows=tuple(rows),
            bars=measured_targets(TARGETS, rows),
            notes=tuple(self.watch.notes(timings)),
        )


def networks(config: pytest.Config) -> list[str]:
    """Names of the networks that were asked for."""
    return [TINY] if config.getoption("tiny") else config.getoption("networks").split(",")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each network."""
    if "network_name" in metafunc.fixturenames:
        metafunc.parametrize("network_name", networks(metafunc.config), scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the suites, short ones first; networks keep the order that was asked for."""

    def place(item: pytest.Item) -> int:
        module = Path(str(item.fspath)).stem
        return ORDER.index(module) if module in ORDER else len(ORDER)

    items.sort(key=place)


_SESSION = pytest.StashKey[Session]()


@pytest.fixture(scope="session")
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    """The run."""
    made = Session(request.config)
    request.config.stash[_SESSION] = made
    yield made
    shutil.rmtree(made.folder, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write the results and print them as a table."""
    made = config.stash.get(_SESSION, None)
    if made is None or not made.all_rows():
        return
    words = ["pytest", *(str(word) for word in config.invocation_params.args)]
    found = made.results(" ".join(words))
    path = config.getoption("results") or result_path(RESULTS, found.origin)
    found.write(path)
    terminalreporter.section("rescompile's suites")
    for line in lines(found):
        terminalreporter.write_line(line)
    terminalreporter.write_line(f"written to {path}")
    if sys.platform != "linux":
        terminalreporter.write_line(
            "peak memory is that of the whole process: only Linux measures it by stage"
        )
