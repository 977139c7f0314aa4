"""Where lines go: what every output does, and the standard streams."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Output", "Shortfall", "StreamOutput"]


class Shortfall(OSError):
    """Only the first ``written`` items got where they should."""

    def __init__(self, written: int, cause: Exception) -> None:
        super().__init__(*cause.args)
        self.written = written


class Output(Protocol):
    """Takes items, one per line: its text or an OTLP record as bytes, or a record of the standard library."""

    def write(self, items: Sequence[Any]) -> None:
        """Write and flush; raise where that is impossible (Shortfall: for some of them)."""

    def flush(self) -> None:
        """Pass on what is held back."""

    def close(self) -> None:
        """Release what is held."""

    @property
    def is_tty(self) -> bool:
        """Whether a person looks at it directly."""


class StreamOutput:
    """``stderr`` or ``stdout``: whichever object stands for it in ``sys`` at the time of writing."""

    def __init__(self, name: str) -> None:
        self._name = name

    def write(self, items: Sequence[bytes]) -> None:
        """Write and flush, as one call; characters that the stream's encoding lacks are escaped."""
        stream = getattr(sys, self._name)
        if stream is None:
            raise OSError(f"this process has no sys.{self._name}; let the log's output be a file")
        text = b"".join(items).decode()
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()

    def flush(self) -> None:
        """Pass on what the stream holds back, unless it is closed."""
        stream = getattr(sys, self._name)
        if stream is not None and not stream.closed:
            stream.flush()

    def close(self) -> None:
        """Flush; the stream itself belongs to the process."""
        self.flush()

    @property
    def is_tty(self) -> bool:
        """Whether the stream is a terminal."""
        stream = getattr(sys, self._name)
        return stream is not None and not stream.closed and bool(stream.isatty())

    def __repr__(self) -> str:
        return f"<{self._name}>"
