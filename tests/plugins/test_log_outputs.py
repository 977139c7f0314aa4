"""The log plugin: where lines go, when, and what happens where they cannot."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from pathlib import Path

import pytest

import eventcore as ec
from eventcore.context import SCOPE
from eventcore_log.handler import LogHandler
from tests.support.log_lines import FILE, Bare, Keep, Note, Work, configure, emitting, logged, read, shown

# -- where lines go ----------------------------------------------------------------------------------------------------


def test_the_default_is_console_on_stderr_from_info_up(capsys):
    """A bare ``log`` handler writes INFO and above for people, to stderr, in the caller."""
    with ec.configure(service="shop", handlers={"log": {}}) as emitter:
        emitter.emit(Note(text="quiet"), severity="debug")
        emitter.emit(Note(text="loud"))
        assert " INFO note: loud\n" in capsys.readouterr().err
        assert emitter.handler("log").describe() == {"format": "console", "output": "stderr"}


def test_console_lines_do_not_reorder_with_print(capsys):
    """Lines on stdout stand where they were emitted, between what the program prints itself."""
    with configure(output="stdout") as emitter:
        print("one")  # noqa: T201 - what this test is about
        emitter.emit(Note(text="two"))
        print("three")  # noqa: T201 - likewise
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["one", "two", "three"]


def test_json_is_queued_and_console_inline_unless_told_otherwise():
    """The format decides how lines are delivered; the configuration may say otherwise."""
    emitter = ec.Emitter()

    def is_queued(**options):
        emitter.add_handler(LogHandler(output=FILE, **options), name="log")
        (attachment,) = emitter.attachments
        queued = attachment.queue is not None
        emitter.remove_handler("log")
        return queued

    assert is_queued(format="json")
    assert not is_queued(format="console")
    assert not is_queued(format="json", delivery="inline")
    assert is_queued(format="console", delivery="queued")


def test_json_on_a_stream(capsys):
    """JSON goes to a standard stream too, all of it by the time ``flush`` returns."""
    with configure(format="json", output="stdout") as emitter:
        for number in range(1000):
            emitter.emit(Note(text=str(number)))
        assert emitter.flush()
        lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["text"] for line in lines] == [str(number) for number in range(1000)]


def test_a_file_is_appended_to_and_its_folders_are_made(tmp_path):
    """Lines of an earlier run stay; ``describe`` gives the absolute path."""
    path = tmp_path / "deep" / "er" / "log.json"
    for text in ("first", "second"):
        with configure(format="json", output="deep/er/log.json") as emitter:
            emitter.emit(Note(text=text))
            assert emitter.handler("log").describe() == {"format": "json", "output": str(path)}
    assert [line["text"] for line in read(path)] == ["first", "second"]


@pytest.mark.parametrize("output", ["taken/log.json", "folder"])
def test_an_output_that_cannot_be_written_is_a_configuration_error(tmp_path, output):
    """The error names the table of the settings, the path and a remedy, and nothing is left running."""
    (tmp_path / "taken").write_text("a file, not a folder")
    (tmp_path / "folder").mkdir()
    (tmp_path / "eventcore.toml").write_text(f'[handlers.log]\nformat = "json"\noutput = "{output}"\n')
    with pytest.raises(
        ec.ConfigurationError, match=rf"eventcore.toml: \[handlers.log\]: output '.*{output}'.*; name a file"
    ):
        ec.configure()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("eventcore-")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "xml"}, "option 'format' is 'xml': Input should be 'console' or 'json'"),
        ({"outptu": "stdout"}, "unknown option 'outptu'; did you mean 'output'"),
        ({"output": ""}, "option 'output' is ''"),
        ({"output": 3}, "option 'output' is 3: Input should be a valid string"),
        ({"sample_rate": 2}, "option 'sampling' is 2: Input should be less than or equal to 1"),
        ({"hash_based": "maybe"}, "option 'sampling_by' is 'maybe': Input should be 'random' or 'trace'"),
        ({"sample_rate": 0.1, "sampling": 0.2}, "'sample_rate' and 'sampling' are two names of one option"),
    ],
)
def test_wrong_options_are_clear_errors(options, message):
    """Each mistake names the option and what was expected."""
    with pytest.raises(ec.ConfigurationError, match=re.escape(message)):
        ec.configure(handlers={"log": options})


def test_a_closed_stderr_hurts_neither_caller_nor_others(monkeypatch):
    """Lines that cannot be written are counted as failed; the caller and the other handlers notice nothing."""
    stream = io.StringIO()
    stream.close()
    keep = Keep()
    with ec.configure(handlers={"log": {}, "keep": keep}) as emitter:
        monkeypatch.setattr(sys, "stderr", stream)
        for _ in range(3):
            emitter.emit(Bare())
        assert emitter.flush()
        row = next(row for row in emitter.ledger().rows if (row.handler, row.event) == ("log", "bare.fact"))
        assert (row.accepted, row.failed, row.delivered) == (3, 3, 0)
        assert [envelope.name for envelope in keep.kept].count("bare.fact") == 3
        assert [envelope.name for envelope in keep.kept].count("eventcore.handler") == 1
        report = emitter.shutdown()
    assert report.is_clean


def test_characters_that_a_stream_lacks_are_escaped(monkeypatch):
    """A stream that knows ASCII only gets the line, with escapes."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding="ascii", errors="strict"))
    with configure() as emitter:
        emitter.emit(Note(text="Grüße"))
        assert raw.getvalue().endswith(b"Gr\\xfc\\xdfe\n")


