"""FastGRNN, the gated recurrent cell of Kusupati et al. (NeurIPS 2018, equation 6), with a linear classifier.

One pair of matrices serves gate and candidate, which differ in their biases alone::

    a  = x W + h U
    z  = gate(a + bias_gate)
    c  = update(a + bias_update)
    h' = z ⊙ h + (σ(zeta)·(1 - z) + σ(nu)) ⊙ c

``zeta`` and ``nu`` are two trained scalars kept *before* the sigmoid. ``W`` and ``U`` may each be a product of two thin
matrices. The last state goes through a linear classifier; what it gives are logits. The state is not bounded by one.

There are two forward passes, on purpose. `FastGRNN.run` follows the equations, keeps every intermediate value and is
what training differentiates. `CompiledFastGRNN`, in a module of its own, is for serving.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from router.cell import FastGRNNConfig, Gate, Update, check_finite, running_steps, shaped, sigmoid, times
from router.compiled_fastgrnn import CompiledFastGRNN
from router.errors import ConfigError, DimensionMismatch, NonFiniteInput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import DTypeLike, NDArray

    Array = NDArray[np.floating[Any]]

__all__ = ["CompiledFastGRNN", "FastGRNN", "FastGRNNConfig", "Gate", "Gradients", "Trace", "Update"]


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

        With quantSigm and quantTanh, which are clipped from 1 on, the biases are where gate and update have the values
        that sigmoid and tanh have at 1: otherwise half of the units start without a gradient, and the digits of USPS
        end half a point worse (docs/fastgrnn.md). The classifier starts at N(0, 1/hidden) with bias 0. The same seed
        gives the same numbers.
        """
        random = np.random.default_rng(seed)
        constants = {
            "bias_gate": 1.0 if config.gate == "sigmoid" else 2.0 / (1.0 + math.exp(-1.0)) - 1.0,
            "bias_update": 1.0 if config.update == "tanh" else math.tanh(1.0),
            "zeta": 1.0,
            "nu": -4.0,
            "head_bias": 0.0,
        }
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
        sequence = shaped(inputs, self.config.input_size, self.dtype)
        check_finite(sequence)
        sequence = np.ascontiguousarray(sequence.swapaxes(0, 1))
        steps, batch, _ = sequence.shape
        running = None if lengths is None else running_steps(lengths, batch, steps)
        hidden = self.config.hidden_size
        states = np.zeros((steps + 1, batch, hidden), dtype=self.dtype)
        if initial_state is not None:
            if initial_state.shape != (batch, hidden):
                raise DimensionMismatch(
                    f"the initial state has shape {initial_state.shape}, expected (batch, hidden) = {(batch, hidden)}"
                )
            states[0] = initial_state
        gates, updates = np.empty_like(states[1:]), np.empty_like(states[1:])
        gate = sigmoid if self.config.gate == "sigmoid" else _quant_sigm
        update = np.tanh if self.config.update == "tanh" else _quant_tanh
        zeta, nu = sigmoid(parameters["zeta"]), sigmoid(parameters["nu"])
        projected = times(sequence, parameters, "W")
        for t in range(steps):
            a = projected[t] + times(states[t], parameters, "U")
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
        zeta, nu = sigmoid(parameters["zeta"]), sigmoid(parameters["nu"])
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


def _quant_sigm(values: Array) -> Array:
    clipped: Array = np.clip(0.5 * (values + 1.0), 0.0, 1.0)
    return clipped


def _quant_tanh(values: Array) -> Array:
    clipped: Array = np.clip(values, -1.0, 1.0)
    return clipped


# Slopes in terms of the function's own value, so that pre-activations need not be kept; of its dtype, too.
_GATE_SLOPES: dict[str, Callable[[Array], Array]] = {
    "sigmoid": lambda z: z * (1.0 - z),
    "quantSigm": lambda z: np.multiply((z > 0.0) & (z < 1.0), 0.5, dtype=z.dtype),
}
_UPDATE_SLOPES: dict[str, Callable[[Array], Array]] = {
    "tanh": lambda c: 1.0 - c * c,
    "quantTanh": lambda c: (np.abs(c) < 1.0).astype(c.dtype),
}
