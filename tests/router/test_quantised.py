import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from router.errors import ConfigError, DimensionMismatch, NonFiniteInput, TrainingError
from router.fastgrnn import FastGRNN, FastGRNNConfig
from router.quantised import ONE, IntegerFastGRNN, QuantisedMatrix, Ranges, quantised_weights

FULL = FastGRNNConfig(6, 10, 3, gate="quantSigm", update="quantTanh")
LOW = FastGRNNConfig(6, 10, 3, rank_w=3, rank_u=4, gate="quantSigm", update="quantTanh")


def _network(config, seed=1):
    """A network away from its starting point, whose state outgrows one."""
    network = FastGRNN.initialise(config, seed=seed)
    random = np.random.default_rng(seed)
    for array in network.parameters.values():
        array[...] += (0.3 * random.standard_normal(array.shape)).astype(np.float32)
    network.parameters["bias_gate"][...] -= 0.6
    network.parameters["nu"][...] += 4.0
    return network


def _inputs(count=200, steps=12, seed=2):
    return np.random.default_rng(seed).standard_normal((count, steps, 6)).astype(np.float32)


@given(
    arrays(np.float32, array_shapes(min_dims=2, max_dims=2), elements=st.floats(-1e6, 1e6, width=32)),
    st.sampled_from(["tensor", "column"]),
)
def test_rounding_errs_by_half_a_scale_at_most(matrix, per):
    """Every entry comes back within half of its scale, whatever the matrix, and zero as zero."""
    quantised = QuantisedMatrix.of(matrix, per=per)
    error = np.abs(quantised.restored().astype(np.float64) - matrix)
    assert (error <= 0.5001 * quantised.scales.astype(np.float64) + 1e-37).all()
    assert (quantised.values[matrix == 0.0] == 0).all()
    assert len(quantised.scales) == (1 if per == "tensor" else matrix.shape[1])


def test_rounding_is_to_the_nearest_and_half_to_even():
    """The largest magnitude becomes 127; halves go to the even neighbour, as IEEE 754 rounds."""
    matrix = np.array([[127.0], [0.5], [1.5], [2.5], [-0.5], [-1.5], [3.4], [-3.6]])
    assert QuantisedMatrix.of(matrix).values[:, 0].tolist() == [127, 0, 2, 2, 0, -2, 3, -4]


@pytest.mark.parametrize("value", [0.0, 3.7, -3.7, 1e-30, -1e30])
@pytest.mark.parametrize("per", ["tensor", "column"])
def test_a_constant_matrix_comes_back_as_it_was(value, per):
    """A matrix of one value, zero included, has a usable scale and loses nothing but float32's own rounding."""
    matrix = np.full((4, 3), value, np.float32)
    np.testing.assert_allclose(QuantisedMatrix.of(matrix, per=per).restored(), matrix, rtol=1e-6)


def test_a_scale_per_column_is_finer_where_columns_differ():
    """A column of small numbers keeps its precision beside one of large numbers."""
    matrix = np.random.default_rng(0).standard_normal((50, 2)) * [1.0, 1e-3]
    errors = [
        np.abs(QuantisedMatrix.of(matrix, per=per).restored() - matrix)[:, 1].max() for per in ("tensor", "column")
    ]
    assert errors[1] < errors[0] / 100


def test_what_cannot_be_quantised_is_refused():
    """A vector, NaN, a foreign dtype, scales that do not fit or are not positive: each error says what is wrong."""
    with pytest.raises(DimensionMismatch, match="no matrix"):
        QuantisedMatrix.of(np.zeros(3))
    with pytest.raises(NonFiniteInput, match="train the network again"):
        QuantisedMatrix.of(np.array([[math.nan]]))
    with pytest.raises(DimensionMismatch, match=r"expected int8 \(rows, columns\)"):
        QuantisedMatrix(np.zeros((2, 3)), np.ones(3, np.float32))
    with pytest.raises(DimensionMismatch, match=r"scales \(3,\) or \(1,\)"):
        QuantisedMatrix(np.zeros((2, 3), np.int8), np.ones(2, np.float32))
    with pytest.raises(ConfigError, match="quantise anew"):
        QuantisedMatrix(np.zeros((2, 3), np.int8), np.zeros(3, np.float32))