def test_lines_of_many_threads_are_whole():
    """Inline lines from several threads do not tear each other."""
    with configure(format="json", output=FILE, delivery="inline") as emitter:

        def emit(name):
            for number in range(200):
                emitter.emit(Note(text=f"{name} {number} {'x' * 300}"))

        threads = [threading.Thread(target=emit, args=(name,)) for name in "abcdef"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    texts = [line["text"].rsplit(" ", 1)[0] for line in read()]
    assert sorted(texts) == sorted(f"{name} {number}" for name in "abcdef" for number in range(200))
    for name in "abcdef":
        assert [text for text in texts if text[0] == name] == [f"{name} {number}" for number in range(200)]


def test_an_envelope_that_makes_no_line_costs_no_other(capsys):
    """Where one envelope of a batch cannot be shown, it alone fails."""
    with configure(format="json", output=FILE, linger_s=0.2) as emitter:
        emitter.emit(Note(text="one"))
        # Tags that no emit would take.
        emitter.replay(ec.Envelope(Note(text="two"), ec.Severity.INFO, 5, 1, 1, emitter.ids, SCOPE.get()))
        emitter.emit(Note(text="three"))
        assert emitter.flush()
        row = emitter.ledger().handler("log")
    assert (row.delivered, row.failed) == (2, 1)
    assert [line["text"] for line in read()] == ["one", "three"]


def test_a_disk_that_fills_up_fails_exactly_the_lines_that_are_missing(tmp_path):
    """Where a batch is cut off, lines before the cut are delivered, the others failed, and later lines are whole."""
    program = textwrap.dedent("""
        import resource, sys
        import eventcore as ec
        from eventcore_log.handler import LogHandler

        class Note(ec.Event, name="note", category="data"):
            text: str

        emitter = ec.Emitter()
        emitter.add_handler(LogHandler(format="json", output="log.json"), name="log")
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        for number in range(10):
            emitter.emit(Note(text=f"{number} " + "x" * 100))
        emitter.flush()
        row = emitter.ledger().handler("log")
        print(row.delivered, row.failed)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        emitter.emit(Note(text="later"))
        emitter.shutdown()
    """)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=30
    )
    delivered, failed = map(int, done.stdout.split())
    lines = FILE.read_text().splitlines()
    assert delivered + failed == 10
    assert 0 < delivered < 10
    assert [json.loads(line)["text"][0] for line in lines[:delivered]] == [str(number) for number in range(delivered)]
    assert len(lines) == delivered + 2  # the torn one, and the one written when there was room again
    assert json.loads(lines[-1])["text"] == "later"


# -- colours -----------------------------------------------------------------------------------------------------------


