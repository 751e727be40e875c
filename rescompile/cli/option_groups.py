"""Options that belong together, declared once as a dataclass and taken by any command as one argument.

typer reads a command's options from its signature. ``takes_groups`` gives it a signature in which every
dataclass parameter is spread into its fields, and hands the command the dataclass made from the values.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, get_type_hints


def takes_groups(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` for ``typer``: parameters whose type is a dataclass become that dataclass's fields."""
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            groups[name] = kind
            parameters += _spread(kind)
        else:
            parameters.append(parameter.replace(annotation=kind))

    @wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            members = [field.name for field in dataclasses.fields(group)]
            values[name] = group(**{member: values.pop(member) for member in members})
        command(**values)

    # options with defaults may stand before a required argument here, which a plain signature forbids
    keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    run.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _spread(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in dataclasses.fields(group)
    ]
