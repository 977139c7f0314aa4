"""The application, alive: it routes the demo's requests for ever, and everything that can go wrong does, in turns.

Run in a folder with an ``eventcore.toml`` and a ``damaged.safetensors``. Prints one JSON line with its address when it
serves, one with the number of its round after each, and ends on SIGTERM.
"""

from __future__ import annotations

import contextvars
import json
import signal
import sqlite3
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated

import numpy as np

import eventcore as ec
from router import Candidate, DriftConfig, History, Router, RouterConfig, RouterError, RoutingRequest, load_model
from router.backends import BackendConfig
from router.embedding import HashingEmbedder
from router.model_file import BUNDLED_MODEL
from router.prompt_model import PromptModel, PromptRecipe
from router.prompts import embed_chunks
from router.training import TrainingConfig

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES / "demo"))

from intake import Intake, read_lines  # noqa: E402 - of the demo

PAUSE_S = 0.01
ENDED = threading.Event()


class Mishap(ec.Event, name="live.mishap", category=ec.Category.USER):
    """Something for the odd handlers of this program; the log's and the span's do not care."""

    visitor: Annotated[str, ec.Label]
    weight: Annotated[float, ec.Measure(unit="kg")] = 1.0
    text: str = ""


class Chore(ec.Operation, name="live.chore", span="live_chore", category=ec.Category.USER):
    """An operation that is used wrongly."""

    done: Annotated[int, ec.Measure(unit="1")] = ec.unset


FLOOD = ec.Counter("live_visits_total", on=Mishap, labels={"visitor": "visitor"}, help="Visits by visitor.")
WEIGHT = ec.Counter("live_weight_total", on=Mishap, value="weight", help="Weight of all visitors.")


class Flaky(ec.Handler):
    """Fails while it is told to."""

    is_broken = False

    def handle(self, envelope):
        if self.is_broken:
            raise OSError("the disk of the flaky handler is gone")


class Slow(ec.Handler):
    """Takes longer than events come, so that its short queue overflows."""

    def handle(self, envelope):
        time.sleep(0.02)


class Echo(ec.Handler):
    """Emits while it handles, which the bus stops."""

    delivery = "inline"

    def handle(self, envelope):
        self.emitter.emit(Mishap(visitor="echo"))


class Archive(ec.Handler):
    """Refuses one kind of event for good."""

    delivery = "durable"

    def handle(self, envelope):
        if envelope.get("text") == "poison":
            raise ValueError("the archive cannot hold this")


class Oddities:
    """A plugin with a route that always fails."""

    @staticmethod
    @ec.hookimpl
    def eventcore_routes(emitter):
        def fail(_request):
            raise RuntimeError("this page has a fault")

        return [ec.HttpRoute("/faulty", fail, "always fails")]


class Trouble:
    """The bundled model, whose backend has faults when told to: real ones, from the files and settings it needs."""

    def __init__(self, model):
        self._model = model
        self.fault = None

    @property
    def feature_weights(self):
        return (0.4, float("nan"), 0.1, 0.1, 0.1) if self.fault == "weights" else self._model.feature_weights

    def score(self, features):
        if self.fault == "nothing finite":
            return np.full(len(features), np.nan, dtype=np.float32)
        if self.fault == "missing file":
            load_model("missing.safetensors")
        if self.fault == "damaged file":
            load_model("damaged.safetensors")
        if self.fault == "bug":
            raise ZeroDivisionError("a bug")
        if self.fault == "slow":
            time.sleep(0.02)
        if self.fault == "contrary":
            return 1.0 - self._model.score(features)
        return self._model.score(features)

    def uncertainty(self, scores):
        return self._model.uncertainty(scores)


