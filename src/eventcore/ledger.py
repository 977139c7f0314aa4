"""The account of every envelope, per handler and event type.

Each thread counts in a dictionary of its own (one writer, so no lock on the emit path); reading folds them, and those
of dead threads are folded for good. Five kinds of keys. A ``RouteKey`` counts what was emitted along a route: which
handlers accepted it and which filtered it out was decided when the route was compiled. A ``DoneKey`` counts dispatches
in which every inline handler of a route succeeded. A tuple ``(handler, event, phase, outcome)`` counts everything else
that became of an envelope. An ``OperationKey`` counts operations. A ``BundleKey`` counts under several keys at once.

A caller counts the route before it delivers, and reading takes the outcomes first, so at any time
settled <= accepted <= emitted, and no total ever goes down.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from eventcore.events import OUTCOMES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from eventcore.dispatch import Attachment
    from eventcore.durable_emit import Awaited

__all__ = [
    "DROP_REASONS",
    "BundleKey",
    "Cells",
    "DoneKey",
    "JournalState",
    "Ledger",
    "LedgerRow",
    "LedgerSnapshot",
    "OperationKey",
    "PerThread",
    "RouteKey",
]

DROP_REASONS = ("full", "shutdown", "quarantined", "recursion", "forked", "invalid", "too_large", "dead_letter")


WORKER = "eventcore-"
"""What the names of all threads of the bus begin with."""


@dataclass(frozen=True, slots=True, eq=False)
class RouteKey:
    """Counts emits along one compiled route; ``sampling`` handlers count what they accept themselves.

    ``unsampled`` are handlers that leave out operations of traces that are not recorded.
    """

    event: str
    phase: str
    accepted: tuple[str, ...]
    sampling: tuple[str, ...]
    filtered: tuple[str, ...]
    category: str = ""
    severity: str = ""
    unsampled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class DoneKey:
    """Counts dispatches in which all of ``handlers``, the inline ones of a route, succeeded."""

    event: str
    phase: str
    handlers: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class OperationKey:
    """Counts operations ``started``, those that ended by outcome, and audit-class emits ``unconfirmed``."""

    what: str


@dataclass(frozen=True, slots=True, eq=False)
class BundleKey:
    """Counts bundles: operations with recorded steps. Each stands for one under every key of its ``members``."""

    members: tuple[RouteKey | OperationKey, ...]


class Cells:
    """What one thread keeps for one emitter: its counts, how deep it is in inline handlers, whose worker it is."""

    __slots__ = ("awaited", "counts", "depth", "handling")

    def __init__(self) -> None:
        self.counts: defaultdict[Hashable, int] = defaultdict(int)
        self.depth = 0
        self.handling: Attachment | None = None
        self.awaited: Awaited | None = None


class PerThread(threading.local):
    """Gives each thread its ``cells``; one look-up of a thread-local costs as much as five of a plain attribute."""

    def __init__(self, ledger: Ledger) -> None:
        self.cells = Cells()
        ledger.register(self.cells.counts)


_Thread = tuple[threading.Thread, defaultdict[Hashable, int]]


class Ledger:
    """Folds the counts of all threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        # Swapped as one: a signal handler may read in the middle of a fold.
        self._state: tuple[tuple[_Thread, ...], Counter[Hashable]] = ((), Counter())
        self.per_thread = PerThread(self)
        self.started = OperationKey("started")
        self.ended: dict[str | None, OperationKey] = {outcome: OperationKey(outcome) for outcome in OUTCOMES}
        self.succeeded = self.ended["success"]
        self.unconfirmed = OperationKey("unconfirmed")

    @property
    def cells(self) -> Cells:
        """The calling thread's cells."""
        return self.per_thread.cells

    def register(self, counts: defaultdict[Hashable, int]) -> None:
        """Take the counts of a new thread, and fold those of threads that have ended."""
        with self._lock:
            self._fold_dead()
            living, folded = self._state
            self._state = ((*living, (threading.current_thread(), counts)), folded)

    def count(self, handler: str, event: str, phase: str, outcome: str, number: int = 1) -> None:
        """Add to one outcome, in the calling thread's counts."""
        self.cells.counts[handler, event, phase, outcome] += number

    def totals(self) -> Counter[Hashable]:
        """Return the folded counts of all threads, by key."""
        with self._lock:
            self._fold_dead()
            living, folded = self._state
            total = Counter(folded)
            for _, counts in living:
                total.update(dict(counts))
        for key in [key for key in total if isinstance(key, BundleKey)]:
            number = total.pop(key)
            for member in key.members:
                total[member] += number
        return total

    def emitted_by_workers(self) -> int:
        """Return how many envelopes the bus's own threads have emitted: from handlers, and reports about them."""
        living, _ = self._state
        return sum(
            number
            for thread, counts in living
            if thread.name.startswith(WORKER)
            for key, number in dict(counts).items()
            if isinstance(key, RouteKey)
        )

    def after_fork(self) -> list[LedgerRow]:
        """Begin anew in a forked child, where only the forking thread lives on; return what was pending at the fork."""
        self._lock = threading.RLock()
        inherited = [row for row in self.snapshot().rows if row.pending > 0]
        counts = self.cells.counts
        counts.clear()  # in place: an emit of this thread may be under way
        self._state = (((threading.current_thread(), counts),), Counter())
        return inherited

    def snapshot(self, journal: JournalState | None = None) -> LedgerSnapshot:
        """Read the account: what was settled first, then what was accepted and emitted."""
        settled = self.totals()
        entered = self.totals()
        rows = _Rows()
        for key, number in settled.items():
            if isinstance(key, DoneKey):
                for name in key.handlers:
                    rows.of(name, key.event, key.phase).delivered += number
            elif isinstance(key, tuple):
                rows.settle(key, number)
        counted: Counter[str] = Counter()
        emitted = 0
        for key, number in entered.items():
            if isinstance(key, RouteKey):
                emitted += number
                rows.enter(key, number)
            elif isinstance(key, OperationKey):
                counted[key.what] += number
            elif isinstance(key, tuple):
                rows.enter_one(key, number)
        return LedgerSnapshot(
            emitted=emitted,
            rows=tuple(sorted(rows.values(), key=LedgerRow.key)),
            operations=_operations(counted),
            emitted_by=_emitted_by(entered),
            unconfirmed=counted["unconfirmed"],
            outcomes={outcome: counted[outcome] for outcome in OUTCOMES},
            journal=journal,
        )

    def _fold_dead(self) -> None:
        living, folded = self._state
        if all(thread.is_alive() for thread, _ in living):
            return
        alive, folded = [], Counter(folded)
        for thread, counts in living:
            if thread.is_alive():
                alive.append((thread, counts))
            else:
                folded.update(counts)
        self._state = (tuple(alive), folded)


