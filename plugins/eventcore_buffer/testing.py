"""What the pytest fixture ``events`` gives a test: a buffer that can be asked and asserted on."""

from __future__ import annotations

from eventcore.testing import Recorded
from eventcore_buffer.handler import BufferHandler

__all__ = ["EventsBuffer"]


class EventsBuffer(Recorded, BufferHandler):
    """A buffer with the questions and assertions of ``eventcore.testing``."""
