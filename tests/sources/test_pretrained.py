from __future__ import annotations

import hashlib
import http.server
import resource
import threading
from pathlib import Path

import pytest

from calibration.preprocess import IMAGENET
from rescompile.cache import cache_directory
from rescompile.errors import DownloadError, UsageError
from rescompile.models.registry import IMAGENET_SPECS, find, with_options
from rescompile.sources import pretrained
from rescompile.sources.pretrained import Published, fetch_pretrained, pretrained_preprocess

CONTENT = bytes(range(256)) * 4096
RESNET18 = IMAGENET_SPECS[18]
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAME = f"resnet18-{DIGEST[:8]}.pth"


class Server:
    """A web server on the loopback device that answers every request with ``body``."""

    def __init__(self) -> None:
        self.body, self.status, self.length = CONTENT, 200, len(CONTENT)
        self.location: str | None = None
        self.requests: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append(self.path)
                self.send_response(outer.status)
                if outer.location is not None:
                    self.send_header("Location", outer.location)
                if outer.length is not None:
                    self.send_header("Content-Length", str(outer.length))
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/models"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch):
    running = Server()
    monkeypatch.setenv("RESCOMPILE_WEIGHTS_URL", running.url)
    yield running
    running.close()


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    """An empty cache, a published file of a few hundred kilobytes, and no way to the real publisher."""
    monkeypatch.setenv("RESCOMPILE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(pretrained, "PUBLISHER", "http://127.0.0.1:9/models")
    monkeypatch.delenv("RESCOMPILE_WEIGHTS_URL", raising=False)
    monkeypatch.setitem(pretrained.PUBLISHED, ("resnet18", "v1"), Published(DIGEST, 2))
    # the server of these tests has no certificate
    monkeypatch.setattr(pretrained, "SCHEMES", ("http://127.0.0.1:", "file:///"))
    return tmp_path / "cache"


def test_a_file_is_fetched_once_and_leaves_nothing_else(server, cache):
    seen = []
    path = fetch_pretrained(RESNET18, progress=lambda done, total: seen.append((done, total)))
    assert path == cache / NAME
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)
    assert len(seen) > 1
    assert fetch_pretrained(RESNET18) == path
    assert server.requests == [f"/models/{NAME}"]
    assert list(cache.iterdir()) == [path]


def test_a_cached_file_with_another_hash_is_fetched_again(server, cache):
    cache.mkdir()
    (cache / NAME).write_bytes(CONTENT[:-1])
    assert fetch_pretrained(RESNET18).read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_a_wrong_hash_is_thrown_away(server, cache):
    server.body = CONTENT[:-1] + b"\x00"
    with pytest.raises(DownloadError, match=r"does not have its published SHA-256 \(\w{8}….*thrown away"):
        fetch_pretrained(RESNET18)
    assert list(cache.iterdir()) == []


def test_a_server_that_does_not_tell_the_size(server):
    server.length = None
    seen = []
    fetch_pretrained(RESNET18, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(CONTENT), 0)


def test_a_connection_that_breaks_off(server, cache):
    server.length = len(CONTENT) + 5
    with pytest.raises(DownloadError, match=rf"broke off after {len(CONTENT)} of {len(CONTENT) + 5} bytes"):
        fetch_pretrained(RESNET18)
    assert list(cache.iterdir()) == []


def test_what_the_server_answers_is_told(server):
    server.status = 404
    with pytest.raises(DownloadError, match=r"the server answered 404 Not Found"):
        fetch_pretrained(RESNET18)


def test_offline_says_what_to_do(cache):
    with pytest.raises(DownloadError) as caught:
        fetch_pretrained(RESNET18)
    sentence = str(caught.value)
    assert f"http://127.0.0.1:9/models/{NAME} cannot be fetched (" in sentence
    assert f"fetch {NAME} elsewhere and put it at {cache / NAME}, or pass --weights FILE" in sentence


def test_what_was_put_there_by_hand_is_used_offline_if_it_has_its_hash(cache):
    cache.mkdir()
    (cache / NAME).write_bytes(CONTENT)
    assert fetch_pretrained(RESNET18) == cache / NAME
    (cache / NAME).write_bytes(b"something else")
    with pytest.raises(DownloadError, match="lies there now does not have the published SHA-256"):
        fetch_pretrained(RESNET18)
    assert (cache / NAME).read_bytes() == b"something else"


