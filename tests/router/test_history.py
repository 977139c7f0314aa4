import os
import sqlite3
import threading
import time
from contextlib import suppress

import numpy as np
import pytest

import eventcore as ec
from router import Candidate, Guaranteed, History, Router, RoutingRequest, waiting
from router.conformal import AdaptiveRisk
from router.errors import (
    ConfigError,
    DuplicateFeedback,
    HistoryError,
    InvalidRequest,
    NonFiniteInput,
    RouterError,
    UnknownRequest,
)
from router.history import Known
from router.prompt_model import NeedCalibration
from router.waiting import Open


class Clock:
    """Seconds that the test moves."""

    now = 1000.0

    def __call__(self):
        return self.now


class Fixed:
    """A model that gives each candidate its success rate as the score, and no doubt."""

    feature_weights = (1.0,) * 5

    def score(self, features):
        return features[:, 3]

    def uncertainty(self, scores):
        return np.zeros_like(scores)


def request(name="r1", qualities=(0.5, 0.75)):
    """Return a request of two candidates, cheap and dear, with these success rates."""
    pairs = zip(("cheap", "dear"), qualities, (1.0, 9.0), strict=True)
    query = np.ones(4, np.float32)
    return RoutingRequest(query, [Candidate(i, query, success_rate=q, price=p) for i, q, p in pairs], request_id=name)


@pytest.fixture
def history(tmp_path):
    """Return a history in a file of its own."""
    opened = History(tmp_path / "history.db")
    yield opened
    opened.close()


def test_candidates_are_known_by_their_outcomes(history):
    """Calls are counted and the rate follows the rule of succession; candidates without outcomes stay as they are."""
    for number, quality in enumerate((1.0, 1.0, 0.5)):
        history.add(f"r{number}", "good", quality, 0.7)
    assert history.known() == {"good": Known(3, 2.5)}
    good, new = history.refreshed([Candidate(i, np.ones(2, np.float32), success_rate=0.1) for i in ("good", "new")])
    assert (good.access_count, good.success_rate) == (3, pytest.approx(3.5 / 5))
    assert (new.access_count, new.success_rate) == (0, 0.1)


def test_what_is_known_survives_the_process_that_learned_it(tmp_path):
    """The file is found again, in WAL mode, by another connection while the first is open."""
    path = tmp_path / "history.db"
    first, second = History(path), History(path)
    first.add("r1", "a", 1.0, 0.5)
    assert second.known() == {"a": Known(1, 1.0)}
    with pytest.raises(DuplicateFeedback):
        second.add("r1", "a", 1.0, 0.5)
    first.close()
    second.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    third = History(path)
    assert len(third) == 1
    third.close()


def test_rows_and_age_are_bounded(tmp_path):
    """The newest rows are kept; what is too old neither counts nor stays."""
    clock = Clock()
    history = History(tmp_path / "history.db", max_rows=10, max_age_s=100.0, clock=clock)
    for number in range(25):
        history.add(f"r{number}", "a", 1.0, 0.5)
        assert len(history) <= 10
    assert history.has("r24")
    assert not history.has("r14")
    clock.now += 101.0
    assert history.known() == {}
    history.add("new", "b", 1.0, 0.5)
    assert len(history) == 1
    history.close()


