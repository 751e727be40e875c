"""Builds in this folder draw no pages, which take a tenth of their time; those of ``test_pipeline.py`` do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rescompile.building import verdict


@pytest.fixture(autouse=True, scope="module")
def without_pages(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.path.name != "test_pipeline.py":
            patch.setattr(verdict, "render", lambda _: "no page")
        yield
