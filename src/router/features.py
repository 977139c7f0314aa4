"""Five features per candidate, computed for all candidates of a request at once.

============  ==========================================================  ======
feature       value before weighting, in [0, 1] (cosine: [-1, 1])         weight
============  ==========================================================  ======
similarity    cosine of query and candidate embedding                     0.4
recency       exp(-0.001 · age in seconds), age not below 0               0.2
frequency     min(1, ln(1 + accesses) / ln(10 001))                       0.15
success       the candidate's success rate                                0.15
overlap       query metadata keys with an equal value / keys in query     0.1
============  ==========================================================  ======

They are Tiny Dancer's, as is the multiplication of each by its weight. The cosine of two zero vectors is 1, of a zero
vector and another one 0; the overlap is 0 when either metadata map is empty.

What costs time is turning many small Python objects into arrays. `CandidatePool` does that, with every check and the
scaling of the embeddings to length one, once; a router whose candidates change rarely keeps the pool and passes it
with each request. A plain sequence of candidates is made into a pool on the way.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from router.errors import ConfigError, DimensionMismatch, FeatureError, InvalidRequest, NonFiniteInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["FEATURE_NAMES", "FEATURE_WEIGHTS", "Candidate", "CandidatePool", "RoutingRequest", "extract_features"]

FEATURE_NAMES = ("similarity", "recency", "frequency", "success", "overlap")
FEATURE_WEIGHTS = (0.4, 0.2, 0.15, 0.15, 0.1)

RECENCY_DECAY_PER_S = 0.001
FREQUENCY_SATURATION = 10_000
# Seconds reach this number in the year 5138, milliseconds reached it in 1973: what lies above it is in milliseconds.
_MAX_UNIX_S = 1e11

MetadataValue = str | int | float | bool


@dataclass(frozen=True, slots=True, eq=False)  # comparing arrays has no single truth value
class Candidate:
    """One product the router may choose: a model, an agent, a memory.

    ``embedding`` is a float32 vector of shape ``(d,)``, the same ``d`` for all candidates and the query; ``created_at``
    is in Unix seconds; ``access_count`` is not negative; ``success_rate`` lies in [0, 1]; ``price`` is per call in any
    one currency, or None where it is unknown. Making one checks nothing and so
    stays cheap; `CandidatePool` checks.
    """

    id: str
    embedding: NDArray[np.float32] = field(repr=False)
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    created_at: float = 0.0
    access_count: int = 0
    success_rate: float = 0.0
    price: float | None = None


class CandidatePool:
    """Candidates checked and laid out as arrays, ready for any number of requests; immutable.

    Raises InvalidRequest for an empty pool, an id that occurs twice or a value outside its range, DimensionMismatch
    for embeddings that are not vectors of one length, NonFiniteInput for NaN or infinity, FeatureError for an embedding
    too large for float32. Each message names the candidate, its index and the remedy.
    """

    __slots__ = (
        "_template",
        "candidates",
        "created_at",
        "frequency",
        "ids",
        "prices",
        "success_rate",
        "unit_embeddings",
        "zero_embeddings",
    )

    candidates: tuple[Candidate, ...]
    ids: tuple[str, ...]
    unit_embeddings: NDArray[np.float32]
    """Embeddings scaled to length one, shape (candidates, d); a zero vector stays zero."""
    zero_embeddings: NDArray[np.bool_] | None
    """Which embeddings are zero vectors, shape (candidates,); None when there are none, the usual case."""
    created_at: NDArray[np.float64]
    frequency: NDArray[np.float64]
    success_rate: NDArray[np.float64]
    prices: NDArray[np.float64]
    """Prices, shape (candidates,); NaN where a price is not known."""
    _template: tuple[tuple[float, ...], NDArray[np.float32]] | None

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        """Check ``candidates`` and lay them out."""
        self.candidates = tuple(candidates)
        if not self.candidates:
            raise InvalidRequest("the request has no candidates: pass at least one")
        self._check_ids()
        self.unit_embeddings, self.zero_embeddings = self._scaled_embeddings()
        self.created_at, access_count, self.success_rate = self._statistics()
        self.frequency = np.minimum(np.log1p(access_count) / math.log(1 + FREQUENCY_SATURATION), 1.0)
        self.ids = tuple(map(_get_id, self.candidates))
        self.prices = np.array([math.nan if each.price is None else each.price for each in self.candidates])
        self._template = None
        for shared in (self.unit_embeddings, self.created_at, self.frequency, self.success_rate, self.prices):
            shared.setflags(write=False)

    def __len__(self) -> int:
        """Return the number of candidates."""
        return len(self.candidates)

    def __repr__(self) -> str:
        """Show how many candidates of which dimension."""
        return f"CandidatePool({len(self)} candidates, dimension {self.dimension})"

    @property
    def dimension(self) -> int:
        """The length of every embedding in the pool."""
        return int(self.unit_embeddings.shape[1])

    def template(self, weights: tuple[float, ...]) -> NDArray[np.float32]:
        """Return new features in which frequency and success are filled in, the same for every request; the rest is 0.

        Raises ConfigError when ``weights`` are not five finite numbers.
        """
        kept = self._template
        if kept is None or kept[0] is not weights:
            if len(weights) != len(FEATURE_NAMES) or not math.isfinite(sum(weights)):
                raise ConfigError(
                    f"feature weights {weights!r} are not {len(FEATURE_NAMES)} finite numbers, one each for "
                    f"{FEATURE_NAMES}"
                )
            filled = np.zeros((len(self), len(FEATURE_NAMES)), dtype=np.float32)
            filled[:, 2] = self.frequency * weights[2]
            filled[:, 3] = self.success_rate * weights[3]
            self._template = kept = (weights, filled)  # one assignment: threads may share the pool
        return kept[1].copy()

    def _check_ids(self) -> None:
        if len(set(map(_get_id, self.candidates))) == len(self.candidates):
            return
        first: dict[str, int] = {}
        for index, candidate in enumerate(self.candidates):
            if candidate.id in first:
                raise InvalidRequest(
                    f"candidates at index {first[candidate.id]} and {index} share the id {candidate.id!r}: "
                    "give every candidate its own id"
                )
            first[candidate.id] = index

    def _scaled_embeddings(self) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
        try:
            with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite here and is reported below
                matrix = np.array(list(map(_get_embedding, self.candidates)), dtype=np.float32)
        except (TypeError, ValueError):
            matrix = np.empty(0, dtype=np.float32)
        if matrix.ndim != 2 or matrix.shape[1] == 0:
            raise self._bad_shape()
        with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
            squares = np.einsum("ij,ij->i", matrix, matrix)
            # A sum of squares is finite and normal for every usable vector, so one check of (candidates,) numbers
            # stands for one of (candidates, d). What it doubts is looked at again in float64.
            if not _all_usable(squares):
                return self._rescaled(matrix)
            return matrix / np.sqrt(squares)[:, None], None

    def _rescaled(self, matrix: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
        """Scale embeddings of which some are zero, tiny, huge or not finite; the last are refused by name."""
        for index, row in enumerate(matrix):
            if not np.isfinite(row).all():
                raise self._bad_embedding(index)
        wide = matrix.astype(np.float64)
        norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
        zeros = norms == 0.0
        norms[zeros] = 1.0
        return (wide / norms[:, None]).astype(np.float32), zeros if zeros.any() else None

    def _bad_embedding(self, index: int) -> NonFiniteInput | FeatureError:
        candidate = self.candidates[index]
        given = np.asarray(candidate.embedding)
        wrong = np.flatnonzero(~np.isfinite(given))
        if wrong.size:
            return NonFiniteInput(
                f"{_named(candidate, index)}: embedding[{wrong[0]}] is {given[wrong[0]]}: "
                "replace or leave out candidates whose embedding is not finite"
            )
        return FeatureError(
            f"{_named(candidate, index)}: the embedding has values beyond float32: scale it, for instance to length one"
        )

    def _bad_shape(self) -> InvalidRequest:
        """Name the first candidate whose embedding is no vector of numbers or differs in length from the first's."""
        expected: int | None = None
        for index, candidate in enumerate(self.candidates):
            try:
                shape = np.asarray(candidate.embedding, dtype=np.float32).shape
            except (TypeError, ValueError):
                kind = type(candidate.embedding).__name__
                return InvalidRequest(
                    f"{_named(candidate, index)}: the embedding is no vector of numbers ({kind}): pass a float32 array"
                )
            if len(shape) != 1 or shape[0] == 0:
                return DimensionMismatch(
                    f"{_named(candidate, index)}: the embedding has shape {shape}: pass one vector, shape (d,)"
                )
            expected = shape[0] if expected is None else expected
            if shape[0] != expected:
                return DimensionMismatch(
                    f"{_named(candidate, index)}: the embedding has length {shape[0]}, that of "
                    f"{_named(self.candidates[0], 0)} has {expected}: embed all candidates with the same embedder"
                )
        return DimensionMismatch("the embeddings of the candidates do not form a matrix: pass vectors of one length")

    def _statistics(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        try:
            table = np.array(list(map(_get_statistics, self.candidates)), dtype=np.float64)
            prices_within = all(map(_has_good_price, self.candidates))
        except (TypeError, ValueError, OverflowError):
            raise self._bad_statistic() from None
        created_at, access_count, success_rate = table.T
        # Comparisons with NaN are false, so a range check phrased as "within" catches it too.
        within = (
            np.abs(created_at).max() < _MAX_UNIX_S
            and 0.0 <= access_count.min() <= access_count.max() < math.inf
            and 0.0 <= success_rate.min() <= success_rate.max() <= 1.0
        )
        if not (within and prices_within):
            raise self._bad_statistic()
        return created_at, access_count, success_rate

    def _bad_statistic(self) -> InvalidRequest:
        for index, candidate in enumerate(self.candidates):
            for name, low, high, unit in _RANGES:
                value = getattr(candidate, name)
                if value is None and name == "price":
                    continue
                try:
                    number = float(value)
                except (TypeError, ValueError, OverflowError):
                    number = None
                if number is not None and low <= number <= high:
                    continue
                kind = InvalidRequest if number is None or math.isfinite(number) else NonFiniteInput
                expected = f"expected a number from {low:g} to {high:g} ({unit})"
                return kind(f"{_named(candidate, index)}: {name} is {value!r}, {expected}")
        return InvalidRequest("a candidate's statistics are outside their range: see the documentation of Candidate")


@dataclass(frozen=True, slots=True, eq=False)  # comparing arrays has no single truth value
class RoutingRequest:
    """A query and the candidates that may serve it.

    ``query_embedding`` is a float32 vector of shape ``(d,)``; ``candidates`` a sequence of them or a ready
    `CandidatePool`; ``metadata`` is what the candidates' metadata is compared with; ``prompt`` the text, where known.
    """

    query_embedding: NDArray[np.float32] = field(repr=False)
    candidates: Sequence[Candidate] | CandidatePool = field(repr=False)
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    request_id: str | None = None
    prompt: str | None = field(default=None, repr=False)

    @property
    def pool(self) -> CandidatePool:
        """The candidates as a pool: the one passed in, or a new one; errors as `CandidatePool` raises them."""
        return self.candidates if isinstance(self.candidates, CandidatePool) else CandidatePool(self.candidates)


def extract_features(
    query_embedding: NDArray[np.float32],
    pool: CandidatePool,
    metadata: Mapping[str, MetadataValue] | None = None,
    *,
    now_s: float | None = None,
    weights: tuple[float, ...] = FEATURE_WEIGHTS,
) -> NDArray[np.float32]:
    """Return the weighted features of every candidate, float32 of shape ``(candidates, 5)``, columns as FEATURE_NAMES.

    ``query_embedding`` has shape ``(d,)`` and need not have length one; ``now_s`` is the time in Unix seconds that ages
    are counted to (default: the clock); ``weights`` multiply the columns.

    Raises DimensionMismatch when the query is no vector of the pool's dimension, NonFiniteInput when it holds NaN or
    infinity, FeatureError when its length overflows, ConfigError when ``weights`` are not five finite numbers.
    """
    features = pool.template(weights)
    now = time.time() if now_s is None else now_s
    if not abs(now) < _MAX_UNIX_S:
        msg = f"now_s is {now!r}: pass the time in Unix seconds"
        raise (InvalidRequest if math.isfinite(now) else NonFiniteInput)(msg)
    np.multiply(_similarity(query_embedding, pool), weights[0], out=features[:, 0])
    age = now - pool.created_at
    np.maximum(age, 0.0, out=age)
    age *= -RECENCY_DECAY_PER_S
    np.exp(age, out=age)
    np.multiply(age, weights[1], out=features[:, 1], casting="same_kind")
    if metadata:
        features[:, 4] = _overlap(metadata, pool.candidates, weights[4])
    return features


def _similarity(query_embedding: NDArray[np.float32], pool: CandidatePool) -> NDArray[np.float32]:
    query, norm_squared = _checked_query(query_embedding, pool.dimension)
    if norm_squared == 0.0:
        zeros = pool.zero_embeddings
        return np.zeros(len(pool), np.float32) if zeros is None else zeros.astype(np.float32)
    query *= 1.0 / math.sqrt(norm_squared)
    cosines: NDArray[np.float32] = pool.unit_embeddings @ query.astype(np.float32)
    np.maximum(cosines, -1.0, out=cosines)
    return np.minimum(cosines, 1.0, out=cosines)


def _checked_query(query_embedding: NDArray[np.float32], dimension: int) -> tuple[NDArray[np.float64], float]:
    """Return a copy of the query in float64, where no float32 value under- or overflows when squared, and its square.

    A finite square means finite values, so one number stands for a look at all of them.
    """
    try:
        query = np.array(query_embedding, dtype=np.float64)
    except (TypeError, ValueError):
        kind = type(query_embedding).__name__
        raise InvalidRequest(f"the query embedding is no vector of numbers ({kind}): pass a float32 array") from None
    if query.shape != (dimension,):
        raise DimensionMismatch(
            f"the query embedding has shape {query.shape}, the candidates' embeddings have length {dimension}: "
            "embed query and candidates with the same embedder"
        )
    norm_squared = float(np.vdot(query, query))  # unlike @, no warning where it overflows
    if norm_squared < math.inf:
        return query, norm_squared
    finite = np.isfinite(query)
    if finite.all():
        raise FeatureError(
            "the query embedding is too long for its length to be computed: scale it, for instance to length one"
        )
    index = int(np.argmin(finite))
    raise NonFiniteInput(
        f"query_embedding[{index}] is {query[index]}: embed the query again, every value has to be finite"
    )


def _overlap(metadata: Mapping[str, MetadataValue], candidates: tuple[Candidate, ...], weight: float) -> list[float]:
    try:
        wanted = list(metadata.items())
        if len(wanted) == 1:  # the usual case, at half the cost of the general one
            [(key, value)] = wanted
            return [weight if value == candidate.metadata.get(key, _ABSENT) else 0.0 for candidate in candidates]
        share = weight / len(wanted)
        return [
            share * sum(value == candidate.metadata.get(key, _ABSENT) for key, value in wanted)
            for candidate in candidates
        ]
    except AttributeError:
        whose = [(f"{_named(each, index)}: its", each.metadata) for index, each in enumerate(candidates)]
        for who, found in [("the request's", metadata), *whose]:
            if not hasattr(found, "items"):
                kind = type(found).__name__
                raise InvalidRequest(
                    f"{who} metadata are no mapping ({kind}): pass a dictionary of names and values"
                ) from None
        raise


def _all_usable(squares: NDArray[np.float32]) -> bool:
    """Say whether every squared norm is far enough from underflow and overflow to divide by its root."""
    return bool(squares.min() > _MIN_SQUARE and squares.max() < math.inf)


def _has_good_price(candidate: Candidate) -> bool:
    price = candidate.price
    return price is None or 0.0 <= price < math.inf


def _named(candidate: Candidate, index: int) -> str:
    return f"candidate {candidate.id!r} at index {index}"


_ABSENT: Any = object()
_MIN_SQUARE = 1e-20  # below it, squares of single components start to lose bits in float32
_RANGES = (
    ("created_at", -_MAX_UNIX_S, _MAX_UNIX_S, "Unix seconds, not milliseconds"),
    ("access_count", 0, 2**63 - 1, "calls so far"),
    ("success_rate", 0, 1, "share of calls that succeeded"),
    ("price", 0, 1.7e308, "cost per call, or None"),
)
_get_id = attrgetter("id")
_get_embedding = attrgetter("embedding")
_get_statistics = attrgetter("created_at", "access_count", "success_rate")
