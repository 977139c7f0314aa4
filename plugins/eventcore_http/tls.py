"""Certificates: loaded when the server starts, and again when their files change, so that renewal needs no restart."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from eventcore.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path
    from socket import socket

__all__ = ["Certificate"]


class Certificate:
    """A certificate chain and its key, in PEM; TLS 1.2 and later. ConfigurationError: they cannot be read or used."""

    def __init__(self, certfile: Path, keyfile: Path | None, password: str = "") -> None:
        self._files = (certfile, keyfile)
        self._password = password
        self._stamp = self._stamped()
        self._context = self._loaded()

    def wrap(self, connection: socket) -> ssl.SSLSocket:
        """Return the connection to shake hands on; nothing is sent or awaited yet."""
        self._renew()
        return self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)

    def _renew(self) -> None:
        try:
            stamp = self._stamped()
            if stamp != self._stamp:
                self._context, self._stamp = self._loaded(), stamp
        except (
            ConfigurationError,
            OSError,
        ):  # half written: the old one serves on, and the next connection looks again
            return

    def _stamped(self) -> tuple[tuple[int, int], ...]:
        try:
            stats = [path.stat() for path in self._files if path is not None]
        except OSError as error:
            raise ConfigurationError(
                f"cannot read {error.filename}: {error.strerror}; see 'certfile', 'keyfile'"
            ) from None
        return tuple((stat.st_mtime_ns, stat.st_ino) for stat in stats)

    def _loaded(self) -> ssl.SSLContext:
        certfile, keyfile = self._files
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(certfile, keyfile, self._password)
        except OSError as error:  # ssl.SSLError is one
            reason = "they do not belong together" if "MISMATCH" in str(error) else error.strerror or str(error)
            key = keyfile or certfile
            raise ConfigurationError(
                f"certificate {certfile} with key {key} cannot be used ({reason}); 'certfile' and 'keyfile' are PEM "
                "files, and an encrypted key needs 'keyfile_password'"
            ) from None
        return context
