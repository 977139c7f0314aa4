"""router: decides which model a request needs. It only emits; logs, metrics and spans follow by configuration."""

from __future__ import annotations

from router.embedding import Embedder, HashingEmbedder
from router.errors import RouterError
from router.features import Candidate, CandidatePool, RoutingRequest
from router.model import RouterModel
from router.model_file import load_model, save_model
from router.router import Router, RouterConfig, RoutingDecision, RoutingResponse

__all__ = [
    "Candidate",
    "CandidatePool",
    "Embedder",
    "HashingEmbedder",
    "Router",
    "RouterConfig",
    "RouterError",
    "RouterModel",
    "RoutingDecision",
    "RoutingRequest",
    "RoutingResponse",
    "load_model",
    "save_model",
]
