"""The catalog of a running emitter: what it knows of plugins."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

import eventcore as ec
from eventcore.vocabulary import EVENTS


class Packed(ec.Event, name="acme.packed", category="user"):
    parcels: int = 1


def test_the_catalog_knows_the_events_of_plugins():
    """The catalog of a configured emitter has the bus's own event types and those of installed plugins."""
    plugin = types.SimpleNamespace(eventcore_events=ec.hookimpl(lambda: [Packed]))
    emitter = ec.configure(handlers={"buffer": {}}, plugins=[plugin])
    known = emitter.catalog.events
    assert known["acme.packed"] is Packed
    assert {"router.route", "eventcore.route_failed", "eventcore.series_overflow"} <= set(known)
    assert {event_type.__event__.name for event_type in EVENTS} <= set(known)


def test_event_types_of_plugins_are_imported_when_asked_for():
    """A program that never looks at the catalog does not import the vocabularies of installed plugins."""
    code = (
        "import sys, eventcore as ec\n"
        "emitter = ec.configure(handlers={'buffer': {}})\n"
        "assert 'router.events' not in sys.modules\n"
        "emitter.catalog.events['router.route']\n"
        "assert 'router.events' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_durable_type_of_a_plugin_asks_for_nothing():
    """That an installed plugin knows an audit-class type is no configuration error; that code registers it is one."""

    class Signed(ec.Event, name="acme.signed", category="security", durable=True):
        pass

    plugin = types.SimpleNamespace(eventcore_events=ec.hookimpl(lambda: [Signed]))
    with ec.configure(handlers={"buffer": {}}, plugins=[plugin]) as emitter:
        assert emitter.catalog.events["acme.signed"] is Signed
    with pytest.raises(ec.ConfigurationError, match=r"acme\.signed"):
        ec.configure(handlers={"buffer": {}}, events=[Signed])


def test_a_plugin_whose_events_cannot_be_imported_hides_no_others():
    """Where a plugin's vocabulary cannot be imported, the catalog still has the bus's own and the registered ones."""
    plugin = types.SimpleNamespace(eventcore_events=ec.hookimpl(lambda: ["acme_that_is_missing:EVENTS"]))
    emitter = ec.configure(handlers={"buffer": {}}, events=[Packed], plugins=[plugin])
    assert {"acme.packed", "eventcore.started"} <= set(emitter.catalog.events)
