import gzip

import numpy as np
import pytest

from router.embedding import HashingEmbedder
from router.errors import DataNotFound, TrainingError
from router.features import FEATURE_NAMES, FEATURE_WEIGHTS
from router.replay import Outcomes, ReplayConfig, question_of, read_outcomes, replay, split_prompts

HEADER = "sample_id,task,split,prompt,good,bad,good|total_cost,bad|total_cost\n"


def _table(count=60, seed=0):
    """Two tasks; `good` answers nearly everything, `coder` only code, `bad` hardly anything."""
    random = np.random.default_rng(seed)
    tasks = tuple("code" if index % 2 else "trivia" for index in range(count))
    rates = np.array([[0.9, 0.9 if task == "code" else 0.1, 0.1] for task in tasks])
    return Outcomes(
        models=("good", "coder", "bad"),
        prompts=tuple(f"{task} question number {index}" for index, task in enumerate(tasks)),
        tasks=tasks,
        success=random.uniform(size=rates.shape) < rates,
        prices=np.array([3.0, 2.0, 1.0]),
        skipped_rows=0,
    )


def _replayed(outcomes, history, queries, seed=0, **settings):
    embedder = HashingEmbedder(32)
    embeddings = np.stack([embedder.embed(prompt) for prompt in outcomes.prompts])
    return replay(outcomes, embeddings, history=history, queries=queries, seed=seed, config=ReplayConfig(**settings))


def _raw(samples, name):
    index = FEATURE_NAMES.index(name)
    return samples.features[:, index] / FEATURE_WEIGHTS[index]


def test_a_table_is_read_as_it_is_published(tmp_path):
    """Models are the columns with a cost beside them, lists of one prompt are opened, rows without a score skipped."""
    rows = (
        "a,maths,train,\"['What is\\n\\n2 + 2?']\",1.0,0.0,0.5,0.25\n"
        "b,code,test,plain text,0.5,0.49,1.5,0.75\n"
        "c,code,test,no score,1.0,,1.0,1.0\n"
    )
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress((HEADER + rows).encode()))
    (tmp_path / "table.csv").write_text(HEADER + rows)
    for outcomes in (read_outcomes(path), read_outcomes(tmp_path / "table.csv")):
        assert outcomes.models == ("good", "bad")
        assert outcomes.prompts == ("What is\n\n2 + 2?", "plain text")
        assert outcomes.tasks == ("maths", "code")
        assert outcomes.success.tolist() == [[True, False], [True, False]]
        assert outcomes.prices.tolist() == [1.0, 0.5]
        assert outcomes.skipped_rows == 1


def test_a_table_that_is_absent_or_of_another_kind_is_named(tmp_path):
    """Each message has the path and what was expected."""
    with pytest.raises(DataNotFound, match=r"no outcome table at .*absent\.csv.*--data"):
        read_outcomes(tmp_path / "absent.csv")
    path = tmp_path / "table.csv"
    path.write_text("prompt,answer\na,b\n")
    with pytest.raises(TrainingError, match=r"table\.csv is no outcome table"):
        read_outcomes(path)
    path.write_text(HEADER + "a,maths,train,q,,,1,1\n")
    with pytest.raises(TrainingError, match="no row with a score for every model"):
        read_outcomes(path)


def test_the_question_is_the_last_paragraph():
    """Few-shot examples before it are left out; a prompt without any is its own question."""
    assert question_of("Q1\nA\n\nQ2\nB\n\nWhat now?\nA) x\n") == "What now?\nA) x"
    assert question_of("What now?") == "What now?"


def test_splits_are_disjoint_complete_and_of_the_size_asked_for():
    """Every prompt is in one part; with many prompts the parts have about their shares."""
    parts = split_prompts([f"question {i}" for i in range(4000)], {"a": 0.5, "b": 0.3, "c": 0.2}, seed=0)
    together = np.concatenate(list(parts.values()))
    assert sorted(together.tolist()) == list(range(4000))
    assert [round(len(part) / 4000, 1) for part in parts.values()] == [0.5, 0.3, 0.2]


