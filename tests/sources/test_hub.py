"""Without a network the Hub's client is told at once; with one, nothing changes."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from rescompile.errors import CheckpointError
from rescompile.sources import hub
from rescompile.sources.hub import unreachable_hub
from rescompile.sources.packages import _create


@pytest.fixture
def server() -> Iterator[int]:
    """A port of this machine at which something listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def closed() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@pytest.fixture
def constants(monkeypatch: pytest.MonkeyPatch, closed: int) -> SimpleNamespace:
    """The client's settings, for a server that cannot be reached."""
    found = SimpleNamespace(HF_HUB_OFFLINE=False, ENDPOINT=f"https://127.0.0.1:{closed}")
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(constants=found))
    monkeypatch.setattr(hub, "installed", lambda package: True)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return found


def test_a_server_that_cannot_be_reached_is_named_and_the_client_told(constants: SimpleNamespace) -> None:
    with unreachable_hub() as reason:
        assert reason == "127.0.0.1: Connection refused"
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_a_server_that_can_be_reached_changes_nothing(constants: SimpleNamespace, server: int) -> None:
    constants.ENDPOINT = f"https://127.0.0.1:{server}"
    with unreachable_hub() as reason:
        assert reason is None
        assert not constants.HF_HUB_OFFLINE


def test_behind_a_proxy_the_proxy_is_asked(
    constants: SimpleNamespace, server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server}")
    constants.ENDPOINT = "https://nowhere.invalid"
    with unreachable_hub() as reason:
        assert reason is None
    monkeypatch.setenv("no_proxy", "nowhere.invalid")
    with unreachable_hub() as reason:
        assert str(reason).startswith("nowhere.invalid: ")


def test_a_user_who_is_offline_stays_so(constants: SimpleNamespace) -> None:
    constants.HF_HUB_OFFLINE = True
    with unreachable_hub() as reason:
        assert reason == "HF_HUB_OFFLINE is set"
    assert constants.HF_HUB_OFFLINE


def test_weights_that_cannot_be_fetched_are_one_sentence(constants: SimpleNamespace) -> None:
    def create_model(name: str, pretrained: bool) -> None:
        assert constants.HF_HUB_OFFLINE is pretrained
        raise OSError("An error happened while trying to locate the file on the Hub")

    timm = SimpleNamespace(create_model=create_model)
    with pytest.raises(
        CheckpointError, match=r"not on this machine .*\(127\.0\.0\.1: Connection refused\): run it"
    ):
        _create(timm, "resnet18", "pretrained", {})
    with pytest.raises(CheckpointError, match="timm cannot make resnet18"):
        _create(timm, "resnet18", "random", {})
