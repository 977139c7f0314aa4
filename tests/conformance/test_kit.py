"""The conformance kit itself: a good handler passes it, and each fault that it is there to find is found."""

from __future__ import annotations

import os
import threading
import time
import unittest

import pytest
from pydantic import ConfigDict, Field

import eventcore as ec
from eventcore.testing import HandlerConformance


class Good(ec.Handler):
    """Does everything right: what each faulty handler below is a change of."""

    def __init__(self, config=None, **options):
        super().__init__(config, **options)
        self.ids = []

    def handle(self, envelope):
        if not envelope.name.startswith("conformance.poisoned"):
            self.ids.append(envelope.id)


class StartsAThread(Good):
    def __init__(self, config=None, **options):
        super().__init__(config, **options)
        threading.Thread(target=_STOP.wait, args=(30,), daemon=True, name="too-early").start()


class OpensAFile(Good):
    def __init__(self, config=None, **options):
        super().__init__(config, **options)
        _OPENED.append(os.open(os.devnull, os.O_RDONLY))


class FailsWholeBatches(Good):
    def handle_batch(self, envelopes):
        for envelope in envelopes:
            repr(envelope.payload)
            self.handle(envelope)


class Reverses(Good):
    def handle_batch(self, envelopes):
        for envelope in reversed(envelopes):
            self.handle(envelope)


class HoldsBack(Good):
    def handle_batch(self, envelopes):
        super().handle_batch(envelopes[:-1])


class SendsTwice(Good):
    def flush(self):
        self.ids += self.ids[:1]


class ClosesOnce(Good):
    closed = False

    def close(self):
        if self.closed:
            raise RuntimeError("closed already")
        self.closed = True


class LeavesAThread(Good):
    def attached(self, emitter):
        super().attached(emitter)
        threading.Thread(target=_STOP.wait, args=(30,), daemon=True, name="left-behind").start()


class ForksBadly(Good):
    def __init__(self, config=None, **options):
        super().__init__(config, **options)
        self.pid = os.getpid()

    def handle(self, envelope):
        if os.getpid() != self.pid:
            raise RuntimeError("not my process")
        super().handle(envelope)


class ShowsItsSecret(Good):
    def describe(self):
        return {"token": "hunter22"}


class DescribesObjects(Good):
    def describe(self):
        return {"emitter": self.emitter}


class TakesAnything(Good):
    class Config(ec.HandlerConfig):
        """Forgets that the base forbids it."""

        model_config = ConfigDict(extra="allow")


class SaysNothing(Good):
    class Config(ec.HandlerConfig):
        """Does not say what its option means."""

        channel: str = Field("x")


class Encodes(Good):
    def handle(self, envelope):
        str(envelope.payload.get("value")).encode()
        super().handle(envelope)


class ChangesThePayload(Good):
    def handle(self, envelope):
        envelope.payload.pop("value", None)
        super().handle(envelope)


class WantsNoErrors(Good):
    def handle(self, envelope):
        assert envelope.outcome in (None, "success")
        super().handle(envelope)


class TakesDirectly(Good):
    """Does that right, too: a good handler with a direct sink."""

    delivery = "queued"

    def __init__(self, config=None, **options):
        super().__init__(config, **options)
        self.lock = threading.Lock()

    def direct_sink_for(self, event_type, severity):
        return self.take

    def take(self, event):
        with self.lock:
            self.ids.append(event.__event__.name)

    def after_fork(self):
        self.lock = threading.Lock()


class LosesDirectly(TakesDirectly):
    def take(self, event):
        if getattr(event, "number", 0) != 7:
            super().take(event)


class RacesDirectly(TakesDirectly):
    def take(self, event):
        ids = self.ids
        time.sleep(0)
        self.ids = [*ids, event.__event__.name]


class EmitsDirectly(TakesDirectly):
    def take(self, event):
        super().take(event)
        if event.__event__.name == "conformance.stepped" and event.number == 0:
            self.emitter.emit(type(event)(number=1))


class FailsDirectly(TakesDirectly):
    def take(self, event):
        str(event.model_dump().get("value")).encode()
        super().take(event)


class TellsDirectly(TakesDirectly):
    def take(self, event):
        super().take(event)
        if "paid" in event.__event__.name:
            _FOLDER[0].joinpath("told.txt").write_text(repr(event.__dict__))


class LocksDirectly(TakesDirectly):
    def take(self, event):
        with self.lock:
            time.sleep(0.01)

    def after_fork(self):
        pass


_STOP = threading.Event()
_FOLDER = []
_OPENED = []


def conformance(handler_class):
    """Return the kit for a handler class."""

    class Kit(HandlerConformance):
        secrets = ("hunter22",)

        def make_handler(self, tmp_path):
            return handler_class()

        def received(self, handler):
            return handler.ids

    return Kit()


