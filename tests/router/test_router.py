import asyncio
import gc
import json

import numpy as np
import pytest

import eventcore as ec
from eventcore.testing import FakeClock
from router import Budget, Candidate, Guaranteed, Router, RouterConfig, RoutingRequest, Threshold
from router.backends import BackendConfig
from router.conformal import Guarantee
from router.embedding import HashingEmbedder
from router.errors import BreakerOpen, ConfigError, DimensionMismatch, InferenceError, InvalidRequest
from router.prompt_model import PromptModel, PromptRecipe
from router.prompts import embed_chunks
from router.training import TrainingConfig
from tests.support.handlers import Collect


class Fixed:
    """A model that gives each candidate its success rate as the score, and no doubt."""

    feature_weights = (1.0,) * 5

    def score(self, features):
        return features[:, 3]

    def uncertainty(self, scores):
        return np.zeros_like(scores)


def request(qualities, prices=None, **options):
    """Return a request whose candidates a, b, … have these success rates and prices."""
    prices = prices or [None] * len(qualities)
    candidates = [
        Candidate(chr(ord("a") + i), np.ones(4, np.float32), success_rate=q, price=p)
        for i, (q, p) in enumerate(zip(qualities, prices, strict=True))
    ]
    return RoutingRequest(np.ones(4, np.float32), candidates, **options)


def test_decisions_are_sorted_and_made_when_looked_at():
    """Highest confidence first, equal ones as they came; best and chosen are those of the sorted list."""
    response = Router(model=Fixed()).route(request([0.2, 0.9, 0.5, 0.9]))
    assert [decision.candidate_id for decision in response.decisions] == ["b", "d", "c", "a"]
    assert response.decisions[0] == response.best == response.chosen
    assert response.decisions is response.decisions
    assert response.candidates_processed == 4
    assert repr(response) == "RoutingResponse(4 candidates, chosen 'b')"
    first = response.best
    assert (first.confidence, first.use_lightweight, first.uncertainty) == (pytest.approx(0.9), True, 0.0)


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        (None, "c"),
        (Threshold(0.0), "c"),
        (Threshold(0.1), "b"),
        (Threshold(1.0), "a"),
        (Budget(3.0, multiplier=0.0), "c"),
        (Budget(3.0, multiplier=1.0), "a"),
    ],
)
def test_the_policy_chooses_by_confidence_and_price(events, policy, chosen):
    """What the caller accepts decides; the choice is in the answer and on the request's operation."""
    router = Router(model=Fixed(), policy=policy)
    assert router.route(request([0.5, 0.85, 0.9], [1.0, 2.0, 9.0])).chosen.candidate_id == chosen
    (routed,) = events.get_events(type="router.route")
    assert routed.event.chosen == (ec.unset if policy is None else chosen)


def test_a_policy_needs_prices():
    """A candidate without a price is named."""
    with pytest.raises(InvalidRequest, match=r"candidate 'b' has no price: the policy Threshold\(0\.1\)"):
        Router(model=Fixed(), policy=Threshold(0.1)).route(request([0.5, 0.6], [1.0, None]))


def test_a_guarantee_is_asked_with_the_domain_of_the_request():
    """The two-candidate case: need below the threshold goes to the cheap one."""
    router = Router(model=Fixed(), policy=Guaranteed(Guarantee(0.2, 0.05, None, 100, 0.5, 0.01)))
    assert router.route(request([0.5, 0.6], [1.0, 9.0])).chosen.candidate_id == "a"
    assert router.route(request([0.5, 0.9], [1.0, 9.0])).chosen.candidate_id == "b"


@pytest.fixture(scope="module")
def reader():
    """Return a small prompt model: b answers everything, a only what is about code."""
    texts = [f"a question {number} about {'code' if number % 2 else 'law'}" for number in range(200)]
    embedder = HashingEmbedder(64)
    recipe = PromptRecipe(2, components=8, hidden_size=8, training=TrainingConfig(learning_rate=0.02, epochs=40))
    outcomes = np.array([[number % 2, 1.0] for number in range(200)])
    chunks = embed_chunks(texts, embedder, 2)
    return PromptModel.fit(("a", "b"), texts, chunks, outcomes, embedder="hashing:64", recipe=recipe)


