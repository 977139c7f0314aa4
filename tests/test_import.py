import importlib
import json
import pkgutil
import subprocess
import sys
import types

import pytest

import eventcore as ec

LOOK = """
import json, os, socket, sys, threading
sys.dont_write_bytecode = True
opened = []
sys.addaudithook(lambda name, args: opened.append((name, str(args[0]))) if name in WATCHED else None)
before, threads = set(os.listdir("/proc/self/fd")), threading.active_count()
{statement}
print(json.dumps({{
    "modules": sorted(sys.modules),
    "threads": threading.active_count() - threads,
    "files": sorted(set(os.listdir("/proc/self/fd")) - before),
    "audited": [name for name, _ in opened],
    "written": [what for name, what in opened if name == "open" and not what.endswith((".py", ".pyc", ".so"))],
}}))
"""
WATCHED = (
    '{"socket.__new__", "socket.connect", "socket.bind", "subprocess.Popen", "os.fork", "_thread.start_new_thread"}'
)

EXPORTERS = {
    "prometheus_client",
    "opentelemetry",
    "structlog",
    "orjson",
    "httpx",
    "requests",
    "urllib3",
    "aiohttp",
    "nats",
    "grpc",
    "google.protobuf",
}


def look(statement, folder):
    """Run a statement in a fresh interpreter and return what it has brought along."""
    program = f"WATCHED = {WATCHED}\n" + LOOK.format(statement=statement)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30, cwd=folder
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


def roots(found):
    """Return the top-level names of modules."""
    return {name.partition(".")[0] for name in found["modules"]} | set(found["modules"])


def test_importing_event_brings_no_exporter_no_plugin_and_no_numpy(tmp_path):
    """No application module imports an exporter: ``from eventcore import Event`` brings none, no plugin, no numpy."""
    names = roots(look("from eventcore import Event, Operation, Label, Measure, Sensitive, Counter", tmp_path))
    assert not names & EXPORTERS
    assert not {name for name in names if name.startswith(("eventcore_", "router"))}
    assert not names & {"numpy", "pluggy", "asyncio"}
    assert "eventcore.events" in names


def test_importing_event_brings_only_what_a_base_class_needs(tmp_path):
    """What only making event classes, or explaining a mistake, needs is not imported with ``Event``."""
    found = look("from eventcore import Event; import gc; assert gc.isenabled()", tmp_path)
    assert [name for name in found["modules"] if name.startswith("eventcore.")] == [
        "eventcore.base_class",
        "eventcore.errors",
        "eventcore.events",
    ]
    assert not set(found["modules"]) & {"difflib", "importlib.metadata", "string", "pydantic.fields", "hashlib"}


def test_a_collector_that_was_off_stays_off(tmp_path):
    """Names are imported with the garbage collector paused; one that the application had switched off stays so."""
    look("import gc; gc.disable(); from eventcore import Event; assert not gc.isenabled()", tmp_path)


def test_importing_eventcore_costs_next_to_nothing(tmp_path):
    """``import eventcore as ec`` gives all names lazily: not even pydantic is imported."""
    names = roots(look("import eventcore as ec", tmp_path))
    assert "pydantic" not in names
    assert "eventcore.events" not in names


def test_nothing_runs_before_configure(tmp_path):
    """No thread, socket or file before ``configure()``: not on import, not for types, emits, loggers or spans."""
    found = look(
        """
import eventcore as ec
for name in ec.__all__:
    getattr(ec, name)
class Said(ec.Event, name="said", category="data"):
    pass
class Work(ec.Operation, name="work", category="data"):
    pass
emitter = ec.get_emitter()
emitter.emit(Said())
with emitter.operation(Work):
    ec.get_logger("x").info("nobody listens")
with ec.span("nothing"), ec.bound(a=1):
    ec.emit_event("nothing")
        """,
        tmp_path,
    )
    assert found["threads"] == 0
    assert found["files"] == []
    assert found["audited"] == []
    assert not list(tmp_path.iterdir())
    assert not roots(found) & EXPORTERS


def test_finding_plugins_imports_no_library(tmp_path):
    """Plugin modules are light: finding the installed ones imports none of their libraries."""
    found = look("from eventcore.plugins import Plugins; assert 'log' in Plugins().names", tmp_path)
    assert not roots(found) & (EXPORTERS | {"numpy", "safetensors", "typer", "rich"})


@pytest.mark.parametrize("name", ec.__all__)
def test_every_name_of_the_face_is_there(name):
    """``import eventcore as ec`` gives every name of the face."""
    assert getattr(ec, name) is not None
    assert name in dir(ec)


def test_no_module_takes_a_name_of_the_face():
    """No module of the package shadows a name of the face, once it is imported."""
    for module in pkgutil.iter_modules(ec.__path__):
        if module.name not in ("__main__", "cli"):
            importlib.import_module(f"eventcore.{module.name}")
    shadowed = [name for name in ec.__all__ if isinstance(getattr(ec, name), types.ModuleType)]
    assert shadowed == []
    assert not {module.name for module in pkgutil.iter_modules(ec.__path__)} & set(ec.__all__)


def test_an_unknown_name_is_an_attribute_error():
    """A name that is not there is an AttributeError that names it."""
    with pytest.raises(AttributeError, match="module 'eventcore' has no attribute 'Evnet'"):
        _ = ec.Evnet


def test_the_errors_are_one_tree():
    """All that eventcore raises on purpose derives from ``EventCoreError``, and from the built-in it resembles."""
    assert issubclass(ec.InstrumentError, ec.DefinitionError)
    assert issubclass(ec.PluginError, ec.ConfigurationError)
    for error, builtin in (
        (ec.DefinitionError, TypeError),
        (ec.ConfigurationError, ValueError),
        (ec.OperationMisuse, RuntimeError),
        (ec.BreakerOpen, Exception),
        (ec.PartialFailure, Exception),
    ):
        assert issubclass(error, ec.EventCoreError)
        assert issubclass(error, builtin)


def test_the_emit_path_stays_small(checkout):
    """The emit path, from events to delivery, is at most 1,200 lines: it can be read in one go."""
    path = [checkout / "src/eventcore" / f"{name}.py" for name in ("events", "envelope", "dispatch", "delivery")]
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in path) <= 1200
