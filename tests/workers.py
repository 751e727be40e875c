"""How pytest-xdist's worker processes share the tests, and what happens when one of them dies."""

from __future__ import annotations

from typing import Any

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """A worker that dies ends the run, with the name of its test.

    pytest-xdist 3.8 offers all files of the lost worker to the others again, also those that are done; a worker that is
    given only such files waits for ever.
    """
    if hasattr(config.option, "maxworkerrestart"):
        config.option.maxworkerrestart = "0"


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Say how the process of a worker that died has ended: a signal leaves no other trace."""
    if error:
        print(f"\n{node.gateway.id}: exit code {node.gateway._io.popen.wait(60)}")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """All tests of a file run in one worker, and those of the C++ library too: what they share is made once."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "tests/cpp" if file.startswith("tests/cpp/") else file

    config.option.loadscopereorder = False
    return ByFile(config, log)
