"""Model files of the candidate model and of the prompt model; see `router.model_store` for their container."""

from __future__ import annotations

import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from router.compact_calibration import from_bits, to_bits
from router.fastgrnn import FastGRNN, FastGRNNConfig
from router.features import FEATURE_NAMES
from router.model import Provenance, RoundedFrom, RouterModel
from router.model_store import library_version, parts_of, read_model, write_model
from router.prompt_model import NeedCalibration, PromptModel
from router.prompts import SURFACE_NAMES
from router.quantised_prompt import from_tensors, to_tensors
from router.training import Normalisation
from router.uncertainty import Calibration

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = [
    "BUNDLED_MODEL",
    "BUNDLED_PROMPT_MODEL",
    "FORMAT",
    "PROMPT_FORMAT",
    "PROMPT_INT8_FORMAT",
    "library_version",
    "load_any_model",
    "load_model",
    "load_prompt_model",
    "save_model",
    "save_prompt_model",
]

FORMAT = "eventcore-router-fastgrnn-v1"
PROMPT_FORMAT = "eventcore-router-prompt-v1"
PROMPT_INT8_FORMAT = "eventcore-router-prompt-int8-v1"
MODELS = Path(__file__).parent / "models"
BUNDLED_MODEL = MODELS / "tiny_dancer.safetensors"
BUNDLED_PROMPT_MODEL = MODELS / "prompt_hashing.safetensors"
"""Needs no encoder; ``prompt_minilm.safetensors`` beside it is better and needs the extra ``encoder``."""

_SURFACE_CRC32 = zlib.crc32(" ".join(SURFACE_NAMES).encode())
_CALIBRATION_ARRAYS = ("upper", "mean_score", "success_rate", "effective_size", "uncertainty")
_REMEDY = "use the bundled model of candidates or train one: python -m router.train_bundled --data DIR --out FILE"
_PROMPT_REMEDY = "use a bundled prompt model or train one: router train DATA… --out FILE"


def save_model(model: RouterModel, path: str | os.PathLike[str]) -> None:
    """Write a candidate model; ModelError when it cannot be written, NonFiniteInput for NaN or infinity in it."""
    tensors = {f"network.{name}": array for name, array in model.network.parameters.items()}
    tensors["normalisation.mean"] = model.normalisation.mean
    tensors["normalisation.std"] = model.normalisation.std
    calibration = model.calibration
    if calibration is not None:
        tensors |= {f"calibration.{name}": getattr(calibration, name) for name in _CALIBRATION_ARRAYS}
    if model.reference is not None:
        tensors["reference.quantiles"] = model.reference
    header = {
        "format": FORMAT,
        "network": asdict(model.network.config),
        "feature_names": FEATURE_NAMES,
        "feature_weights": model.feature_weights,
        "calibration": calibration and {"lowest": calibration.lowest, "level": calibration.level},
        "provenance": model.provenance and asdict(model.provenance),
    }
    write_model(path, header, tensors)


def load_model(path: str | os.PathLike[str] = BUNDLED_MODEL) -> RouterModel:
    """Return the candidate model in the file at ``path``, every part of it checked.

    Raises ModelNotFound when there is no such file, ModelFormatError when it is not a sound model, ModelError when it
    cannot be read.
    """
    return read_model(path, {FORMAT: _assemble}, remedy=_REMEDY)


def save_prompt_model(model: PromptModel, path: str | os.PathLike[str]) -> None:
    """Write a prompt model, one that was rounded to eight bits in eight bits, bit for bit as it is.

    Of the calibration of such a one, needs are rounded down, see `router.compact_calibration`. Raises ModelError when
    it cannot be written, NonFiniteInput for NaN or infinity in it.
    """
    calibration = model.calibration
    header = {
        "format": PROMPT_FORMAT,
        "network": asdict(model.network.config),
        "heads": model.heads,
        "embedder": model.embedder,
        "chunk_count": model.chunk_count,
        "provenance": model.provenance and asdict(model.provenance),
    }
    if model.rounded_from is None:
        header |= {"surface_names": SURFACE_NAMES}
        tensors: dict[str, Array] = {f"network.{name}": array for name, array in model.network.parameters.items()}
        tensors |= {"projection.matrix": model.projection, "projection.offset": model.offset}
        tensors |= {"surface.mean": model.surface_mean, "surface.std": model.surface_std}
        tensors["surface.length_slope"] = model.length_slope
        if calibration is not None:
            tensors |= {"calibration.need": calibration.need, "calibration.harm": calibration.harm}
    else:
        header |= {"format": PROMPT_INT8_FORMAT, "rounded_from": asdict(model.rounded_from)}
        header |= {"surface_crc32": _SURFACE_CRC32}  # the names would be one percent of the file
        tensors = to_tensors(model)
        if calibration is not None:
            header |= {"calibration_prompts": len(calibration.need)}
            tensors |= {"calibration": to_bits(calibration)}
    write_model(path, header, tensors)