def test_a_prompt_model_says_the_quality_of_the_candidates_it_knows(events, reader):
    """With a prompt the choice follows it; candidates that it does not know keep their confidence."""
    router = Router(model=Fixed(), prompt_model=reader, policy=Threshold(0.3))
    code, law = (
        router.route(request([0.1, 0.1, 0.2], [1.0, 5.0, 0.5], prompt=f"a question 7 about {what}"))
        for what in ("code", "law")
    )
    assert (code.chosen.candidate_id, law.chosen.candidate_id) == ("a", "b")
    assert code.quality[2] == pytest.approx(0.2)
    assert code.quality[0] > 0.7
    assert law.quality[0] < 0.3
    assert code.confidence.tolist() == pytest.approx([0.1, 0.1, 0.2])
    without = router.route(request([0.1, 0.1, 0.2], [1.0, 5.0, 0.5]))
    assert without.quality is without.confidence
    assert [each.event.known_models for each in events.get_events(type="router.prompt_assessment")] == [2, 2]


def test_a_prompt_model_needs_its_own_embedder(reader):
    """Another dimension is refused when the router is made, not with the first request."""
    with pytest.raises(DimensionMismatch, match="the embedder gives 32 dimensions, the prompt model reads 64"):
        Router(model=Fixed(), prompt_model=reader, embedder=HashingEmbedder(32))


def test_a_score_that_is_not_finite_is_a_failure_of_the_model():
    """It counts for the breaker, an unusable request does not."""

    class Overflows(Fixed):
        def score(self, features):
            return np.full(len(features), np.inf, np.float32)

    router = Router(RouterConfig(circuit_breaker_threshold=2), model=Overflows())
    for _ in range(3):
        with pytest.raises(InvalidRequest):
            router.route(RoutingRequest(np.full(4, np.nan, np.float32), request([0.5]).candidates))
    for _ in range(2):
        with pytest.raises(InferenceError, match="not finite"):
            router.route(request([0.5]))
    with pytest.raises(BreakerOpen):
        router.route(request([0.5]))


def test_scores_whose_squares_overflow_are_finite_all_the_same():
    """The quick look for infinity is confirmed before a model is blamed."""

    class Huge(Fixed):
        def score(self, features):
            return np.full(len(features), 1e30, np.float32)

    assert Router(model=Huge()).route(request([0.5])).best.confidence == pytest.approx(1e30)


def backends(clock, **settings):
    """Return a router whose backends open after two failures, for ten seconds, and close after one probe."""
    settings = {"minimum_calls": 2, "failure_rate": 1.0, "open_s": 10.0, "half_open_permits": 1} | settings
    return Router(
        RouterConfig(backend=BackendConfig(**settings)), model=Fixed(), clock=lambda: clock.monotonic_ns() / 1e9
    )


def test_each_backend_has_a_breaker_of_its_own_whose_moves_are_events(events):
    """Failures of one open its breaker alone; it is left out of the choice until it is time for a probe."""
    clock = FakeClock()
    router = backends(clock)
    assert router.backend("b") is router.backend("b")
    for _ in range(2):
        with pytest.raises(TimeoutError), router.backend("b").call():
            raise TimeoutError
    assert router.route(request([0.5, 0.9])).chosen.candidate_id == "a"
    assert router.route(request([0.5, 0.9])).best.candidate_id == "b"
    assert router.route(request([0.5, 0.9], [1.0, 0.5])).chosen.candidate_id == "a"
    with pytest.raises(ec.BreakerOpen), router.backend("b").call():
        pytest.fail("an open breaker let a call pass")
    clock.advance(10.0)
    assert router.route(request([0.5, 0.9])).chosen.candidate_id == "b"
    with router.backend("b").call():
        pass
    moves = [(each.event.breaker, each.event.state) for each in events.get_events(type="circuit.*")]
    assert moves == [("backend:b", "open"), ("backend:b", "half_open"), ("backend:b", "closed")]


def test_cancellations_and_slow_calls_count_for_a_backend():
    """A cancelled task is a failure, and calls that take too long open the breaker as failures do."""
    clock = FakeClock()
    router = backends(clock, slow_call_s=1.0, slow_rate=1.0)

    async def cancelled():
        async with router.backend("a").call():
            await asyncio.sleep(60)

    async def main():
        for _ in range(2):
            task = asyncio.create_task(cancelled())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    for _ in range(2):
        with router.backend("b").call():
            clock.advance(2.0)
    assert [router.backend(name).state.value for name in "ab"] == ["open", "open"]
    with pytest.raises(BreakerOpen, match="breakers of all 2 candidates are open") as refused:
        router.route(request([0.5, 0.9]))
    assert 0.0 < refused.value.retry_after_s <= 10.0


def test_the_number_of_backends_is_bounded():
    """A name per request would fill the memory: it is an error."""
    router = backends(FakeClock(), max_backends=2)
    router.backend("a")
    router.backend("b")
    for name in ("c", ""):
        with pytest.raises(ConfigError, match=f"no place for a backend '{name}'"):
            router.backend(name)
    assert repr(router.backends) == "Backends(2 known, open: none)"


