"""router: decides which model a request needs. It only emits; logs, metrics and spans follow by configuration.

Names are imported when they are first used: eventcore loads ``router.plugin`` in every program, and that must not cost
the import of numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from router.choice import Budget as Budget
    from router.choice import Guaranteed as Guaranteed
    from router.choice import TargetShare as TargetShare
    from router.choice import Threshold as Threshold
    from router.drift import DriftConfig as DriftConfig
    from router.embedding import Embedder as Embedder
    from router.embedding import HashingEmbedder as HashingEmbedder
    from router.errors import RouterError as RouterError
    from router.features import Candidate as Candidate
    from router.features import CandidatePool as CandidatePool
    from router.features import RoutingRequest as RoutingRequest
    from router.history import History as History
    from router.model import RouterModel as RouterModel
    from router.model_file import load_model as load_model
    from router.model_file import save_model as save_model
    from router.response import RoutingDecision as RoutingDecision
    from router.response import RoutingResponse as RoutingResponse
    from router.router import Router as Router
    from router.router import RouterConfig as RouterConfig

_MODULES = {
    "choice": "Budget Guaranteed TargetShare Threshold",
    "drift": "DriftConfig",
    "embedding": "Embedder HashingEmbedder",
    "errors": "RouterError",
    "features": "Candidate CandidatePool RoutingRequest",
    "history": "History",
    "model": "RouterModel",
    "model_file": "load_model save_model",
    "response": "RoutingDecision RoutingResponse",
    "router": "Router RouterConfig",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = sorted(_HOME)  # noqa: PLE0605 - one table serves both


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'router' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"router.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
