import csv
import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.baselines import (
    embedding_baselines,
    mean_gain_of_domain,
    prompt_length,
    random_order,
    text_baselines,
)
from router.errors import DataNotFound, InvalidRequest, TrainingError
from router.evaluation import compare, gain_curve, split_by_domain, split_by_prompt
from router.pairs import Pairs, read_pairs

DATA = Path(os.environ.get("EVENTCORE_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data") / "routing"


def _pairs(count=400, seed=0):
    """Prompts of four domains; the strong model gains on long ones and in domain d."""
    random = np.random.default_rng(seed)
    domains = random.choice(["a", "b", "c", "d"], count)
    words = random.integers(5, 60, count)
    prompts = tuple(" ".join(f"w{random.integers(500)}" for _ in range(n)) for n in words)
    weak = random.uniform(size=count) < np.where(domains == "d", 0.2, 0.95 - 0.008 * words)
    strong = random.uniform(size=count) < 0.95
    return Pairs(domains, prompts, np.stack([weak, strong], axis=1).astype(float))


# -- the curve -----------------------------------------------------------------------------------------------------


def test_a_curve_by_hand():
    """Four prompts with gains 1, 0, -1, 1 in order of need recover 0, 1, 1, 0, 1 of the gap; areas are trapezoids."""
    curve = gain_curve(np.array([4.0, 3.0, 2.0, 1.0]), np.array([1.0, 0.0, -1.0, 1.0]))
    assert curve.strong_share.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert curve.recovered.tolist() == [0.0, 1.0, 1.0, 0.0, 1.0]
    assert curve.apgr == pytest.approx(0.25 * (0.5 + 1.0 + 0.5 + 0.5))
    assert curve.cpt(0.5) == pytest.approx(0.125)
    assert curve.cpt(1.0) == pytest.approx(0.25)
    assert curve.cpt(2.0) == 1.0


@given(gains=st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=40).filter(lambda g: sum(g) > 0))
def test_prompts_of_equal_need_count_as_drawn_at_random(gains):
    """When all have the same need, the curve is the straight line of a coin, whatever their order in the file."""
    curve = gain_curve(np.zeros(len(gains)), np.array(gains))
    assert curve.recovered == pytest.approx(curve.strong_share)
    assert curve.apgr == pytest.approx(0.5)


@given(st.randoms(use_true_random=False), st.integers(2, 30))
def test_the_order_of_the_file_does_not_matter(random, count):
    """Shuffling prompts with their needs and gains leaves the curve as it is, ties included."""
    need = np.array([random.randint(0, 3) for _ in range(count)], dtype=float)
    gain = np.array([1.0, *(random.choice([0.0, 1.0]) for _ in range(count - 1))])
    order = np.array(random.sample(range(count), count))
    assert gain_curve(need[order], gain[order]).recovered == pytest.approx(gain_curve(need, gain).recovered)


def test_where_there_is_no_gap_there_is_nothing_to_measure():
    """A strong model that gains nothing is an error, not a division by zero."""
    with pytest.raises(InvalidRequest, match="no gap to recover"):
        gain_curve(np.arange(3.0), np.array([1.0, -1.0, 0.0]))


# -- splits --------------------------------------------------------------------------------------------------------


def test_equal_prompts_are_on_one_side_and_halves_are_halves():
    """A prompt that occurs twice is never both learned from and ranked; the same seed gives the same halves."""
    pairs = _pairs(100)
    doubled = Pairs(np.tile(pairs.domains, 2), pairs.prompts * 2, np.tile(pairs.outcomes, (2, 1)))
    training, test = split_by_prompt(doubled, 0)
    assert len(training) == len(test) == 100
    assert not {doubled.prompts[i] for i in training} & {doubled.prompts[i] for i in test}
    assert np.array_equal(split_by_prompt(doubled, 0)[0], training)
    assert not np.array_equal(split_by_prompt(doubled, 1)[0], training)


def test_unseen_domains_are_unseen():
    """Split by domain, no domain is on both sides; a table of one domain is refused."""
    pairs = _pairs(100)
    training, test = split_by_domain(pairs, 3)
    assert not set(pairs.domains[training]) & set(pairs.domains[test])
    with pytest.raises(TrainingError, match="one domain"):
        split_by_domain(pairs.take(np.flatnonzero(pairs.domains == "a")), 0)


# -- baselines -----------------------------------------------------------------------------------------------------


def test_baselines_find_what_there_is_to_find():
    """A coin scores one half; length and domain, which this table rewards, score clearly above it, paired."""
    found = compare(
        _pairs(2000), {"coin": random_order, "length": prompt_length, "domain": mean_gain_of_domain}, splits=3
    )
    coin = found.scores["coin"]
    assert coin.apgr.mean() == pytest.approx(0.5, abs=0.05)
    for name in ("length", "domain"):
        mean, spread = found.scores[name].gain_over(coin)
        assert mean > 0.05
        assert mean > 2 * spread
        assert found.scores[name].cpt50.mean() < coin.cpt50.mean()
    assert found.best_of(["coin", "length", "unknown"]) == "length"


