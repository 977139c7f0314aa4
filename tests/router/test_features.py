import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import ConfigError, DimensionMismatch, FeatureError, InvalidRequest, NonFiniteInput
from router.features import (
    FEATURE_NAMES,
    FEATURE_WEIGHTS,
    Candidate,
    CandidatePool,
    RoutingRequest,
    extract_features,
)

NOW = 1_700_000_000.0
ONES = (1.0,) * 5
COMPONENT = st.floats(-(2.0**100), 2.0**100, width=32)


def _vector(*values):
    return np.array(values, dtype=np.float32)


def _candidate(id="a", embedding=(1.0, 0.0), **changes):
    return Candidate(id=id, embedding=_vector(*embedding), **({"created_at": NOW} | changes))


def _features(candidates, query=(1.0, 0.0), metadata=None, weights=ONES):
    return extract_features(_vector(*query), CandidatePool(candidates), metadata, now_s=NOW, weights=weights)


def _column(name, candidates, **arguments):
    return _features(candidates, **arguments)[:, FEATURE_NAMES.index(name)].tolist()


def test_names_and_weights_are_tiny_dancers():
    """Five features in a fixed order; similarity counts most, metadata least, together one."""
    assert dict(zip(FEATURE_NAMES, FEATURE_WEIGHTS, strict=True)) == {
        "similarity": 0.4,
        "recency": 0.2,
        "frequency": 0.15,
        "success": 0.15,
        "overlap": 0.1,
    }
    assert sum(FEATURE_WEIGHTS) == pytest.approx(1.0)


def test_similarity_is_the_cosine_whatever_the_lengths():
    """Same direction 1, right angle 0, opposite -1; neither query nor candidates need have length one."""
    candidates = [
        _candidate("same", (3.0, 4.0)),
        _candidate("right angle", (-4.0, 3.0)),
        _candidate("opposite", (-0.003, -0.004)),
        _candidate("between", (7.0, 1.0)),
    ]
    expected = [1.0, 0.0, -1.0, 25.0 / (5.0 * math.sqrt(50.0))]
    assert _column("similarity", candidates, query=(30.0, 40.0)) == pytest.approx(expected, abs=1e-6)


def test_zero_vectors_have_a_defined_similarity():
    """Nothing is like nothing (1) and unlike everything else (0), instead of NaN."""
    candidates = [_candidate("zero", (0.0, 0.0)), _candidate("some", (0.0, 2.0))]
    assert _column("similarity", candidates, query=(0.0, 0.0)) == [1.0, 0.0]
    assert _column("similarity", candidates, query=(0.0, 1.0)) == [0.0, 1.0]
    assert _column("similarity", [_candidate("some")], query=(0.0, 0.0)) == [0.0]


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_similarity_survives_very_small_and_very_large_embeddings(scale):
    """Squares that leave float32's range on the way do not change the cosine."""
    candidates = [_candidate("scaled", (3.0 * scale, 4.0 * scale)), _candidate("plain", (4.0, 3.0))]
    assert _column("similarity", candidates, query=(3.0 * scale, 4.0 * scale)) == pytest.approx([1.0, 0.96], abs=1e-6)


def test_recency_falls_by_a_thousandth_a_second():
    """exp(-0.001 · age): 1 when new, 1/e after a thousand seconds; a candidate from the future counts as new."""
    candidates = [_candidate(str(age), created_at=NOW - age) for age in (0.0, 1000.0, 5000.0, -500.0)]
    assert _column("recency", candidates) == pytest.approx([1.0, math.exp(-1.0), math.exp(-5.0), 1.0], rel=1e-6)


def test_frequency_saturates_at_ten_thousand_accesses():
    """ln(1 + n)/ln(10001): 0 when never used, 1 from ten thousand on."""
    candidates = [_candidate(str(n), access_count=n) for n in (0, 99, 10_000, 10**9)]
    expected = [0.0, math.log(100) / math.log(10_001), 1.0, 1.0]
    assert _column("frequency", candidates) == pytest.approx(expected, rel=1e-6)


def test_success_is_the_rate_itself():
    """The success rate goes in unchanged."""
    assert _column("success", [_candidate("a", success_rate=0.0), _candidate("b", success_rate=0.75)]) == [0.0, 0.75]


@pytest.mark.parametrize(
    ("metadata", "candidates", "reason"),
    [
        (3, [_candidate("a")], r"the request's metadata are no mapping \(int\): pass a dictionary"),
        ({"task": "x"}, [_candidate("a"), _candidate("b", metadata=["x"])], r"candidate 'b' at index 1: its metadata"),
        ({"a": 1, "b": 2}, [_candidate("a", metadata="x")], r"candidate 'a' at index 0: its metadata .* \(str\)"),
    ],
)
def test_metadata_that_are_no_mapping_are_named(metadata, candidates, reason):
    """Those of the request or of a candidate, by index, id and kind."""
    with pytest.raises(InvalidRequest, match=reason):
        _features(candidates, metadata=metadata)