def test_many_threads_and_a_forked_child_write_without_loss(history):
    """Each outcome is there once, whoever wrote it; a child opens the file for itself."""
    threads = [
        threading.Thread(target=lambda n=n: [history.add(f"t{n}-{i}", "a", 1.0, 0.5) for i in range(50)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    child = os.fork()
    if not child:
        status = 1
        try:
            history.add("child", "b", 0.0, 0.5)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    history.add("parent", "b", 1.0, 0.5)
    assert history.known() == {"a": Known(200, 200.0), "b": Known(2, 1.0)}


def test_many_processes_make_the_file_at_once(tmp_path):
    """Each finds a sound file, whoever was first, and writes its outcome."""
    for attempt in range(10):
        path, start = tmp_path / f"history{attempt}.db", time.monotonic() + 0.05
        children = []
        for number in range(8):
            child = os.fork()
            if not child:
                status = 1
                try:
                    while time.monotonic() < start:
                        pass
                    History(path).add(f"r{number}", "a", 1.0, 0.5)
                    status = 0
                finally:
                    os._exit(status)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
        history = History(path)
        assert history.known() == {"a": Known(8, 8.0)}
        history.close()


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path):
    """A database with other tables, text, or a folder: named, with the remedy."""
    foreign, text = tmp_path / "foreign.db", tmp_path / "text.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = foreign.read_bytes()
    text.write_text("no database at all, but long enough to look at" * 50)
    for path, message in ((foreign, "something else"), (text, "not a database"), (tmp_path, "unable to open")):
        with pytest.raises(HistoryError, match=message) as refused:
            History(path)
        assert str(path) in str(refused.value)
    assert foreign.read_bytes() == before
    for bounds in ({"max_rows": 0}, {"max_age_s": 0.0}, {"max_waiting": 0}, {"max_waiting_s": 0.0}):
        with pytest.raises(ConfigError, match="have to be positive"):
            History(tmp_path / "new.db", **bounds)


def test_feedback_reaches_the_history_and_is_emitted(events, history):
    """With the candidate that was chosen, or the one that the caller says has answered, and what was expected."""
    router = Router(model=Fixed(), history=history)
    router.route(request("r1"))
    router.route(request("r2"))
    router.feedback("r1", 1.0)
    router.feedback("r2", True, candidate_id="cheap")
    assert history.known() == {"dear": Known(1, 1.0), "cheap": Known(1, 1.0)}
    seen = [each.event for each in events.get_events(type="router.feedback_received")]
    assert [(each.request_id, each.candidate_id, each.quality, each.expected) for each in seen] == [
        ("r1", "dear", 1.0, 0.75),
        ("r2", "cheap", 1.0, 0.5),
    ]
    assert router.waiting == (0, 0)


def test_a_request_without_an_id_gets_one(history):
    """The response has it, for the feedback."""
    router = Router(model=Fixed(), history=history)
    response = router.route(request(None))
    router.feedback(response.request_id, 0.5)
    assert history.known() == {"dear": Known(1, 0.5)}


def test_unknown_and_doubled_feedback_is_an_error_and_counted(events, history):
    """Each is named and emitted; neither reaches the history."""
    router = Router(model=Fixed(), history=history)
    router.route(request("r1"))
    router.feedback("r1", 1.0)
    with pytest.raises(DuplicateFeedback, match="'r1' already"):
        router.feedback("r1", 0.0)
    router.route(request("r1"))
    with pytest.raises(DuplicateFeedback, match="'r1' already"):
        router.feedback("r1", 0.0)
    with pytest.raises(UnknownRequest, match="no request 'r9' waits for feedback"):
        router.feedback("r9", 1.0)
    refused = [each.event.status for each in events.get_events(type="router.feedback_refused")]
    assert refused == ["duplicate", "duplicate", "unknown"]
    assert history.known() == {"dear": Known(1, 1.0)}


@pytest.mark.parametrize(
    ("quality", "kind"),
    [
        (-0.1, InvalidRequest),
        (1.5, InvalidRequest),
        ("good", InvalidRequest),
        (None, InvalidRequest),
        (float("nan"), NonFiniteInput),
        (float("inf"), NonFiniteInput),
    ],
)
def test_a_quality_is_a_number_from_0_to_1(history, quality, kind):
    """Anything else is refused, and the request goes on waiting."""
    router = Router(model=Fixed(), history=history)
    router.route(request("r1"))
    with pytest.raises(kind, match="use a number from 0"):
        router.feedback("r1", quality)
    with pytest.raises(InvalidRequest, match="'r1' had no candidate 'other'"):
        router.feedback("r1", 1.0, candidate_id="other")
    assert router.waiting == (1, 0)
    router.feedback("r1", 1.0)


def test_feedback_without_a_history_is_a_mistake():
    """It would be lost."""
    with pytest.raises(ConfigError, match=r"needs a history: make the router with history=History\(path\)"):
        Router(model=Fixed()).feedback("r1", 1.0)


def test_of_many_threads_with_the_same_feedback_one_is_heard(history):
    """The others get DuplicateFeedback."""
    router = Router(model=Fixed(), history=history, emitter=ec.Emitter())
    router.route(request("r1"))
    outcomes, barrier = [], threading.Barrier(8)

    def tell():
        barrier.wait()
        try:
            router.feedback("r1", 1.0)
            outcomes.append("heard")
        except DuplicateFeedback:
            outcomes.append("duplicate")

    threads = [threading.Thread(target=tell) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == ["duplicate"] * 7 + ["heard"]
    assert history.known() == {"dear": Known(1, 1.0)}


@pytest.mark.parametrize("written", [True, False])
def test_the_requests_that_wait_are_bounded(tmp_path, monkeypatch, written):
    """The oldest make room, and are counted, whether they are in the file already or on the way there."""
    if not written:
        monkeypatch.setattr(waiting, "MOST", 3)
    history = History(tmp_path / "history.db", max_waiting=3)
    router = Router(model=Fixed(), history=history)
    for number in (0, 1, 2, 3, 4):
        router.route(request(f"r{number}"))
        if written:
            history.flush()
    history.flush()
    assert router.waiting == (3, 2)
    with pytest.raises(UnknownRequest, match="the last 3 requests of"):
        router.feedback("r0", 1.0)
    router.feedback("r4", 1.0)
    assert router.waiting == (2, 2)
    history.close()


def test_a_request_waits_no_longer_than_it_may(tmp_path):
    """After ``max_waiting_s`` it is unknown, and its row goes with the next one that is written."""
    clock = Clock()
    history = History(tmp_path / "history.db", max_waiting_s=60.0, clock=clock)
    router = Router(model=Fixed(), history=history)
    router.route(request("old"))
    history.flush()
    clock.now += 61.0
    with pytest.raises(UnknownRequest, match="within 60 s"):
        router.feedback("old", 1.0)
    router.route(request("new"))
    history.flush()
    assert router.waiting == (1, 1)
    history.close()


def test_an_adaptive_guarantee_goes_on_where_feedback_has_brought_it(tmp_path):
    """After a restart its level and threshold are what they were; requests that no guarantee decided do not count."""
    needs = NeedCalibration(np.linspace(0.0, 1.0, 200), (np.arange(200) % 10 == 0).astype(np.uint8))
    history = History(tmp_path / "history.db")
    Router(model=Fixed(), history=history).route(request("without a policy"))
    history.add("without a policy", "dear", 1.0, 0.5)
    policy = Guaranteed.adaptive(0.1, needs, rate=0.05, history=history)
    assert policy.rule.level == 0.1
    router = Router(model=Fixed(), history=history, policy=policy)
    cheap = []
    for number in range(40):
        response = router.route(request(f"r{number}", (0.5, 0.5 + number % 5 / 10)))
        cheap.append(response.chosen.candidate_id == "cheap")
        router.feedback(f"r{number}", number % 3 / 2)
    assert 0 < sum(cheap) < 40
    history.close()
    again = Guaranteed.adaptive(0.1, needs, rate=0.05, history=history)
    assert again.rule.level == pytest.approx(policy.rule.level, abs=1e-12)
    assert again.threshold(None) == policy.threshold(None)
    assert policy.rule.level != 0.1
    history.close()


def test_a_history_of_before_takes_requests_that_wait(tmp_path):
    """A file without that table, and without needs, gets them, and keeps its outcomes."""
    path = tmp_path / "history.db"
    old = History(path)
    old.add("r0", "dear", 1.0, 0.5)
    old.close()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE waiting")
        connection.execute("ALTER TABLE outcome DROP COLUMN need")
        connection.execute("ALTER TABLE outcome DROP COLUMN was_cheap")
    connection.close()
    history = History(path)
    router = Router(model=Fixed(), history=history)
    router.route(request("r1"))
    history.flush()
    router.feedback("r1", 1.0)
    assert history.known() == {"dear": Known(2, 2.0)}
    assert list(history.harms()) == []
    history.close()


def test_what_is_forgotten_is_emitted_and_counted(tmp_path):
    """By one router of those that share a history, so that nothing is counted twice."""
    emitter = ec.configure(service="test", handlers={"metric": {"packs": ["router"]}}, replace=True)
    history = History(tmp_path / "history.db", max_waiting=2)
    routers = [Router(model=Fixed(), history=history, emitter=emitter) for _ in range(2)]
    for number in range(10):
        routers[number % 2].route(request(f"r{number}"))
        history.flush()
    assert emitter.flush(5)
    assert emitter.handler("metric").value("router_feedback_forgotten_total") == history.forgotten == 8
    assert emitter.handler("metric").value("router_history_failures_total") == 0
    history.close()
    emitter.shutdown(5)


def test_what_cannot_be_written_is_tried_again_and_shown(tmp_path):
    """While another program holds the file locked, requests gather, health is degraded, and routing goes on.

    The trouble is emitted when it begins, not with every attempt.
    """
    path = tmp_path / "history.db"
    history = History(path, busy_s=0.01)
    emitter = ec.configure(service="test", handlers={"buffer": {}}, replace=True)
    router = Router(model=Fixed(), history=history, emitter=emitter)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    router.route(request("r1"))
    with pytest.raises(HistoryError, match="locked"):
        history.flush()
    check = emitter.health.report()["checks"]["router"]
    assert (check["status"], check["details"]["waiting_for_feedback"]) == ("degraded", 1)
    assert f"the history {path} cannot be used" in check["message"]
    router.route(request("r2"))
    with pytest.raises(HistoryError, match="locked"):
        history.flush()
    other.execute("ROLLBACK")
    other.close()
    history.flush()
    assert router.waiting == (2, 0)
    assert emitter.health.report()["checks"]["router"]["status"] == "healthy"
    (failed,) = emitter.handler("buffer").get_events(type="router.history_failed")
    assert "locked" in failed.event.reason
    history.close()
    emitter.shutdown(5)


def test_closing_writes_what_waits_and_ends_the_thread(tmp_path):
    """Closed by eight threads at once, and used again; no thread is left and nothing is lost."""
    before = set(threading.enumerate())
    history = History(tmp_path / "history.db")
    router = Router(model=Fixed(), history=history)
    for turn in range(3):
        router.route(request(f"r{turn}"))
        closing = [threading.Thread(target=history.close) for _ in range(8)]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(30)
        assert set(threading.enumerate()) <= before
        assert router.waiting == (turn + 1, 0)
    history.close()


def test_feedback_and_writing_do_not_lose_each_other(tmp_path):
    """Six threads route and tell at once, some at once and some later, while what waits is written all the time."""
    history = History(tmp_path / "history.db")
    router = Router(model=Fixed(), history=history, emitter=ec.Emitter())
    done, troubles = threading.Event(), []

    def work(name):
        try:
            late = []
            for number in range(100):
                router.route(request(f"{name}-{number}"))
                late.append(f"{name}-{number}")
                if number % 3 == 0:
                    router.feedback(late.pop(), 1.0)
            for each in late:
                router.feedback(each, 1.0)
        except RouterError as error:
            troubles.append(error)

    def write():
        while not done.is_set():
            history.flush()

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcdef"]
    writer = threading.Thread(target=write)
    for thread in (*threads, writer):
        thread.start()
    for thread in threads:
        thread.join(60)
    done.set()
    writer.join(10)
    assert troubles == []
    assert history.known() == {"dear": Known(600, 600.0)}
    history.flush()
    assert router.waiting == (0, 0)
    history.close()


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ("no request at all", "a fault of ours"),
        (Open(("a",), np.ones(1), 2**80, None, None), "a fault of ours: OverflowError"),
        (Open(("a",), np.ones(1), None, None, None), "NOT NULL constraint failed"),
    ],
)
def test_what_can_never_be_written_is_lost_once_and_counted(history, odd, reason):
    """A request that is no request, or that SQLite refuses, does not stop those after it."""
    history.await_feedback("odd", odd)
    with suppress(HistoryError):
        history.flush()  # unless the thread was faster
    assert (history.waiting_count, history.forgotten) == (0, 1)
    assert reason in str(history.trouble)
    router = Router(model=Fixed(), history=history)
    router.route(request("r1"))
    history.flush()
    assert history.trouble is None
    router.feedback("r1", 1.0)


def test_ids_that_are_no_text_for_sqlite_wait_like_others(history):
    """A lone surrogate in the id of a request or of a candidate neither stops the writing nor loses the outcome."""
    router = Router(model=Fixed(), history=history)
    query = np.ones(4, np.float32)
    router.route(RoutingRequest(query, [Candidate("\udc80", query)], request_id="\udcff"))
    router.route(request("r1"))
    history.flush()
    router.feedback("\udcff", 1.0)
    router.feedback("r1", 1.0)
    assert len(history) == 2
    for name in ("\udcfd", "\udcfe", "r2"):  # the first two are one id in the file
        router.route(request(name))
    history.flush()
    assert history.trouble is None
    router.feedback("r2", 1.0)


def test_feedback_recalibrates_an_adaptive_guarantee(history):
    """Harm among what was sent to the cheap one makes the threshold stricter, until nothing is sent any more."""
    policy = Guaranteed(AdaptiveRisk(0.1, rate=0.05, window=50))
    for number in range(50):
        policy.rule.observe(number / 50, 0.0, sent=False)
    policy.rule.level = 0.1
    router = Router(model=Fixed(), history=history, policy=policy)
    chosen = []
    for number in range(10):
        response = router.route(request(f"r{number}", (0.5, 0.6)))
        chosen.append(response.chosen.candidate_id)
        router.feedback(f"r{number}", 0.0)
    assert chosen[0] == "cheap"
    assert chosen[-1] == "dear"
    assert policy.rule.level < 0.1
