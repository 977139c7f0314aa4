"""What the shipped models' references say of recorded prompts: needs the shared data."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from router import train_bundled
from router.drift import DriftConfig, kolmogorov_smirnov
from router.embedding import HashingEmbedder, open_embedder
from router.features import FEATURE_NAMES
from router.model_file import load_model, load_prompt_model
from router.pairs import read_pairs
from router.prompt_model import need_of
from router.prompts import embed_chunks
from router.quantiles import distance
from router.replay import question_of, read_outcomes, replay, split_prompts

DATA = Path(os.environ.get("EVENTCORE_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not there: name their folder in EVENTCORE_DATA"),
]

LIMIT = DriftConfig().distance_limit


def test_maths_alone_is_drift_for_a_model_of_maths_and_knowledge():
    """Windows of 200 prompts mixed as in training are below the limit; of school mathematics alone far above."""
    model, random = load_prompt_model(), np.random.default_rng(0)
    held_out = np.sort(model.calibration.need.astype(np.float64))
    tables = [read_pairs([DATA / "routing" / f"{name}.csv.gz"]).prompts for name in ("mmlu", "gsm8k")]
    mixed = [*tables[0], *tables[1]]

    def far(prompts):
        chosen = [prompts[place] for place in random.permutation(len(prompts))[:200]]
        needs = need_of(model.quality(chosen, embed_chunks(chosen, open_embedder(model.embedder), model.chunk_count)))
        return kolmogorov_smirnov(held_out, np.sort(needs))

    assert max(far(mixed) for _ in range(10)) < LIMIT
    assert min(far(tables[1]) for _ in range(3)) > 2 * LIMIT


def test_features_of_test_prompts_are_near_those_of_training_and_the_quantiles_tell_it():
    """All but recency, which depends on how long a replay takes; the quantiles lack at most 1/32 of the distance."""
    outcomes, embedder = read_outcomes(DATA / train_bundled.TABLE), HashingEmbedder()
    embeddings = np.stack([embedder.embed(question_of(prompt)) for prompt in outcomes.prompts])
    parts = split_prompts(outcomes.prompts, train_bundled.SHARES, seed=0)
    training, test = (
        replay(outcomes, embeddings, history=parts["training"], queries=parts[name], seed=seed)
        for seed, name in ((0, "training"), (3, "test"))
    )
    random, reference = np.random.default_rng(0), load_model().reference
    for _ in range(20):
        window = np.isin(test.request_index, random.permutation(test.request_index.max() + 1)[:200])
        for name, kept, known, seen in zip(
            FEATURE_NAMES, reference, training.features.T, test.features[window].T, strict=True
        ):
            exact, found = kolmogorov_smirnov(np.sort(known), np.sort(seen)), distance(kept, np.sort(seen))
            assert exact - 1 / 32 - 1e-9 <= found <= exact + 1e-9
            assert found < LIMIT or name == "recency"