def test_overlap_is_the_share_of_query_keys_with_an_equal_value():
    """Keys only the candidate has do not count; without metadata on either side the overlap is 0."""
    candidates = [
        _candidate("both", metadata={"task": "code", "tier": 1, "other": True}),
        _candidate("one", metadata={"task": "code", "tier": 2}),
        _candidate("none", metadata={"task": "maths"}),
        _candidate("empty"),
    ]
    assert _column("overlap", candidates, metadata={"task": "code", "tier": 1}) == [1.0, 0.5, 0.0, 0.0]
    assert _column("overlap", candidates, metadata={"task": "code"}) == [1.0, 1.0, 0.0, 0.0]
    assert _column("overlap", candidates, metadata={}) == [0.0] * 4
    assert _column("overlap", candidates) == [0.0] * 4


def test_a_missing_key_does_not_equal_none():
    """A query that asks for None is not met by a candidate that does not have the key."""
    assert _column("overlap", [_candidate()], metadata={"task": None}) == [0.0]
    assert _column("overlap", [_candidate()], metadata={"task": None, "tier": None}) == [0.0]


def test_each_feature_is_multiplied_by_its_weight():
    """The matrix is float32, a row per candidate in order, each column the raw feature times its weight."""
    candidates = [
        _candidate(f"c{i}", (1.0, float(i)), created_at=NOW - 100.0 * i, access_count=i, success_rate=i / 4)
        for i in range(4)
    ]
    raw, weighted = _features(candidates), _features(candidates, weights=FEATURE_WEIGHTS)
    assert (weighted.shape, weighted.dtype) == ((4, 5), np.float32)
    np.testing.assert_allclose(weighted, raw * np.array(FEATURE_WEIGHTS), rtol=1e-6, atol=1e-9)


def test_the_clock_is_read_when_no_time_is_given():
    """Without now_s ages count to the present."""
    pool = CandidatePool([_candidate(created_at=time.time() - 1000.0)])
    recency = extract_features(_vector(1.0, 0.0), pool, weights=ONES)[0, 1]
    assert recency == pytest.approx(math.exp(-1.0), rel=0.05)


@given(
    rows=st.lists(
        st.tuples(
            st.lists(COMPONENT, min_size=3, max_size=3),
            st.floats(0.0, 2e9),
            st.integers(0, 10**12),
            st.floats(0.0, 1.0),
        ),
        min_size=1,
        max_size=8,
    ),
    query=st.lists(COMPONENT, min_size=3, max_size=3),
)
def test_features_of_any_valid_request_are_finite_and_within_their_range(rows, query):
    """Whatever the numbers, no feature is NaN or outside [-1, 1] for similarity and [0, 1] for the others."""
    candidates = [
        _candidate(str(index), embedding, created_at=created_at, access_count=count, success_rate=rate)
        for index, (embedding, created_at, count, rate) in enumerate(rows)
    ]
    features = _features(candidates, query=query, metadata={"a": 1})
    assert features.min() >= -1.0
    assert features.max() <= 1.0
    assert features[:, 1:].min() >= 0.0


def test_a_request_takes_candidates_or_a_ready_pool():
    """A pool is used as it is, so that its checks are paid once; plain candidates become one."""
    candidates = [_candidate("a"), _candidate("b")]
    pool = CandidatePool(candidates)
    assert RoutingRequest(_vector(1.0, 0.0), pool).pool is pool
    made = RoutingRequest(_vector(1.0, 0.0), candidates).pool
    assert made.candidates == pool.candidates
    assert (len(pool), repr(pool)) == (2, "CandidatePool(2 candidates, dimension 2)")