def test_learned_baselines_run_on_what_they_are_given():
    """Every baseline of the extra ranks every test prompt with finite numbers."""
    pytest.importorskip("sklearn", reason="needs the extra eval")
    pairs = _pairs(300)
    embeddings = np.random.default_rng(0).standard_normal((300, 8))
    training, test = split_by_prompt(pairs, 0)
    methods = text_baselines() | embedding_baselines(pairs, embeddings)
    assert len(methods) == 5
    for name, method in methods.items():
        need = method(pairs, training, test, 0)
        assert need.shape == test.shape, name
        assert np.isfinite(need).all(), name


@pytest.mark.parametrize("exceptions", [0, 1, 2])
def test_learned_baselines_take_what_hardly_ever_happens(exceptions):
    """A model that is right always, all but once or twice, on few prompts that share no word: all of them rank."""
    pytest.importorskip("sklearn", reason="needs the extra eval")
    outcomes = np.array([[number % 2, 1.0] for number in range(40)])
    training, test = np.arange(20), np.arange(20, 40)
    outcomes[:exceptions, 1] = 0.0
    pairs = Pairs(np.full(40, "a"), tuple(f"w{number}" for number in range(40)), outcomes)
    embeddings = np.random.default_rng(0).standard_normal((40, 8))
    for name, method in (text_baselines() | embedding_baselines(pairs, embeddings)).items():
        need = method(pairs, training, test, 0)
        assert need.shape == test.shape, name
        assert np.isfinite(need).all(), name


# -- tables --------------------------------------------------------------------------------------------------------


def test_tables_are_read_and_joined(tmp_path):
    """Plain and compressed files with any further columns are read in order; True, 1 and 1.0 mean the same."""
    plain, packed = tmp_path / "a.csv", tmp_path / "b.csv.gz"
    plain.write_text('domain,prompt,weak_correct,strong_correct,x\nm,"what, now",True,1,9\n')
    packed.write_bytes(gzip.compress(b"strong_correct,weak_correct,prompt,domain\n1.0,false,why,n\n"))
    pairs = read_pairs([plain, packed])
    assert pairs.prompts == ("what, now", "why")
    assert pairs.outcomes.tolist() == [[1.0, 1.0], [0.0, 1.0]]
    assert pairs.harm.tolist() == [0.0, 1.0]
    assert pairs.sha256() == read_pairs([plain, packed]).sha256() != read_pairs([packed, plain]).sha256()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"domain,prompt,weak_correct\n",
            "lacks the column 'strong_correct': .*; its first line is 'domain, prompt, weak",
        ),
        (b"", "lacks the column 'domain': .*; it is empty"),
        (b"domain,prompt,weak_correct,strong_correct\nm,p,True,False\nm,a, b,True,False\n", "line 3: more fields"),
        (b"domain,prompt,weak_correct,strong_correct\nm,p,NaN,True\n", "line 2: weak_correct is 'NaN'"),
        (b"domain,prompt,weak_correct,strong_correct\nm,p,True,maybe\n", "line 2: strong_correct is 'maybe'"),
        (b"domain,prompt,weak_correct,strong_correct\nm,p\n", "line 2: weak_correct is missing"),
        (b"domain,prompt,weak_correct,strong_correct\n", "no rows"),
        (b"\xff\xfe\n", "is not UTF-8 text"),
    ],
)
def test_a_table_that_is_none_is_refused_with_its_place(tmp_path, content, reason):
    """File, line and column are named; nothing is guessed."""
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=reason):
        read_pairs([path])


def test_a_table_of_a_spreadsheet_with_long_prompts_is_read(tmp_path):
    """A mark of byte order is no part of the first column's name, and a prompt may have a million characters."""
    path, limit = tmp_path / "t.csv", csv.field_size_limit()
    long = "why " * 250_000
    path.write_text(f"domain,prompt,weak_correct,strong_correct\nm,{long},False,True\n", encoding="utf-8-sig")
    assert read_pairs([path]).prompts == (long,)
    assert csv.field_size_limit() == limit, "the setting belongs to the whole process"


def test_a_truncated_or_absent_file_is_an_error(tmp_path):
    """A gzip file that was cut off, and no file at all, say so."""
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"domain,prompt,weak_correct,strong_correct\n" + b"m,p,True,True\n" * 99)[:-12])
    with pytest.raises(TrainingError, match="cannot be read"):
        read_pairs([path])
    with pytest.raises(DataNotFound, match="is a directory: name the tables in it"):
        read_pairs([tmp_path])
    with pytest.raises(DataNotFound, match=r"absent\.csv"):
        read_pairs([tmp_path / "absent.csv"])


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not there: name their folder in EVENTCORE_DATA")
def test_length_on_the_real_tables_is_what_was_measured():
    """The untrained baseline on the shared maths prompts agrees with the figure that came with them, 0.602 ± 0.030."""
    pairs = read_pairs([DATA / "gsm8k.csv.gz"])
    found = compare(pairs, {"length": prompt_length}, splits=5)
    assert (len(pairs), round(found.weak_accuracy, 3), round(found.strong_accuracy, 3)) == (943, 0.637, 0.875)
    assert found.scores["length"].apgr.mean() == pytest.approx(0.602, abs=0.03)