TESTS = [name for name in dir(HandlerConformance) if name.startswith("test_")]


DIRECT = {"test_events_taken_directly_go_out_like_others", "test_a_forked_child_takes_events_directly"}


@pytest.mark.parametrize("name", sorted({*TESTS} - DIRECT))
def test_a_good_handler_passes(name, tmp_path):
    """A handler that does everything right passes each test of the kit."""
    getattr(conformance(Good), name)(tmp_path)


@pytest.mark.parametrize("name", TESTS)
def test_a_good_handler_that_takes_events_directly_passes(name, tmp_path):
    """So does one that takes events directly where no other wants them."""
    getattr(conformance(TakesDirectly), name)(tmp_path)


@pytest.mark.parametrize("name", sorted(DIRECT))
def test_what_is_not_taken_directly_is_not_checked(name, tmp_path):
    """A handler without a direct sink is skipped where that is tested, and does not pass for nothing."""
    with pytest.raises(unittest.SkipTest, match="takes no event directly"):
        getattr(conformance(Good), name)(tmp_path)


@pytest.mark.parametrize(
    ("handler_class", "name", "message"),
    [
        (StartsAThread, "test_nothing_is_started_before_it_is_attached", "thread too-early"),
        (OpensAFile, "test_nothing_is_started_before_it_is_attached", "open file"),
        (FailsWholeBatches, "test_a_poisoned_envelope_does_not_stop_the_next", "raise ec.PartialFailure"),
        (Reverses, "test_one_threads_events_stay_in_order", "not the order of emission"),
        (HoldsBack, "test_flush_hands_everything_over", "missing"),
        (SendsTwice, "test_flush_hands_everything_over", "too often"),
        (ClosesOnce, "test_close_is_idempotent_and_bounded", "closed already"),
        (LeavesAThread, "test_close_is_idempotent_and_bounded", "left-behind"),
        (ForksBadly, "test_a_forked_child_starts_empty", "in the child: 0 of 5"),
        (ShowsItsSecret, "test_describe_is_plain_and_holds_no_secret", "shows a secret"),
        (DescribesObjects, "test_describe_is_plain_and_holds_no_secret", "not JSON serializable"),
        (TakesAnything, "test_wrong_options_are_refused_clearly", "no_such_option=1.* was accepted"),
        (SaysNothing, "test_wrong_options_are_refused_clearly", "without a description.*channel"),
        (Encodes, "test_unencodable_values_survive", "a lone surrogate"),
        (ChangesThePayload, "test_takes_whatever_comes", "has changed the payload"),
        (WantsNoErrors, "test_takes_whatever_comes", "not delivered in a mixed batch"),
        (LosesDirectly, "test_events_taken_directly_go_out_like_others", "of 210 events .* 205 went out"),
        (RacesDirectly, "test_events_taken_directly_go_out_like_others", "of 210 events"),
        (EmitsDirectly, "test_events_taken_directly_go_out_like_others", "its direct sink has emitted 4"),
        (FailsDirectly, "test_events_taken_directly_go_out_like_others", "failed"),
        (TellsDirectly, "test_events_taken_directly_go_out_like_others", "told.txt holds the value of a sensitive"),
        (LocksDirectly, "test_a_forked_child_takes_events_directly", "did not end"),
    ],
)
def test_a_faulty_handler_is_found(handler_class, name, message, tmp_path, monkeypatch):
    """Each test of the kit fails for a handler with the fault that it is there to find, and says what it is."""
    monkeypatch.setattr("eventcore.testing.conformance.PATIENCE_S", 1.0)
    _STOP.clear()
    _FOLDER[:] = [tmp_path]
    try:
        with pytest.raises((AssertionError, TypeError), match=message):
            getattr(conformance(handler_class), name)(tmp_path)
    finally:
        _STOP.set()
        while _OPENED:
            os.close(_OPENED.pop())


def test_a_handler_that_shows_nothing_is_checked_as_far_as_possible(tmp_path):
    """Without ``received`` what cannot be seen is skipped, not passed."""

    class Kit(HandlerConformance):
        def make_handler(self, tmp_path):
            return Good()

    Kit().test_a_poisoned_envelope_does_not_stop_the_next(tmp_path)
    with pytest.raises(unittest.SkipTest, match="does not define received"):
        Kit().test_flush_hands_everything_over(tmp_path)


def test_a_handler_that_takes_nothing_cannot_pass(tmp_path):
    """A handler whose filter leaves out all of the kit's events fails, instead of passing for nothing."""
    kit = conformance(lambda: Good(events="shop.*"))
    with pytest.raises(AssertionError, match="takes none of the kit's events"):
        kit.test_flush_hands_everything_over(tmp_path)
