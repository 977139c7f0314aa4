"""FastGRNN, the gated recurrent cell of Kusupati et al. (NeurIPS 2018, equation 6), with a linear classifier.

One pair of matrices serves gate and candidate, which differ in their biases alone::

    a  = x W + h U
    z  = gate(a + bias_gate)
    c  = update(a + bias_update)
    h' = z ⊙ h + (σ(zeta)·(1 - z) + σ(nu)) ⊙ c

``zeta`` and ``nu`` are two trained scalars kept *before* the sigmoid. ``W`` and ``U`` may each be a product of two thin
matrices. The last state goes through a linear classifier; what it gives are logits. The state is not bounded by one.

There are two forward passes, on purpose. `FastGRNN.run` follows the equations, keeps every intermediate value and is
what training differentiates. `CompiledFastGRNN` is for serving: since σ(v) = ½ + ½·tanh(v/2), the gate's pre-activation
halved and laid above the candidate's lets one ``tanh`` over ``2·hidden`` rows do both, and a normalisation of the
input goes into ``W`` and the biases. With quantSigm and quantTanh the same holds for one ``clip``, without the halving.
Its arrays have examples side by side, not one below the other: gate and candidate are whole blocks of memory then, over
which every pass is one loop. Each step is one product with ``[W | biases | U]``; wide inputs are made narrow before,
for all steps at once. On a hundred candidates, one step, that takes a quarter less time than onnxruntime.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np

from router.errors import ConfigError, DimensionMismatch, NonFiniteInput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import DTypeLike, NDArray

    Array = NDArray[np.floating[Any]]

__all__ = ["CompiledFastGRNN", "FastGRNN", "FastGRNNConfig", "Gate", "Gradients", "Trace", "Update"]

Gate = Literal["sigmoid", "quantSigm"]
Update = Literal["tanh", "quantTanh"]


@dataclass(frozen=True, slots=True)
class FastGRNNConfig:
    """The shape and non-linearities of a FastGRNN.

    ``rank_w`` and ``rank_u`` are None for full matrices, or the inner dimension of ``W = W1 W2`` and ``U = U1 U2``.
    ``quantSigm(v) = clip((v + 1)/2, 0, 1)`` and ``quantTanh(v) = clip(v, -1, 1)`` are the piecewise linear forms that
    integer arithmetic can follow. Raises ConfigError for a size or rank below 1 or an unknown non-linearity.
    """

    input_size: int
    hidden_size: int
    output_size: int = 1
    rank_w: int | None = None
    rank_u: int | None = None
    gate: Gate = "sigmoid"
    update: Update = "tanh"

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("input_size", "hidden_size", "output_size", "rank_w", "rank_u"):
            value = getattr(self, name)
            if value is None and name.startswith("rank_"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"FastGRNN {name} is {value!r}: use a whole number of at least 1")
        for name, known in (("gate", _GATE_SLOPES), ("update", _UPDATE_SLOPES)):
            if getattr(self, name) not in known:
                raise ConfigError(f"FastGRNN {name} is {getattr(self, name)!r}: use one of {', '.join(known)}")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter by name."""
        d, h, labels = self.input_size, self.hidden_size, self.output_size
        return {
            **_matrix_shapes("W", d, h, self.rank_w),
            **_matrix_shapes("U", h, h, self.rank_u),
            "bias_gate": (h,),
            "bias_update": (h,),
            "zeta": (1,),
            "nu": (1,),
            "head_weight": (h, labels),
            "head_bias": (labels,),
        }

    @property
    def parameter_count(self) -> int:
        """How many numbers are trained, the classifier's included."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())


class Trace(NamedTuple):
    """What a forward pass keeps for the backward pass; arrays of states are time-major."""

    inputs: Array
    """(time, batch, features)"""
    states: Array
    """(time + 1, batch, hidden), the initial state first"""
    gates: Array
    """z, (time, batch, hidden)"""
    updates: Array
    """c, (time, batch, hidden)"""
    logits: Array
    """(batch, outputs)"""
    running: NDArray[np.bool_] | None = None
    """Whether a sequence goes on at a step, (time, batch); None when all last to the end"""


class Gradients(NamedTuple):
    """Derivatives of the loss with respect to the parameters, by name, the input and the initial state."""

    parameters: dict[str, Array]
    inputs: Array
    """(batch, time, features)"""
    initial_state: Array
    """(batch, hidden)"""


class FastGRNN:
    """The cell and its classifier as trained: parameters by name, all of one dtype, float32 or float64.

    The arrays in ``parameters`` may be changed in place (training does); their names and shapes are ``config.shapes``.
    Raises DimensionMismatch for a missing, foreign or misshapen parameter, NonFiniteInput for NaN or infinity,
    ConfigError for another dtype.
    """

    __slots__ = ("config", "parameters")

    def __init__(self, config: FastGRNNConfig, parameters: Mapping[str, Array]) -> None:
        """Take ``parameters`` as they are, without copying, after checking them against ``config``."""
        shapes = config.shapes
        if set(parameters) != set(shapes):
            missing, foreign = sorted(set(shapes) - set(parameters)), sorted(set(parameters) - set(shapes))
            raise DimensionMismatch(
                f"FastGRNN parameters do not fit the configuration: missing {missing}, not expected {foreign}"
            )
        dtype = parameters["head_bias"].dtype
        if dtype not in (np.float32, np.float64):
            raise ConfigError(f"FastGRNN parameters are {dtype}: use float32 or float64")
        for name, shape in shapes.items():
            array = parameters[name]
            if array.shape != shape or array.dtype != dtype:
                raise DimensionMismatch(
                    f"FastGRNN parameter {name} is {array.dtype}{array.shape}, expected {dtype}{shape}"
                )
            if not np.isfinite(array).all():
                raise NonFiniteInput(f"FastGRNN parameter {name} holds NaN or infinity: train or load the model again")
        self.config = config
        self.parameters = {name: parameters[name] for name in shapes}

    @classmethod
    def initialise(cls, config: FastGRNNConfig, *, seed: int, dtype: DTypeLike = np.float32) -> Self:
        """Return an untrained network: matrices 0.1·N(0, 1), biases 1, zeta 1, nu -4, as the authors' code starts.

        The classifier starts at N(0, 1/hidden) with bias 0. The same seed gives the same numbers.
        """
        random = np.random.default_rng(seed)
        constants = {"bias_gate": 1.0, "bias_update": 1.0, "zeta": 1.0, "nu": -4.0, "head_bias": 0.0}
        parameters = {}
        for name, shape in config.shapes.items():
            if name in constants:
                parameters[name] = np.full(shape, constants[name], dtype=dtype)
            else:
                scale = 0.1 if name != "head_weight" else config.hidden_size**-0.5
                parameters[name] = (scale * random.standard_normal(shape)).astype(dtype)
        return cls(config, parameters)

    def __repr__(self) -> str:
        """Show the configuration, the number of parameters and their dtype."""
        return f"FastGRNN({self.config}, {self.config.parameter_count} parameters, {self.dtype})"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of all parameters and results."""
        return self.parameters["head_bias"].dtype

    def run(
        self, inputs: Array, initial_state: Array | None = None, lengths: NDArray[np.integer[Any]] | None = None
    ) -> Trace:
        """Follow the equations over ``inputs`` of shape (batch, time, features) and keep all there was on the way.

        ``initial_state`` has shape (batch, hidden), zero when left out. ``lengths``, whole numbers from 1 to time of
        shape (batch,), say where each sequence ends: its state stays as it is then, whatever finite numbers follow.
        Raises DimensionMismatch for shapes or lengths that do not fit, NonFiniteInput for NaN or infinity.
        """
        parameters = self.parameters
        sequence = _shaped(inputs, self.config.input_size, self.dtype)
        _check_finite(sequence)
        sequence = np.ascontiguousarray(sequence.swapaxes(0, 1))
        steps, batch, _ = sequence.shape
        running = None if lengths is None else _running(lengths, batch, steps)
        hidden = self.config.hidden_size
        states = np.zeros((steps + 1, batch, hidden), dtype=self.dtype)
        if initial_state is not None:
            if initial_state.shape != (batch, hidden):
                raise DimensionMismatch(
                    f"the initial state has shape {initial_state.shape}, expected (batch, hidden) = {(batch, hidden)}"
                )
            states[0] = initial_state
        gates, updates = np.empty_like(states[1:]), np.empty_like(states[1:])
        gate = _sigmoid if self.config.gate == "sigmoid" else _quant_sigm
        update = np.tanh if self.config.update == "tanh" else _quant_tanh
        zeta, nu = _sigmoid(parameters["zeta"]), _sigmoid(parameters["nu"])
        projected = _times(sequence, parameters, "W")
        for t in range(steps):
            a = projected[t] + _times(states[t], parameters, "U")
            gates[t] = gate(a + parameters["bias_gate"])
            updates[t] = update(a + parameters["bias_update"])
            if running is not None:  # an open gate and no update: the state stays, exactly
                gates[t, ~running[t]], updates[t, ~running[t]] = 1.0, 0.0
            states[t + 1] = gates[t] * states[t] + (zeta * (1.0 - gates[t]) + nu) * updates[t]
        logits = states[-1] @ parameters["head_weight"] + parameters["head_bias"]
        return Trace(sequence, states, gates, updates, logits, running)

    def backward(
        self,
        trace: Trace,
        logit_gradient: Array,
        state_gradient: Array | None = None,
    ) -> Gradients:
        """Return the gradients of a loss by back-propagation through all time steps of ``trace``.

        ``logit_gradient`` is the loss's derivative with respect to the logits, shape (batch, outputs);
        ``state_gradient``, where the loss also depends on the states themselves, has shape (batch, time, hidden).
        """
        parameters = self.parameters
        zeta, nu = _sigmoid(parameters["zeta"]), _sigmoid(parameters["nu"])
        gate_slope, update_slope = _GATE_SLOPES[self.config.gate], _UPDATE_SLOPES[self.config.update]
        gradients = {name: np.zeros_like(array) for name, array in parameters.items()}
        gradients["head_weight"] = trace.states[-1].T @ logit_gradient
        gradients["head_bias"] = logit_gradient.sum(axis=0)
        d_state = logit_gradient @ parameters["head_weight"].T
        d_activations = np.empty_like(trace.gates)
        for t in reversed(range(len(trace.gates))):
            if state_gradient is not None:
                d_state = d_state + state_gradient[:, t]
            z, c, h = trace.gates[t], trace.updates[t], trace.states[t]
            d_gate = d_state * (h - zeta * c) * gate_slope(z)
            d_update = d_state * (zeta * (1.0 - z) + nu) * update_slope(c)
            if trace.running is not None:  # the slope of the gate is 0 there by itself
                d_update[~trace.running[t]] = 0.0
            gradients["bias_gate"] += d_gate.sum(axis=0)
            gradients["bias_update"] += d_update.sum(axis=0)
            gradients["zeta"] += (d_state * (1.0 - z) * c).sum()
            gradients["nu"] += (d_state * c).sum()
            d_activations[t] = d_gate + d_update
            d_state = d_state * z + _times_transposed(d_activations[t], parameters, "U")
        gradients["zeta"] *= zeta * (1.0 - zeta)
        gradients["nu"] *= nu * (1.0 - nu)
        gradients |= _matrix_gradients(parameters, "W", trace.inputs, d_activations)
        gradients |= _matrix_gradients(parameters, "U", trace.states[:-1], d_activations)
        d_inputs = _times_transposed(d_activations, parameters, "W").swapaxes(0, 1)
        return Gradients(gradients, d_inputs, d_state)


