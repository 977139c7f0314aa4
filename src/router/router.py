"""The router: a request's candidates in, a decision for each out. It emits what it does, and knows no exporter."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

import eventcore as ec
from router.backends import BackendConfig, Backends
from router.choice import Guaranteed
from router.course import ROUTED, Course
from router.drift import DriftWatch
from router.errors import (
    BreakerOpen,
    ConfigError,
    DuplicateFeedback,
    InferenceError,
    InvalidRequest,
    UnknownRequest,
)
from router.events import (
    MODEL_BREAKER,
    CheckCircuitBreaker,
    CircuitBreakerEnabled,
    CircuitClosed,
    CircuitHalfOpened,
    CircuitOpened,
    DriftDetected,
    DriftEnded,
    DriftMeasured,
    EngineerFeatures,
    FeedbackReceived,
    FeedbackRefused,
    HistoryFailed,
    ModelLoaded,
    ReloadModel,
    RequestsForgotten,
    RouteRequest,
    RouterInitializing,
)
from router.features import CandidatePool, RoutingRequest, extract_features
from router.feedback import FeedbackLoop
from router.health import ROUTERS, RouterHealthCheck
from router.model_file import BUNDLED_MODEL, load_model, load_prompt_model
from router.reader import Reader
from router.reload import Answered, Shadow, load_rehearsed
from router.response import RoutingDecision, RoutingResponse
from router.uncertainty import DEFAULT_MAX_UNCERTAINTY, DEFAULT_THRESHOLD, is_lightweight

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import ArrayLike, NDArray

    from router.choice import Policy
    from router.drift import DriftConfig, Finding
    from router.embedding import Embedder
    from router.errors import HistoryError
    from router.features import MetadataValue
    from router.history import History
    from router.model import RouterModel
    from router.prompt_model import PromptModel

    Array = NDArray[np.floating[Any]]

__all__ = ["Model", "Router", "RouterConfig", "RoutingDecision", "RoutingResponse"]

DOMAIN = "domain"
"""The key of a request's metadata that names its group, for guarantees per group."""


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
    backend: BackendConfig = field(default_factory=BackendConfig)
    """Of the breakers of single backends, see `Router.backend`."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("confidence_threshold", "max_uncertainty"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}: use a number from 0 to 1")
        if self.circuit_breaker_threshold < 1 or not self.circuit_breaker_timeout_s > 0:
            raise ConfigError("circuit_breaker_threshold and circuit_breaker_timeout_s must be positive")


class Router:
    """Routes requests between lightweight and powerful models; safe to share between threads.

    ``model`` defaults to the one at ``config.model_path``, which must exist: there is no untrained router. ``emitter``
    defaults to the emitter in use at each call. Of each request, ``policy`` chooses one candidate, by price and
    quality: the confidence, or for requests with a prompt what ``prompt_model`` says of the candidates it knows by
    their ids (``embedder`` defaults to the one it was trained with). With a ``history``, `feedback` says how answers
    were. With ``drift``, inputs are watched, against what the models were made for; ``reference`` are features,
    shape (n, 5), to be expected instead. Raises ModelNotFound or ModelFormatError.
    """

    def __init__(
        self,
        config: RouterConfig | None = None,
        *,
        model: Model | None = None,
        prompt_model: PromptModel | None = None,
        embedder: Embedder | None = None,
        policy: Policy | None = None,
        history: History | None = None,
        drift: DriftConfig | None = None,
        reference: ArrayLike | None = None,
        emitter: ec.Emitter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Load the model and announce the router."""
        self.config = config or RouterConfig()
        self._emitter = emitter
        self.emitter.emit(RouterInitializing())
        self.model: Model = model or self._load()
        self._reader = None if prompt_model is None else Reader.of(prompt_model, embedder)
        self.policy = policy
        self.history = history
        self._loop = None if history is None else FeedbackLoop(history)
        if history is not None:
            history.report_to(self._history_said)
        self.drift = None if drift is None else self._watch(drift, reference)
        self._shadow: Shadow | None = None
        self.backends = Backends(self.config.backend, clock, self._breaker_moved)
        self.breaker: ec.Breaker | None = None
        if self.config.enable_circuit_breaker:
            threshold = self.config.circuit_breaker_threshold
            self.breaker = ec.Breaker(
                MODEL_BREAKER,
                window=threshold,
                minimum_calls=threshold,
                open_s=self.config.circuit_breaker_timeout_s,
                clock=clock,
                on_transition=self._breaker_moved,
            )
            self.emitter.emit(CircuitBreakerEnabled(threshold=threshold))
        ROUTERS.add(self)

    @property
    def emitter(self) -> ec.Emitter:
        """Where events go."""
        return self._emitter or ec.get_emitter()

    @property
    def prompt_model(self) -> PromptModel | None:
        """The prompt model in use."""
        reader = self._reader
        return None if reader is None else reader.model

    @property
    def waiting(self) -> tuple[int, int]:
        """How many requests of all processes wait for feedback, and how many this one forgot before any came."""
        return (0, 0) if self.history is None else (self.history.waiting_count, self.history.forgotten)

    @property
    def shadow(self) -> Shadow | None:
        """The shadow model that runs beside, see `start_shadow`."""
        return self._shadow

    def health_check(self) -> ec.HealthCheck:
        """Return the check ``model_tiny_dancer``, to add to the emitter's: ``emitter.health.add_check(…)``."""
        return RouterHealthCheck(lambda: self.model, self.breaker)

    def backend(self, name: str) -> ec.Breaker:
        """Return the breaker of the backend behind the candidate of that id, made when it is first asked for.

        Guard calls with it, ``with router.backend("gpt-4").call():``, plain or ``async``: while it is open the
        candidate is not chosen. ConfigError for an empty name, or for more names than ``config.backend.max_backends``.
        """
        return self.backends.get(name)

    def route(self, request: RoutingRequest) -> RoutingResponse:
        """Decide for every candidate of ``request``, and choose one.

        Raises InvalidRequest (or a subclass) for a request that cannot be used, BreakerOpen while the breaker of the
        model or those of all candidates refuse calls, InferenceError when the model gives no usable score; each is
        emitted as a failed request too.
        """
        emitter, breaker = self.emitter, self.breaker
        reader = self._reader if request.prompt is not None else None
        course = Course(request, reader, emitter.monotonic_ns, time.time())
        is_heard = emitter.enabled(ROUTED)
        if reader is None and (breaker is None or breaker.state is ec.BreakerState.CLOSED):
            # Nothing on the way emits anything, so all of it can be told afterwards.
            try:
                features = self._answer(course)
            except BaseException as error:
                with emitter.operation(RouteRequest, **course.given).since(course.marks[0]) as operation:
                    self._fail(course, operation, error)
                    raise
            if is_heard:
                emitter.record(ROUTED, course)
        else:
            with emitter.operation(RouteRequest, **course.given) as operation:
                try:
                    features = self._answer(course)
                except BaseException as error:
                    self._fail(course, operation, error)
                    raise
                course.tell(operation)
        pool, marks, confidence, quality = course.pool, course.marks, course.confidence, course.quality
        response = RoutingResponse(
            pool.ids,
            confidence,
            course.lightweight,
            course.uncertainty,
            inference_time_us=(marks[-1] - marks[0]) // 1000,
            feature_time_us=(marks[2] - marks[1]) // 1000,
            request_id=request.request_id,
            chosen=course.place,
            quality=quality,
        )
        if self._loop is not None:
            self._loop.remember(response, pool.prices, self.policy)
        if self.drift is not None:
            self.drift.add_request(features, confidence)
            if reader is not None and (need := reader.need(pool.ids, quality)) is not None:
                self.drift.add_need(need)
        if self._shadow is not None:
            query = np.array(request.query_embedding)
            answered = Answered(query, pool, request.metadata, course.now_s, confidence, course.lightweight)
            self._shadow.offer(answered)
        return response

    def feedback(self, request_id: str, quality: float, *, candidate_id: str | None = None) -> None:
        """Say how good the answer to a request was, from 0 (wrong) to 1 (right); needs a history.

        Any process whose router has the same history file may be told, a moment (50 ms) after the request was routed.
        ``candidate_id`` says who answered, where it was not the candidate chosen. Raises UnknownRequest for a request
        that does not wait for feedback, DuplicateFeedback for a second one, InvalidRequest for another quality or a
        candidate the request did not have, HistoryError when it cannot be written, ConfigError without a history.
        """
        if self._loop is None:
            raise ConfigError("feedback needs a history: make the router with history=History(path)")
        try:
            outcome = self._loop.accept(request_id, quality, candidate_id)
        except (UnknownRequest, DuplicateFeedback) as error:
            status: Any = "unknown" if isinstance(error, UnknownRequest) else "duplicate"
            self.emitter.emit(FeedbackRefused(request_id=request_id, status=status))
            raise
        candidate, quality, expected = outcome.candidate_id, outcome.quality, outcome.expected
        self.emitter.emit(
            FeedbackReceived(request_id=request_id, candidate_id=candidate, quality=quality, expected=expected)
        )
        if self.drift is not None:
            self.drift.add_feedback(expected, quality)
        if isinstance(self.policy, Guaranteed) and outcome.need is not None:
            # Of a request that the dear one answered, nobody knows what the cheap one would have made.
            harm = 1.0 - quality if outcome.was_cheap else None
            self.policy.observe(outcome.need, harm, sent=outcome.was_cheap)

    def reload(self, path: str | PathLike[str]) -> RouterModel:
        """Serve with the candidate model in the file at ``path`` from the next request on, and return it.

        It is loaded and rehearsed first. One that is refused leaves the present model serving: ModelError (or a
        subclass) or InferenceError says why, and so does the event.
        """
        with self.emitter.operation(ReloadModel, source=str(path)):
            model = load_rehearsed(path)
            watch = None if self.drift is None else self._watch(self.drift.config, None, model)
            self.model, self.drift = model, watch
        return model

    def reload_prompt_model(self, path: str | PathLike[str]) -> PromptModel:
        """Do the same for the prompt model, which has to be of the same embedder; ConfigError if there was none."""
        with self.emitter.operation(ReloadModel, source=str(path)):
            reader = self._reader
            if reader is None:
                raise ConfigError("the router has no prompt model to replace: make it with prompt_model=")
            model = load_prompt_model(path)
            self._reader = Reader.of(model, reader.embedder if model.embedder == reader.model.embedder else None)
            if self.drift is not None:
                self.drift.expect_needs(self._known_needs())
        return model

    def start_shadow(self, model: Model | str | PathLike[str], *, share: float = 1.0) -> Shadow:
        """Let another model, or that in a file, decide a share of requests again, after they were answered.

        What differs is emitted as `CompareShadow`. A shadow that ran before is ended. Errors as of `reload` and
        `Shadow`.
        """
        loaded: Model = load_model(model) if isinstance(model, str | PathLike) else model
        shadow = Shadow(loaded, share, self._decide, lambda: self.emitter)
        self.stop_shadow()
        self._shadow = shadow
        return shadow

    def stop_shadow(self, timeout_s: float = 5.0) -> bool:
        """End the shadow after what waits for it; whether it ended in time."""
        shadow, self._shadow = self._shadow, None
        return shadow is None or shadow.close(timeout_s)

    # -- the steps ---------------------------------------------------------------------------------------------------

    def _answer(self, course: Course) -> Array:
        """Go all the way and fill in the course, step by step; return the features."""
        request, reader = course.request, course.reader
        mark, now_ns = course.marks.append, course.now_ns
        model = self.model  # a reload must not change it on the way
        self._acquire(course)
        mark(now_ns())
        pool = course.pool = request.pool
        features = extract_features(
            request.query_embedding, pool, request.metadata, now_s=course.now_s, weights=model.feature_weights
        )
        mark(now_ns())
        confidence = course.confidence = _finite(model.score(features))
        mark(now_ns())
        uncertainty = course.uncertainty = model.uncertainty(confidence)
        mark(now_ns())
        quality = course.quality = confidence
        if reader is not None:
            quality = course.quality = reader.assess(request.prompt or "", pool.ids, confidence)
            mark(now_ns())
        self._settle("success", course.permit)
        course.lightweight = self._decide(confidence, uncertainty)
        course.is_decided = True
        course.place = self._choose(pool, confidence, quality, request.metadata)
        if self.policy is not None and course.place is not None:
            course.chosen = pool.ids[course.place]
        mark(now_ns())
        return features

    def _fail(self, course: Course, operation: ec.LiveOperation[RouteRequest], error: BaseException) -> None:
        """Tell of a request that failed, and the breaker whose fault it was."""
        course.tell(operation, error)
        step = course.under_way
        if step is not None and step is not CheckCircuitBreaker:
            self._settle("release" if step is EngineerFeatures else "failure", course.permit)

    def _acquire(self, course: Course) -> None:
        """Ask the breaker for a permit; BreakerOpen when it refuses."""
        breaker = self.breaker
        if breaker is None:
            return
        course.permit = permit = breaker.try_acquire()
        course.state = breaker.state.value
        if not permit:
            raise BreakerOpen(
                f"the circuit breaker is {breaker.state}: the model failed repeatedly; "
                f"it is tried again in {breaker.retry_after_s:.1f} s",
                retry_after_s=breaker.retry_after_s,
            )

    def _decide(self, confidence: Array, uncertainty: Array) -> NDArray[np.bool_]:
        config = self.config
        return is_lightweight(
            confidence, uncertainty, threshold=config.confidence_threshold, max_uncertainty=config.max_uncertainty
        )

    def _choose(
        self, pool: CandidatePool, confidence: Array, quality: Array, metadata: Mapping[str, MetadataValue]
    ) -> int | None:
        """Return the place of the candidate to use; None where that is simply the one of the highest confidence."""
        refusing = self.backends.refusing(pool.ids)
        policy = self.policy
        if policy is None and not refusing:
            return None if quality is confidence else int(quality.argmax())
        places = np.delete(np.arange(len(pool)), refusing)
        if not len(places):
            waits_s = min(self.backends.get(name).retry_after_s for name in pool.ids)
            again = f"the first is tried again in {waits_s:.1f} s" if waits_s < math.inf else "forced so: reset() them"
            raise BreakerOpen(
                f"the circuit breakers of all {len(pool)} candidates are open; {again}", retry_after_s=waits_s
            )
        if policy is None or len(places) == 1:
            return int(places[quality[places].argmax()])
        if not np.isfinite(pool.prices[places]).all():
            unknown = pool.ids[int(places[np.isnan(pool.prices[places])][0])]
            raise InvalidRequest(f"candidate {unknown!r} has no price: the policy {policy!r} needs one of each")
        group = metadata.get(DOMAIN) if metadata else None
        chosen = policy.choose(quality[None, places], pool.prices[places], group=None if group is None else str(group))
        return int(places[chosen[0]])

    # -- what follows an answer --------------------------------------------------------------------------------------

    def _history_said(self, forgotten: int, trouble: HistoryError | None) -> None:
        if forgotten:
            self.emitter.emit(RequestsForgotten(count=forgotten))
        if trouble is not None:
            self.emitter.emit(HistoryFailed(reason=str(trouble)))

    def _watch(self, config: DriftConfig, reference: ArrayLike | None, model: Model | None = None) -> DriftWatch:
        watched = model or self.model
        return DriftWatch(
            config,
            self._drifted,
            calibration=getattr(watched, "calibration", None),
            reference=reference,
            quantiles=getattr(watched, "reference", None),
            needs=self._known_needs(),
        )

    def _known_needs(self) -> Array | None:
        known = None if self.prompt_model is None else self.prompt_model.calibration
        return None if known is None else known.need

    def _drifted(self, finding: Finding) -> None:
        emit, kind, distance = self.emitter.emit, finding.kind, finding.distance
        emit(DriftMeasured(kind=kind, subject=finding.subject, distance=distance, sample_size=finding.sample_size))
        if finding.has_changed and finding.is_drifting:
            emit(DriftDetected(kind=kind, subject=finding.subject, distance=distance, limit=finding.limit))
        elif finding.has_changed:
            emit(DriftEnded(kind=kind, distance=distance))

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


def _finite(scores: Array) -> Array:
    """Return the scores; InferenceError where one is not finite."""
    # One number stands for a look at all: a sum of squares is finite only if each is.
    if not (math.isfinite(np.vdot(scores, scores)) or np.isfinite(scores).all()):
        raise InferenceError("the model gave a score that is not finite; check its weights and its input")
    return scores
