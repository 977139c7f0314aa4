"""The errors of the router.

::

    RouterError
    ├── ConfigError           (ValueError)         a setting outside its range
    ├── InvalidRequest        (ValueError)         a request, candidate or array that cannot be used
    │   ├── DimensionMismatch                      shapes that do not fit each other
    │   ├── NonFiniteInput                         NaN or infinity where a number was expected
    │   ├── UnknownRequest    (LookupError)        feedback on a request that is not waiting for any
    │   └── DuplicateFeedback                      feedback that came a second time
    ├── FeatureError                               valid input from which no finite feature can be computed
    ├── InferenceError                             the model gave no usable score
    ├── ModelError                                 a model that cannot serve
    │   ├── ModelNotFound     (FileNotFoundError)  no file at that path
    │   ├── ModelFormatError  (ValueError)         a file that is not a sound model of ours
    │   └── NoCalibration                          a model without the calibration its uncertainty needs
    ├── CalibrationError                           too few outcomes to promise anything
    ├── TrainingError                              training that cannot start or has diverged
    ├── DataNotFound          (FileNotFoundError)  the data folder or a file in it is absent
    ├── HistoryError                               the history of candidates cannot be opened, read or written
    └── BreakerOpen                                the circuit breaker refuses the call

Each class carries ``error_type``, the value its failures have in metrics; ``ERROR_TYPES`` is the closed set of them.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "ERROR_TYPES",
    "BreakerOpen",
    "CalibrationError",
    "ConfigError",
    "DataNotFound",
    "DimensionMismatch",
    "DuplicateFeedback",
    "FeatureError",
    "HistoryError",
    "InferenceError",
    "InvalidRequest",
    "ModelError",
    "ModelFormatError",
    "ModelNotFound",
    "NoCalibration",
    "NonFiniteInput",
    "RouterError",
    "TrainingError",
    "UnknownRequest",
]

ERROR_TYPES = (
    "inference_error",
    "feature_error",
    "storage_error",
    "circuit_breaker_open",
    "config_error",
    "database_error",
    "serialization_error",
    "invalid_input",
    "model_not_found",
    "unknown",
)
"""Every value of the metric label ``error_type``; anything that is not a RouterError counts as "unknown"."""


class RouterError(Exception):
    """Base of all errors the router raises on purpose."""

    error_type: ClassVar[str] = "unknown"


class ConfigError(RouterError, ValueError):
    """A setting is outside its range; the message names the setting, its value and the range."""

    error_type = "config_error"


class InvalidRequest(RouterError, ValueError):
    """A request, a candidate or an array handed in cannot be used as it is."""

    error_type = "invalid_input"


class DimensionMismatch(InvalidRequest):
    """Two shapes that have to fit do not."""


class NonFiniteInput(InvalidRequest):
    """A number handed in is NaN or infinite."""


class UnknownRequest(InvalidRequest, LookupError):
    """Feedback on a request that was never routed here, or so long ago that it was forgotten."""


class DuplicateFeedback(InvalidRequest):
    """Feedback on a request that had its feedback already."""


class FeatureError(RouterError):
    """The input is valid, but no finite feature can be computed from it."""

    error_type = "feature_error"


class InferenceError(RouterError):
    """The model ran and gave no usable score."""

    error_type = "inference_error"


class ModelError(RouterError):
    """A model cannot serve."""

    error_type = "inference_error"


class ModelNotFound(ModelError, FileNotFoundError):
    """There is no model file at the path."""

    error_type = "model_not_found"


class ModelFormatError(ModelError, ValueError):
    """The file at the path is not a sound model: foreign, truncated, of a wrong shape, altered or not finite."""

    error_type = "serialization_error"


class NoCalibration(ModelError):
    """The model carries no calibration, so it cannot say how uncertain a score is."""


class CalibrationError(RouterError):
    """There are too few outcomes to promise anything; the message says how many are needed."""


class TrainingError(RouterError):
    """Training cannot start on this data or has diverged."""


class DataNotFound(RouterError, FileNotFoundError):
    """The data folder, or a file expected in it, is absent."""

    error_type = "storage_error"


class HistoryError(RouterError):
    """The history of candidates cannot be opened, read or written."""

    error_type = "database_error"


class BreakerOpen(RouterError):
    """The circuit breaker is open: the call was refused without being tried."""

    error_type = "circuit_breaker_open"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        """Keep the message and, where known, the seconds until the breaker will let a probe through."""
        super().__init__(message)
        self.retry_after_s = retry_after_s