@pytest.mark.parametrize("config", [FULL, LOW], ids=["full", "low"])
@pytest.mark.parametrize("per", ["tensor", "column"])
def test_integers_follow_the_floating_point_network(config, per):
    """Logits in integers are those of the network within a few hundredths of their spread, the same class mostly."""
    network, inputs = _network(config), _inputs()
    expected = network.run(inputs).logits
    integer = IntegerFastGRNN.calibrate(network, inputs, per=per)
    found = integer.logits(inputs)
    assert integer.ranges.state > 1.5
    assert np.abs(found - expected).mean() < 0.05 * expected.std()
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.95


def _by_hand(integer, sequence):
    """The integer pass for one example in Python's own unbounded integers, number by number."""

    def rescaled(value, factor):
        mantissa, exponent = math.frexp(factor)
        return (value * round(mantissa * 2**31) + (1 << (30 - exponent))) >> (31 - exponent)

    def held(value, bound):
        return max(-bound, min(bound, value))

    def times(row, name, scale, between):
        names = [name] if name in integer.matrices else [f"{name}1", f"{name}2"]
        targets = [1 / ONE] if len(names) == 1 else [between / 127, 1 / ONE]
        for part, target in zip(names, targets, strict=True):
            matrix = integer.matrices[part]
            sums = [
                sum(row[i] * int(matrix.values[i, j]) for i in range(len(row))) for j in range(matrix.values.shape[1])
            ]
            row = [rescaled(total, float(matrix.scales[j]) * (scale / target)) for j, total in enumerate(sums)]
            if part != names[-1]:
                row = [held(value, 127) for value in row]
                scale = target
        return row

    ranges, vectors = integer.ranges, integer.vectors
    state_scale = ranges.state / (127 * 256)
    zeta, nu = (round(ONE / (1 + math.exp(-float(vectors[name][0])))) for name in ("zeta", "nu"))
    state = [0] * integer.config.hidden_size
    for t, x in enumerate(sequence):
        row = [held(round(float(np.float32(v) / (ranges.inputs / 127))), 127) for v in x]
        a = times(row, "W", ranges.inputs / 127, ranges.between_w)
        if t:
            small = [held((h + 128) >> 8, 127) for h in state]
            a = [p + q for p, q in zip(a, times(small, "U", state_scale * 256, ranges.between_u), strict=True)]
        following = []
        for j, h in enumerate(state):
            z = max(0, min(ONE, (a[j] + round(float(vectors["bias_gate"][j]) * ONE) + ONE + 1) >> 1))
            c = held(a[j] + round(float(vectors["bias_update"][j]) * ONE), ONE)
            share = ((zeta * (ONE - z) + ONE // 2) >> 14) + nu
            new = ((z * h + ONE // 2) >> 14) + rescaled(share * c, 1.0 / (ONE * ONE * state_scale))
            following.append(held(new, 127 * 256))
        state = following
    return state


@pytest.mark.parametrize("config", [FULL, LOW], ids=["full", "low"])
def test_the_integer_pass_is_exact(config):
    """Its state is, bit for bit, what unbounded integers give: no sum overflows and no float has a say on the way."""
    integer = IntegerFastGRNN.calibrate(_network(config), _inputs())
    inputs = _inputs(4, seed=3)
    found = integer.states(inputs)
    assert found.dtype == np.int16
    for example in range(4):
        assert found[example].tolist() == _by_hand(integer, inputs[example])


def test_sums_of_many_terms_are_exact():
    """Past 1,040 terms, where float32 would round, the sums are still those of integers."""
    config = FastGRNNConfig(3000, 2, gate="quantSigm", update="quantTanh")
    network = _network(config)
    network.parameters["W"][...] = np.random.default_rng(1).uniform(0.5, 1.0, (3000, 2)) * 1e-4
    inputs = np.abs(np.random.default_rng(2).standard_normal((1, 2, 3000))).astype(np.float32)
    integer = IntegerFastGRNN.calibrate(network, inputs)
    assert integer.states(inputs)[0].tolist() == _by_hand(integer, inputs[0])


def test_a_number_beyond_its_calibrated_range_is_held_at_the_bound():
    """Inputs and states larger than those of the calibration saturate; nothing wraps around."""
    network = _network(FULL)
    integer = IntegerFastGRNN.calibrate(network, 0.1 * _inputs())
    found = integer.states(100.0 * _inputs(20))
    assert np.abs(found.astype(int)).max() <= 127 * 256
    assert np.isfinite(integer.logits(100.0 * _inputs(20))).all()


def test_ranges_are_the_largest_magnitudes_on_the_examples():
    """Input, state and what lies between two factors: each range is a maximum that really occurred."""
    network, inputs = _network(LOW), _inputs(20)
    trace, ranges = network.run(inputs), Ranges.of(network, inputs)
    p = network.parameters
    assert ranges.inputs == np.abs(inputs).max()
    assert ranges.state == np.abs(trace.states).max()
    assert ranges.between_w == np.abs(trace.inputs @ p["W1"]).max()
    assert ranges.between_u == np.abs(trace.states @ p["U1"]).max()
    assert Ranges.of(_network(FULL), inputs)[2:] == (0.0, 0.0)


@pytest.mark.parametrize("config", [FULL, LOW], ids=["full", "low"])
@pytest.mark.parametrize("per", ["tensor", "column"])
def test_what_is_stored_gives_the_same_network_again(config, per):
    """Through its arrays a quantised network comes back bit for bit, in little more than a byte a number."""
    integer = IntegerFastGRNN.calibrate(_network(config), _inputs(), per=per)
    again = IntegerFastGRNN.from_tensors(config, integer.to_tensors())
    np.testing.assert_array_equal(again.states(_inputs(30)), integer.states(_inputs(30)))
    np.testing.assert_array_equal(again.logits(_inputs(30)), integer.logits(_inputs(30)))
    matrices = sum(math.prod(shape) for shape in config.shapes.values() if len(shape) == 2)
    assert integer.size_bytes < matrices + 4 * (config.parameter_count - matrices) + 4 * 50 + 16


def test_arrays_that_are_no_quantised_network_are_refused():
    """A missing or foreign array, or one of another shape, is named by what was expected."""
    tensors = IntegerFastGRNN.calibrate(_network(FULL), _inputs()).to_tensors()
    with pytest.raises(DimensionMismatch, match=r"expected .*'ranges'"):
        IntegerFastGRNN.from_tensors(FULL, {name: array for name, array in tensors.items() if name != "ranges"})
    with pytest.raises(DimensionMismatch, match="do not fit"):
        IntegerFastGRNN.from_tensors(FULL, tensors | {"bias_gate": np.zeros(3, np.float32)})
    with pytest.raises(ConfigError, match="calibrate on real inputs"):
        IntegerFastGRNN.from_tensors(FULL, tensors | {"ranges": np.array([0.0, 1.0, 0.0, 0.0], np.float32)})


def test_only_what_integers_can_follow_is_taken():
    """A network of sigmoid or tanh is refused with what to do instead; so is a calibration without inputs."""
    for gate, update in product(("sigmoid", "quantSigm"), ("tanh", "quantTanh")):
        if (gate, update) != ("quantSigm", "quantTanh"):
            network = FastGRNN.initialise(FastGRNNConfig(6, 4, gate=gate, update=update), seed=0)
            with pytest.raises(ConfigError, match=r"quantised_weights"):
                IntegerFastGRNN.calibrate(network, _inputs(3))
    with pytest.raises(TrainingError, match="without inputs"):
        IntegerFastGRNN.calibrate(_network(FULL), np.empty((0, 3, 6)))
    integer = IntegerFastGRNN.calibrate(_network(FULL), _inputs(3))
    with pytest.raises(DimensionMismatch, match="features = 6"):
        integer.logits(np.zeros((2, 3, 5)))
    with pytest.raises(NonFiniteInput):
        integer.logits(np.full((2, 3, 6), np.nan))


def test_weights_alone_can_be_rounded_for_any_network():
    """Rounded to eight bits and back, a network of sigmoid and tanh gives nearly the same logits, in float32."""
    network = _network(FastGRNNConfig(6, 10, 3, rank_u=4))
    rounded = quantised_weights(network)
    assert rounded.config == network.config
    expected, found = network.run(_inputs()).logits, rounded.run(_inputs()).logits
    assert 0.0 < np.abs(found - expected).mean() < 0.02 * expected.std()
    np.testing.assert_array_equal(rounded.parameters["bias_gate"], network.parameters["bias_gate"])