class CompiledFastGRNN:
    """A trained FastGRNN laid out for serving; immutable, safe to share between threads.

    ``mean`` and ``std``, shape (features,), normalise the input as (x - mean) / std; they cost nothing per call.
    Results agree with `FastGRNN.run` to rounding.
    """

    __slots__ = (
        "_first",
        "_first_matrix",
        "_half",
        "_head_bias",
        "_head_weight",
        "_matrix",
        "_narrow_input",
        "_narrow_state",
        "_one",
        "_slope",
        "_squash",
        "config",
        "dtype",
    )

    def __init__(
        self,
        network: FastGRNN,
        mean: Array | None = None,
        std: Array | None = None,
    ) -> None:
        """Fold ``network`` and the normalisation in float64, then keep the network's dtype."""
        self.config = config = network.config
        self.dtype = network.dtype
        p = {name: array.astype(np.float64) for name, array in network.parameters.items()}
        # The state is kept in units of half of σ(zeta), which no float32 can lose; see `_advance`.
        unit, nu = 0.5 * max(float(_sigmoid(p["zeta"])[0]), 1e-20), float(_sigmoid(p["nu"])[0])
        scale = np.ones((config.input_size, 1)) if std is None else 1.0 / np.asarray(std, dtype=np.float64)[:, None]
        narrow_input, from_input = _narrowest(p, "W", scale)
        narrow_state, from_state = _narrowest(p, "U", unit)
        shift = 0.0 if mean is None else _times(np.asarray(mean, dtype=np.float64) * scale[:, 0], p, "W")
        # The gate's half of the rows; see the head of this module.
        gate_scale = 0.5 if config.gate == "sigmoid" else 1.0
        rows = [
            factor * np.vstack([from_input, p[bias] - shift, from_state]).T
            for factor, bias in ((gate_scale, "bias_gate"), (1.0, "bias_update"))
        ]
        self._matrix = np.vstack(rows).astype(self.dtype)
        self._first_matrix = np.ascontiguousarray(self._matrix[:, : len(from_input) + 1])
        self._narrow_input = None if narrow_input is None else narrow_input.astype(self.dtype)
        self._narrow_state = None if narrow_state is None else narrow_state.T.astype(self.dtype)
        self._head_weight = (unit * p["head_weight"]).astype(self.dtype)
        self._head_bias = network.parameters["head_bias"].copy()
        # As arrays: numpy takes a third longer to multiply by a Python number.
        self._one, self._half = np.array(1.0, dtype=self.dtype), np.array(0.5, dtype=self.dtype)
        self._slope, self._first = np.array(2.0 + nu / unit, self.dtype), np.array(1.0 + nu / unit, self.dtype)
        self._squash = _SQUASHES[config.gate, config.update]

    def __repr__(self) -> str:
        """Show the configuration and the dtype."""
        return f"CompiledFastGRNN({self.config}, {self.dtype})"

    def logits(self, inputs: Array, lengths: NDArray[np.integer[Any]] | None = None) -> Array:
        """Return logits of shape (batch, outputs) for ``inputs`` of shape (batch, time, features).

        ``lengths`` says where each sequence ends, as in `FastGRNN.run`. Raises DimensionMismatch for a shape that does
        not fit, NonFiniteInput for NaN or infinity.
        """
        sequence = _shaped(inputs, self.config.input_size, self.dtype)
        batch, steps, features = sequence.shape
        hidden = self.config.hidden_size
        running = None if lengths is None else _running(lengths, batch, steps)
        if self._narrow_input is None:
            _check_finite(sequence)
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                narrow = sequence.reshape(-1, features).dot(self._narrow_input)
            # What is not finite makes every number of its row so: it shows here, among a tenth of the numbers.
            if not math.isfinite(np.vdot(narrow, narrow)):
                _check_finite(sequence)
            sequence = narrow.reshape(batch, steps, -1)
        fixed = sequence.shape[2] + 1
        # What one step multiplies: rows of the input, a row of ones for the biases, rows of the state.
        columns = np.empty((steps, self._matrix.shape[1], batch), dtype=self.dtype)
        columns[:, : fixed - 1] = sequence.transpose(1, 2, 0)
        columns[:, fixed - 1] = 1.0
        # The first step starts from the zero state: nothing to carry over, no product with U.
        squashed = self._squash(self._first_matrix.dot(columns[0, :fixed]), hidden)
        state = squashed[:hidden]
        np.subtract(self._first, state, state)
        state *= squashed[hidden:]
        for t in range(1, steps):
            column = columns[t]
            if self._narrow_state is None:
                column[fixed:] = state
            else:
                np.dot(self._narrow_state, state, out=column[fixed:])
            squashed = self._squash(self._matrix.dot(column), hidden)
            following = self._advance(state, squashed[:hidden], squashed[hidden:])
            if running is not None:
                np.copyto(following, state, where=~running[t])
            state = following
        logits: Array = state.T.dot(self._head_weight)
        logits += self._head_bias
        return logits

    def _advance(self, state: Array, gate: Array, update: Array) -> Array:
        """Return h' = ½(1 + g)(h - σ(zeta)·c) + (σ(zeta) + σ(nu))·c for z = ½ + ½g, in units of ½σ(zeta).

        So counted it takes six passes; ``gate`` and ``update`` are used up.
        """
        following: Array = state * self._half
        following -= update
        gate += self._one
        following *= gate
        update *= self._slope
        following += update
        return following


