"""The reason that an error gives."""

from __future__ import annotations

import pytest

from rescompile.errors import reason_of


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file or directory", "a.json"), "No such file or directory"),
        (OSError("the tape tore"), "the tape tore"),
        (ValueError("it was cut"), "it was cut"),
    ],
)
def test_the_reason_is_said_without_number_and_path(error: Exception, said: str) -> None:
    assert reason_of(error) == said
