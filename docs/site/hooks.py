"""Pages that MkDocs makes from the code: commands and JSON; and links that leave the documentation.

MkDocs calls ``on_files`` and ``on_page_markdown`` by their names.
"""

from __future__ import annotations

import inspect
import json
import posixpath
import re
from typing import Any

import msgspec
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from rescompile.cli.app import app
from rescompile.manifest import Manifest
from rescompile.measuring.bench import BenchReport
from rescompile.measuring.profile_report import ProfileReport
from rescompile.report import BuildReport
from rescompile.serving.export import Export
from rescompile.training_report import ExperimentReport, TrainingReport

DOCUMENTS = {
    "report.json of an engine, and `build` and `verify` with `--json`": BuildReport,
    "manifest.json of an engine": Manifest,
    "`bench --json`": BenchReport,
    "`profile --json`": ProfileReport,
    "`train --json`": TrainingReport,
    "`experiment --json`": ExperimentReport,
    "export.json of a model repository": Export,
}
_LINK = re.compile(r"\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages and the schemas."""
    pages = {"reference/commands.md": commands(), "reference/json.md": documents()}
    for kind in DOCUMENTS.values():
        schema = msgspec.json.schema(kind)
        pages[f"reference/{kind.__name__}.schema.json"] = json.dumps(schema, indent=1)
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files of the repository that are not pages become their paths: the site has no repository's address."""
    folder = posixpath.dirname(page.file.src_uri)

    def replaced(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        path = posixpath.normpath(posixpath.join("docs", folder, target))
        if "://" in target or path.startswith("docs/"):
            return found[0]
        return text if text.strip("`") == path else f"{text} (`{path}`)"

    return _LINK.sub(replaced, markdown)


def commands() -> str:
    """Every command with its options, as its help has them."""
    group: Any = typer.main.get_command(app)
    parts = [f"# Commands\n\n{app.info.epilog}"]
    for name in group.list_commands(None):
        command = group.commands[name]
        parts += [f"## {name}", inspect.cleandoc(command.help or ""), _options(name, command)]
    return "\n\n".join(parts) + "\n"


def _options(name: str, command: Any) -> str:
    context = command.make_context(name, [], resilient_parsing=True)
    rows = ["| option | meaning |", "|---|---|"]
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None and parameter.name != "help":
            names, words = (" ".join(text.split()).replace("|", "\\|") for text in record)
            rows.append(f"| `{names.strip('* ')}` | {words.replace('<', '&lt;')} |")
    return "\n".join(rows)


def documents() -> str:
    """The fields of every JSON document, from the types that write them."""
    parts = [
        "# JSON\n\nThe documents that commands write. Fields with defaults may be absent in files of older versions."
    ]
    for title, kind in DOCUMENTS.items():
        link = f"[JSON schema]({kind.__name__}.schema.json)"
        parts += [f"## {title}", f"{_first(kind)} {link}", _fields(kind)]
    return "\n\n".join(parts) + "\n"


def _first(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].replace("\n", " ").replace("``", "`")


def _fields(kind: type) -> str:
    described = _field_docs(kind)
    rows = ["| field | type | meaning |", "|---|---|---|"]
    for field in msgspec.structs.fields(kind):  # type: ignore[arg-type]
        type_name = str(
            getattr(field.type, "__name__", field.type) if "[" not in str(field.type) else field.type
        )
        type_name = re.sub(r"\b(?:[a-z_]+\.)+", "", type_name).replace("|", "or")
        rows.append(f"| `{field.encode_name}` | {type_name} | {described.get(field.name, '')} |")
    return "\n".join(rows)


def _field_docs(kind: type) -> dict[str, str]:
    """The sentence under each field in the source."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        try:
            source = inspect.getsource(owner)
        except (OSError, TypeError):
            continue
        for name, words in re.findall(
            r'^    (\w+): [^\n]+\n    """(.+?)"""', source, re.MULTILINE | re.DOTALL
        ):
            found[name] = " ".join(words.split()).replace("|", "\\|").replace("``", "`")
    return found
