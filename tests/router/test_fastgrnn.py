import math
from itertools import product

import numpy as np
import pytest

from router.errors import ConfigError, DimensionMismatch, NonFiniteInput
from router.fastgrnn import CompiledFastGRNN, FastGRNN, FastGRNNConfig

VARIANTS = [
    FastGRNNConfig(4, 5, 2, rank_w=rank_w, rank_u=rank_u, gate=gate, update=update)
    for gate, update, rank_w, rank_u in product(("sigmoid", "quantSigm"), ("tanh", "quantTanh"), (None, 2), (None, 3))
]


def _name(config):
    return f"{config.gate}-{config.update}-w{config.rank_w or 'full'}-u{config.rank_u or 'full'}"


every_variant = pytest.mark.parametrize("config", VARIANTS, ids=_name)


def _network(config, *, seed=1, dtype=np.float64):
    """A network away from its starting point, so that no two gradients are equal by symmetry."""
    network = FastGRNN.initialise(config, seed=seed, dtype=dtype)
    random = np.random.default_rng(seed)
    for array in network.parameters.values():
        array[...] += (0.3 * random.standard_normal(array.shape)).astype(dtype)
    return network


def _by_hand(network, sequence, state):
    """Equation 6 of the paper for one example, number by number, without numpy's arithmetic."""
    p, config = network.parameters, network.config
    W = p["W"] if config.rank_w is None else p["W1"] @ p["W2"]
    U = p["U"] if config.rank_u is None else p["U1"] @ p["U2"]

    def sigmoid(v):
        return 1.0 / (1.0 + math.exp(-v))

    def gate(v):
        return sigmoid(v) if config.gate == "sigmoid" else min(1.0, max(0.0, (v + 1.0) / 2.0))

    def update(v):
        return math.tanh(v) if config.update == "tanh" else min(1.0, max(-1.0, v))

    zeta, nu = sigmoid(p["zeta"][0]), sigmoid(p["nu"][0])
    states = []
    for x in sequence:
        following = []
        for j in range(config.hidden_size):
            a = sum(x[i] * W[i, j] for i in range(len(x))) + sum(state[i] * U[i, j] for i in range(len(state)))
            z, c = gate(a + p["bias_gate"][j]), update(a + p["bias_update"][j])
            following.append(z * state[j] + (zeta * (1.0 - z) + nu) * c)
        state = following
        states.append(state)
    return np.array(states)


@every_variant
def test_the_cell_is_the_published_one(config):
    """Every state of the plain forward pass is what equation 6 of the FastGRNN paper gives, from any initial state."""
    network, random = _network(config), np.random.default_rng(2)
    inputs, initial = random.standard_normal((3, 6, 4)), random.standard_normal((3, 5))
    trace = network.run(inputs, initial)
    for example in range(3):
        expected = _by_hand(network, inputs[example].tolist(), initial[example].tolist())
        np.testing.assert_allclose(trace.states[1:, example], expected, rtol=1e-13, atol=1e-14)
    head = trace.states[-1] @ network.parameters["head_weight"] + network.parameters["head_bias"]
    np.testing.assert_array_equal(trace.logits, head)


@every_variant
@pytest.mark.parametrize("lengths", [None, np.array([4, 2])], ids=["whole", "unequal"])
def test_gradients_agree_with_finite_differences(config, lengths):
    """Back-propagation through time gives every parameter, input and initial state its derivative to 1e-8 relative."""
    network, random = _network(config), np.random.default_rng(3)
    inputs, initial = random.standard_normal((2, 4, 4)), random.standard_normal((2, 5))
    logit_weights, state_weights = random.standard_normal((2, 2)), random.standard_normal((2, 4, 5))

    def loss():
        trace = network.run(inputs, initial, lengths)
        return float((trace.logits * logit_weights).sum() + (trace.states[1:].swapaxes(0, 1) * state_weights).sum())

    gradients = network.backward(network.run(inputs, initial, lengths), logit_weights, state_weights)
    arrays = {**network.parameters, "inputs": inputs, "initial": initial}
    analytic = {**gradients.parameters, "inputs": gradients.inputs, "initial": gradients.initial_state}
    assert set(analytic) == set(arrays)
    for name, array in arrays.items():
        numeric = np.empty_like(array)
        for index in np.ndindex(array.shape):
            numeric[index] = _slope(loss, array, index)
        error = np.linalg.norm(analytic[name] - numeric) / np.linalg.norm(numeric)
        assert error <= 1e-8, f"{name}: relative error {error:.1e}"


