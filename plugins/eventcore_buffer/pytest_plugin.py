"""The fixture ``events``: a test sees what the code under test emits.

::

    def test_paying(events):
        pay(12.5)
        assert events.of(CheckoutPaid)[0].amount == 12.5

If the test fails, the report shows the stream of events. pytest imports this module at every start, in projects that do
not use eventcore too, so eventcore is imported only when a test asks for the fixture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from eventcore_buffer.handler import BufferHandler

__all__ = ["events", "pytest_runtest_makereport"]

_BUFFER: pytest.StashKey[BufferHandler] = pytest.StashKey()


@pytest.fixture
def events(request: pytest.FixtureRequest) -> Iterator[BufferHandler]:
    """A buffer of eventcore events on the emitter in use; restores emitter and handlers afterwards."""
    from eventcore_buffer.testing import attached_buffer

    with attached_buffer() as buffer:
        request.node.stash[_BUFFER] = buffer
        yield buffer


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the stream of events in the report of a failed test."""
    report = yield
    buffer = item.stash.get(_BUFFER, None)
    if buffer is not None and report.failed:
        from eventcore_buffer.testing import stream

        report.sections.append(("eventcore events", stream(buffer)))
    return report