def test_the_guides_gauge_is_about_the_model_alone(tmp_path):
    """A backend that opens shows in the pack router by name, and not in tiny_dancer_circuit_breaker_state."""
    handlers = {"metric": {"packs": ["tiny_dancer", "router"]}}
    with ec.configure(service="test", handlers=handlers, replace=True) as emitter:
        router = backends(FakeClock())
        for _ in range(2):
            with pytest.raises(OSError, match="down"), router.backend("b").call():
                raise OSError("down")
        assert emitter.flush(5)
        value = emitter.handler("metric").value
        assert value("tiny_dancer_circuit_breaker_state") == 0
        assert value("router_breaker_state", {"breaker": "backend:b"}) == 2


def test_steps_that_nobody_wants_are_not_operations(events):
    """They are when somebody does: five spans and the decision, as the guide has them."""
    router = Router(model=Fixed())
    router.route(request([0.5]))
    seen = [each.name for each in events.get_events(type="router.*")]
    for name in ("circuit_breaker_check", "feature_engineering", "model_inference", "uncertainty_estimation", "route"):
        assert seen.count(f"router.{name}") == 1
    quiet = ec.Emitter()
    Router(model=Fixed(), emitter=quiet).route(request([0.5]))
    assert quiet.ledger().operations["started"] == 0


def test_the_health_check_of_all_routers_names_open_backends():
    """``router`` is contributed by the plugin: degraded while a backend is open, with details fit for JSON."""
    gc.collect()  # routers of other tests emit to whatever is in use, while they live
    with ec.configure(service="test", handlers={}, replace=True) as emitter:
        router = backends(FakeClock())
        assert emitter.health.report()["checks"]["router"]["status"] == "healthy"
        for _ in range(2):
            with pytest.raises(OSError, match="down"), router.backend("b").call():
                raise OSError("down")
        check = emitter.health.report()["checks"]["router"]
        assert (check["status"], check["message"]) == ("degraded", "backends are open: b")
        assert json.loads(json.dumps(check["details"]))["open_backends"] == ["b"]


class Refuses(Fixed):
    """A model whose scores cannot be used while ``is_broken``."""

    is_broken = True

    def score(self, features):
        return super().score(features) * (np.nan if self.is_broken else 1.0)


def test_what_the_breaker_says_belongs_to_the_request(events):
    """Transitions of the breaker carry the trace of the request that caused them, and each request all of its steps."""
    clock, model = FakeClock(), Refuses()
    config = RouterConfig(circuit_breaker_threshold=2, circuit_breaker_timeout_s=10.0)
    router = Router(config, model=model, clock=lambda: clock.monotonic_ns() / 1e9)
    for _ in range(2):
        with pytest.raises(InferenceError):
            router.route(request([0.5]))
    with pytest.raises(BreakerOpen):
        router.route(request([0.5]))
    clock.advance(11.0)
    model.is_broken = False
    for _ in range(router.breaker.half_open_permits + 1):
        router.route(request([0.5]))
    requests = events.get_events(type="router.route")
    traces = [[e.name for e in events.get_events() if e.trace_id == r.trace_id] for r in requests]
    steps = [f"router.{step}" for step in ("circuit_breaker_check", "feature_engineering", "model_inference")]
    whole = [*steps, "router.uncertainty_estimation", "router.decided"]
    assert [[name for name in trace if not name.startswith("circuit.")] for trace in traces] == [
        [*steps, "router.route"],
        [*steps, "router.route"],
        [steps[0], "router.route"],
        *[[*whole, "router.route"]] * (router.breaker.half_open_permits + 1),
    ]
    moves = [[name for name in trace if name.startswith("circuit.")] for trace in traces]
    assert moves[:4] == [[], ["circuit.opened"], [], ["circuit.half_opened"]]
    assert moves[4:] == [*[[]] * (router.breaker.half_open_permits - 2), ["circuit.closed"], []]
    assert not events.get_events(type="eventcore.invalid_result")
    failed = events.get_events(type="router.model_inference")[0]
    assert (failed.outcome, failed.error_type) == ("failure", "inference_error")
    refused = events.get_events(type="router.circuit_breaker_check")[2]
    assert (refused.outcome, refused.event.state) == ("failure", "open")


def test_an_answer_that_is_told_cannot_be_changed(emitter):
    """What is told of an answer in a worker, later, is what was decided: its arrays are read-only."""
    handler = emitter.add_handler(Collect())
    answer = Router(model=Fixed(), emitter=emitter).route(request([0.25, 0.92]))
    with pytest.raises(ValueError, match="read-only"):
        answer.confidence[0] = 1.0
    assert emitter.flush()
    told = next(envelope for envelope in handler.got if envelope.name == "router.decided")
    assert told.event.confidence.tolist() == [0.25, 0.92]
