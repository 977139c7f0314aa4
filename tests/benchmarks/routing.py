"""``route()`` with a hundred candidates of 384 dimensions: beside the bare arithmetic, and with telemetry and without.

The kernel is what remains when everything is known to be right: five features, one step of FastGRNN, the look-up of the
uncertainty, the decision and the sort, on arrays that are laid out already.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np

import eventcore as ec
from router import Candidate, CandidatePool, History, Router, RoutingRequest
from router.features import RECENCY_DECAY_PER_S
from tests.benchmarks.paired import Result, result

COUNT, DIMENSION = 100, 384
ROUNDS, CALLS = 15, 1000
HEARD_ROUNDS, HEARD_CALLS, WARMING = 11, 200, 20  # fewer: workers write a span per candidate of each


def request() -> RoutingRequest:
    """Return a request whose candidates are laid out once, as in a service."""
    random, now = np.random.default_rng(0), time.time()
    candidates = [
        Candidate(
            id=f"candidate-{number}",
            embedding=random.normal(size=DIMENSION).astype(np.float32),
            created_at=now - 10.0 * number,
            access_count=number,
            success_rate=number / COUNT,
        )
        for number in range(COUNT)
    ]
    query = random.normal(size=DIMENSION).astype(np.float32)
    return RoutingRequest(query, CandidatePool(candidates), request_id="request")


def kernel_of(router: Router, asked: RoutingRequest):
    """Return the bare arithmetic of ``router.route(asked)``."""
    model, pool, query = router.model, asked.pool, asked.query_embedding
    parameters, calibration = model.network.parameters, model.calibration
    mean, std, weights = model.normalisation.mean, model.normalisation.std, model.feature_weights
    hidden = model.network.config.hidden_size
    scaled = parameters["W"] / std[:, None]
    # σ(a) = ½ + ½ tanh(½a): gate and candidate in one tanh, the normalisation in the weights.
    both = np.concatenate([0.5 * scaled, scaled], axis=1).astype(np.float32)
    offset = (mean / std) @ parameters["W"]
    bias = np.concatenate([0.5 * (parameters["bias_gate"] - offset), parameters["bias_update"] - offset])
    bias = bias.reshape(-1).astype(np.float32)
    zeta, nu = (float(1.0 / (1.0 + np.exp(-parameters[name].item()))) for name in ("zeta", "nu"))
    constant, slope = 0.5 * zeta + nu, 0.5 * zeta
    head, head_bias = parameters["head_weight"], parameters["head_bias"]
    edges = np.concatenate([[np.nextafter(calibration.lowest, -1.0)], calibration.upper])
    table = np.concatenate([[1.0], calibration.uncertainty, [1.0]])

    def kernel():
        features = np.empty((len(pool), 5), np.float32)
        np.multiply(pool.unit_embeddings @ (query / np.sqrt(query @ query)), weights[0], out=features[:, 0])
        age = np.maximum(time.time() - pool.created_at, 0.0)
        features[:, 1] = np.exp(-RECENCY_DECAY_PER_S * age) * weights[1]
        features[:, 2] = pool.frequency * weights[2]
        features[:, 3] = pool.success_rate * weights[3]
        features[:, 4] = 0.0
        squashed = np.tanh(features @ both + bias)
        state = (constant - slope * squashed[:, :hidden]) * squashed[:, hidden:]
        scores = 0.5 + 0.5 * np.tanh(0.5 * (state @ head + head_bias)[:, 0])
        uncertainty = table[np.searchsorted(edges, scores)]
        lightweight = (scores >= 0.85) & (uncertainty <= 0.15)
        return scores, uncertainty, lightweight, np.argsort(-scores, kind="stable")

    return kernel


def against_the_kernel() -> list[Result]:
    asked, router = request(), Router(emitter=ec.Emitter())
    kernel = kernel_of(router, asked)
    answer, (scores, uncertainty, _, order) = router.route(asked), kernel()
    assert np.abs(answer.confidence - scores).max() < 1e-5
    assert (answer.order == order).all()
    assert np.abs(answer.uncertainty - uncertainty).max() < 1e-5
    name = "route(), 100 candidates of 384, telemetry off"
    return [
        _against(kernel, name, lambda: router.route(asked), reach=1.3),
        _against(kernel, "the same, and the order looked at", lambda: router.route(asked).order, reach=None),
    ]


def _against(kernel: Callable[[], object], measure: str, ours: Callable[[], object], *, reach: float | None) -> Result:
    mine, bare = [], []
    for function in (ours, kernel):  # the first calls fill caches
        _thread_time(function)
    for _ in range(ROUNDS):
        gc.collect()
        mine.append(_thread_time(ours))
        bare.append(_thread_time(kernel))
    return result(measure, mine, "features, score and sort in numpy", bare, reach=reach, note="caller's CPU")


@contextlib.contextmanager
def telemetry(**options) -> Iterator[ec.Emitter]:
    """Yield an emitter with metrics, a JSON log and spans to files, in a folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        handlers = {
            "log": {"format": "json", "output": f"{folder}/log.jsonl", **options},
            "metric": {"packs": ["tiny_dancer"]},
            "span": {"exporter": "file", "path": f"{folder}/spans.jsonl"},
        }
        with ec.configure(service="bench", handlers=handlers, replace=True) as emitter:
            yield emitter


