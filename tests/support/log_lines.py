"""Run code against one log handler and read what it wrote; files are made in the current folder."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import eventcore as ec

FILE = Path("log.json")


class Note(ec.Event, name="note", category=ec.Category.DATA, message="{text}"):
    text: str


class Bare(ec.Event, name="bare.fact", category=ec.Category.DATA):
    pass


class Work(ec.Operation, name="work", category=ec.Category.EXECUTION):
    pass


class Keep(ec.Handler):
    """Keeps envelopes, in the caller."""

    kind = "keep"
    delivery = "inline"

    def __init__(self):
        super().__init__()
        self.kept = []

    def handle(self, envelope):
        self.kept.append(envelope)


def configure(**options):
    """Start with one handler ``log`` that takes everything but what the bus itself says."""
    handlers = {"log": {"min_severity": "trace", "exclude": "eventcore.*", **options}}
    return ec.configure(service="shop", version="1.2.3", handlers=handlers)


def read(path=FILE):
    """Return the objects of a JSON log; NaN and Infinity are no JSON."""

    def refuse(constant):
        raise AssertionError(f"{constant} in JSON")

    text = path.read_bytes().decode()
    assert not text or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.split("\n")[:-1]]


def logged(code, **options):
    """Return the JSON lines of ``code(emitter)``."""
    FILE.unlink(missing_ok=True)
    with configure(**{"format": "json", "output": FILE, **options}) as emitter:
        code(emitter)
    return read()


def shown(code, **options):
    """Return what ``code(emitter)`` makes stand on stderr, for people."""
    stream = io.StringIO()
    with contextlib.redirect_stderr(stream), configure(format="console", **options) as emitter:
        code(emitter)
    return stream.getvalue()


def emitting(event, **keywords):
    """Return code that emits one event."""
    return lambda emitter: emitter.emit(event, **keywords)
