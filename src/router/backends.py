"""A circuit breaker for each backend that candidates stand for, so that one that is down is left out of the choice."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import eventcore as ec
from router.errors import ConfigError
from router.events import BACKEND

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["BackendConfig", "Backends"]


@dataclass(frozen=True, slots=True)
class BackendConfig:
    """When a backend's breaker opens and how it probes; see `eventcore.Breaker`, whose errors it raises when used."""

    window_s: float = 60.0
    minimum_calls: int = 10
    failure_rate: float = 0.5
    slow_call_s: float | None = 60.0
    slow_rate: float = 0.8
    open_s: float = 30.0
    half_open_permits: int = 3
    max_backends: int = 1000
    """More names than that are taken for a mistake, such as an id per request."""


class Backends:
    """The breakers by candidate id, each made when it is first asked for; safe to share between threads."""

    def __init__(
        self,
        config: BackendConfig,
        clock: Callable[[], float],
        on_transition: Callable[[ec.Breaker, ec.BreakerState, ec.BreakerState], None],
    ) -> None:
        self._config = config
        self._clock = clock
        self._on_transition = on_transition
        self._breakers: Mapping[str, ec.Breaker] = {}  # replaced whole, so that reading takes no lock
        self._lock = threading.Lock()

    def get(self, name: str) -> ec.Breaker:
        """Return the breaker of a backend; ConfigError for a name that is empty or beyond the number allowed."""
        found = self._breakers.get(name)
        if found is not None:
            return found
        config = self._config
        with self._lock:
            found = self._breakers.get(name)
            if found is None:
                if not name or len(self._breakers) >= config.max_backends:
                    raise ConfigError(
                        f"there is no place for a backend {name!r}: names are not empty, and at most "
                        f"{config.max_backends}; use the candidate's id, or raise max_backends"
                    )
                found = ec.Breaker(
                    BACKEND + name,
                    window_s=config.window_s,
                    minimum_calls=config.minimum_calls,
                    failure_rate=config.failure_rate,
                    slow_call_s=config.slow_call_s,
                    slow_rate=config.slow_rate,
                    open_s=config.open_s,
                    half_open_permits=config.half_open_permits,
                    clock=self._clock,
                    on_transition=self._on_transition,
                )
                self._breakers = {**self._breakers, name: found}
        return found

    def refusing(self, names: Sequence[str]) -> list[int]:
        """Return the places of those in ``names`` whose breaker would refuse a call now; changes nothing."""
        known = self._breakers
        if not known:
            return []
        return [
            place
            for place, name in enumerate(names)
            if (breaker := known.get(name)) is not None
            and breaker.state is ec.BreakerState.OPEN
            and breaker.retry_after_s > 0.0
        ]

    @property
    def open(self) -> list[str]:
        """Names of the backends whose breaker is open."""
        return sorted(name for name, breaker in self._breakers.items() if breaker.state is ec.BreakerState.OPEN)

    def __len__(self) -> int:
        """Return how many backends have a breaker."""
        return len(self._breakers)

    def __repr__(self) -> str:
        """Show how many there are, and which are open."""
        return f"Backends({len(self)} known, open: {', '.join(self.open) or 'none'})"
