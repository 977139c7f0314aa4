"""The router: a request's candidates in, a decision for each out. It emits what it does, and knows no exporter."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

import eventcore as ec
from router.errors import BreakerOpen, ConfigError, InferenceError
from router.events import (
    CheckCircuitBreaker,
    CircuitBreakerEnabled,
    CircuitClosed,
    CircuitHalfOpened,
    CircuitOpened,
    EngineerFeatures,
    EstimateUncertainty,
    InferModel,
    ModelLoaded,
    RouteRequest,
    RouterInitializing,
    RoutingDecided,
)
from router.features import CandidatePool, RoutingRequest, extract_features
from router.health import RouterHealthCheck
from router.model_file import BUNDLED_MODEL, load_model
from router.uncertainty import DEFAULT_MAX_UNCERTAINTY, DEFAULT_THRESHOLD, is_lightweight

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]

__all__ = ["Model", "Router", "RouterConfig", "RoutingDecision", "RoutingResponse"]


class Model(Protocol):
    """What scores candidates: `RouterModel`, or anything with the same three members."""

    @property
    def feature_weights(self) -> tuple[float, ...]:
        """What the features are multiplied by."""

    def score(self, features: Array) -> Array:
        """Return the probability of success of each row, shape (candidates, 5) to (candidates,)."""

    def uncertainty(self, scores: Array) -> Array:
        """Return how far each score may be from the truth, same shape, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """How the router decides and guards itself; defaults are Tiny Dancer's. ConfigError for values out of range."""

    model_path: str | PathLike[str] = BUNDLED_MODEL
    confidence_threshold: float = DEFAULT_THRESHOLD
    max_uncertainty: float = DEFAULT_MAX_UNCERTAINTY
    enable_circuit_breaker: bool = True
    circuit_breaker_threshold: int = 5
    """Failures in a row that open it."""
    circuit_breaker_timeout_s: float = 60.0
    """How long it stays open before it probes; doubled with every failed probe."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("confidence_threshold", "max_uncertainty"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}: use a number from 0 to 1")
        if self.circuit_breaker_threshold < 1 or not self.circuit_breaker_timeout_s > 0:
            raise ConfigError("circuit_breaker_threshold and circuit_breaker_timeout_s must be positive")


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """The decision for one candidate."""

    candidate_id: str
    confidence: float
    use_lightweight: bool
    uncertainty: float


@dataclass(frozen=True, slots=True)
class RoutingResponse:
    """Decisions by confidence, highest first, and what they cost (times in whole microseconds)."""

    decisions: tuple[RoutingDecision, ...]
    inference_time_us: int
    """From entry to the answer; the name is Tiny Dancer's."""
    feature_time_us: int
    candidates_processed: int

    @property
    def best(self) -> RoutingDecision:
        """The candidate with the highest confidence."""
        return self.decisions[0]


