import os
import subprocess
import sys

import numpy as np
import pytest

from router.embedding import DEFAULT_DIMENSION, Embedder, HashingEmbedder
from router.errors import ConfigError, InvalidRequest

PROMPT = "Write a function to sort a list of numbers."


def test_the_hashing_embedder_is_an_embedder():
    """It fulfils the protocol and gives float32 vectors of its dimension, 384 unless told otherwise."""
    for embedder, dimension in ((HashingEmbedder(), DEFAULT_DIMENSION), (HashingEmbedder(64), 64)):
        assert isinstance(embedder, Embedder)
        vector = embedder.embed(PROMPT)
        assert (vector.shape, vector.dtype, embedder.dimension) == ((dimension,), np.float32, dimension)
    assert repr(HashingEmbedder(64)) == "HashingEmbedder(dimension=64)"


@pytest.mark.parametrize("text", [PROMPT, "a", "?!", "über die Brücke", "数学の問題", "x" * 100_000, "\ud800", "\x00"])
def test_any_visible_text_gives_a_vector_of_length_one(text):
    """One letter, punctuation, other scripts, very long text, a lone surrogate: finite and of length one."""
    vector = HashingEmbedder().embed(text)
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_text_without_content_gives_the_zero_vector(text):
    """Nothing to see is similar to nothing."""
    assert not HashingEmbedder().embed(text).any()


def test_case_and_spacing_do_not_matter():
    """The same words in another case or with other white space get the same vector."""
    embedder = HashingEmbedder()
    np.testing.assert_array_equal(embedder.embed("Sort  THE\n list"), embedder.embed("sort the list"))


def test_similar_text_is_nearer_than_other_text():
    """Shared words and spellings make vectors similar; the order of words plays a part through pairs of them."""
    embedder = HashingEmbedder()
    prompt = embedder.embed(PROMPT)

    def similarity(text):
        return float(prompt @ embedder.embed(text))

    assert similarity(PROMPT) == pytest.approx(1.0, abs=1e-6)
    assert similarity("Write a program that sorts lists of numbers.") > 0.4
    assert similarity("Which gas do plants take from the air?") < 0.2
    assert similarity("numbers of list a sort to function a Write") < 0.98


def test_unrelated_texts_are_nearly_orthogonal_on_average():
    """The signs of the hash cancel: random words share no direction, so collisions do not look like similarity."""
    random, embedder = np.random.default_rng(0), HashingEmbedder()
    words = ["".join(map(chr, random.integers(0x4E00, 0x9FA5, 6))) for _ in range(4000)]
    texts = np.stack([embedder.embed(" ".join(words[20 * i : 20 * i + 20])) for i in range(200)])
    cosines = (texts @ texts.T)[np.triu_indices(200, 1)]
    assert abs(cosines.mean()) < 0.005
    assert cosines.std() < 1.3 * DEFAULT_DIMENSION**-0.5


def test_vectors_do_not_depend_on_the_process():
    """Another process with another hash seed gives the same bytes: stored embeddings stay comparable."""
    program = (
        "import sys; from router.embedding import HashingEmbedder;"
        f"sys.stdout.buffer.write(HashingEmbedder().embed({PROMPT!r}).tobytes())"
    )
    here = HashingEmbedder().embed(PROMPT).tobytes()
    paths = os.pathsep.join(path for path in sys.path if path)
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths}
        found = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True)
        assert found.stdout == here


def test_vectors_are_those_of_every_release():
    """The hash is part of what models were trained with: these values may not change without a new embedder."""
    vector = HashingEmbedder(8).embed("The quick brown fox jumps over the lazy dog")
    stored = [0.09503151, 0.0, -0.274203, 0.1371015, -0.1371015, -0.19006303, 0.9176405, 0.0]
    np.testing.assert_allclose(vector, stored, atol=1e-6)


def test_what_is_not_text_is_refused():
    """A missing prompt is an error, not a vector."""
    with pytest.raises(InvalidRequest, match="NoneType"):
        HashingEmbedder().embed(None)


def test_a_dimension_too_small_is_refused():
    """One bucket cannot tell texts apart."""
    with pytest.raises(ConfigError, match="dimension 1 "):
        HashingEmbedder(1)
