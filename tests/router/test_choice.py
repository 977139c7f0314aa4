import csv
import gzip
import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from router.choice import Budget, Guaranteed, TargetShare, Threshold
from router.conformal import AdaptiveRisk, Mondrian, control_risk
from router.embedding import HashingEmbedder
from router.errors import ConfigError, DimensionMismatch, InvalidRequest, NonFiniteInput
from router.prompt_model import NeedCalibration
from router.replay import read_outcomes

DATA = Path(os.environ.get("EVENTCORE_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data") / "routing"
TABLE = DATA / "routerbench_subset.csv.gz"


@st.composite
def problems(draw, requests=6, candidates=4):
    """Draw qualities (n, k) and prices (k,), from few values so that ties are common."""
    n, k = draw(st.integers(1, requests)), draw(st.integers(1, candidates))
    quality = draw(arrays(float, (n, k), elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])))
    price = draw(arrays(float, k, elements=st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0])))
    return quality, price


def value(quality, price, chosen):
    """Return the total quality and the total price of choices."""
    return quality[np.arange(len(chosen)), chosen].sum(), price[chosen].sum()


@given(problems(), st.sampled_from([0.0, 0.1, 0.25, 1.0]))
def test_a_threshold_takes_the_cheapest_that_is_good_enough(problem, tolerance):
    """What is chosen is at most the tolerance worse than the best, and nothing as good as that is cheaper."""
    quality, price = problem
    for row, chosen in zip(quality, Threshold(tolerance).choose(quality, price), strict=True):
        good = row >= row.max() - tolerance
        assert good[chosen]
        assert price[chosen] == price[good].min()
        assert row[chosen] == row[good & (price == price[chosen])].max()


@given(problems(requests=40), st.floats(0.0, 1.0))
def test_a_target_share_is_kept_on_the_requests_it_was_fitted_on(problem, share):
    """At most that share goes above the cheapest, ties or not; at 1 every request gets the best there is."""
    quality, price = problem
    policy = TargetShare.fit(share, quality, price)
    assert (price[policy.choose(quality, price)] > price.min()).mean() <= share
    everything = TargetShare.fit(1.0, quality, price)
    assert (quality.max(axis=1) == quality[np.arange(len(quality)), everything.choose(quality, price)]).all()


def test_a_target_share_holds_for_new_requests_on_average():
    """Over fresh calibration sets and requests the share above the cheapest is at most the target, and close to it."""
    random = np.random.default_rng(0)
    price = np.array([1.0, 5.0, 3.0])
    shares = []
    for _ in range(300):
        quality = random.uniform(size=(60, 3))
        policy = TargetShare.fit(0.2, quality[:50], price)
        shares.append((policy.choose(quality[50:], price) != 0).mean())
    assert np.mean(shares) <= 0.2 + 3 * np.std(shares) / math.sqrt(300)
    assert np.mean(shares) >= 0.2 - 1 / 51 - 3 * np.std(shares) / math.sqrt(300)


@settings(max_examples=300)
@given(problems(requests=4, candidates=3), st.floats(0.0, 1.0))
def test_a_budget_is_kept_and_no_other_way_to_spend_it_is_better(problem, place):
    """Against all ways to choose: none within the budget beats it by more than the unused rest is worth.

    That rest is less than one surcharge between two candidates, whatever ties there are.
    """
    quality, price = problem
    budget = price.min() + place * (price.max() - price.min())
    policy = Budget.fit(budget, quality, price)
    q, spent = value(quality, price, policy.choose(quality, price))
    rest = budget * len(quality) - spent
    assert rest >= -1e-9
    every = [value(quality, price, np.array(c)) for c in itertools.product(range(len(price)), repeat=len(quality))]
    best = max(total for total, cost in every if cost <= budget * len(quality) + 1e-9)
    assert best <= q + policy.multiplier * rest + 1e-9
    if policy.multiplier:
        assert rest <= price.max() - price.min() + 1e-9


def test_a_budget_is_spent_exactly_where_all_requests_tie():
    """A thousand equal requests: the dear candidate is bought as often as the money lasts, evenly spread."""
    quality, price = np.tile([0.5, 0.9], (1000, 1)), np.array([1.0, 5.0])
    policy = Budget.fit(2.0, quality, price)
    chosen = policy.choose(quality, price)
    assert price[chosen].mean() == pytest.approx(2.0)
    one_by_one = Budget.fit(2.0, quality, price)
    assert [one_by_one.choose(row[None], price)[0] for row in quality] == chosen.tolist()
    assert np.abs(np.cumsum(chosen) - np.arange(1, 1001) / 4).max() <= 1.0


def test_a_guarantee_sends_below_its_threshold_to_the_cheap_one():
    """Whatever the order of the candidates; a group that was not calibrated goes to the dear one."""
    random = np.random.default_rng(1)
    need = random.uniform(-0.5, 0.5, size=400)
    guarantee = control_risk(need, random.uniform(size=400) < need, 0.05)
    quality = np.stack([np.full(400, 0.4), 0.4 + need], axis=1)
    chosen = Guaranteed(guarantee).choose(quality, [1.0, 9.0])
    assert (chosen == 0).tolist() == guarantee.allows(quality[:, 1] - quality[:, 0]).tolist()
    assert 0.0 < chosen.mean() < 1.0
    assert (Guaranteed(guarantee).choose(quality[:, ::-1], [9.0, 1.0]) == 1 - chosen).all()
    by_group = Guaranteed(Mondrian({"maths": guarantee}))
    assert (by_group.choose(quality, [1.0, 9.0], group="maths") == chosen).all()
    assert (by_group.choose(quality, [1.0, 9.0], group="law") == 1).all()
    assert (by_group.choose(quality, [1.0, 9.0]) == 1).all()


