"""Where text goes: a standard stream, or a file that is appended to."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

from eventcore.errors import ConfigurationError

if TYPE_CHECKING:
    import io
    from pathlib import Path

__all__ = ["FileOutput", "Output", "Shortfall", "StreamOutput"]


class Shortfall(OSError):
    """Only the first ``written`` bytes reached the file."""

    def __init__(self, written: int, cause: OSError) -> None:
        super().__init__(*cause.args)
        self.written = written


class Output(Protocol):
    """Takes the text of whole lines, in UTF-8."""

    def write(self, text: bytes) -> None:
        """Write and flush; raise OSError or ValueError where that is impossible."""

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

    def write(self, text: bytes) -> None:
        """Write and flush, as one call; characters that the stream's encoding lacks are escaped."""
        stream = getattr(sys, self._name)
        if stream is None:
            raise OSError(f"this process has no sys.{self._name}; let the log's output be a file")
        try:
            stream.write(text.decode())
        except UnicodeEncodeError:
            encoding = stream.encoding
            stream.write(text.decode().encode(encoding, "backslashreplace").decode(encoding))
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


class FileOutput:
    """A file, opened for appending and unbuffered: what was written survives the process."""

    is_tty = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_torn = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: io.FileIO = path.open("ab", buffering=0)
        except OSError as error:
            raise ConfigurationError(
                f"output {str(path)!r} cannot be written: {error.strerror or error}; "
                "name a file in a folder that this user may write to, or 'stderr' or 'stdout'"
            ) from error

    def write(self, text: bytes) -> None:
        """Append, by one system call unless the disk is full; Shortfall says how much was written before an error."""
        prefix = b"\n" if self._is_torn else b""  # keep half a line apart from what follows
        rest = memoryview(prefix + text)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            written = max(0, len(text) - len(rest))
            if len(rest) <= len(text):
                self._is_torn = bool(written) and text[written - 1] != ord("\n")
            raise Shortfall(written, error) from error
        self._is_torn = False

    def flush(self) -> None:
        """Do nothing: nothing is held back."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __repr__(self) -> str:
        return f"<file {self._path}>"