def test_equal_questions_stay_on_one_side_whatever_the_order_of_the_table():
    """A question asked twice, behind other examples, never stands in training and test at once."""
    prompts = [f"question {i}" for i in range(200)] + [f"an example\n\nquestion {i}" for i in range(200)]
    parts = split_prompts(prompts, {"train": 0.5, "test": 0.5}, seed=3)
    questions = {name: {prompts[index].rpartition("\n\n")[2] for index in part} for name, part in parts.items()}
    assert not questions["train"] & questions["test"]
    backwards = split_prompts(prompts[::-1], {"train": 0.5, "test": 0.5}, seed=3)
    assert {prompts[::-1][index] for index in backwards["test"]} == {prompts[index] for index in parts["test"]}


def test_the_same_seed_gives_the_same_replay_and_another_seed_another():
    """Order, pace, popularity and joining times all come from the seed."""
    outcomes, everything = _table(), np.arange(60)
    first, same, other = (_replayed(outcomes, everything, everything, seed=seed) for seed in (1, 1, 2))
    for one, two in zip(first, same, strict=True):
        np.testing.assert_array_equal(one, two)
    assert first.features.shape != other.features.shape or (first.features != other.features).any()


def test_rows_carry_the_outcome_of_their_prompt_and_request():
    """Every row belongs to a query prompt; a request has at most one row per model; labels are the table's."""
    outcomes, queries = _table(), np.arange(40, 60)
    samples = _replayed(outcomes, np.arange(40), queries, episodes=3)
    assert set(samples.prompt_index) == set(queries)
    assert np.unique(samples.request_index).size == 3 * len(queries)
    assert np.bincount(samples.request_index).max() <= 3
    for prompt in queries:
        rates = samples.successes[samples.prompt_index == prompt]
        assert set(rates.tolist()) <= set(outcomes.success[prompt].astype(float).tolist())


def test_nothing_is_known_before_anything_was_answered():
    """The first request of an episode meets untried candidates: rate one half, the rest of their history zero."""
    samples = _replayed(_table(), np.arange(60), np.arange(60), episodes=1)
    first = samples.request_index == 0
    assert _raw(samples, "success")[first] == pytest.approx(0.5)
    for name in ("similarity", "frequency", "overlap"):
        assert (_raw(samples, name)[first] == 0.0).all()


def test_the_success_rate_follows_the_rule_of_succession():
    """A candidate that answered all n requests so far, each one well, stands at (n + 1)/(n + 2)."""
    outcomes = _table()
    perfect = Outcomes(
        outcomes.models, outcomes.prompts, outcomes.tasks, np.ones_like(outcomes.success), outcomes.prices, 0
    )
    samples = _replayed(perfect, np.arange(60), np.arange(60), episodes=1)
    accesses = np.expm1(_raw(samples, "frequency") * np.log(10_001))
    assert accesses.max() > 40
    np.testing.assert_allclose(_raw(samples, "success"), (accesses + 1) / (accesses + 2), rtol=1e-4)


def test_what_is_known_comes_from_the_history_alone():
    """Turning the outcomes of all query prompts around changes the labels and no feature."""
    outcomes, history, queries = _table(), np.arange(40), np.arange(40, 60)
    turned = outcomes.success.copy()
    turned[queries] = ~turned[queries]
    other = Outcomes(outcomes.models, outcomes.prompts, outcomes.tasks, turned, outcomes.prices, 0)
    one, two = (_replayed(table, history, queries) for table in (outcomes, other))
    np.testing.assert_array_equal(one.features, two.features)
    np.testing.assert_array_equal(one.successes, 1.0 - two.successes)


def test_a_prompt_does_not_know_its_own_outcome():
    """In a table where success is a coin toss, no feature of a training row predicts its label."""
    outcomes = _table(400)
    coin = np.random.default_rng(1).uniform(size=outcomes.success.shape) < 0.5
    fair = Outcomes(outcomes.models, outcomes.prompts, outcomes.tasks, coin, outcomes.prices, 0)
    samples = _replayed(fair, np.arange(400), np.arange(400), episodes=2)
    for column in samples.features.T:
        if column.std() > 0.0:
            assert abs(np.corrcoef(column, samples.successes)[0, 1]) < 0.08


def test_history_makes_the_features_tell():
    """After enough requests the success rate and the proven tasks tell good candidates from bad ones."""
    samples = _replayed(_table(400), np.arange(400), np.arange(400), answers_per_request=3)
    late = samples.request_index % 400 > 200
    won = samples.successes[late] == 1.0
    for name in ("success", "overlap"):
        feature = _raw(samples, name)[late]
        assert feature[won].mean() > feature[~won].mean() + 0.15, name
    assert _raw(samples, "frequency")[late].min() > 0.3
