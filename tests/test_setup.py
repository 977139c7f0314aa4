import importlib.util
import socket
import threading

import pytest

import eventcore as ec
from tests.support.acme import Mine
from tests.support.handlers import workers


@pytest.fixture(autouse=True)
def _fresh():
    Mine.started.clear()


def test_configure_puts_an_emitter_in_use(configure, write):
    """``configure()`` makes what the settings say the emitter in use; as a context manager it ends there."""
    with configure(service="shop", handlers={"mine": {}}) as emitter:
        assert ec.get_emitter() is emitter
        ec.emit_event("hello")
        handler = emitter.handler("mine")
    assert ec.get_emitter() is not emitter
    assert handler.names == ["eventcore.started", "hello", "eventcore.stopped"]
    assert handler.closed == 1


def test_a_second_configure_is_an_error(configure, write):
    """A second ``configure()`` is an error with the remedy, and leaves the first one running."""
    first = configure(handlers={"mine": {}})
    with pytest.raises(
        ec.ConfigurationError, match=r"configured already; call ec.shutdown\(\) first, or .*replace=True"
    ):
        configure(handlers={"mine": {}})
    assert ec.get_emitter() is first
    ec.emit_event("still.here")
    assert first.flush()
    assert "still.here" in first.handler("mine").names


def test_replace_takes_over(configure, write):
    """``replace=True`` puts the new emitter in use and shuts the old one down, with all that waited delivered."""
    first = configure(service="first", handlers={"mine": {}})
    ec.emit_event("to.first")
    second = configure(service="second", handlers={"mine": {}}, replace=True)
    assert ec.get_emitter() is second
    ec.emit_event("to.second")
    assert second.flush()
    old, new = first.handler("mine"), second.handler("mine")
    assert old.names == ["eventcore.started", "to.first", "eventcore.stopped"]
    assert old.closed == 1
    assert new.names == ["eventcore.started", "to.second"]


def test_replace_works_where_nothing_is_configured(configure, write):
    """``replace=True`` is no error where there is nothing to replace."""
    assert configure(handlers={"mine": {}}, replace=True) is ec.get_emitter()


def test_the_same_settings_may_replace_themselves(configure, write):
    """Replacing with the same settings works although a service of the old one holds a fixed port."""
    port = configure(handlers={"mine": {}}, svc={"port": 0}).services["svc"].port
    ec.shutdown()
    for _ in range(2):
        emitter = configure(handlers={"mine": {}}, svc={"port": port}, replace=True)
        assert emitter.services["svc"].port == port


def test_shutdown_leads_back_to_the_unconfigured_emitter(configure, write):
    """After ``shutdown()`` the last-resort emitter is in use, and configuring again works."""
    before = ec.get_emitter()
    configure(handlers={"mine": {}})
    assert ec.shutdown().is_clean
    assert ec.get_emitter() is before
    assert ec.shutdown().is_clean, "a second one does nothing"
    configure(handlers={"mine": {}})


def test_a_failed_configure_leaves_nothing_running(configure, write):
    """When ``configure()`` fails nothing is left running: handlers closed, ports free, no threads, nothing in use."""
    before = ec.get_emitter()
    threads = set(threading.enumerate())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ec.ConfigurationError, match=rf"svc.*port {port} is in use; choose another"):
            configure(handlers={"mine": {}}, http={"port": 0}, svc={"port": port})
    assert [handler.closed for handler in Mine.started] == [1]
    assert ec.get_emitter() is before
    assert set(threading.enumerate()) <= threads
    assert not workers()


def test_a_handler_that_fails_to_start_closes_those_before_it(configure, write):
    """A handler that cannot be made takes those before it down again."""
    with pytest.raises(ec.ConfigurationError, match="no such colour"):
        configure(handlers={"mine": {}, "other": {"use": "mine", "colour": "refused"}})
    assert [handler.closed for handler in Mine.started] == [1, 0]


def test_a_failed_replacement_leaves_the_old_one_running(configure, write):
    """A mistake in new settings leaves the emitter in use alone."""
    first = configure(service="first", handlers={"mine": {}})
    for wrong in ({"handlers": {"mine": {"level": "x"}}}, {"handlers": {"mein": {}}}, {"servce": "x"}):
        with pytest.raises(ec.ConfigurationError):
            configure(replace=True, **wrong)
    assert ec.get_emitter() is first
    ec.emit_event("still.here")
    assert first.flush()
    assert first.handler("mine").names == ["eventcore.started", "still.here"]


def test_a_wrong_instrument_is_an_error_of_configure(configure, write):
    """Instruments and event types are checked before anything is started."""
    with pytest.raises(ec.InstrumentError):
        configure(
            handlers={"mine": {}},
            instruments=[ec.Counter("a_total", on=Said, help="h"), ec.Counter("a_total", on=Other, help="h")],
        )
    assert not Mine.started
    with pytest.raises(ec.DefinitionError, match="abstract"):
        configure(handlers={"mine": {}}, events=[ec.Event])


class Said(ec.Event, name="said", category="data"):
    pass


class Other(ec.Event, name="other.said", category="data"):
    pass


def test_the_catalog_knows_what_was_given(configure, write):
    """Events and instruments given to ``configure()`` are in the emitter's catalog."""
    instrument = ec.Counter("said_total", on=Said, help="h")
    emitter = configure(handlers={"mine": {}}, instruments=[instrument], events=[Other])
    assert emitter.catalog.instruments == {"said_total": instrument}
    assert set(emitter.catalog.events) >= {"said", "other.said"}


def test_without_handlers_and_without_structlog_lines_go_to_stderr(monkeypatch, capsys):
    """On a bare install, without any handler configured, lines from INFO up go to stderr."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "structlog" else real(name, *a))
    with ec.configure(service="bare"):
        ec.emit_event("hello", message="hi")
    assert "INFO hello: hi" in capsys.readouterr().err