def test_a_mirror_may_be_a_folder(monkeypatch, tmp_path):
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / NAME).write_bytes(CONTENT)
    monkeypatch.setenv("RESCOMPILE_WEIGHTS_URL", (tmp_path / "mirror").as_uri() + "/")
    assert fetch_pretrained(RESNET18).read_bytes() == CONTENT


def test_a_mirror_of_another_kind_is_refused(monkeypatch):
    monkeypatch.setenv("RESCOMPILE_WEIGHTS_URL", "mirror.example/models")
    with pytest.raises(UsageError, match=r"'mirror\.example/models', which is not an https or file address"):
        fetch_pretrained(RESNET18)


def test_a_cache_that_cannot_be_written(server, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RESCOMPILE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DownloadError, match=r"cannot be read or written .*RESCOMPILE_CACHE"):
        fetch_pretrained(RESNET18)


def test_a_full_disk(server, cache):
    """A limit on the size of files fails a write as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(DownloadError, match=r"cannot be read or written \(.*make room"):
            fetch_pretrained(RESNET18)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(cache.iterdir()) == []


def test_an_interrupted_download_leaves_nothing(server, cache):
    def interrupt(_done, _total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_pretrained(RESNET18, progress=interrupt)
    assert list(cache.iterdir()) == []


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    assert cache_directory() == tmp_path / "cache"
    monkeypatch.delenv("RESCOMPILE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "rescompile"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_directory() == tmp_path / "home" / ".cache" / "rescompile"


@pytest.mark.parametrize(
    ("spec", "version", "words"),
    [
        (
            find(depth=None, name="resnet56-cifar"),
            "v1",
            "no published weights of resnet56-cifar: pass --weights FILE",
        ),
        (IMAGENET_SPECS[18], "v2", "resnet18 has no published weights 'v2', only v1$"),
        (IMAGENET_SPECS[50], "v3", "resnet50 has no published weights 'v3', only v1 and v2"),
        (with_options(IMAGENET_SPECS[50], stride_on="1x1"), "v1", "trained with the stride on the 3x3"),
    ],
)
def test_weights_that_were_never_published(spec, version, words):
    for function in (fetch_pretrained, pretrained_preprocess):
        with pytest.raises(UsageError, match=words):
            function(spec, version)


def test_the_second_recipe_resizes_less():
    assert pretrained_preprocess(RESNET18) == IMAGENET
    newer = pretrained_preprocess(IMAGENET_SPECS[152], "v2")
    assert (newer.resize, newer.crop, newer.mean) == (232, 224, IMAGENET.mean)


def test_every_published_file_names_its_network_and_hash():
    published = dict(pretrained.PUBLISHED)
    del published["resnet18", "v1"]
    for (model, version), each in published.items():
        assert each.name(model).startswith(f"{model}-{each.sha256[:8]}")
        assert len(bytes.fromhex(each.sha256)) == (4 if (model, version) == ("resnet152", "v2") else 32)
    assert {model for model, _ in pretrained.PUBLISHED} == {spec.name for spec in IMAGENET_SPECS.values()}


@pytest.mark.parametrize("url", ["http://example.org/models", "ftp://example.org/models"])
def test_an_unencrypted_mirror_is_refused(monkeypatch, url):
    monkeypatch.setattr(pretrained, "SCHEMES", ("https://", "file:///"))
    monkeypatch.setenv("RESCOMPILE_WEIGHTS_URL", url)
    with pytest.raises(UsageError, match="not an https or file address"):
        fetch_pretrained(RESNET18)


def test_a_server_that_leads_elsewhere_is_not_followed(server, monkeypatch):
    server.status, server.location = 302, "http://localhost:9/x"
    with pytest.raises(DownloadError, match="leads to an address that is not https"):
        fetch_pretrained(RESNET18)


def test_a_body_without_end_is_cut_off(server, cache):
    server.body, server.length = bytes(3 << 20), None
    with pytest.raises(DownloadError, match="larger than the 2 MiB of the published file"):
        fetch_pretrained(RESNET18)
    assert list(cache.iterdir()) == []


def test_a_file_whose_first_digits_alone_agree_is_refused(server, cache, monkeypatch):
    """Eight digits can be found by trying; the other 56 cannot."""
    other = DIGEST[:8] + "0" * 56
    monkeypatch.setitem(pretrained.PUBLISHED, ("resnet18", "v1"), Published(other, 2))
    with pytest.raises(DownloadError, match="does not have its published SHA-256"):
        fetch_pretrained(RESNET18)
