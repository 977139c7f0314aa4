"""Where generated files go: a folder, or standard output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import yaml

from eventcore.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Files", "header", "json_text", "put", "yaml_text"]

Files = dict[str, str]
"""Texts by path, relative to the output folder, with slashes."""


class _Dumper(yaml.SafeDumper):
    """Writes lists indented below their key, and never an alias: each part of a file is to be read on its own."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - the signature is PyYAML's
        super().increase_indent(flow, indentless=False)

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the same for all
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def yaml_text(content: Any) -> str:
    """Return ``content`` as YAML, in its own order."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


def json_text(content: Any) -> str:
    """Return ``content`` as JSON, in its own order."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def header(command: str, *about: str) -> str:
    """Return the comment that generated YAML and the like begins with."""
    lines = (f"Made by `eventcore generate {command}`; change the settings or the catalog and make it anew.", *about)
    return "".join(f"# {line}\n" for line in lines)


def put(files: Mapping[str, str], folder: Path | None) -> None:
    """Write files below ``folder``; without one, print them, several with their names between.

    ConfigurationError: the folder cannot be written to.
    """
    if folder is None:
        for name, text in files.items():
            typer.echo((f"==> {name} <==\n" if len(files) > 1 else "") + text, nl=False)
        return
    for name, text in files.items():
        path = folder / Path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise ConfigurationError(f"--output: {path} cannot be written: {error.strerror}") from None
        typer.echo(f"wrote {path}", err=True)
