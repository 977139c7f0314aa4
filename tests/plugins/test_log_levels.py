"""The log plugin: levels by category and by name, from the configuration and changed while it runs."""

from __future__ import annotations

import pytest

import eventcore as ec
from eventcore_log.handler import LogHandler
from tests.support.log_lines import FILE, Keep, configure, logged, read


class Asked(ec.Event, name="router.request.asked", category="model", severity="debug"):
    pass


class Cached(ec.Event, name="cache.hit", category="cache", severity="debug"):
    pass


class Named(ec.Event, name="other.fact", category="data", severity="debug", logger="tiny_dancer"):
    pass


def all_three(emitter):
    """Emit one DEBUG event of each type."""
    for event in (Asked(), Cached(), Named()):
        emitter.emit(event)


def names(lines):
    """Return which events the lines are of."""
    return [line["name"] for line in lines]


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"min_severity": "info"}, []),
        ({"min_severity": "info", "category_levels": {"cache": "debug"}}, ["cache.hit"]),
        ({"min_severity": "info", "levels": {"router": "debug"}}, ["router.request.asked"]),
        ({"min_severity": "info", "levels": {"router.req": "debug"}}, []),
        ({"min_severity": "info", "levels": {"router.req*": "debug"}}, ["router.request.asked"]),
        ({"min_severity": "info", "levels": {"tiny_dancer": "debug"}}, ["other.fact"]),
        (
            {
                "min_severity": "debug",
                "levels": {"router": "info", "router.request": "debug"},
                "category_levels": {"cache": "error"},
            },
            ["router.request.asked", "other.fact"],
        ),
        (
            {"min_severity": "debug", "category_levels": {"cache": "error"}, "levels": {"cache.hit": "trace"}},
            ["router.request.asked", "cache.hit", "other.fact"],
        ),
    ],
)
def test_the_most_specific_level_counts(options, shown):
    """A name goes before a category, a category before ``min_severity``; of several names the longest counts."""
    assert names(logged(all_three, **options)) == shown


def test_levels_change_while_it_runs():
    """``set_level`` counts from the next emit on, for one name, one category or all, and can be taken back."""
    with configure(format="json", output=FILE, min_severity="info") as emitter:
        log = emitter.handler("log")
        all_three(emitter)
        log.set_level("debug", name="router")
        all_three(emitter)
        log.set_level("debug", category="cache")
        log.set_level("critical", name="router")
        all_three(emitter)
        log.set_level(None, category="cache")
        log.set_level(None, name="router")
        all_three(emitter)
        assert not emitter.enabled(Asked)
        log.set_level("trace")
        assert emitter.enabled(Asked)
        all_three(emitter)
    assert names(read()) == [
        "router.request.asked",
        "cache.hit",
        "router.request.asked",
        "cache.hit",
        "other.fact",
    ]


def test_what_a_level_stops_is_counted_as_filtered_and_costs_no_queue_place():
    """Levels are part of the compiled route: the ledger balances, and nobody else is concerned."""
    keep = Keep()
    with configure(format="json", output=FILE, min_severity="debug") as emitter:
        emitter.add_handler(keep)
        emitter.handler("log").set_level("error", category="cache")
        all_three(emitter)
        emitter.flush()
        row = next(row for row in emitter.ledger().rows if (row.handler, row.event) == ("log", "cache.hit"))
        assert (row.accepted, row.filtered) == (0, 1)
        assert emitter.ledger().is_settled
    assert "cache.hit" in [envelope.name for envelope in keep.kept]


def test_loggers_have_levels_of_their_own():
    """Lines of ``ec.get_logger`` pass by the level of their logger or of one above it; the ledger knows of the rest."""

    def say():
        for logger in ("app", "app.db", "lib.http", "lib"):
            ec.get_logger(logger).debug("fine")
            ec.get_logger(logger).error("bad")

    options = {"min_severity": "info", "levels": {"app": "debug", "lib": "critical", "lib.http": "error"}}
    with configure(format="json", output=FILE, **options) as emitter:
        say()
        emitter.flush()
        row = emitter.ledger().handler("log")
        assert (row.delivered, row.sampled, row.filtered) == (5, 3, 0)
        emitter.handler("log").set_level(None, name="app")
        say()
    shown = [(line["logger"], line["level"]) for line in read()]
    assert shown[:5] == [
        ("app", "debug"),
        ("app", "error"),
        ("app.db", "debug"),
        ("app.db", "error"),
        ("lib.http", "error"),
    ]
    assert shown[5:] == [("app", "error"), ("app.db", "error"), ("lib.http", "error")]


