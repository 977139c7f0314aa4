"""The emitter in use: a convenience, so that application code need not pass one around."""

from __future__ import annotations

from eventcore.emitter import Emitter
from eventcore.events import Severity
from eventcore.last_resort import LastResort

__all__ = ["get_emitter", "set_emitter", "unconfigured"]


def _unconfigured() -> Emitter:
    emitter = Emitter()
    emitter.add_handler(LastResort(min_severity=Severity.WARNING))
    return emitter


unconfigured = _unconfigured()
"""What is in use before ``configure()``: it writes warnings to stderr."""

_in_use: Emitter = unconfigured


def get_emitter() -> Emitter:
    """Return the emitter in use: the configured one, else the one that only writes warnings to stderr."""
    return _in_use


def set_emitter(emitter: Emitter | None) -> Emitter:
    """Make ``emitter`` the one in use (None: the unconfigured one) and return the one before."""
    global _in_use
    before, _in_use = _in_use, emitter or unconfigured
    return before