def _shaped(inputs: Array, features: int, dtype: np.dtype[Any]) -> Array:
    sequence = np.asarray(inputs, dtype=dtype)
    if sequence.ndim != 3 or sequence.shape[1] == 0 or sequence.shape[2] != features:
        raise DimensionMismatch(
            f"the input has shape {sequence.shape}, expected (batch, time >= 1, features = {features})"
        )
    return sequence


def _check_finite(sequence: Array) -> None:
    # A sum of squares is finite only if all are; if it is not, it may have overflowed. Half the time of `isfinite`;
    # `vdot`, as `dot` warns of the overflow.
    if not math.isfinite(np.vdot(sequence, sequence)) and not np.isfinite(sequence).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(sequence))[0])
        raise NonFiniteInput(
            f"input{list(where)} (batch, time, feature) is {sequence[where]}: leave out or repair what is not finite"
        )


def _running(lengths: NDArray[np.integer[Any]], batch: int, steps: int) -> NDArray[np.bool_]:
    """Return whether each sequence goes on at each step, (time, batch)."""
    lengths = np.asarray(lengths)
    if lengths.shape != (batch,) or lengths.dtype.kind not in "iu":
        raise DimensionMismatch(
            f"lengths are {lengths.dtype}{lengths.shape}, expected a whole number per sequence, shape {(batch,)}"
        )
    if batch and not (lengths.min() >= 1 and lengths.max() <= steps):
        raise DimensionMismatch(
            f"lengths are {lengths.min()} to {lengths.max()}, expected 1 to {steps}, the time axis of the input"
        )
    running: NDArray[np.bool_] = np.arange(steps)[:, None] < lengths
    return running


