"""The fixture ``events``: a test sees what the code under test emits.

::

    def test_paying(events):
        pay(12.5)
        events.assert_emitted(CheckoutPaid, times=1, amount=12.5)

Time stands still until ``events.clock.advance(seconds)``, ids are the same in every run, and results that do not
validate raise; ``@pytest.mark.eventcore(strict=False, real_clock=True)`` switches that off. If the test fails, the
report shows the stream of events. pytest imports this module at every start, in projects that do not use eventcore
too, so eventcore is imported only when a test asks for the fixture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from eventcore.testing import FakeClock
    from eventcore_buffer.testing import EventsBuffer

__all__ = ["event_clock", "events", "pytest_configure", "pytest_runtest_makereport"]

_EVENTS: pytest.StashKey[EventsBuffer] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "eventcore(strict=True, real_clock=False): how the fixture `events` runs this test; strict: operations whose "
        "results do not validate raise; real_clock: time is the machine's, and not moved by the test.",
    )


@pytest.fixture
def events(request: pytest.FixtureRequest) -> Iterator[EventsBuffer]:
    """What is emitted on the emitter in use, to be asked and asserted; restores everything afterwards."""
    from eventcore.testing import capture
    from eventcore_buffer.testing import EventsBuffer

    strict, real_clock = _arguments(request.node)
    with capture(into=EventsBuffer(max_size=10_000), strict=strict, real_clock=real_clock) as buffer:
        request.node.stash[_EVENTS] = buffer
        yield buffer


@pytest.fixture
def event_clock(events: EventsBuffer) -> FakeClock:
    """The clock that stamps the events of this test; it stands still until ``event_clock.advance(seconds)``."""
    return events.clock


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the stream of events in the report of a failed test, unless the message of the failure ends with it."""
    report = yield
    buffer = item.stash.get(_EVENTS, None)
    if buffer is not None and report.failed and call.excinfo is not None:
        stream = buffer.stream()
        if not str(call.excinfo.value).endswith(stream):
            report.sections.append(("eventcore events", stream))
    return report


def _arguments(node: pytest.Item) -> tuple[bool, bool]:
    """Return what the nearest marker says of strict and real_clock; an argument that it does not know is an error."""
    marker = node.get_closest_marker("eventcore")
    given = dict(marker.kwargs) if marker is not None else {}
    strict, real_clock = given.pop("strict", True), given.pop("real_clock", False)
    if (
        given
        or (marker is not None and marker.args)
        or not isinstance(strict, bool)
        or not isinstance(real_clock, bool)
    ):
        raise pytest.UsageError(
            f"{node.nodeid}: @pytest.mark.eventcore takes strict= and real_clock=, True or False, by name; "
            f"it was given {[*marker.args, marker.kwargs] if marker is not None else []}"
        )
    return strict, real_clock
