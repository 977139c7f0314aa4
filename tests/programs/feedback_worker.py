"""A worker of a server with several: routes and takes feedback as its input says, with the history file it is given."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections import Counter
from contextlib import closing

import numpy as np

import eventcore as ec
from router import Candidate, Guaranteed, History, Router, RouterError, RoutingRequest, load_model
from router.conformal import AdaptiveRisk

QUERY = np.ones(8, np.float32)
PAIR = [Candidate("cheap", QUERY, success_rate=0.5, price=1.0), Candidate("dear", QUERY, success_rate=0.6, price=9.0)]


class Worker:
    """A router whose policy learns from feedback."""

    def __init__(self, path):
        self.history = History(path)
        self.rule = AdaptiveRisk(0.5)
        for number in range(100):
            self.rule.observe(number / 100, 0.0, sent=False)
        self.observed = 0
        self.router = Router(
            model=load_model(), history=self.history, policy=Guaranteed(self.rule), emitter=ec.Emitter()
        )

    def route(self, names):
        """Route a request of each name; return the quality expected of who was chosen."""
        found = {}
        for name in names:
            response = self.router.route(RoutingRequest(QUERY, PAIR, request_id=name))
            found[name] = float(response.quality[response.place])
        return found

    def feedback(self, name, quality):
        """Give feedback; say what became of it."""
        known = len(self.rule._window)
        try:
            self.router.feedback(name, quality)
        except RouterError as error:
            return {"status": type(error).__name__}
        with closing(sqlite3.connect(self.history.path)) as connection:
            ((expected,),) = connection.execute("SELECT expected FROM outcome WHERE request_id = ?", (name,))
        return {"status": "accepted", "expected": expected, "observed": len(self.rule._window) - known}

    def do(self, command):
        """Carry out one command."""
        answer = self.route(command.get("route", []))
        if "fork" in command:
            child = os.fork()
            if not child:
                self.route(command["fork"])
                self.history.flush()
                os._exit(0)
            answer["child"] = os.waitpid(child, 0)[1]
        if command.get("flush"):
            self.history.flush()
        time.sleep(command.get("wait_s", 0.0))
        names = command.get("feedback", [])
        if isinstance(names, str):
            return self.feedback(names, command["quality"])
        if names:
            return dict(Counter(self.feedback(name, command["quality"])["status"] for name in names))
        return answer


def main():
    """Answer each line of the input by a line."""
    worker = Worker(sys.argv[1])
    for line in sys.stdin:
        sys.stdout.write(json.dumps(worker.do(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