class Router:
    """Routes requests between lightweight and powerful models; safe to share between threads.

    ``model`` defaults to the one at ``config.model_path``, which must exist: there is no untrained router. ``emitter``
    defaults to the emitter in use at each call. Raises ModelNotFound or ModelFormatError.
    """

    def __init__(
        self,
        config: RouterConfig | None = None,
        *,
        model: Model | None = None,
        emitter: ec.Emitter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Load the model and announce the router."""
        self.config = config or RouterConfig()
        self._emitter = emitter
        self.emitter.emit(RouterInitializing())
        self.model: Model = model or self._load()
        self.breaker: ec.Breaker | None = None
        if self.config.enable_circuit_breaker:
            threshold = self.config.circuit_breaker_threshold
            self.breaker = ec.Breaker(
                "model",
                window=threshold,
                minimum_calls=threshold,
                open_s=self.config.circuit_breaker_timeout_s,
                clock=clock,
                on_transition=self._breaker_moved,
            )
            self.emitter.emit(CircuitBreakerEnabled(threshold=threshold))

    @property
    def emitter(self) -> ec.Emitter:
        """Where events go."""
        return self._emitter or ec.get_emitter()

    def health_check(self) -> ec.HealthCheck:
        """Return the check ``model_tiny_dancer``, to add to the emitter's: ``emitter.health.add_check(…)``."""
        return RouterHealthCheck(self.model, self.breaker)

    def route(self, request: RoutingRequest) -> RoutingResponse:
        """Decide for every candidate of ``request``.

        Raises InvalidRequest (or a subclass) for a request that cannot be used, BreakerOpen while the breaker refuses
        calls, InferenceError when the model gives no usable score; each is emitted as a failed request too.
        """
        emitter = self.emitter
        count = len(request.candidates)
        with emitter.operation(RouteRequest, candidate_count=count, request_id=request.request_id) as operation:
            started = time.perf_counter_ns()
            permit = self._acquire(emitter)
            try:
                pool, features, feature_time_us = self._features(emitter, request, count)
            except BaseException:
                self._settle("release", permit)  # the request was at fault, not the model
                raise
            try:
                ids = [candidate.id for candidate in pool.candidates]
                confidence = self._infer(emitter, ids, features)
                uncertainty = self._doubt(emitter, confidence)
            except BaseException:
                self._settle("failure", permit)
                raise
            self._settle("success", permit)
            lightweight = is_lightweight(
                confidence,
                uncertainty,
                threshold=self.config.confidence_threshold,
                max_uncertainty=self.config.max_uncertainty,
            )
            if emitter.enabled(RoutingDecided):
                emitter.emit(
                    RoutingDecided(
                        candidate_id=ids,
                        use_lightweight=lightweight,
                        uncertainty=_readable(uncertainty),
                        confidence=_readable(confidence),
                    )
                )
            chosen = int(np.count_nonzero(lightweight))
            total_us = (time.perf_counter_ns() - started) // 1000
            operation.set(inference_time_us=total_us, lightweight_routes=chosen, powerful_routes=count - chosen)
        return RoutingResponse(_ordered(ids, confidence, lightweight, uncertainty), total_us, feature_time_us, len(ids))

    # -- the steps ---------------------------------------------------------------------------------------------------

    def _acquire(self, emitter: ec.Emitter) -> int:
        """Ask the breaker for a permit; BreakerOpen when it refuses."""
        with emitter.operation(CheckCircuitBreaker) as check:
            breaker = self.breaker
            if breaker is None:
                check.set(state="closed")
                return 0
            permit = breaker.try_acquire()
            check.set(state=breaker.state.value)
            if not permit:
                raise BreakerOpen(
                    f"the circuit breaker is {breaker.state}: the model failed repeatedly; "
                    f"it is tried again in {breaker.retry_after_s:.1f} s",
                    retry_after_s=breaker.retry_after_s,
                )
            return permit

    def _features(self, emitter: ec.Emitter, request: RoutingRequest, count: int) -> tuple[CandidatePool, Array, int]:
        started = time.perf_counter_ns()
        with emitter.operation(EngineerFeatures, batch_size=count):
            pool = request.pool
            features = extract_features(
                request.query_embedding, pool, request.metadata, weights=self.model.feature_weights
            )
        return pool, features, (time.perf_counter_ns() - started) // 1000

    def _infer(self, emitter: ec.Emitter, ids: list[str], features: Array) -> Array:
        with emitter.operation(InferModel, model_type="fastgrnn", candidate_id=ids) as inference:
            confidence = self.model.score(features)
            if not np.isfinite(confidence).all():
                raise InferenceError("the model gave a score that is not finite; check its weights and its input")
            inference.set(confidence=_readable(confidence))
        return confidence

    def _doubt(self, emitter: ec.Emitter, confidence: Array) -> Array:
        with emitter.operation(EstimateUncertainty, batch_size=len(confidence)):
            return self.model.uncertainty(confidence)

    # -- the circuit breaker -----------------------------------------------------------------------------------------

    def _settle(self, outcome: Literal["success", "failure", "release"], permit: int) -> None:
        if self.breaker is not None:
            getattr(self.breaker, outcome)(permit)

    def _breaker_moved(self, breaker: ec.Breaker, before: ec.BreakerState, after: ec.BreakerState) -> None:
        del before
        emitter = self.emitter
        if after is ec.BreakerState.OPEN:
            opened = CircuitOpened(breaker=breaker.name, failures=breaker.failures, retry_after_s=breaker.retry_after_s)
            emitter.emit(opened)
        elif after is ec.BreakerState.HALF_OPEN:
            emitter.emit(CircuitHalfOpened(breaker=breaker.name))
        else:
            emitter.emit(CircuitClosed(breaker=breaker.name))

    def _load(self) -> Model:
        model = load_model(self.config.model_path)
        source = model.provenance
        self.emitter.emit(
            ModelLoaded(
                source=str(self.config.model_path),
                seed=source.seed if source else 0,
                training_data=source.training_data if source else "unknown",
            )
        )
        return model

    def __repr__(self) -> str:
        """Show how it decides."""
        config = self.config
        return f"Router(confidence >= {config.confidence_threshold}, uncertainty <= {config.max_uncertainty})"


def _readable(values: Array) -> Array:
    """Return float64 rounded to six places: what float32 makes of 0.92 is not what a reader of a log wants to see."""
    rounded: Array = np.round(values.astype(np.float64), 6)
    return rounded


def _ordered(ids: list[str], confidence: Array, lightweight: NDArray[np.bool_], uncertainty: Array) -> Any:
    order = np.argsort(-confidence, kind="stable").tolist()
    scores, light, doubt = confidence.tolist(), lightweight.tolist(), uncertainty.tolist()
    return tuple(RoutingDecision(ids[i], scores[i], light[i], doubt[i]) for i in order)