class Served:
    """A router with all that goes on beside routing: prompts, backends, feedback, drift, reloads, a shadow."""

    WINDOW = 20

    def __init__(self):
        texts = [f"question {number} about {'code' if number % 2 else 'law'}" for number in range(20)]
        embedder = HashingEmbedder(32)
        recipe = PromptRecipe(2, components=4, hidden_size=4, training=TrainingConfig(epochs=2))
        outcomes = np.array([[number % 2, 1.0] for number in range(20)])
        reader = PromptModel.fit(
            ("small", "large"), texts, embed_chunks(texts, embedder, 2), outcomes, embedder="hashing:32", recipe=recipe
        )
        backend = BackendConfig(minimum_calls=2, open_s=0.6, half_open_permits=1)  # longer than a scrape
        self.history = History("history.db", max_rows=1000, max_waiting=100, busy_s=0.01)
        self.router = Router(
            RouterConfig(confidence_threshold=0.5, max_uncertainty=1.0, backend=backend),
            prompt_model=reader,
            history=self.history,
            drift=DriftConfig(
                request_window=self.WINDOW,
                feedback_window=self.WINDOW,
                calibration_limit=0.05,
                against="first_window",  # so that it comes back
            ),
        )
        self.shadow_model = Trouble(load_model())
        self.router.start_shadow(self.shadow_model)
        self.embedder = embedder

    def route(self, name, *, rate, prompt="a question about code"):
        """Route a prompt to candidates whose calls have succeeded at that rate."""
        query = self.embedder.embed(prompt)
        candidates = [
            Candidate(id, query, created_at=time.time(), access_count=10, success_rate=rate, price=price)
            for id, price in (("small", 1.0), ("large", 9.0))
        ]
        return self.router.route(RoutingRequest(query, candidates, request_id=name, prompt=prompt))

    def feed(self, name, quality):
        """Give feedback; refusals are part of it."""
        with suppress(RouterError):
            self.router.feedback(name, quality)

    def lock_history(self):
        """Keep the history from being written for a while, as a backup might."""
        with closing(sqlite3.connect("history.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            self.route(f"unwritten-{time.time_ns()}", rate=0.5)
            with suppress(RouterError):
                self.history.flush()
            other.execute("ROLLBACK")
        self.history.flush()

    def round(self, number):
        """Drift away and back, give feedback right and wrong, replace the model, lose a backend."""
        router = self.router
        short, long = "a question about code", "Which law applies here, and why? Give each step of the proof. " * 5
        for phase, (rate, prompt) in enumerate(((0.9, short), (0.0, long), (0.9, short))):
            for request in range(self.WINDOW):
                name = f"served-{time.time_ns()}-{number}-{phase}-{request}"
                response = self.route(name, rate=rate, prompt=prompt)
                expected = float(response.quality[response.ids.index(response.chosen.candidate_id)])
                self.feed(name, 0.0 if phase == 1 else expected)
        self.feed(name, 1.0)
        self.feed("never routed", 1.0)
        for path in (BUNDLED_MODEL, "damaged.safetensors"):
            with suppress(RouterError):
                router.reload(path)
        self.shadow_model.fault = "bug"
        self.route(f"shadowed-{time.time_ns()}", rate=0.5)
        router.shadow.wait(5)
        self.shadow_model.fault = "slow"
        for request in range(150):  # more than may wait for it
            self.route(f"shadowed-{time.time_ns()}-{request}", rate=0.5)
        self.shadow_model.fault = "contrary"
        router.shadow.wait(10)
        self.route(f"shadowed-{time.time_ns()}", rate=0.5)
        router.shadow.wait(5)
        self.shadow_model.fault = None
        self.lock_history()
        small = router.backend("small")
        for _ in range(2):
            with suppress(OSError), small.call():
                raise OSError("the backend does not answer")
        time.sleep(0.62)
        with small.call():
            pass


class Application:
    """Routes, and makes trouble."""

    def __init__(self, emitter):
        self.emitter = emitter
        self.model = Trouble(load_model())
        longer_than_a_scrape = RouterConfig(circuit_breaker_timeout_s=0.6)
        self.router = Router(longer_than_a_scrape, model=self.model)
        self.plain = Router(RouterConfig(enable_circuit_breaker=False))  # loads its model, and has no breaker
        self.intake = Intake(EXAMPLES / "candidates.toml")
        lines = [json.loads(line) for _, line in read_lines(str(EXAMPLES / "requests.jsonl"))]
        everybody = sorted({name for line in lines for name in line["candidates"]})
        self.lines = [  # few candidates as a rule: each one is a line of the log
            json.dumps({**line, "candidates": (everybody * 2)[at : at + size]})
            for at, (line, size) in enumerate(zip(lines, (5, 5, 30, 5, 80, 5, 5, len(everybody)) * 6, strict=False))
        ]
        self.served = Served()
        self.is_well = True
        emitter.health.add_check(ec.HealthCheck("live_backend", self._health, ttl_s=0.0))

    def _health(self):
        status = ec.HealthStatus.HEALTHY if self.is_well else ec.HealthStatus.UNHEALTHY
        return ec.HealthResult(status, "as told")

    def route(self, line, *, times=1):
        """Route a request; failures are part of it."""
        for _ in range(times):
            with suppress(RouterError, ZeroDivisionError):
                self.router.route(self.intake.parse("live", line))
            time.sleep(PAUSE_S)

    def round(self, number):
        """Route for a while, then let everything go wrong once."""
        for line in self.lines:
            self.route(line)
        first = self.intake.parse("live", self.lines[0])
        with suppress(RouterError):
            self.router.route(RoutingRequest(np.full(first.pool.dimension, 1e200), first.pool))
        self.route(json.dumps({"prompt": "nobody", "candidates": []}))
        for fault in ("weights", "missing file", "damaged file", "bug", "nothing finite"):
            self.model.fault = fault
            self.route(self.lines[0], times=7 if fault == "nothing finite" else 1)  # enough to open the breaker
            self.model.fault = None
            self.route(self.lines[0], times=4)
        time.sleep(0.62)
        self.model.fault = "slow"
        self.route(self.lines[0], times=20)  # probes, which close it
        self.model.fault = None
        self.plain.route(first)
        self.served.round(number)
        self.mishaps(number)

    def mishaps(self, number):
        """Misuse the bus in every way that it has an answer to."""
        emitter = self.emitter
        with emitter.operation(Chore) as chore:
            chore.set(done="many")
        chore.end()
        contextvars.copy_context().run(emitter.operation(Chore).__enter__)  # nobody can end it
        with ec.profile("live"):
            ec.get_logger("live").info("round", number=number)
        ec.emit_event("live.round", data={"number": number})
        for visitor in range(1_100):
            emitter.emit(Mishap(visitor=f"visitor-{number}-{visitor}"))
        emitter.emit(Mishap(visitor="floating", weight=-1.0))
        emitter.emit(Mishap(visitor="poisoned", text="poison"))
        emitter.emit(Mishap(visitor="large", text="x" * 200_000))
        flaky = emitter.handler("flaky")
        for flaky.is_broken in (True, False):
            for _ in range(40):
                emitter.emit(Mishap(visitor="flaky"))
                time.sleep(0.005)
            self.is_well = not flaky.is_broken
            emitter.health.report()
        with suppress(urllib.error.HTTPError):
            urllib.request.urlopen(emitter.services["http"].url + "/faulty", timeout=5)
        emitter.flush(5)


def say(**what):
    """Tell the test."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main():
    """Serve until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: ENDED.set())
    odd = {
        "flaky": Flaky(events="live.*", linger_s=0),
        "slow": Slow(events="live.mishap", queue_size=2),
        "echo": Echo(events="live.mishap"),
        "archive": Archive(events="live.mishap"),
    }
    with ec.configure(handlers=odd, instruments=(FLOOD, WEIGHT), plugins=(Oddities,)) as emitter:
        application = Application(emitter)
        say(url=emitter.services["http"].url)
        number = 0
        while not ENDED.is_set():
            application.round(number)
            number += 1
            say(round=number)


if __name__ == "__main__":
    main()