def _matrix_shapes(name: str, rows: int, columns: int, rank: int | None) -> dict[str, tuple[int, ...]]:
    return {name: (rows, columns)} if rank is None else {f"{name}1": (rows, rank), f"{name}2": (rank, columns)}


def _times(values: Array, parameters: Mapping[str, Array], name: str) -> Array:
    """Return ``values`` times the matrix ``name``, be it whole or in two factors."""
    if name in parameters:
        return values @ parameters[name]
    return values @ parameters[f"{name}1"] @ parameters[f"{name}2"]


def _times_transposed(values: Array, parameters: Mapping[str, Array], name: str) -> Array:
    if name in parameters:
        return values @ parameters[name].T
    return values @ parameters[f"{name}2"].T @ parameters[f"{name}1"].T


def _matrix_gradients(parameters: Mapping[str, Array], name: str, inputs: Array, d_out: Array) -> dict[str, Array]:
    """Return the gradients of the matrix ``name``, or of its factors, in ``out = inputs · matrix``."""
    rows, d_rows = inputs.reshape(-1, inputs.shape[-1]), d_out.reshape(-1, d_out.shape[-1])
    if name in parameters:
        return {name: rows.T @ d_rows}
    first, second = parameters[f"{name}1"], parameters[f"{name}2"]
    return {f"{name}1": rows.T @ (d_rows @ second.T), f"{name}2": (rows @ first).T @ d_rows}


