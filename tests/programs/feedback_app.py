"""An application for gunicorn, preloaded: its workers route, and take feedback on what any of them has routed."""

from __future__ import annotations

import json
import os

import numpy as np

import eventcore as ec
from router import Candidate, CandidatePool, History, Router, RouterError, RoutingRequest

QUERY = np.ones(8, np.float32)
POOL = CandidatePool([Candidate(name, QUERY, success_rate=rate) for name, rate in (("one", 0.5), ("two", 0.6))])
router = Router(history=History("history.db"), emitter=ec.Emitter())
router.route(RoutingRequest(QUERY, POOL, request_id="of the master"))


def application(environ, start_response):
    """Route ``/route?NAME``, take ``/feedback?NAME``; answer who did it and what came of it."""
    name, status = environ["QUERY_STRING"], "accepted"
    if environ["PATH_INFO"] == "/route":
        status = router.route(RoutingRequest(QUERY, POOL, request_id=name)).best.candidate_id
    else:
        try:
            router.feedback(name.replace("%20", " "), 1.0)
        except RouterError as error:
            status = type(error).__name__
    start_response("200 OK", [("content-type", "application/json")])
    return [json.dumps({"worker": os.getpid(), "status": status}).encode()]
