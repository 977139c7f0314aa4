"""FastGRNN in eight bits: weights as int8 with scales, and a forward pass in integers.

A matrix is kept as ``round(w / scale)`` in -127 … 127, to the nearest and half to even, with one scale for all of it or
one per column. `IntegerFastGRNN` computes with such weights the way a processor without floating point does (after
Jacob et al., CVPR 2018): products of int8 are summed in int32, a change of scale is a multiplication by an integer and
a shift, and quantSigm and quantTanh, which are linear between two bounds, are a shift and a clip.

The state of a FastGRNN is not bounded by one (61.8 was seen in the published cell), so its range, and those of the
input and of what lies between two factors of a matrix, are measured on examples by `IntegerFastGRNN.calibrate`. The
state is kept in 16 bits and rounded to 8 where it is multiplied: with a gate near one it changes by less than 1/127 of
its range in a step, and would stand still in 8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np

from router.errors import ConfigError, DimensionMismatch, NonFiniteInput, TrainingError
from router.fastgrnn import FastGRNN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from router.fastgrnn import FastGRNNConfig

    Array = NDArray[np.floating[Any]]
    Int8s = NDArray[np.int8]
    Integers = NDArray[np.int32]

__all__ = ["IntegerFastGRNN", "Per", "QuantisedMatrix", "Ranges", "quantised_weights"]

Per = Literal["tensor", "column"]

LARGEST = 127
"""-128 is not used, so that a matrix and its negative are alike."""
FRACTION = 14
"""Bits after the point of pre-activations, gates and updates; two such numbers multiply within 32 bits."""
ONE = 1 << FRACTION


@dataclass(frozen=True, slots=True, eq=False)
class QuantisedMatrix:
    """A matrix w as int8 ``values``, shape (rows, columns), times ``scales``, shape (columns,) or (1,).

    The error of each entry is at most half its scale. Raises DimensionMismatch where the two do not fit, ConfigError
    for values or scales out of range.
    """

    values: Int8s
    scales: Array

    def __post_init__(self) -> None:
        """Check shapes and ranges."""
        columns = self.values.shape[-1]
        if self.values.ndim != 2 or self.values.dtype != np.int8 or self.scales.shape not in {(1,), (columns,)}:
            raise DimensionMismatch(
                f"quantised values {self.values.dtype}{self.values.shape} with scales {self.scales.shape}: expected "
                f"int8 (rows, columns) with scales ({columns},) or (1,)"
            )
        if not (np.isfinite(self.scales).all() and (self.scales > 0.0).all()) or (self.values == -128).any():
            raise ConfigError("a quantised matrix has a scale that is not positive or a value of -128: quantise anew")

    @classmethod
    def of(cls, matrix: Array, *, per: Per = "column") -> Self:
        """Return ``matrix`` rounded to 8 bits, the largest magnitude of the whole or of each column becoming 127.

        What is `restored` and rounded again is the same. A column of zeros keeps scale 1. Raises DimensionMismatch for
        anything but a matrix, NonFiniteInput for NaN or infinity in it.
        """
        if matrix.ndim != 2:
            raise DimensionMismatch(f"an array of shape {matrix.shape} is no matrix: only matrices are quantised")
        if not np.isfinite(matrix).all():
            raise NonFiniteInput("a matrix to be quantised holds NaN or infinity: train the network again")
        wide = matrix.astype(np.float64)
        largest = np.abs(wide).max(axis=0, initial=0.0)
        if per == "tensor":
            largest = largest.max(keepdims=True, initial=0.0)
        # Rounded to float32 before they are used: what is stored is what was rounded by. Of the numbers near a 127th,
        # the smallest of which 127 make the largest: so the scale of a restored matrix is found again.
        wanted = largest.astype(np.float32)
        near = wanted / np.float32(LARGEST)
        tried = np.stack([np.nextafter(near, np.float32(0.0)), near, np.nextafter(near, np.float32(np.inf))])
        enough = (tried * np.float32(LARGEST) >= wanted).argmax(axis=0)
        scales = np.maximum(np.take_along_axis(tried, enough[None], axis=0)[0], np.finfo(np.float32).tiny)
        scales[largest == 0.0] = 1.0
        values = np.clip(np.rint(wide / scales.astype(np.float64)), -LARGEST, LARGEST)
        return cls(values.astype(np.int8), scales)

    def restored(self) -> Array:
        """Return values · scales in float32, shape (rows, columns)."""
        restored: Array = self.values.astype(np.float32) * self.scales
        return restored


def quantised_weights(network: FastGRNN, *, per: Per = "column") -> FastGRNN:
    """Return ``network`` with all matrices rounded to 8 bits and back, in float32: what eight bits cost in quality.

    It may have any non-linearity; biases, zeta and nu, one percent of the numbers, stay as they are.
    """
    parameters = {
        name: QuantisedMatrix.of(array, per=per).restored() if array.ndim == 2 else array.astype(np.float32)
        for name, array in network.parameters.items()
    }
    return FastGRNN(network.config, parameters)


class Ranges(NamedTuple):
    """The largest magnitudes that occurred on the examples of the calibration."""

    inputs: float
    state: float
    between_w: float
    """After the first factor of W; 0 for a full matrix"""
    between_u: float

    @classmethod
    def of(cls, network: FastGRNN, inputs: Array) -> Self:
        """Measure them on ``inputs`` of shape (batch, time, features)."""
        trace, p = network.run(inputs), network.parameters

        def between(values: Array, name: str) -> float:
            return float(np.abs(values @ p[f"{name}1"]).max()) if f"{name}1" in p else 0.0

        return cls(
            float(np.abs(trace.inputs).max()),
            float(np.abs(trace.states).max()),
            between(trace.inputs, "W"),
            between(trace.states, "U"),
        )


class IntegerFastGRNN:
    """A FastGRNN with quantSigm and quantTanh that runs in integers; immutable, safe to share between threads.

    Only where numbers come in and go out is there floating point: the input is rounded to int8, the logits are the
    int32 sums times their scale.
    """

    __slots__ = (
        "_bias_gate",
        "_bias_update",
        "_head",
        "_input_scale",
        "_nu",
        "_state_scale",
        "_to_state",
        "_u",
        "_w",
        "_zeta",
        "config",
        "matrices",
        "ranges",
        "vectors",
    )

    def __init__(
        self,
        config: FastGRNNConfig,
        matrices: Mapping[str, QuantisedMatrix],
        vectors: Mapping[str, Array],
        ranges: Ranges,
    ) -> None:
        """Put together what `calibrate` made or a file held; see there for the errors."""
        if (config.gate, config.update) != ("quantSigm", "quantTanh"):
            raise ConfigError(
                f"integers follow quantSigm and quantTanh, not {config.gate} and {config.update}: train with "
                f"gate='quantSigm' and update='quantTanh', or keep the weights alone in 8 bits (quantised_weights)"
            )
        found = {name: matrix.values.shape for name, matrix in matrices.items()}
        found |= {name: vector.shape for name, vector in vectors.items()}
        if found != config.shapes:
            raise DimensionMismatch(f"quantised parameters {found} do not fit the configuration's {config.shapes}")
        if not all(math.isfinite(value) and value >= 0.0 for value in ranges) or not ranges.inputs > 0.0:
            raise ConfigError(f"{ranges} cannot be ranges of activations: calibrate on real inputs")
        self.config, self.matrices, self.vectors, self.ranges = config, dict(matrices), dict(vectors), ranges
        self._input_scale = ranges.inputs / LARGEST
        self._state_scale = max(ranges.state, 1e-6) / (LARGEST << 8)  # of 16 bits
        self._w = _product(self.matrices, "W", self._input_scale, ranges.between_w)
        self._u = _product(self.matrices, "U", self._state_scale * 256.0, ranges.between_u)
        self._head = self.matrices["head_weight"]
        self._bias_gate, self._bias_update = (
            np.rint(vectors[name].astype(np.float64) * ONE).astype(np.int32)[None]
            for name in ("bias_gate", "bias_update")
        )
        self._zeta, self._nu = (round(ONE / (1.0 + math.exp(-float(vectors[name][0])))) for name in ("zeta", "nu"))
        self._to_state = _Rescale.by(np.array([1.0 / (ONE * ONE * self._state_scale)]))

    @classmethod
    def calibrate(cls, network: FastGRNN, inputs: Array, *, per: Per = "column") -> Self:
        """Quantise ``network`` with the ranges that its activations have on ``inputs``, shape (batch, time, features).

        Raises ConfigError for other non-linearities than quantSigm and quantTanh, TrainingError without inputs.
        """
        if not len(inputs) or not np.abs(inputs).max() > 0.0:
            raise TrainingError(
                "the ranges of activations cannot be measured without inputs: pass some of the training"
            )
        matrices = {n: QuantisedMatrix.of(a, per=per) for n, a in network.parameters.items() if a.ndim == 2}
        vectors = {n: a.astype(np.float32) for n, a in network.parameters.items() if a.ndim == 1}
        return cls(network.config, matrices, vectors, Ranges.of(network, inputs))

    def __repr__(self) -> str:
        """Show the configuration, the size and the ranges."""
        return f"IntegerFastGRNN({self.config}, {self.size_bytes} bytes, {self.ranges})"

    @property
    def size_bytes(self) -> int:
        """The bytes of all numbers that are stored: int8 values, float32 scales, vectors and ranges."""
        return sum(array.nbytes for array in self.to_tensors().values())

    def states(self, inputs: Array) -> NDArray[np.int16]:
        """Return the last state in 16 bits, shape (batch, hidden), for ``inputs`` of shape (batch, time, features).

        Beyond its calibrated range a number is held at the bound. Raises DimensionMismatch, NonFiniteInput.
        """
        sequence = np.asarray(inputs, dtype=np.float32)
        width = self.config.input_size
        if sequence.ndim != 3 or sequence.shape[1] == 0 or sequence.shape[2] != width:
            raise DimensionMismatch(
                f"the input has shape {sequence.shape}, expected (batch, time >= 1, features = {width})"
            )
        if not np.isfinite(sequence).all():
            raise NonFiniteInput("the input holds NaN or infinity: leave out or repair what is not finite")
        batch, steps, _ = sequence.shape
        rounded = _int8(np.rint(sequence.swapaxes(0, 1) / self._input_scale))
        projected = self._w(rounded.reshape(-1, width)).reshape(steps, batch, -1)
        state = np.zeros((batch, self.config.hidden_size), dtype=np.int32)
        for t in range(steps):
            a = projected[t]
            if t:  # the first state is zero
                a = a + self._u(_int8((state + 128) >> 8))
            z = np.clip((a + self._bias_gate + ONE + 1) >> 1, 0, ONE)
            c = np.clip(a + self._bias_update, -ONE, ONE)
            share = ((self._zeta * (ONE - z) + ONE // 2) >> FRACTION) + self._nu
            following = ((z * state + ONE // 2) >> FRACTION) + self._to_state(share * c)
            state = np.clip(following, -(LARGEST << 8), LARGEST << 8)
        return state.astype(np.int16)

    def logits(self, inputs: Array) -> Array:
        """Return logits of shape (batch, outputs), float32; errors as of `states`."""
        state = _int8((self.states(inputs).astype(np.int32) + 128) >> 8)
        scales = self._head.scales * (self._state_scale * 256.0)
        logits = _sums(state, self._head.values) * scales + self.vectors["head_bias"]
        return logits.astype(np.float32)

    def to_tensors(self) -> dict[str, NDArray[Any]]:
        """Return all that is to be stored, by name: int8 values, float32 scales, vectors and ranges."""
        tensors: dict[str, NDArray[Any]] = {name: matrix.values for name, matrix in self.matrices.items()}
        tensors |= {f"{name}.scales": matrix.scales for name, matrix in self.matrices.items()}
        return tensors | self.vectors | {"ranges": np.array(self.ranges, dtype=np.float32)}

    @classmethod
    def from_tensors(cls, config: FastGRNNConfig, tensors: Mapping[str, NDArray[Any]]) -> Self:
        """Return what `to_tensors` was made of; DimensionMismatch for missing, foreign or misshapen arrays."""
        matrices = {name for name, shape in config.shapes.items() if len(shape) == 2}
        expected = {"ranges"} | set(config.shapes) | {f"{name}.scales" for name in matrices}
        if set(tensors) != expected or tensors["ranges"].shape != (len(Ranges._fields),):
            raise DimensionMismatch(f"quantised network of arrays {sorted(tensors)}: expected {sorted(expected)}")
        return cls(
            config,
            {name: QuantisedMatrix(tensors[name], tensors[f"{name}.scales"]) for name in sorted(matrices)},
            {name: tensors[name] for name in config.shapes if name not in matrices},
            Ranges(*(float(value) for value in tensors["ranges"])),
        )


class _Rescale(NamedTuple):
    """Multiplication by real factors as by integers of 31 bits and a shift to the right, rounded to the nearest."""

    multipliers: NDArray[np.int64]
    shifts: NDArray[np.int64]

    @classmethod
    def by(cls, factors: Array) -> Self:
        mantissas, exponents = np.frexp(factors.astype(np.float64))
        shifts = 31 - exponents.astype(np.int64)
        multipliers = np.rint(mantissas * 2.0**31).astype(np.int64)
        # A factor too small for 62 bits is zero; one too large for a shift has been no scale of a network.
        multipliers[shifts > 62] = 0
        if (shifts < 1).any():
            raise ConfigError(f"scales that differ by {factors.max():.3g} cannot be computed in integers: train again")
        return cls(multipliers, np.minimum(shifts, 62))

    def __call__(self, values: Integers) -> Integers:
        product = values.astype(np.int64) * self.multipliers
        rounded = (product + (np.int64(1) << (self.shifts - 1))) >> self.shifts
        bounded: Integers = np.clip(rounded, -(1 << 29), 1 << 29).astype(np.int32)  # sums of two stay in 32 bits
        return bounded


class _Product(NamedTuple):
    """Multiplication of int8 rows by one matrix or two factors, the result with `FRACTION` bits after the point."""

    factors: tuple[tuple[Int8s, _Rescale], ...]

    def __call__(self, rows: Int8s) -> Integers:
        *first, (values, rescale) = self.factors
        for narrow, to_int8 in first:
            rows = _int8(to_int8(_sums(rows, narrow)))
        return rescale(_sums(rows, values))


def _product(matrices: Mapping[str, QuantisedMatrix], name: str, scale: float, between: float) -> _Product:
    """Return the product of rows of scale ``scale`` with the matrix ``name``; ``between`` is its middle's range."""
    if name in matrices:
        whole = matrices[name]
        return _Product(((whole.values, _Rescale.by(whole.scales * (scale * ONE))),))
    first, second = matrices[f"{name}1"], matrices[f"{name}2"]
    middle = max(between, 1e-6) / LARGEST
    return _Product(
        (
            (first.values, _Rescale.by(first.scales * (scale / middle))),
            (second.values, _Rescale.by(second.scales * (middle * ONE))),
        )
    )


def _int8(values: NDArray[Any]) -> Int8s:
    clipped: Int8s = np.clip(values, -LARGEST, LARGEST).astype(np.int8)
    return clipped


def _sums(rows: Int8s, values: Int8s) -> Integers:
    """Return the int32 sums of products.

    numpy multiplies integer matrices without BLAS, thirty times slower. Floats hold every sum exactly: whole numbers
    below 2²⁴ in float32, which takes more than 1,040 terms of 127² to pass, below 2⁵³ in float64.
    """
    exact = np.float32 if len(values) * LARGEST**2 < 1 << 24 else np.float64
    sums: Integers = (rows.astype(exact) @ values.astype(exact)).astype(np.int32)
    return sums
