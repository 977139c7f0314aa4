"""A prompt model in eight bits: a quarter of the bytes, nearly the same ranking.

Most of a prompt model is its projection, (dimension × components), and the network multiplies what it gives by W at
once. The two are one matrix, no larger where W has no more columns than there are components; so folded, W's rows for
the components become the identity, which needs no storing. What is left is rounded to int8 (see `router.quantised`);
scales, biases and the surface's means and deviations, one percent of the numbers, stay float32. All of a kind are one
array: the name and shape of each would take more room in a file than its numbers.

What `from_tensors` gives is a `PromptModel` like any other, in float32: it serves as fast, and only its file is small.
Rounded again it is the same to the last bit, so it may be loaded, calibrated and saved. A calibration is that of one
model's needs, so a rounded model is calibrated anew; none is carried over.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from router.errors import ConfigError, DimensionMismatch
from router.fastgrnn import FastGRNN, FastGRNNConfig
from router.prompt_model import PromptModel
from router.prompts import SURFACE_NAMES
from router.quantised import QuantisedMatrix

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from router.model import RoundedFrom
    from router.quantised import Per

    Array = NDArray[np.floating[Any]]

__all__ = ["folded", "from_tensors", "rounded", "to_tensors"]

SURFACE = len(SURFACE_NAMES)


def rounded(model: PromptModel, source: RoundedFrom) -> PromptModel:
    """Return ``model``, whose file is ``source``, in eight bits, without calibration; ConfigError if it is in them."""
    if model.rounded_from is not None:
        raise ConfigError(f"{source.name} is in eight bits already, made from {model.rounded_from.name}")
    small = from_tensors(
        to_tensors(model),
        heads=model.heads,
        embedder=model.embedder,
        chunk_count=model.chunk_count,
        network=model.network.config,
    )
    origin = model.provenance
    if origin is not None:  # what was said of the calibration goes with it
        metrics = {name: value for name, value in origin.metrics.items() if name != "calibration_prompts"}
        origin = replace(origin, metrics=metrics)
    return replace(small, provenance=origin, rounded_from=source)


def folded(model: PromptModel) -> PromptModel:
    """Return the same model with W's rows for the components folded into the projection, where that makes it smaller.

    It gives what ``model`` gives, to rounding. A model whose W (or W1) has more columns than there are components is
    returned as it is.
    """
    name = _first_factor(model.network.config)
    first = model.network.parameters[name].astype(np.float64)
    components, width = model.projection.shape[1], first.shape[1]
    if width > components:
        return model
    rows = first[:components]
    parameters = dict(model.network.parameters)
    parameters[name] = np.vstack([np.eye(width), first[components:]]).astype(np.float32)
    config = replace(model.network.config, input_size=width + SURFACE)
    return replace(
        model,
        projection=(model.projection @ rows).astype(np.float32),
        offset=(model.offset @ rows).astype(np.float32),
        network=FastGRNN(config, parameters),
    )


def to_tensors(model: PromptModel, *, per: Per = "tensor") -> dict[str, NDArray[Any]]:
    """Return ``model`` rounded to eight bits as two vectors, "weights" in int8 and "numbers" in float32.

    One scale per matrix is enough here (measured, see docs/fastgrnn.md); one per column costs 2 % more bytes.
    """
    small = folded(model)
    name, parameters = _first_factor(small.network.config), small.network.parameters
    matrices = {"projection": small.projection} | {n: a for n, a in parameters.items() if a.ndim == 2}
    if small is not model:
        matrices[name] = matrices[name][-SURFACE:]
    quantised = [QuantisedMatrix.of(array, per=per) for array in matrices.values()]
    vectors = [small.offset, small.surface_mean, small.surface_std, small.length_slope]
    vectors += [array for array in parameters.values() if array.ndim == 1]
    vectors += [matrix.scales for matrix in quantised]
    return {
        "weights": np.concatenate([matrix.values.ravel() for matrix in quantised]),
        "numbers": np.concatenate([vector.astype(np.float32) for vector in vectors]),
    }


def from_tensors(
    tensors: Mapping[str, NDArray[Any]],
    *,
    heads: Sequence[str],
    embedder: str,
    chunk_count: int,
    network: FastGRNNConfig,
) -> PromptModel:
    """Return the prompt model that `to_tensors` made ``tensors`` of; ``network`` is the configuration before folding.

    Raises DimensionMismatch for arrays that are missing, foreign or too short or long, ConfigError for scales that are
    not positive.
    """
    if set(tensors) != {"weights", "numbers"} or tensors["weights"].dtype != np.int8:
        raise DimensionMismatch(f"a prompt model of arrays {sorted(tensors)}: expected weights in int8, and numbers")
    name, components = _first_factor(network), network.input_size - SURFACE
    width = network.shapes[name][1]
    is_folded = width <= components
    width = width if is_folded else components
    config = replace(network, input_size=width + SURFACE)
    shapes = {n: shape for n, shape in config.shapes.items() if len(shape) == 2}
    if is_folded:
        shapes[name] = (SURFACE, width)
    rows, left = divmod(tensors["weights"].size - sum(a * b for a, b in shapes.values()), width)
    if rows < 1 or left:
        raise DimensionMismatch(
            f"a prompt model has {tensors['weights'].size} weights, which make no projection on {width} components"
        )
    shapes = {"projection": (rows, width)} | shapes
    sizes = {"offset": width, "surface_mean": SURFACE, "surface_std": SURFACE, "length_slope": len(heads)}
    sizes |= {n: shape[0] for n, shape in config.shapes.items() if len(shape) == 1}
    vectors, rest = _cut(tensors["numbers"], sizes)
    columns = {n: 1 if len(rest) == len(shapes) else shape[1] for n, shape in shapes.items()}
    scales, rest = _cut(rest, columns)
    if len(rest):
        raise DimensionMismatch(f"a prompt model has {len(rest)} numbers too many: its file is of another shape")
    values, _ = _cut(tensors["weights"], {n: a * b for n, (a, b) in shapes.items()})
    restored = {n: QuantisedMatrix(values[n].reshape(shape), scales[n]).restored() for n, shape in shapes.items()}
    if is_folded:
        restored[name] = np.vstack([np.eye(width, dtype=np.float32), restored[name]])
    return PromptModel(
        heads=tuple(heads),
        embedder=embedder,
        chunk_count=chunk_count,
        projection=restored["projection"],
        offset=vectors["offset"],
        surface_mean=vectors["surface_mean"],
        surface_std=vectors["surface_std"],
        length_slope=vectors["length_slope"],
        network=FastGRNN(config, {n: restored[n] if n in restored else vectors[n] for n in config.shapes}),
    )


def _first_factor(config: FastGRNNConfig) -> str:
    return "W" if config.rank_w is None else "W1"


def _cut(numbers: NDArray[Any], sizes: Mapping[str, int]) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """Return as many of the ``numbers`` as each name needs, in order, and what is left."""
    if numbers.ndim != 1 or len(numbers) < sum(sizes.values()):
        raise DimensionMismatch(
            f"a prompt model's numbers have shape {numbers.shape}, expected at least {sum(sizes.values())} of them"
        )
    places = np.cumsum([0, *sizes.values()])
    found = {name: numbers[start : start + size] for (name, size), start in zip(sizes.items(), places, strict=False)}
    return found, numbers[places[-1] :]