@dataclass(slots=True)
class LedgerRow:
    """One handler's account of one event type.

    emitted = accepted + filtered + sampled; accepted + recovered = delivered + failed + dropped + pending. Recovered
    are envelopes that were there before this account began: in the journal, from an earlier run, or in memory when this
    process was forked (copies, which the child drops as ``forked``).
    """

    handler: str
    event: str
    phase: str = "end"
    emitted: int = 0
    filtered: int = 0
    sampled: int = 0
    accepted: int = 0
    recovered: int = 0
    delivered: int = 0
    failed: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def settled(self) -> int:
        """Envelopes whose fate is known."""
        return self.delivered + self.failed + self.dropped.total()

    @property
    def pending(self) -> int:
        """Envelopes accepted or recovered, and not settled yet."""
        return self.accepted + self.recovered - self.settled

    def key(self) -> tuple[str, str, str]:
        """Return what the row is sorted by."""
        return self.handler, self.event, self.phase

    def add(self, other: LedgerRow) -> None:
        """Add the numbers of ``other``."""
        self.emitted += other.emitted
        self.filtered += other.filtered
        self.sampled += other.sampled
        self.accepted += other.accepted
        self.recovered += other.recovered
        self.delivered += other.delivered
        self.failed += other.failed
        self.dropped += other.dropped