def load_prompt_model(path: str | os.PathLike[str] = BUNDLED_PROMPT_MODEL) -> PromptModel:
    """Return the prompt model in the file at ``path``, every part of it checked; errors as of `load_model`."""
    return read_model(path, _PROMPT_FORMATS, remedy=_PROMPT_REMEDY)


def load_any_model(path: str | os.PathLike[str]) -> RouterModel | PromptModel:
    """Return the model in the file at ``path``, whichever kind it is; errors as of `load_model`."""
    formats: dict[str, Callable[[Mapping[str, Any], dict[str, Array]], RouterModel | PromptModel]]
    formats = {FORMAT: _assemble, **_PROMPT_FORMATS}
    return read_model(path, formats, remedy=_PROMPT_REMEDY)


def _assemble_prompt_model(header: Mapping[str, Any], tensors: dict[str, Array]) -> PromptModel:
    if tuple(header["surface_names"]) != SURFACE_NAMES:
        raise ValueError(
            f"it was trained on the surface features {header['surface_names']}, this version computes {SURFACE_NAMES}"
        )
    parts = parts_of(tensors, "network", "projection", "surface", "calibration")
    provenance, calibration = header["provenance"], parts["calibration"]
    return PromptModel(
        heads=tuple(map(str, header["heads"])),
        embedder=str(header["embedder"]),
        chunk_count=int(header["chunk_count"]),
        projection=parts["projection"]["matrix"],
        offset=parts["projection"]["offset"],
        surface_mean=parts["surface"]["mean"],
        surface_std=parts["surface"]["std"],
        # Models of before the prior have none.
        length_slope=parts["surface"].get("length_slope", np.zeros(len(header["heads"]), np.float32)),
        network=FastGRNN(FastGRNNConfig(**header["network"]), parts["network"]),
        calibration=NeedCalibration(**calibration) if calibration else None,
        provenance=None if provenance is None else Provenance(**provenance),
    )


def _assemble_rounded(header: Mapping[str, Any], tensors: dict[str, Array]) -> PromptModel:
    if header["surface_crc32"] != _SURFACE_CRC32:
        raise ValueError(f"it was trained on other surface features than this version computes, {SURFACE_NAMES}")
    bits = tensors.pop("calibration", None)
    model = from_tensors(
        tensors,
        heads=tuple(map(str, header["heads"])),
        embedder=str(header["embedder"]),
        chunk_count=int(header["chunk_count"]),
        network=FastGRNNConfig(**header["network"]),
    )
    provenance = header["provenance"]
    return replace(
        model,
        calibration=None if bits is None else from_bits(bits, int(header["calibration_prompts"])),
        provenance=None if provenance is None else Provenance(**provenance),
        rounded_from=RoundedFrom(**header["rounded_from"]),
    )


_PROMPT_FORMATS = {PROMPT_FORMAT: _assemble_prompt_model, PROMPT_INT8_FORMAT: _assemble_rounded}


def _assemble(header: Mapping[str, Any], tensors: dict[str, Array]) -> RouterModel:
    if tuple(header["feature_names"]) != FEATURE_NAMES:
        raise ValueError(
            f"it was trained on the features {header['feature_names']}, this version computes {FEATURE_NAMES}"
        )
    parts = parts_of(tensors, "network", "normalisation", "calibration", "reference")
    weights = tuple(float(weight) for weight in header["feature_weights"])
    if not np.isfinite(weights).all():
        raise ValueError("feature_weights are not finite")
    provenance = header["provenance"]
    return RouterModel(
        network=FastGRNN(FastGRNNConfig(**header["network"]), parts["network"]),
        normalisation=_normalisation(parts["normalisation"]),
        feature_weights=weights,
        calibration=_calibration(header["calibration"], parts["calibration"]),
        provenance=None if provenance is None else Provenance(**provenance),
        reference=parts["reference"]["quantiles"] if parts["reference"] else None,
    )


def _normalisation(arrays: Mapping[str, Array]) -> Normalisation:
    normalisation = Normalisation(**arrays)
    if not (normalisation.std > 0.0).all():
        raise ValueError("normalisation.std is not positive")
    return normalisation


def _calibration(header: Mapping[str, float] | None, arrays: dict[str, Array]) -> Calibration | None:
    if header is None and not arrays:
        return None
    if header is None or set(arrays) != set(_CALIBRATION_ARRAYS):
        raise ValueError(f"its calibration is incomplete: expected the arrays {_CALIBRATION_ARRAYS}")
    upper, uncertainty, lowest, level = arrays["upper"], arrays["uncertainty"], header["lowest"], header["level"]
    if upper.ndim != 1 or not len(upper) or any(array.shape != upper.shape for array in arrays.values()):
        raise ValueError("its calibration arrays are not vectors of one length")
    rising = (np.diff(upper) > 0.0).all() and lowest <= upper[0]
    if not rising or not (uncertainty.min() >= 0.0 and uncertainty.max() <= 1.0 and 0.0 < level < 1.0):
        raise ValueError("its calibration has bins out of order or uncertainties outside [0, 1]")
    return Calibration(lowest=lowest, level=level, **arrays)
