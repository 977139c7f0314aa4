"""What is declared is emitted: the live application seen through real servers, declaration by declaration.

Whatever joins the catalog, a plugin or a pack joins these tables by itself; what never happens in
``tests/programs/live.py`` fails here, until that program makes it happen through the product.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict

import pytest

from eventcore.exposition import exposition_of
from tests.support.live import JOB, eventually

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.timeout(180)]

NEVER = {
    ("tiny_dancer_errors_total", "error_type", "storage_error"): "routing reads no training data",
    ("tiny_dancer_errors_total", "error_type", "database_error"): "the router has no database",
    ("eventcore_events_total", "reason", "shutdown"): "counted when nobody scrapes any more",
    ("eventcore_events_total", "reason", "forked"): "counted in forked children, which serve no port",
    ("eventcore_events_total", "reason", "invalid"): "fields are checked where they are built",
}
"""Label values that the live application cannot have, with the reason; one that turns up after all fails the test."""

CHANCE = {"category", "le", "mode", "severity"}
"""Labels whose values are not all certain to occur: buckets, modes of a CPU, categories of nobody's events."""


@pytest.fixture(scope="module")
def declared(declared_everywhere):
    """Return the catalog of everything installed, and what it exposes."""
    catalog, plugins = declared_everywhere
    return catalog, exposition_of(catalog, plugins)


def say(capsys, title, rows):
    """Print a coverage table to the terminal, whatever is captured: name, what was seen, what is missing."""
    good = sum(not missing for _, _, missing in rows)
    lines = [f"{title}: {good} of {len(rows)} ({100 * good / len(rows):.0f} %)"]
    lines += [
        f"  {'MISSING' if missing else 'ok':<8}{name:<62}{seen}  {missing}".rstrip() for name, seen, missing in rows
    ]
    with capsys.disabled():
        sys.stdout.write("\n\n" + "\n".join(lines) + "\n")


def test_every_declared_series_has_data_in_prometheus(live, declared, capsys):
    """Every declared series, span, log and event is seen live: here the series of all packs and of the bus.

    A real Prometheus that scrapes the application has them, with their labels. Counters have counted and histograms
    have observed. Every value of a closed label has happened, but for those that NEVER gives a reason for, and CHANCE.
    """
    _, exposition = declared
    live.application.finish_round()
    rows = eventually(lambda: _complete(_series_seen(live, exposition)), 60, pause_s=1) or _series_seen(
        live, exposition
    )
    say(capsys, "Series in Prometheus", rows)
    assert not [row for row in rows if row[2]]


def _series_seen(live, exposition):
    """Return a row per declared series from what Prometheus has now of the application."""
    samples = defaultdict(list)
    for labels, value in live.prometheus.query(f'{{job="{JOB}"}}'):
        samples[labels["__name__"]].append((labels, value))
    return [
        (name, *_seen(series, [labels for labels, value in samples[name] if value > 0 or series.kind == "gauge"]))
        for name, series in exposition.series.items()
    ]


def _complete(rows):
    """Return the rows if nothing is wrong with any."""
    return None if any(wrong for _, _, wrong in rows) else rows


def _seen(series, samples):
    """Return how many values of each label were seen, and what is wrong with that."""
    if not samples:
        return "", "no data"
    seen, wrong = [], []
    for label, values in series.labels.items():
        found = {labels.get(label, "") for labels in samples}
        seen.append(f"{label}: {len(found)}" + (f"/{len(values)}" if values else ""))
        if values is None:
            continue
        never = {value for name, of, value in NEVER if (name, of) == (series.metric, label)}
        lacking = set() if label in CHANCE else values - never - found
        wrong += [f"{label} is never {value!r}" for value in sorted(lacking)]
        wrong += [f"{label} is {value!r} after all" for value in sorted(found - (values - never))]
    return ", ".join(seen), ", ".join(wrong)


def test_every_declared_span_arrives_over_otlp(live, declared, capsys):
    """Every declared span is seen live in a test: operations are spans of their names in the decoded OTLP stream."""
    catalog, _ = declared
    names = {each.__event__.span for each in catalog.events.values() if each.__event__.is_operation}
    eventually(lambda: names <= {span.name for span in live.otlp.spans}, 40, pause_s=1)
    numbers = Counter(span.name for span in live.otlp.spans)
    rows = [(name, f"{numbers[name]} spans", "" if numbers[name] else "never sent") for name in sorted(names)]
    say(capsys, "Spans over OTLP", rows)
    assert not [row for row in rows if row[2]]


def test_every_declared_event_is_in_the_log(live, declared, capsys):
    """Every declared event is seen live in a test: those of the bus and of plugins, too, are lines of the JSON log."""
    catalog, _ = declared
    eventually(lambda: catalog.events.keys() <= {line["name"] for line in live.application.log}, 40, pause_s=1)
    numbers = Counter(line["name"] for line in live.application.log)
    rows = [(name, f"{numbers[name]} lines", "" if numbers[name] else "never logged") for name in catalog.events]
    say(capsys, "Events in the JSON log", rows)
    assert not [row for row in rows if row[2]]
