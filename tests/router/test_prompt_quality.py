"""What a prompt model is worth beside the order of the lengths, on real outcomes and where there is little to learn."""

import os
from pathlib import Path

import numpy as np
import pytest

from router.embedding import HashingEmbedder
from router.evaluation import gain_curve, split_by_domain, split_by_prompt
from router.pairs import HEADS, read_pairs
from router.prompt_model import PromptModel, need_of
from router.prompts import embed_chunks

DATA = Path(os.environ.get("EVENTCORE_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data") / "routing"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not there: name their folder in EVENTCORE_DATA"),
]

NOISE = 0.01
"""What the mean of a few splits may lie below length by the numerics of another machine."""


def _part(name, count=None):
    """Read a table, or ``count`` prompts of it drawn by a fixed seed, and embed their chunks without an encoder."""
    pairs = read_pairs([DATA / f"{name}.csv.gz"])
    if count is not None:
        pairs = pairs.take(np.sort(np.random.default_rng(7).permutation(len(pairs))[:count]))
    return pairs, embed_chunks(pairs.prompts, HashingEmbedder(), 8)


def _over_length(pairs, chunks, training, test, seed=0):
    """Return the APGR of a model trained on ``training``, less that of the length, both on ``test``."""
    known, new = pairs.take(training), pairs.take(test)
    model = PromptModel.fit(HEADS, known.prompts, chunks[training], known.outcomes, embedder="hashing", seed=seed)
    length = np.array([len(prompt) for prompt in new.prompts], dtype=float)
    need = need_of(model.quality(new.prompts, chunks[test]))
    return gain_curve(need, new.gain).apgr - gain_curve(length, new.gain).apgr


def test_without_an_encoder_it_is_not_below_length_on_maths_prompts():
    """Trained on 470 prompts of one kind it ranks at least as well as their length, and on no split far below."""
    pairs, chunks = _part("gsm8k")
    found = [_over_length(pairs, chunks, *split_by_prompt(pairs, seed), seed) for seed in range(5)]
    assert np.mean(found) > -NOISE
    assert min(found) > -0.03


def test_a_hundred_prompts_do_not_bring_it_below_length():
    """Of a table of which hardly anything was seen, the order of the lengths is what remains."""
    for name, count in (("gsm8k", None), ("mmlu", 2000)):
        pairs, chunks = _part(name, count)
        order = np.random.default_rng(1).permutation(len(pairs))
        found = [
            _over_length(pairs, chunks, order[start : start + 100], np.delete(order, range(start, start + 100)))
            for start in range(0, 600, 100)
        ]
        assert np.mean(found) > -NOISE, name


def test_subjects_that_it_has_not_seen_do_not_bring_it_below_length():
    """Without an encoder, trained on one half of the subjects and ranking the other, it is not worse than length."""
    pairs, chunks = _part("mmlu", 3000)
    found = [_over_length(pairs, chunks, *split_by_domain(pairs, seed), seed) for seed in range(4)]
    assert np.mean(found) > -NOISE


def test_it_learns_what_length_does_not_know():
    """On 1,000 prompts of many subjects it ranks far better than their length does, with no encoder."""
    pairs, chunks = _part("mmlu", 2000)
    assert _over_length(pairs, chunks, *split_by_prompt(pairs, 0)) > 0.05