def _narrowest(parameters: Mapping[str, Array], name: str, scale: Array | float) -> tuple[Array | None, Array]:
    """Return two factors of the scaled matrix ``name``, the first None where multiplying at once is the cheapest.

    The second meets gate and candidate, so its rows should be few: as many as there are features or hidden units, or
    as the rank says.
    """
    if name in parameters:
        whole = scale * parameters[name]
        rows, columns = whole.shape
        return (None, whole) if rows <= columns else (whole, np.eye(columns))
    first, second = scale * parameters[f"{name}1"], parameters[f"{name}2"]
    rows, rank = first.shape
    columns = second.shape[1]
    if rank < min(rows, columns):
        return first, second
    return (None, first @ second) if rows <= columns else (first @ second, np.eye(columns))


def _sigmoid(values: Array) -> Array:
    # Through tanh it cannot overflow.
    squashed: Array = 0.5 + 0.5 * np.tanh(0.5 * values)
    return squashed


def _quant_sigm(values: Array) -> Array:
    clipped: Array = np.clip(0.5 * (values + 1.0), 0.0, 1.0)
    return clipped


def _quant_tanh(values: Array) -> Array:
    clipped: Array = np.clip(values, -1.0, 1.0)
    return clipped


# The squashes work in place on rows that hold the gate's pre-activations first.