def test_a_loggers_level_goes_before_its_category():
    """Where some loggers have levels of their own, the category's holds for the others."""
    options = {"category_levels": {"execution": "error"}, "levels": {"app": "debug"}}

    def say(_emitter):
        ec.get_logger("app").debug("shown")
        ec.get_logger("lib").warning("not shown")
        ec.get_logger("lib").error("shown")

    assert [line["event"] for line in logged(say, **options)] == ["shown", "shown"]


def test_levels_can_be_set_before_a_handler_is_attached():
    """A handler that was made and named, and not yet added, takes its levels along."""
    handler = LogHandler(format="json", output=FILE)
    handler.name = "mine"
    handler.set_level("error")
    emitter = ec.Emitter()
    emitter.add_handler(handler)
    assert not emitter.enabled(Asked, ec.Severity.WARNING)
    emitter.shutdown()


def test_levels_are_read_from_a_file(tmp_path):
    """The tables ``levels`` and ``category_levels`` stand in ``eventcore.toml``."""
    (tmp_path / "eventcore.toml").write_text(
        '[handlers.log]\nmin_severity = "warning"\n'
        '[handlers.log.levels]\n"router.*" = "debug"\n[handlers.log.category_levels]\nsecurity = "trace"\n'
    )
    with ec.configure() as emitter:
        levels = emitter.handler("log").levels
    assert levels.general is ec.Severity.WARNING
    assert levels.by_name == {"router.*": ec.Severity.DEBUG}
    assert levels.by_category == {ec.Category.SECURITY: ec.Severity.TRACE}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": {"router": "loud"}}, "unknown severity 'loud'"),
        ({"category_levels": {"cash": "debug"}}, "category_levels"),
    ],
)
def test_wrong_levels_are_clear_errors(options, message):
    """A severity or category that there is not is named when the handler is configured."""
    with pytest.raises(ec.ConfigurationError, match=message):
        LogHandler(**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": "loud"}, "unknown severity 'loud'"),
        ({"level": "info", "category": "cash"}, "unknown category 'cash'"),
        ({"level": None}, "which one"),
        ({"level": "info", "name": "a", "category": "cache"}, "not for both"),
    ],
)
def test_wrong_calls_of_set_level_change_nothing(arguments, message):
    """Each mistake is named, and the levels stay as they were."""
    handler = LogHandler()
    before = handler.levels
    with pytest.raises(ValueError, match=message):
        handler.set_level(**arguments)
    assert handler.levels == before


def test_the_levels_in_force_are_seen_from_outside():
    """``eventcore debug inspect --component logs`` shows them as they are now, not as they were configured."""
    with configure(format="json", output=FILE, schema="ecs", category_levels={"cache": "error"}) as emitter:
        log = emitter.handler("log")
        log.set_level("debug", name="router.*")
        shown = log.inspect()
    assert shown["levels"] == {"router.*": "debug", "cache (category)": "error"}
    assert shown["processors"] == ("redact", "fields", "scrub", "ecs", "json", "output")
    assert LogHandler(output="otlp").inspect()["processors"] == ("redact", "fields", "scrub", "otlp")
    assert LogHandler(output="logging").inspect()["processors"] == (
        "redact",
        "fields",
        "scrub",
        "logging",
    )


def test_explain_speaks_of_the_level_that_counts():
    """``eventcore explain`` names the level of the type, not the general one."""
    from eventcore.explanation import stopped_by

    config = LogHandler(min_severity="trace", category_levels={"cache": "error"}).config
    assert stopped_by(config, Cached.__event__, ec.Severity.DEBUG) == {"min_severity": "debug is below error"}
    assert stopped_by(config, Asked.__event__, ec.Severity.DEBUG) == {}