def _slope(loss, array, index, step=3e-4):
    """Richardson's five-point difference, accurate to the fourth power of the step."""
    centre = array[index]
    values = []
    for offset in (-2, -1, 1, 2):
        array[index] = centre + offset * step
        values.append(loss())
    array[index] = centre
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)


def _torch_cell(torch, config, p, lengths):
    """Equation 6 in plain PyTorch, differentiated by it: logits and the state after every step."""
    W = p["W"] if config.rank_w is None else p["W1"] @ p["W2"]
    U = p["U"] if config.rank_u is None else p["U1"] @ p["U2"]
    inputs, state, states = p["inputs"], p["initial"], []
    for t in range(inputs.shape[1]):
        a = inputs[:, t] @ W + state @ U
        gate, update = a + p["bias_gate"], a + p["bias_update"]
        z = torch.sigmoid(gate) if config.gate == "sigmoid" else torch.clamp((gate + 1.0) / 2.0, 0.0, 1.0)
        c = torch.tanh(update) if config.update == "tanh" else torch.clamp(update, -1.0, 1.0)
        following = z * state + (torch.sigmoid(p["zeta"]) * (1.0 - z) + torch.sigmoid(p["nu"])) * c
        state = torch.where((t < lengths)[:, None], following, state)
        states.append(state)
    return state @ p["head_weight"] + p["head_bias"], torch.stack(states, dim=1)


