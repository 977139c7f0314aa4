"""The container of model files: safetensors, with everything but the arrays in one JSON entry of the header.

One entry, not several: safetensors writes header entries in random order, and the same model has to give the same
bytes. A file is refused, with path, reason and remedy, when anything in it is missing, foreign, misshapen, not finite
or altered since it was written. There is no fallback: a router without a sound model does not start.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from router.errors import ModelError, ModelFormatError, ModelNotFound, NonFiniteInput, RouterError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    from numpy.typing import NDArray

    Array = NDArray[Any]
    M = TypeVar("M")

__all__ = ["check_writable", "library_version", "parts_of", "read_model", "write_model"]

ENTRY = "eventcore.router"
_MAX_BYTES = 256 * 1024 * 1024


def library_version() -> str:
    """Return the version of the installed distribution, or "unknown" when running from a bare source folder."""
    try:
        return metadata.version("eventcore")
    except metadata.PackageNotFoundError:
        return "unknown"


def write_model(path: str | os.PathLike[str], header: Mapping[str, Any], tensors: Mapping[str, Array]) -> None:
    """Write header and arrays to ``path``; the file is there whole or not at all. The same model gives the same bytes.

    Raises ModelError when it cannot be written, NonFiniteInput when an array holds NaN or infinity.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    _check_finite(arrays)
    signed = {**header, "sha256": _digest(header, arrays)}
    text = json.dumps(signed, sort_keys=True, allow_nan=False, separators=(",", ":"))
    target = Path(path)
    try:
        _write_whole(target, safetensors.save(arrays, {ENTRY: text}))
    except OSError as error:
        raise _unwritable(target, error) from error


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise ModelError unless a model can be written to ``path``: to be asked before an hour of training."""
    target = Path(path)
    try:
        _check_place(target)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise _unwritable(target, error) from error


def _unwritable(path: Path, error: OSError) -> ModelError:
    return ModelError(f"the model cannot be written to {path}: {error.strerror}; choose a writable path")


def _check_place(path: Path) -> None:
    if path.exists() and not path.is_file():  # renaming would put the model in the place of a device
        raise OSError(errno.EINVAL, "it is a directory" if path.is_dir() else "it is no regular file")


def read_model(
    path: str | os.PathLike[str],
    formats: Mapping[str, Callable[[Mapping[str, Any], dict[str, Array]], M]],
    *,
    remedy: str,
) -> M:
    """Return what ``formats[its format](header, arrays)`` makes of the file at ``path``.

    Raises ModelNotFound when there is no such file, ModelFormatError with ``remedy`` when it is not a sound model,
    ModelError when it cannot be read.
    """
    source = Path(path)

    def refused(reason: str) -> ModelFormatError:
        return ModelFormatError(f"the model file {source} is refused: {reason}; {remedy}")

    data = _bytes_of(source, refused, remedy)
    try:
        tensors = safetensors.load(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise refused(f"it is truncated or no safetensors file ({error})") from error
    header = _header_of(data)
    if header is None:
        raise refused(f"it is a safetensors file of something else: it lacks the entry {ENTRY!r}")
    assemble = formats.get(str(header["format"]))
    if assemble is None:
        raise refused(f"its format is {header['format']!r}, expected {' or '.join(map(repr, formats))}")
    if header.pop("sha256", None) != _digest(header, tensors):
        raise refused("it has been altered since it was written")
    try:
        _check_finite(tensors)
        return assemble(header, tensors)
    except (KeyError, TypeError, AttributeError) as error:
        raise refused(f"its header is incomplete ({type(error).__name__}: {error})") from error
    except (RouterError, ValueError) as error:
        raise refused(str(error)) from error


def _bytes_of(source: Path, refused: Callable[[str], ModelFormatError], remedy: str) -> bytes:
    try:
        if source.stat().st_size > _MAX_BYTES:
            raise refused(f"it is larger than {_MAX_BYTES >> 20} MiB")
        return source.read_bytes()
    except FileNotFoundError:
        raise ModelNotFound(f"there is no model file at {source}: check the path, {remedy}") from None
    except IsADirectoryError:
        raise refused("it is a directory") from None
    except OSError as error:
        raise ModelError(f"the model file {source} cannot be read: {error.strerror}; check its permissions") from error


def _header_of(data: bytes) -> dict[str, Any] | None:
    """Return our entry of the safetensors header, whose form the library has checked; None when there is none."""
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    try:
        header = dict(json.loads(entries[ENTRY]))
    except (KeyError, TypeError, ValueError):
        return None
    return header if "format" in header else None


def parts_of(tensors: Mapping[str, Array], *names: str) -> dict[str, dict[str, Array]]:
    """Return the arrays by part, ``network.W`` under "network" as "W"; ValueError for one of no part in ``names``."""
    parts: dict[str, dict[str, Array]] = {name: {} for name in names}
    for name, array in tensors.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise ValueError(f"the array {name} is not part of a model")
        parts[part][rest] = array
    return parts


def _check_finite(tensors: Mapping[str, Array]) -> None:
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise NonFiniteInput(f"the model's {name} holds NaN or infinity")


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


def _write_whole(path: Path, data: bytes) -> None:
    """Write beside ``path`` and rename, so that a reader or a crash never meets half a file."""
    _check_place(path)
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