def with_telemetry() -> list[Result]:
    return [
        _with_telemetry("the same with metrics, logs and spans on", reach=1.15),
        paced(),
        _with_telemetry("the same, logs down to DEBUG (a line per candidate)", reach=None, min_severity="debug"),
    ]


def _with_telemetry(measure: str, *, reach: float | None, **options) -> Result:
    """Compare the caller's own CPU time: workers of the same process take turns with it, on few cores.

    Each side begins with calls that are not timed: a collection, or writing what the round before has left, has emptied
    the caches, and the first calls after it cost ten times as much on either side.
    """
    asked, quiet = request(), Router(emitter=ec.Emitter())
    on, off = [], []
    with telemetry(**options) as emitter:
        router = Router(emitter=emitter)
        for round_number in range(HEARD_ROUNDS + 1):
            for side, samples in ((router, on), (quiet, off)):
                gc.collect()
                for _ in range(WARMING):
                    side.route(asked)
                each = _thread_time(lambda side=side: side.route(asked), HEARD_CALLS)
                assert emitter.flush(60.0)
                if round_number:  # the first compiles routes
                    samples.append(each)
        assert emitter.ledger().dropped == 0
    return result(measure, on, "telemetry off", off, reach=reach, note="caller's CPU")


def paced() -> Result:
    """Compare calls that come one by one, 100 a second, on caches that others have used meanwhile."""
    asked, quiet = request(), Router(emitter=ec.Emitter())
    with telemetry() as emitter:
        router = Router(emitter=emitter)
        rounds = [[_paced(router, asked), _paced(quiet, asked)] for _ in range(5)]
        assert emitter.flush(60.0)
        assert emitter.ledger().dropped == 0
    on, off = map(list, zip(*rounds, strict=True))
    return result("the same, 100 a second, p50", on, "telemetry off", off, reach=None, note="caller's time")


def _paced(router: Router, asked: RoutingRequest) -> float:
    """Return the median of a call, µs."""
    times = []
    for _ in range(100):
        time.sleep(0.01)
        started = time.perf_counter_ns()
        router.route(asked)
        times.append(time.perf_counter_ns() - started)
    return statistics.median(times) / 1000


def with_history() -> list[Result]:
    """Compare with a router that keeps every request for feedback: the caller's own CPU, and that of the process."""
    asked, quiet = request(), Router(emitter=ec.Emitter())
    many = [RoutingRequest(asked.query_embedding, asked.pool, request_id=f"request-{n}") for n in range(CALLS)]
    caller: tuple[list[float], list[float]] = ([], [])
    process: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory() as folder:
        history = History(f"{folder}/history.db")
        keeping = Router(emitter=ec.Emitter(), history=history)
        for round_number in range(ROUNDS + 1):
            for place, router in enumerate((keeping, quiet)):
                gc.collect()
                started, asking = time.process_time_ns(), iter(many)
                mine = _thread_time(lambda router=router, asking=asking: router.route(next(asking)))
                history.flush()
                if round_number:  # the first fills caches
                    caller[place].append(mine)
                    process[place].append((time.process_time_ns() - started) / CALLS / 1000)
        history.close()
    name, peer = "route() with a history, 100 candidates of 384", "without a history"
    return [
        result(name, caller[0], peer, caller[1], reach=None, note="caller's CPU"),
        result(f"{name}, written", process[0], peer, process[1], reach=None, note="CPU of the process"),
    ]


def _thread_time(function: Callable[[], object], calls: int = CALLS) -> float:
    """Return this thread's CPU microseconds per call."""
    started = time.thread_time_ns()
    for _ in range(calls):
        function()
    return (time.thread_time_ns() - started) / calls / 1000


CASES = [against_the_kernel, with_telemetry, with_history]