def _tanh_both(rows: Array, hidden: int) -> Array:  # noqa: ARG001 - all squashes are called alike
    return np.tanh(rows, rows)


def _clip_both(rows: Array, hidden: int) -> Array:  # noqa: ARG001 - the same
    return np.clip(rows, -1.0, 1.0, out=rows)


def _tanh_beside_clip(rows: Array, hidden: int) -> Array:
    np.tanh(rows[:hidden], out=rows[:hidden])
    np.clip(rows[hidden:], -1.0, 1.0, out=rows[hidden:])
    return rows


def _clip_beside_tanh(rows: Array, hidden: int) -> Array:
    np.clip(rows[:hidden], -1.0, 1.0, out=rows[:hidden])
    np.tanh(rows[hidden:], out=rows[hidden:])
    return rows


# Slopes in terms of the function's own value, so that pre-activations need not be kept.
_GATE_SLOPES: dict[str, Callable[[Array], Array]] = {
    "sigmoid": lambda z: z * (1.0 - z),
    "quantSigm": lambda z: 0.5 * ((z > 0.0) & (z < 1.0)),
}
_UPDATE_SLOPES: dict[str, Callable[[Array], Array]] = {
    "tanh": lambda c: 1.0 - c * c,
    "quantTanh": lambda c: 1.0 * (np.abs(c) < 1.0),
}
_SQUASHES: dict[tuple[str, str], Callable[[Array, int], Array]] = {
    ("sigmoid", "tanh"): _tanh_both,
    ("quantSigm", "quantTanh"): _clip_both,
    ("sigmoid", "quantTanh"): _tanh_beside_clip,
    ("quantSigm", "tanh"): _clip_beside_tanh,
}