@every_variant
@pytest.mark.parametrize("lengths", [(12, 12, 12), (12, 1, 7)], ids=["whole", "unequal"])
def test_forward_and_gradients_are_those_of_pytorch(config, lengths):
    """In float64 PyTorch's states and logits are ours to 1e-10, and its gradients of everything to 1e-8."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (it is in the extra dev)")
    network, random = _network(config), np.random.default_rng(9)
    inputs, initial = random.standard_normal((3, 12, 4)), random.standard_normal((3, 5))
    logit_weights, state_weights = random.standard_normal((3, 2)), random.standard_normal((3, 12, 5))
    trace = network.run(inputs, initial, np.array(lengths))
    ours = network.backward(trace, logit_weights, state_weights)

    leaves = {"inputs": inputs, "initial": initial, **network.parameters}
    leaves = {name: torch.tensor(array, requires_grad=True) for name, array in leaves.items()}
    logits, states = _torch_cell(torch, config, leaves, torch.tensor(lengths))
    ((logits * torch.tensor(logit_weights)).sum() + (states * torch.tensor(state_weights)).sum()).backward()

    np.testing.assert_allclose(trace.logits, logits.detach().numpy(), rtol=0.0, atol=1e-10)
    np.testing.assert_allclose(trace.states[1:].swapaxes(0, 1), states.detach().numpy(), rtol=0.0, atol=1e-10)
    found = {"inputs": ours.inputs, "initial": ours.initial_state, **ours.parameters}
    for name, leaf in leaves.items():
        np.testing.assert_allclose(found[name], leaf.grad.numpy(), rtol=1e-8, atol=1e-8, err_msg=name)


@every_variant
def test_a_sequence_that_ends_early_is_as_if_it_were_alone(config):
    """In a batch of unequal lengths each one has the logits it has by itself, whatever stands after its end."""
    network, random = _network(config), np.random.default_rng(8)
    inputs, lengths = random.standard_normal((5, 6, 4)), np.array([3, 6, 1, 5, 2])
    alone = np.concatenate([network.run(inputs[i : i + 1, :n]).logits for i, n in enumerate(lengths)])
    for i, n in enumerate(lengths):
        inputs[i, n:] = 1e6
    trace = network.run(inputs, lengths=lengths)
    np.testing.assert_allclose(trace.logits, alone, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(CompiledFastGRNN(network).logits(inputs, lengths), alone, rtol=1e-12, atol=1e-13)
    gradient = network.backward(trace, np.ones((5, 2))).inputs
    for i, n in enumerate(lengths):
        assert (gradient[i, n:] == 0.0).all()


@pytest.mark.parametrize(
    "lengths", [np.array([1, 2]), np.array([0, 1, 2]), np.array([1, 2, 3]), np.array([1.0, 1.0, 1.0])]
)
def test_lengths_that_do_not_fit_are_refused(lengths):
    """One whole number from 1 to the time axis per sequence, in both passes; the message says what was expected."""
    network = _network(VARIANTS[0])
    for forward in (lambda x: network.run(x, lengths=lengths), lambda x: CompiledFastGRNN(network).logits(x, lengths)):
        with pytest.raises(DimensionMismatch, match=r"lengths are .*expected"):
            forward(np.zeros((3, 2, 4)))


def test_large_numbers_are_finite():
    """What is large but finite is not taken for infinity, even where its square is too large for float32."""
    for width in (4, 40):
        network = _network(FastGRNNConfig(width, 5), dtype=np.float32)
        large = np.full((1, 2, width), 1e25, np.float32)
        assert np.isfinite(CompiledFastGRNN(network).logits(large)).all()


def test_a_gradient_with_respect_to_logits_alone_needs_no_state_gradient():
    """Leaving out the state gradient is the same as passing zeros."""
    network, random = _network(VARIANTS[0]), np.random.default_rng(4)
    trace = network.run(random.standard_normal((2, 3, 4)))
    logit_gradient = random.standard_normal((2, 2))
    bare = network.backward(trace, logit_gradient).parameters
    padded = network.backward(trace, logit_gradient, np.zeros((2, 3, 5))).parameters
    for name, gradient in bare.items():
        np.testing.assert_array_equal(gradient, padded[name])


@every_variant
@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 2e-5)])
def test_the_serving_pass_gives_the_logits_of_the_plain_pass(config, steps, dtype, tolerance):
    """Folding gate, candidate and normalisation together changes nothing but the rounding."""
    network, random = _network(config, dtype=dtype), np.random.default_rng(5)
    mean, std = random.standard_normal(4), random.uniform(0.5, 2.0, 4)
    inputs = random.standard_normal((9, steps, 4))
    compiled = CompiledFastGRNN(network, mean, std)
    expected = _network(config).run((inputs - mean) / std).logits
    logits = compiled.logits(inputs)
    assert logits.dtype == dtype
    np.testing.assert_allclose(logits, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("zeta", "nu"), [(-200.0, -4.0), (-200.0, -200.0), (-15.0, 3.0), (20.0, 20.0)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-5)])
def test_the_serving_pass_holds_for_any_zeta_and_nu(zeta, nu, dtype, tolerance):
    """Counting the state in units of σ(zeta) does no harm where that is all but zero, or one."""
    network, inputs = _network(VARIANTS[0], dtype=dtype), np.random.default_rng(7).standard_normal((5, 9, 4))
    exact = _network(VARIANTS[0])
    for each in (network, exact):
        each.parameters["zeta"][...], each.parameters["nu"][...] = zeta, nu
    np.testing.assert_allclose(
        CompiledFastGRNN(network).logits(inputs), exact.run(inputs).logits, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("rank", [None, 3, 40])
def test_wide_inputs_take_the_thin_way_to_the_same_logits(rank):
    """With many features W is applied in two thin factors, with a high rank in one; the result is the same."""
    config = FastGRNNConfig(120, 6, 1, rank_w=rank, rank_u=rank)
    network, inputs = _network(config), np.random.default_rng(6).standard_normal((4, 3, 120))
    np.testing.assert_allclose(
        CompiledFastGRNN(network).logits(inputs), network.run(inputs).logits, rtol=1e-11, atol=1e-12
    )


def test_a_compiled_network_keeps_what_it_was_compiled_from():
    """Training the network further does not change one that is already serving."""
    network, inputs = _network(VARIANTS[0]), np.ones((1, 2, 4))
    compiled = CompiledFastGRNN(network)
    before = compiled.logits(inputs)
    for array in network.parameters.values():
        array[...] += 1.0
    np.testing.assert_array_equal(compiled.logits(inputs), before)


@pytest.mark.parametrize(
    ("dataset", "config", "kib"),
    [
        ("Google-12", FastGRNNConfig(32, 100, 12), 57.1),
        ("HAR-2", FastGRNNConfig(9, 80, 2), 29.1),
        ("Pixel-MNIST", FastGRNNConfig(1, 128, 10), 70.5),
        ("Wakeword-2", FastGRNNConfig(32, 32, 2), 8.5),
    ],
)
def test_model_sizes_are_those_of_the_paper(dataset, config, kib):
    """With four bytes a parameter the uncompressed models have the sizes that the paper prints (57, 29, 71, 8 KB)."""
    assert round(4 * config.parameter_count / 1024, 1) == kib, dataset


def test_parameter_counts_are_those_of_the_reference_implementation():
    """DH + H² + 2H + 2 with HL + L for the classifier; r(D + H) + 2rH in the place of the matrices for low rank."""
    full, low = FastGRNNConfig(16, 32, 10), FastGRNNConfig(16, 32, 10, rank_w=5, rank_u=5)
    assert (full.parameter_count, low.parameter_count) == (1932, 956)  # the USPS example of EdgeML
    assert FastGRNNConfig(5, 8).parameter_count == 131  # the router's own
    for config in (full, low):
        network = FastGRNN.initialise(config, seed=0)
        assert sum(array.size for array in network.parameters.values()) == config.parameter_count


def test_initial_values_are_the_authors():
    """Biases 1, zeta 1 and nu -4 before the sigmoid (0.731 and 0.018 after), matrices of standard deviation 0.1."""
    network = FastGRNN.initialise(FastGRNNConfig(40, 60), seed=0, dtype=np.float64)
    p = network.parameters
    assert (p["zeta"][0], p["nu"][0]) == (1.0, -4.0)
    assert (p["bias_gate"] == 1.0).all()
    assert (p["bias_update"] == 1.0).all()
    assert 0.095 < p["U"].std() < 0.105
    assert 0.095 < p["W"].std() < 0.105


def test_clipped_functions_begin_where_smooth_ones_do():
    """Without input, quantSigm and quantTanh begin at σ(1) and tanh(1), and with some few of them are clipped."""
    smooth, clipped = (
        FastGRNN.initialise(FastGRNNConfig(16, 32, gate=gate, update=update), seed=0, dtype=np.float64)
        for gate, update in (("sigmoid", "tanh"), ("quantSigm", "quantTanh"))
    )
    nothing = np.zeros((1, 1, 16))
    np.testing.assert_allclose(clipped.run(nothing).gates, smooth.run(nothing).gates, atol=1e-15)
    np.testing.assert_allclose(clipped.run(nothing).updates, smooth.run(nothing).updates, atol=1e-15)
    trace = clipped.run(np.random.default_rng(0).uniform(0.0, 0.5, (100, 16, 16)))
    assert np.isin(trace.gates, (0.0, 1.0)).mean() < 0.1
    assert (np.abs(trace.updates) == 1.0).mean() < 0.2


def test_the_same_seed_gives_the_same_network_and_another_seed_another():
    """Initialisation depends on the seed and on nothing else."""
    first, same, other = (FastGRNN.initialise(VARIANTS[3], seed=seed).parameters for seed in (7, 7, 8))
    assert all((first[name] == same[name]).all() for name in first)
    assert (first["W"] != other["W"]).any() if "W" in first else (first["W1"] != other["W1"]).any()


def test_an_empty_batch_gives_no_logits():
    """A batch of none is a batch: the shapes stay right."""
    network = _network(VARIANTS[0])
    assert network.run(np.empty((0, 3, 4))).logits.shape == (0, 2)
    assert CompiledFastGRNN(network).logits(np.empty((0, 3, 4))).shape == (0, 2)


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 5), (3, 0, 4), (4,)])
def test_inputs_of_the_wrong_shape_are_named(shape):
    """Both passes refuse what is not (batch, time, features) and say what they got and expected."""
    network = _network(VARIANTS[0])
    for forward in (network.run, CompiledFastGRNN(network).logits):
        with pytest.raises(DimensionMismatch, match=r"has shape .*expected \(batch, time >= 1, features = 4\)"):
            forward(np.zeros(shape))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_inputs_that_are_not_finite_are_named_by_place(value):
    """NaN and infinity never reach the state, where tanh would hide them; the message says where they stood."""
    for width in (4, 40):  # the serving pass looks at narrow inputs themselves, at wide ones after the product with W
        network, inputs = _network(FastGRNNConfig(width, 5)), np.zeros((3, 2, width))
        inputs[2, 1, 3] = value
        for forward in (network.run, CompiledFastGRNN(network).logits):
            with pytest.raises(NonFiniteInput, match=r"input\[2, 1, 3\]"):
                forward(inputs)


def test_an_initial_state_of_the_wrong_shape_is_refused():
    """The initial state has to fit the batch."""
    with pytest.raises(DimensionMismatch, match="initial state"):
        _network(VARIANTS[0]).run(np.zeros((3, 2, 4)), np.zeros((2, 5)))


def test_parameters_that_do_not_fit_are_named():
    """A network is not built from missing, foreign, misshapen, mistyped or non-finite parameters."""
    config = FastGRNNConfig(4, 5)
    good = FastGRNN.initialise(config, seed=0).parameters
    with pytest.raises(DimensionMismatch, match=r"missing \['U'\]"):
        FastGRNN(config, {name: array for name, array in good.items() if name != "U"})
    with pytest.raises(DimensionMismatch, match=r"not expected \['V'\]"):
        FastGRNN(config, good | {"V": good["U"]})
    with pytest.raises(DimensionMismatch, match=r"W is float32\(5, 4\), expected float32\(4, 5\)"):
        FastGRNN(config, good | {"W": good["W"].T})
    with pytest.raises(DimensionMismatch, match="zeta is float64"):
        FastGRNN(config, good | {"zeta": good["zeta"].astype(np.float64)})
    with pytest.raises(NonFiniteInput, match="bias_gate"):
        FastGRNN(config, good | {"bias_gate": np.full(5, math.nan, np.float32)})
    with pytest.raises(ConfigError, match="float16"):
        FastGRNN(config, {name: array.astype(np.float16) for name, array in good.items()})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"input_size": 0}, "input_size"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"output_size": True}, "output_size"),
        ({"rank_w": 0}, "rank_w"),
        ({"rank_u": 1.5}, "rank_u"),
        ({"gate": "relu"}, "gate"),
        ({"update": "sigmoid"}, "update"),
    ],
)
def test_settings_out_of_range_are_named(settings, named):
    """A configuration that cannot be a FastGRNN is refused where it is made."""
    with pytest.raises(ConfigError, match=named):
        FastGRNNConfig(**({"input_size": 4, "hidden_size": 5} | settings))