class _Rows(dict[tuple[str, str, str], LedgerRow]):
    """Rows by handler, event and phase while a snapshot is put together."""

    def of(self, handler: str, event: str, phase: str) -> LedgerRow:
        return self.setdefault((handler, event, phase), LedgerRow(handler, event, phase))

    def enter(self, key: RouteKey, number: int) -> None:
        for name in key.accepted:
            self.of(name, key.event, key.phase).accepted += number
        for name in key.filtered:
            self.of(name, key.event, key.phase).filtered += number
        for name in key.unsampled:
            self.of(name, key.event, key.phase).sampled += number
        for name in (*key.accepted, *key.sampling, *key.filtered, *key.unsampled):
            self.of(name, key.event, key.phase).emitted += number

    def enter_one(self, key: tuple[str, str, str, str], number: int) -> None:
        handler, event, phase, what = key
        if what in ("accepted", "sampled", "recovered"):
            row = self.of(handler, event, phase)
            setattr(row, what, getattr(row, what) + number)

    def settle(self, key: tuple[str, str, str, str], number: int) -> None:
        handler, event, phase, outcome = key
        row = self.of(handler, event, phase)
        if outcome == "delivered":
            row.delivered += number
        elif outcome == "failed":
            row.failed += number
        elif outcome not in ("accepted", "sampled", "recovered"):
            row.dropped[outcome] += number


def _operations(counted: Counter[str]) -> Mapping[str, int]:
    abandoned = counted["abandoned"]
    ended = sum(counted[outcome] for outcome in OUTCOMES) - abandoned
    return +Counter(started=counted["started"], ended=ended, abandoned=abandoned)


def _emitted_by(entered: Mapping[Hashable, int]) -> Mapping[tuple[str, str, str], int]:
    counts: Counter[tuple[str, str, str]] = Counter()
    for key, number in entered.items():
        if isinstance(key, RouteKey) and key.phase == "end":
            counts[key.event, key.category, key.severity] += number
    return counts


@dataclass(frozen=True, slots=True)
class JournalState:
    """How the journal of the durable handlers is: what waits in it, how full it is, and whether it can be written."""

    rows: int
    bytes: int
    fill: float
    dead_letters: int
    is_well: bool


@dataclass(frozen=True, slots=True)
class LedgerSnapshot:
    """The ledger at one moment: rows per handler and event type, and the counts of operations.

    ``emitted_by`` counts what was emitted by (event, category, severity); unlike ``emitted`` without the starts of
    operations, which are announced to handlers that ask for them. ``unconfirmed`` counts audit-class emits whose event
    was not committed in time (NotDurable was raised, or would have been). ``operations`` has how many have ``started``,
    ``ended`` by themselves, and were ``abandoned``; ``outcomes`` has the same by outcome. ``journal`` is None where no
    handler is durable.
    """

    emitted: int
    rows: tuple[LedgerRow, ...]
    operations: Mapping[str, int]
    emitted_by: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    unconfirmed: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)
    journal: JournalState | None = None

    def handler(self, name: str) -> LedgerRow:
        """Return the sum of one handler's rows."""
        return self._sum(name, (row for row in self.rows if row.handler == name))

    @property
    def handlers(self) -> Mapping[str, LedgerRow]:
        """The sum of rows, per handler."""
        return {name: self.handler(name) for name in dict.fromkeys(row.handler for row in self.rows)}

    @property
    def dropped(self) -> int:
        """Envelopes dropped by any handler for any reason."""
        return sum(row.dropped.total() for row in self.rows)

    @property
    def is_settled(self) -> bool:
        """Whether every accepted envelope's fate is known and every operation has ended."""
        return all(row.pending == 0 for row in self.rows) and self.open_operations == 0

    @property
    def open_operations(self) -> int:
        """Operations started and neither ended nor abandoned."""
        return self.operations.get("started", 0) - self.operations.get("ended", 0) - self.operations.get("abandoned", 0)

    @staticmethod
    def _sum(name: str, rows: Iterable[LedgerRow]) -> LedgerRow:
        total = LedgerRow(name, "*", "*")
        for row in rows:
            total.add(row)
        return total

    def __str__(self) -> str:
        lines = [
            f"{'handler':<12}{'accepted':>10}{'delivered':>11}{'pending':>9}{'failed':>8}{'filtered':>10}  dropped"
        ]
        for name, row in self.handlers.items():
            dropped = ", ".join(f"{reason} {n}" for reason, n in row.dropped.items()) or "-"
            recovered = f"  (recovered {row.recovered})" if row.recovered else ""
            lines.append(
                f"{name:<12}{row.accepted:>10}{row.delivered:>11}{row.pending:>9}{row.failed:>8}{row.filtered:>10}"
                f"  {dropped}{recovered}"
            )
        return "\n".join(lines)