def test_a_pool_does_not_change_with_what_it_was_made_from():
    """The caller's arrays and lists may be reused; the pool's own arrays are read-only."""
    embedding = _vector(1.0, 0.0)
    candidates = [Candidate("a", embedding, created_at=NOW)]
    pool = CandidatePool(candidates)
    embedding[:] = (0.0, 1.0)
    candidates.clear()
    assert extract_features(_vector(1.0, 0.0), pool, now_s=NOW, weights=ONES)[0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        pool.unit_embeddings[0, 0] = 2.0


def test_an_empty_candidate_list_is_refused():
    """There is nothing to choose from."""
    with pytest.raises(InvalidRequest, match="no candidates: pass at least one"):
        CandidatePool([])


def test_ids_that_occur_twice_are_named_with_their_places():
    """Two candidates with one id could not be told apart in the decision."""
    with pytest.raises(InvalidRequest, match=r"index 1 and 3 share the id 'b'.*its own id"):
        CandidatePool([_candidate("a"), _candidate("b"), _candidate("c"), _candidate("b")])


def test_embeddings_of_different_lengths_are_named():
    """The message tells which candidate at which index has which length, and what to do."""
    with pytest.raises(DimensionMismatch, match=r"'b' at index 1.*length 3.*'a' at index 0 has 2.*same embedder"):
        CandidatePool([_candidate("a"), _candidate("b", (1.0, 0.0, 0.0))])


@pytest.mark.parametrize("embedding", [np.zeros((2, 2)), np.float32(1.0), np.zeros(0)])
def test_an_embedding_that_is_no_vector_is_named(embedding):
    """Matrices, single numbers and empty vectors are no embeddings."""
    with pytest.raises(DimensionMismatch, match=r"'b' at index 1: the embedding has shape"):
        CandidatePool([_candidate("a"), Candidate("b", embedding)])
    with pytest.raises(DimensionMismatch, match=r"'b' at index 0: the embedding has shape"):
        CandidatePool([Candidate("b", embedding)])


@pytest.mark.parametrize("embedding", ["text", None, {"x": 1.0}, ["a", "b"]])
def test_an_embedding_that_holds_no_numbers_is_named(embedding):
    """Forgetting to embed is told as such."""
    with pytest.raises(InvalidRequest, match=r"'b' at index 1"):
        CandidatePool([_candidate("a"), Candidate("b", embedding)])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_embedding_that_is_not_finite_is_named(value):
    """The message names candidate, index, component and value."""
    with pytest.raises(NonFiniteInput, match=rf"'b' at index 1: embedding\[1\] is {value}"):
        CandidatePool([_candidate("a"), _candidate("b", (0.0, value))])


def test_an_embedding_beyond_float32_is_named():
    """A float64 value that float32 cannot hold is reported, not turned into infinity."""
    with pytest.raises(FeatureError, match=r"'b' at index 1.*beyond float32.*scale it"):
        CandidatePool([_candidate("a"), Candidate("b", np.array([1e300, 0.0]))])


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("created_at", math.nan, NonFiniteInput),
        ("created_at", NOW * 1000.0, InvalidRequest),
        ("created_at", None, InvalidRequest),
        ("access_count", -1, InvalidRequest),
        ("access_count", math.inf, NonFiniteInput),
        ("access_count", 10**400, InvalidRequest),
        ("success_rate", 1.01, InvalidRequest),
        ("success_rate", -0.01, InvalidRequest),
        ("success_rate", math.nan, NonFiniteInput),
        ("success_rate", "high", InvalidRequest),
        ("price", -1.0, InvalidRequest),
        ("price", math.inf, NonFiniteInput),
        ("price", "cheap", InvalidRequest),
    ],
)
def test_a_statistic_out_of_range_is_named(name, value, kind):
    """The message names candidate, index, field, value and the range it has to be in."""
    with pytest.raises(InvalidRequest, match=rf"'b' at index 1: {name} is .*, expected a number from") as caught:
        CandidatePool([_candidate("a"), _candidate("b", **{name: value})])
    assert type(caught.value) is kind


def test_milliseconds_are_told_apart_from_seconds():
    """A creation time in milliseconds would make every candidate new; the message says which unit is meant."""
    with pytest.raises(InvalidRequest, match="Unix seconds, not milliseconds"):
        CandidatePool([_candidate(created_at=NOW * 1000.0)])


def test_a_query_of_another_dimension_is_named():
    """Query and candidates have to come from the same embedder."""
    with pytest.raises(DimensionMismatch, match=r"shape \(3,\).*length 2.*same embedder"):
        _features([_candidate()], query=(1.0, 0.0, 0.0))
    with pytest.raises(InvalidRequest, match="no vector of numbers"):
        extract_features("sort this list", CandidatePool([_candidate()]), now_s=NOW)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_query_that_is_not_finite_is_named(value):
    """The message names the component."""
    with pytest.raises(NonFiniteInput, match=rf"query_embedding\[1\] is {value}"):
        _features([_candidate()], query=(0.0, value))


def test_a_query_too_long_to_measure_is_named():
    """A float64 query whose length overflows gives an error, not a similarity of zero."""
    with pytest.raises(FeatureError, match="too long"):
        extract_features(np.array([1e300, 0.0]), CandidatePool([_candidate()]), now_s=NOW)


@pytest.mark.parametrize(("now_s", "kind"), [(math.nan, NonFiniteInput), (NOW * 1000.0, InvalidRequest)])
def test_a_time_that_is_none_is_refused(now_s, kind):
    """now_s is in seconds and finite."""
    with pytest.raises(kind, match="now_s"):
        extract_features(_vector(1.0, 0.0), CandidatePool([_candidate()]), now_s=now_s)


@pytest.mark.parametrize("weights", [(1.0,) * 4, (1.0, 1.0, 1.0, 1.0, math.nan)])
def test_weights_that_do_not_fit_are_refused(weights):
    """One finite weight per feature."""
    with pytest.raises(ConfigError, match="feature weights"):
        _features([_candidate()], weights=weights)