def test_an_adaptive_guarantee_starts_from_the_calibration_and_learns():
    """Held-out needs fill its window at the level asked for; harm makes it stricter, good times looser."""
    random = np.random.default_rng(2)
    need = random.uniform(-0.5, 0.5, size=500)
    calibration = NeedCalibration(need, (random.uniform(size=500) < need).astype(np.uint8))
    policy = Guaranteed.adaptive(0.05, calibration)
    assert policy.threshold(None) == control_risk(need, calibration.harm, 0.05).threshold
    before = policy.threshold(None)
    for _ in range(3):
        policy.observe(-0.4, 1.0, sent=True)
    assert policy.threshold(None) < before
    for _ in range(100):
        policy.observe(-0.4, 0.0, sent=True)
    assert policy.threshold(None) > before
    assert isinstance(policy.rule, AdaptiveRisk)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: Threshold(-0.1), ConfigError, r"tolerance is -0\.1"),
        (lambda: Threshold(math.nan), ConfigError, "tolerance is nan"),
        (lambda: TargetShare.fit(1.5, [[0.5]], [1.0]), ConfigError, r"share is 1\.5"),
        (lambda: Budget.fit(0.5, [[0.5, 0.6]], [1.0, 2.0]), ConfigError, "below the cheapest price, 1"),
        (lambda: Threshold(0.1).choose([[0.5, 0.6]], [1.0]), DimensionMismatch, r"\(1, 2\) and prices \(1,\)"),
        (lambda: Threshold(0.1).choose([0.5, 0.6], [1.0, 2.0]), DimensionMismatch, "do not fit"),
        (lambda: Threshold(0.1).choose([[0.5, math.nan]], [1.0, 2.0]), NonFiniteInput, "NaN or infinity"),
        (lambda: Threshold(0.1).choose([[0.5, 0.6]], [1.0, -2.0]), InvalidRequest, "candidate 1 has the price -2"),
        (lambda: Guaranteed(Mondrian({})).choose([[0.5] * 3], [1.0, 2.0, 3.0]), DimensionMismatch, "3 candidates"),
        (lambda: Guaranteed(Mondrian({})).choose([[0.5] * 2], [1.0, 1.0]), InvalidRequest, "both candidates cost 1"),
    ],
)
def test_what_cannot_be_chosen_from_is_named(call, kind, message):
    """One clear error with what is wrong, where, and what to do."""
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.slow
@pytest.mark.skipif(not TABLE.is_file(), reason="the shared data are not there: name their folder in EVENTCORE_DATA")
def test_on_routerbench_every_policy_beats_random_at_its_price():
    """Eleven models, qualities learned on the training rows: on the test rows quality at price is above chance.

    The straight line between the cheapest and the best single model is what random routing between the two reaches;
    a policy that knows the prompts is above it, at every price asked for.
    """
    outcomes = read_outcomes(TABLE)
    embedder = HashingEmbedder(256)
    x = np.stack([embedder.embed(prompt) for prompt in outcomes.prompts]).astype(np.float64)
    x = np.hstack([x, np.ones((len(x), 1))])
    with gzip.open(TABLE, "rt", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if all(row[model] for model in outcomes.models)]
    train = np.array([row["split"] == "train" for row in rows])
    y, price = outcomes.success.astype(np.float64), outcomes.prices
    weights = np.linalg.solve(x[train].T @ x[train] + 3.0 * np.eye(x.shape[1]), x[train].T @ y[train])
    quality, truth = x[~train] @ weights, y[~train]
    cheapest, best = int(price.argmin()), int(y[train].mean(axis=0).argmax())
    always = {place: truth[:, place].mean() for place in (cheapest, best)}
    assert always[best] > always[cheapest]

    def by_chance(spent):
        share = min(1.0, (spent - price[cheapest]) / (price[best] - price[cheapest]))
        return always[cheapest] + share * (always[best] - always[cheapest])

    fitted = x[train] @ weights
    policies = [Budget.fit(price[cheapest] + s * (price[best] - price[cheapest]), fitted, price) for s in (0.1, 0.3)]
    policies += [TargetShare.fit(s, fitted, price) for s in (0.2, 0.5)] + [Threshold(t) for t in (0.02, 0.1)]
    for policy in policies:
        chosen = policy.choose(quality, price)
        reached, spent = truth[np.arange(len(truth)), chosen].mean(), price[chosen].mean()
        print(f"{policy!r}: quality {reached:.3f} at {spent:.2e}, by chance {by_chance(spent):.3f}")  # noqa: T201 - with -s
        assert reached > by_chance(spent), policy
    assert truth.mean() < min(always[best], truth[np.arange(len(truth)), policies[0].choose(quality, price)].mean())