def on_terminal(monkeypatch, **environment):
    """Write one line to a real pseudo-terminal and return what arrived there."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        with configure() as emitter:
            emitter.emit(Note(text="hello"), severity="warning")
        text = os.read(reader, 10_000).decode()
    os.close(reader)
    return text


def test_a_terminal_gets_colours(monkeypatch):
    """On a terminal a line is coloured, and it still says the same."""
    text = on_terminal(monkeypatch)
    assert "\x1b[33m" in text
    assert re.sub(r"\x1b\[\d+m", "", text).split()[1:] == ["WARNING", "note:", "hello"]


def test_a_terminal_gets_tracebacks_in_colour(monkeypatch):
    """Rich colours the stack of operations and of loggers; without its colours it is what a pipe gets, line by line."""

    def code(emitter):
        try:
            with emitter.operation(Work):
                raise LookupError("no [bold]such[/bold] route :smile: \x1b[2J " + "x" * 300)  # noqa: TRY301 - the stack is
        except LookupError:
            ec.get_logger("shop").exception("failed")

    def stacks(text):
        return [line for line in re.sub(r"\x1b\[[\d;]*m", "", text).splitlines() if line.startswith("    ")]

    monkeypatch.delenv("NO_COLOR", raising=False)
    plain = shown(code)
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = shown(code)
    block = "".join(line for line in coloured.splitlines(keepends=True) if line.startswith("    "))
    assert "\x1b[" in block
    assert "\x1b[2J" not in block
    assert "LookupError" in block
    assert stacks(coloured) == stacks(plain)
    assert len(stacks(plain)) > 8


def test_tracebacks_need_no_rich(tmp_path):
    """Where rich is not installed, a terminal gets them without colour."""
    program = textwrap.dedent("""
        import sys
        sys.modules["rich.console"] = None
        import eventcore as ec
        with ec.configure(handlers={"log": {}}):
            try:
                {}["k"]
            except KeyError:
                ec.get_logger("shop").exception("failed")
    """)
    environment = {**os.environ, "FORCE_COLOR": "1"}
    environment.pop("NO_COLOR", None)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=30
    )
    assert "    Traceback (most recent call last):\n" in done.stderr


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}])
def test_colours_can_be_refused(monkeypatch, environment):
    """NO_COLOR and a dumb terminal mean plain text."""
    assert "\x1b" not in on_terminal(monkeypatch, **environment)


def test_only_force_color_colours_what_is_no_terminal(monkeypatch):
    """A pipe gets plain text unless FORCE_COLOR asks for colours; an empty variable asks for nothing; a file never."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "")
    assert "\x1b" not in shown(emitting(Note(text="hello")))
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[32m" in shown(emitting(Note(text="hello")))
    with configure(output="log.txt") as emitter:
        emitter.emit(Note(text="hello"))
    assert "\x1b" not in Path("log.txt").read_text()


# -- the plugin --------------------------------------------------------------------------------------------------------


def test_the_plugin_module_is_light():
    """Loading the plugin imports neither structlog nor orjson; only using the handler does."""
    program = "import sys, eventcore_log; print([m for m in ('structlog', 'orjson') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"


# -- sampling ----------------------------------------------------------------------------------------------------------


def test_sampling_has_the_names_of_the_tinyllm_guide(tmp_path):
    """``sample_rate``, ``max_per_second`` and ``hash_based`` work as in the guide, from a file as from code."""
    (tmp_path / "eventcore.toml").write_text(
        "[handlers.log]\nsample_rate = 0.5\nmax_per_second = 500\nhash_based = true\n"
    )
    config = ec.configure().handler("log").config
    assert (config.sampling, config.sampling_by, config.max_per_second) == (0.5, "trace", 500)
    ec.shutdown()
    assert LogHandler(hash_based=False).config.sampling_by == "random"
    plain = LogHandler().config
    assert (plain.sampling, plain.sampling_by, plain.max_per_second, plain.keep_from) == (1, "random", None, None)


def test_log_sampling_really_samples_and_keeps_traces_whole():
    """Of sampled lines a share is written, with all lines of a trace or none, and the rest is counted."""
    used = []

    def code(emitter):
        used.append(emitter)
        for number in range(200):
            with emitter.operation(Work):
                emitter.emit(Note(text=f"{number}"))

    lines = logged(code, sample_rate=0.3, hash_based=True)
    traces = Counter(line["trace_id"] for line in lines)
    assert set(traces.values()) == {2}
    assert 30 < len(traces) < 100
    row = used[0].ledger().handler("log")
    assert (row.accepted, row.sampled) == (len(lines), 400 - len(lines))


def test_a_storm_of_lines_is_limited_except_for_what_is_kept():
    """``max_per_second`` bounds a storm; with ``keep_from`` no error is lost in it."""

    def code(emitter):
        for number in range(500):
            emitter.emit(Note(text="storm"))
            if number % 100 == 0:
                emitter.emit(Note(text="failed"), severity="error")

    levels = Counter(line["level"] for line in logged(code, max_per_second=5, keep_from="error"))
    assert levels["error"] == 5
    assert 5 <= levels["info"] < 100
