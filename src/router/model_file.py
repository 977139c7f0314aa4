"""Model files: safetensors, with everything but the arrays in one JSON entry of the header.

One entry, not several: safetensors writes header entries in random order, and the same model has to give the same
bytes. A file is refused, with path, reason and remedy, when anything in it is missing, foreign, misshapen, not finite
or altered since it was written. There is no fallback: a router without a sound model does not start.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from router.errors import ModelError, ModelFormatError, ModelNotFound, NonFiniteInput, RouterError
from router.fastgrnn import FastGRNN, FastGRNNConfig
from router.features import FEATURE_NAMES
from router.model import Provenance, RouterModel
from router.training import Normalisation
from router.uncertainty import Calibration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]

__all__ = ["BUNDLED_MODEL", "FORMAT", "library_version", "load_model", "save_model"]

FORMAT = "eventcore-router-fastgrnn-v1"
BUNDLED_MODEL = Path(__file__).parent / "models" / "tiny_dancer.safetensors"

_ENTRY = "eventcore.router"
_MAX_BYTES = 256 * 1024 * 1024
_CALIBRATION_ARRAYS = ("upper", "mean_score", "success_rate", "effective_size", "uncertainty")
_REMEDY = "use the bundled model or train one: python -m router.train_bundled --data DIR --out FILE"


def library_version() -> str:
    """Return the version of the installed distribution, or "unknown" when running from a bare source folder."""
    try:
        return metadata.version("eventcore")
    except metadata.PackageNotFoundError:
        return "unknown"


def save_model(model: RouterModel, path: str | os.PathLike[str]) -> None:
    """Write ``model`` to ``path``; the file is there whole or not at all. The same model gives the same bytes.

    Raises ModelError when it cannot be written, NonFiniteInput when an array in it holds NaN or infinity.
    """
    tensors = {f"network.{name}": array for name, array in model.network.parameters.items()}
    tensors["normalisation.mean"] = model.normalisation.mean
    tensors["normalisation.std"] = model.normalisation.std
    calibration = model.calibration
    if calibration is not None:
        tensors |= {f"calibration.{name}": getattr(calibration, name) for name in _CALIBRATION_ARRAYS}
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    _check_finite(tensors)
    header = {
        "format": FORMAT,
        "network": asdict(model.network.config),
        "feature_names": FEATURE_NAMES,
        "feature_weights": model.feature_weights,
        "calibration": calibration and {"lowest": calibration.lowest, "level": calibration.level},
        "provenance": model.provenance and asdict(model.provenance),
    }
    text = _canonical(header | {"sha256": _digest(header, tensors)})
    target = Path(path)
    try:
        _write_whole(target, safetensors.save(tensors, {_ENTRY: text}))
    except OSError as error:
        raise ModelError(
            f"the model cannot be written to {target}: {error.strerror}; choose a writable path"
        ) from error


def load_model(path: str | os.PathLike[str] = BUNDLED_MODEL) -> RouterModel:
    """Return the model in the file at ``path``, every part of it checked.

    Raises ModelNotFound when there is no such file, ModelFormatError when it is not a sound model, ModelError when it
    cannot be read.
    """
    source = Path(path)
    try:
        if source.stat().st_size > _MAX_BYTES:
            raise _refused(source, f"it is larger than {_MAX_BYTES >> 20} MiB")
        data = source.read_bytes()
    except FileNotFoundError:
        raise ModelNotFound(f"there is no model file at {source}: check the path, {_REMEDY}") from None
    except IsADirectoryError:
        raise _refused(source, "it is a directory") from None
    except OSError as error:
        raise ModelError(f"the model file {source} cannot be read: {error.strerror}; check its permissions") from error
    try:
        tensors = safetensors.load(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise _refused(source, f"it is truncated or no safetensors file ({error})") from error
    header = _header(source, data)
    if header.pop("sha256", None) != _digest(header, tensors):
        raise _refused(source, "it has been altered since it was written")
    try:
        return _assemble(header, tensors)
    except (KeyError, TypeError, AttributeError) as error:
        raise _refused(source, f"its header is incomplete ({type(error).__name__}: {error})") from error
    except (RouterError, ValueError) as error:
        raise _refused(source, str(error)) from error


def _header(source: Path, data: bytes) -> dict[str, Any]:
    """Return our entry of the safetensors header; the library has checked the header's form before."""
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    try:
        header = json.loads(entries[_ENTRY])
        found = header["format"]
    except (KeyError, TypeError, ValueError):
        raise _refused(source, f"it is a safetensors file of something else: it lacks the entry {_ENTRY!r}") from None
    if found != FORMAT:
        raise _refused(source, f"its format is {found!r}, this version reads {FORMAT!r}")
    return dict(header)


def _assemble(header: Mapping[str, Any], tensors: dict[str, Array]) -> RouterModel:
    if tuple(header["feature_names"]) != FEATURE_NAMES:
        raise ValueError(
            f"it was trained on the features {header['feature_names']}, this version computes {FEATURE_NAMES}"
        )
    _check_finite(tensors)
    parts: dict[str, dict[str, Array]] = {"network": {}, "normalisation": {}, "calibration": {}}
    for name, array in tensors.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise ValueError(f"the array {name} is not part of a model")
        parts[part][rest] = array
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
    )


def _check_finite(tensors: Mapping[str, Array]) -> None:
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise NonFiniteInput(f"the model's {name} holds NaN or infinity")


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


def _canonical(header: Mapping[str, Any]) -> str:
    return json.dumps(header, sort_keys=True, allow_nan=False)


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Array]) -> str:
    """Return a digest of the header and of the arrays' names, shapes, dtypes and values."""
    digest = hashlib.sha256(_canonical(header).encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _refused(path: Path, reason: str) -> ModelFormatError:
    return ModelFormatError(f"the model file {path} is refused: {reason}; {_REMEDY}")


def _write_whole(path: Path, data: bytes) -> None:
    """Write beside ``path`` and rename, so that a reader or a crash never meets half a file."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    beside = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.chmod(0o644)  # mkstemp makes it private
        beside.replace(path)
    except BaseException:
        beside.unlink()
        raise
