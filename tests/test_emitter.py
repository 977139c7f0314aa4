import asyncio
import re
import threading
import time
from collections import Counter

import pytest

import eventcore as ec
from eventcore.journal_config import JournalConfig
from tests.support.handlers import Clock, Collect, CollectBatches, CollectStarts, eventually
from tests.support.shop import Charge, Paid, Refused, Traced, emit_all, inline


def raises(envelope):
    """Fail, as a handler that is broken does."""
    raise RuntimeError("broken handler")


# -- dispatch ----------------------------------------------------------------------------------------------------------


def test_an_event_reaches_every_handler_in_order(emitter):
    """An event reaches every handler that wants it, in the order in which they were added."""
    order = []
    for name in "abc":
        inline(emitter, lambda envelope, name=name: order.append((name, envelope)), name=name)
    emitter.emit(Paid())
    assert [name for name, _ in order] == ["a", "b", "c"]
    assert len({id(envelope) for _, envelope in order}) == 1, "one envelope is shared by all"


@pytest.mark.parametrize("wrong", ["paid", None, Paid, {"amount": 1.0}])
def test_what_is_no_event_cannot_be_emitted(emitter, wrong):
    """Emitting what is no event is a TypeError with the remedy, whether or not anybody listens."""
    for _ in range(2):
        with pytest.raises(TypeError, match=r"emit takes an ec\.Event, not .*; for a passing need use ec\.emit_event"):
            emitter.emit(wrong)
        inline(emitter)


def test_nothing_wanted_costs_no_envelope(emitter, monkeypatch):
    """It costs close to nothing when nobody listens: no envelope is made, no id and no time taken."""
    made = []

    class Counting(ec.Envelope):
        def __init__(self, *args):
            made.append(1)
            super().__init__(*args)

    monkeypatch.setattr("eventcore.emitter.Envelope", Counting)
    emit_all(emitter)
    inline(emitter, events=("other.*",))
    emit_all(emitter)
    assert made == []
    assert emitter.ids.next_sequence() == 1
    inline(emitter)
    emit_all(emitter)
    assert len(made) == 4, "one envelope for each, however many handlers there are"


def test_routes_are_compiled_once(emitter):
    """Dispatch is compiled per event type and severity: a handler is asked once what it wants, not per event."""
    asked = Counter()

    class Asks(Collect):
        def sink_for(self, event_type, severity):
            asked[event_type.__name__, severity.name] += 1
            return self.handle

    emitter.add_handler(Asks(delivery="inline"))
    for _ in range(5):
        emitter.emit(Paid())
        emitter.emit(Paid(), severity="error")
    assert asked == {("Paid", "INFO"): 1, ("Paid", "ERROR"): 1}


def test_routes_of_many_types_share_the_sink_of_a_handler(emitter):
    """A handler has one sink, however many types come to it: an emit finds in the caches what another has called."""
    inline(emitter)
    for event in (Paid(), Refused()):
        emitter.emit(event)
    (paid,), (refused,) = emitter._own[Paid].calls, emitter._own[Refused].calls
    assert paid is refused


def test_routes_are_compiled_anew_when_handlers_change(emitter):
    """When handlers change, the next event takes the new route."""
    first = inline(emitter)
    emitter.emit(Paid())
    second = inline(emitter)
    emitter.emit(Paid())
    emitter.remove_handler(first)
    emitter.emit(Paid())
    assert (len(first.got), len(second.got)) == (2, 2)


def test_enabled_follows_the_handlers(emitter):
    """``enabled`` says what holds now: handlers come, go and change their mind, and the emitter is switched off."""
    said = [emitter.enabled(Paid)]
    emitter.add_handler(Collect(), name="it")
    said.append(emitter.enabled(Paid))
    emitter.is_enabled = False
    said.append(emitter.enabled(Paid))
    emitter.is_enabled = True
    said.append(emitter.enabled(Paid))
    emitter.remove_handler("it")
    said.append(emitter.enabled(Paid))
    assert said == [False, True, False, True, False]


def test_a_sink_of_its_own_is_called(emitter):
    """A handler may give each type and severity a sink of its own."""

    class Sorting(Collect):
        def sink_for(self, event_type, severity):
            return {"shop.paid": paid.append, "shop.refused": refused.append}.get(event_type.__event__.name)

    paid, refused = [], []
    emitter.add_handler(Sorting(delivery="inline"))
    emit_all(emitter)
    assert [e.name for e in paid] == ["shop.paid"]
    assert [e.name for e in refused] == ["shop.refused"]


@pytest.mark.parametrize("delivery", ["inline", "queued"])
def test_a_handler_that_cannot_say_what_it_wants_harms_nobody(emitter, delivery):
    """A handler whose ``sink_for`` raises does not make ``emit`` raise, and the others get their event."""

    class Confused(Collect):
        def sink_for(self, event_type, severity):
            raise RuntimeError("confused")

        start_sink_for = sink_for

    emitter.add_handler(Confused(delivery=delivery))
    other = inline(emitter)
    emit_all(emitter)
    assert {"shop.paid", "shop.refused", "deep.inside", "shop.charge"} <= set(other.names)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("vip", ("vip",)),
        (["a", "b"], ("a", "b")),
        ((t for t in "ab"), ("a", "b")),
        ("", ()),
        (None, ()),
        ([], ()),
        ({"a": 1}, ("a",)),
    ],
)
def test_tags_are_taken_as_they_are_meant(emitter, given, taken):
    """Tags are a tuple that the caller no longer changes; a text alone is one tag, wherever it is given."""
    handler = inline(emitter)
    emitter.emit(Paid(), tags=given)
    if isinstance(given, list):
        given.append("later")
    assert handler.got[0].tags == taken


def test_a_tag_is_one_tag_on_every_way(tmp_path):
    """A text alone is one tag for a bound emitter, an operation's event, ``emit_durable`` and ``emit_event``, too."""
    emitter = ec.Emitter(journal=JournalConfig(path=tmp_path / "journal.db"))
    handler = inline(emitter)
    emitter.add_handler(Collect(delivery="durable"), name="durable")
    emitter.bind(user=1).emit(Paid(), tags="vip")
    with emitter.operation(Charge) as operation:
        operation.event(Paid(), tags="vip")
    asyncio.run(emitter.emit_durable(Paid(), tags="vip"))
    ec.set_emitter(emitter)
    ec.emit_event("passing", tags="vip")
    ec.emit_error_event("passing", tags="vip")
    tagged = [envelope.tags for envelope in handler.got if envelope.name != "shop.charge"]
    emitter.shutdown()
    assert tagged == [("vip",)] * 5


@pytest.mark.parametrize("wrong", [7, [1], ("a", None), [b"a"]])
def test_what_is_no_tag_is_refused_at_the_emit(emitter, wrong):
    """Tags that are no texts are a TypeError at the emit that shows them, whether or not anybody listens."""
    for _ in range(2):
        with pytest.raises(
            TypeError, match=r"tags takes texts, such as tags=\('slow', 'eu'\).*" + re.escape(repr(wrong))
        ):
            emitter.emit(Paid(), tags=wrong)
        handler = inline(emitter)
    assert handler.got == []


def test_tags_and_severity_are_given_at_the_emit(emitter):
    """``emit`` takes tags, and a severity that overrides the type's own, by member, number or name."""
    handler = inline(emitter)
    emitter.emit(Paid(), tags=("vip",))
    for severity in (ec.Severity.ERROR, "error", "Error", 17):
        emitter.emit(Paid(), severity=severity)
    assert handler.got[0].tags == ("vip",)
    assert handler.got[0].severity is ec.Severity.INFO
    assert all(envelope.severity is ec.Severity.ERROR for envelope in handler.got[1:])


@pytest.mark.parametrize("severity", ["loud", 3])
def test_a_wrong_severity_is_an_error(emitter, severity):
    """A severity that does not exist is a ValueError where it is given."""
    inline(emitter)
    with pytest.raises(ValueError, match=str(severity)):
        emitter.emit(Paid(), severity=severity)


# -- handlers come and go ----------------------------------------------------------------------------------------------


def test_a_handler_is_told_where_it_is(emitter):
    """A handler that is added learns its emitter and its name."""
    handler = inline(emitter, name="mine")
    assert handler.emitter is emitter
    assert handler.name == "mine"
    assert emitter.handler("mine") is handler
    assert emitter.handlers == (handler,)


def test_names_are_made_unique(emitter):
    """Handlers of one kind without a name get numbers; a name that is given and taken is an error."""
    assert [inline(emitter).name for _ in range(3)] == ["collect", "collect_2", "collect_3"]
    with pytest.raises(ec.ConfigurationError, match="a handler named 'collect' is attached already; remove it first"):
        inline(emitter, name="collect")
    assert len(emitter.handlers) == 3


@pytest.mark.parametrize("wrong", [Collect, "log", None, print])
def test_only_handlers_are_added(emitter, wrong):
    """Adding a class, or what is no handler, is an error that says so."""
    with pytest.raises(TypeError, match=r"add_handler takes an instance of ec\.Handler"):
        emitter.add_handler(wrong)


def test_a_handler_that_forgot_its_base_is_refused(emitter):
    """A handler whose ``__init__`` does not call its base's is refused with the remedy."""

    class Forgetful(ec.Handler):
        def __init__(self):
            pass

    with pytest.raises(TypeError, match=r"Forgetful\.__init__ must call super\(\)\.__init__\(\)"):
        emitter.add_handler(Forgetful())


def test_a_handler_that_cannot_attach_is_not_added(emitter):
    """A handler whose ``attached`` raises is not added, and the error goes to whoever added it."""

    class Refusing(Collect):
        def attached(self, emitter):
            raise ec.ConfigurationError("no such file")

    with pytest.raises(ec.ConfigurationError, match="no such file"):
        emitter.add_handler(Refusing())
    assert emitter.handlers == ()
    emitter.emit(Paid())


def test_a_removed_handler_is_closed_after_its_last_event(emitter):
    """A removed handler gets what it had accepted, is closed once, and hears no more."""
    events = []

    class Noting(Collect):
        def close(self):
            events.append("closed")

    handler = emitter.add_handler(Noting(act=lambda e: events.append(e.event.amount), linger_s=0.5))
    for amount in (1.0, 2.0, 3.0):
        emitter.emit(Paid(amount=amount))
    assert emitter.remove_handler(handler) == 0
    emitter.emit(Paid(amount=4.0))
    assert events == [1.0, 2.0, 3.0, "closed"]
    assert emitter.handlers == ()


def test_a_handler_may_be_removed_by_name(emitter):
    """A handler may be removed by its name; an unknown one is a KeyError that names those there are."""
    inline(emitter, name="a")
    emitter.remove_handler("a")
    inline(emitter, name="b")
    with pytest.raises(KeyError, match="no handler 'a'; there are: b"):
        emitter.remove_handler("a")
    with pytest.raises(KeyError, match="no handler 'a'; there are: b"):
        emitter.handler("a")


@pytest.mark.parametrize("delivery", ["inline", "queued"])
def test_a_handler_may_remove_itself_while_handling(emitter, delivery):
    """A handler may remove itself while it handles; it is not called again, and the ledger stays in balance."""
    other = inline(emitter, name="other")
    mine = emitter.add_handler(
        Collect(act=lambda envelope: emitter.remove_handler("mine", timeout_s=0.2), delivery=delivery, linger_s=0),
        name="mine",
    )
    emitter.emit(Paid())
    assert eventually(lambda: mine.closed == 1)
    emitter.emit(Paid())
    assert eventually(lambda: emitter.ledger().is_settled)
    assert len(other.got) == 2
    assert len(mine.got) + mine.raised <= 1
    assert emitter.handlers == (other,)


def test_a_handler_may_add_another_while_handling(emitter):
    """A handler may add another while it handles; the new one gets the next event."""
    added = []

    def add(envelope):
        if not added:
            added.append(inline(emitter, name="late"))

    inline(emitter, add)
    emitter.emit(Paid())
    emitter.emit(Paid())
    assert len(added[0].got) == 1


def test_handlers_may_change_while_threads_emit(emitter):
    """Handlers come and go while threads emit: nobody is harmed, and a handler that stays gets everything."""
    stays = inline(emitter, name="stays")
    stop = threading.Event()
    errors = []

    def emit():
        try:
            while not stop.is_set():
                emitter.emit(Paid())
                time.sleep(0.0002)  # so that the threads take turns at other places than the interpreter's own
        except Exception as error:  # noqa: BLE001 - any error fails the test
            errors.append(error)

    threads = [threading.Thread(target=emit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for delivery in ("inline", "queued") * 10:
        handler = emitter.add_handler(Collect(delivery=delivery, linger_s=0))
        assert eventually(lambda handler=handler: handler.got)
        emitter.remove_handler(handler)
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    row = emitter.ledger().handler("stays")
    assert row.accepted == row.delivered == len(stays.got)


def test_a_start_sink_is_asked_for_operations_only(emitter):
    """Starts go to those who ask for them, through the same filter."""
    starts = emitter.add_handler(CollectStarts(delivery="inline", events=("shop.*",)))
    deaf = emitter.add_handler(CollectStarts(delivery="inline", events=("other.*",)))
    with emitter.operation(Charge):
        pass
    assert [e.phase for e in starts.got] == ["start", "end"]
    assert deaf.got == []


# -- isolation ---------------------------------------------------------------------------------------------------------


def test_an_exception_in_one_handler_changes_nothing_for_the_others(emitter):
    """An exception in one handler changes nothing for the caller or the other handlers, and is counted."""
    before, broken, after = inline(emitter), inline(emitter, raises, name="broken"), inline(emitter, name="after")
    emitter.emit(Paid())
    assert before.names.count("shop.paid") == after.names.count("shop.paid") == 1
    row = next(r for r in emitter.ledger().rows if (r.handler, r.event) == ("broken", "shop.paid"))
    assert (row.accepted, row.failed, row.delivered, broken.raised) == (1, 1, 0, 1)


def test_a_failing_handler_is_reported_once_through_the_others(emitter):
    """A handler's failure is reported once through the others, then its quarantine once, with the reason."""
    other = inline(emitter, name="other")
    broken = inline(emitter, raises, name="broken")
    for _ in range(50):
        emitter.emit(Paid())
    reports = [e.event for e in other.got if e.name == "eventcore.handler"]
    assert [(r.handler, r.what) for r in reports] == [("broken", "failed"), ("broken", "quarantined")]
    assert "RuntimeError: broken handler" in reports[0].reason
    assert other.names.count("shop.paid") == 50
    row = emitter.ledger().handler("broken")
    assert broken.raised < 50
    assert row.failed == broken.raised
    assert row.dropped["quarantined"] >= 50 - broken.raised
    assert row.pending == 0


def test_a_quarantined_handler_may_come_back():
    """Repeated failure quarantines the handler; a half-open probe lets it back, and that is reported."""
    clock, ill = Clock(), [True]

    def act(envelope):
        if ill[0]:
            raise RuntimeError("ill")

    with ec.Emitter(clock=clock) as emitter:
        other = inline(emitter, name="other")
        handler = inline(emitter, act, name="mine", events=("shop.*",))
        for _ in range(10):
            emitter.emit(Paid())
        assert handler.raised == 5
        emitter.emit(Paid())
        assert handler.raised == 5, "in quarantine it is not called"
        clock.advance(1.1)
        emitter.emit(Paid())
        emitter.emit(Paid())
        assert handler.raised == 6, "one probe"
        reports = [e.event.what for e in other.got if e.name == "eventcore.handler"]
        assert reports == ["failed", "quarantined"], "a probe that fails is no news"
        ill[0] = False
        clock.advance(2.1)
        for _ in range(3):
            emitter.emit(Paid())
        assert len(handler.got) == 3
        assert [e.event.what for e in other.got if e.name == "eventcore.handler"][-1] == "recovered"
        assert emitter.ledger().is_settled


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_passes_and_is_counted(emitter, error):
    """KeyboardInterrupt in an inline handler passes to the caller; what it cut off is counted."""

    def interrupted(envelope):
        raise error

    inline(emitter, name="before")
    inline(emitter, interrupted, name="cut")
    inline(emitter, name="after")
    with pytest.raises(error):
        emitter.emit(Paid())
    ledger = emitter.ledger()
    assert ledger.handler("before").delivered == 1
    assert ledger.handler("cut").failed == 1
    assert ledger.handler("after").failed == 1
    assert ledger.is_settled
    emitter.remove_handler("cut")
    emitter.emit(Traced())
    assert emitter.handler("after").names == ["deep.inside"], "the next event goes its way again"


class Breaking(Collect):
    """A handler whose draw is cut off."""

    def draw_for(self, event_type, severity):
        def draw(envelope):
            raise KeyboardInterrupt

        return draw


@pytest.mark.parametrize("also", ["queued", "inline"])
def test_an_interrupt_between_queues_is_counted(emitter, also):
    """What an interrupt cuts off is counted for queued handlers, too, also for those that sample; both sums hold."""
    before = emitter.add_handler(Collect(), name="before")
    emitter.add_handler(Breaking(), name="cut")
    emitter.add_handler(Collect(), name="after")
    emitter.add_handler(Collect(sampling=0.5), name="sampling")
    emitter.add_handler(Collect(delivery=also), name="also")
    with pytest.raises(KeyboardInterrupt):
        emitter.emit(Paid())
    assert emitter.flush()
    assert before.names == ["shop.paid"]
    rows = emitter.ledger().handlers
    assert (rows.pop("before").delivered, {row.failed for row in rows.values()}) == (1, {1})
    for row in rows.values():
        assert (row.emitted, row.accepted, row.pending) == (1, 1, 0), row


# -- handlers that emit ------------------------------------------------------------------------------------------------


def test_a_handler_that_emits_its_own_event_cannot_recurse_without_bound(emitter):
    """A handler that emits while handling cannot recurse without bound; what is beyond is counted as recursion."""
    handler = inline(emitter, lambda envelope: emitter.emit(Paid()))
    emitter.emit(Paid())
    row = emitter.ledger().handler("collect")
    assert 1 <= len(handler.got) <= 10
    assert row.delivered == len(handler.got)
    assert row.dropped["recursion"] == 1
    assert row.accepted == row.settled
    deep = len(handler.got)
    emitter.emit(Paid())
    assert len(handler.got) == 2 * deep, "the next event starts from the top again"


def test_two_handlers_that_emit_at_each_other_are_bounded(emitter):
    """Handlers that make each other emit are bounded, too."""
    for name in "ab":
        inline(emitter, lambda envelope: emitter.emit(Paid()), name=name)
    emitter.emit(Paid())
    ledger = emitter.ledger()
    assert ledger.is_settled
    assert ledger.handler("a").delivered < 100
    assert ledger.handler("a").dropped["recursion"] > 0


def test_a_worker_that_emits_reaches_the_others_and_not_itself(emitter):
    """What a handler emits in its worker reaches the other handlers, and is not handed back to itself."""
    other = emitter.add_handler(Collect(linger_s=0), name="other")
    mine = emitter.add_handler(Collect(act=lambda envelope: emitter.emit(Traced()), linger_s=0), name="mine")
    emitter.emit(Paid())
    assert emitter.flush()
    assert emitter.flush()
    assert sorted(other.names) == ["deep.inside", "shop.paid"]
    assert mine.names == ["shop.paid"]
    row = emitter.ledger().handler("mine")
    assert dict(row.dropped) == {"recursion": 1}
    assert row.pending == 0


def test_two_workers_that_emit_at_each_other_stay_bounded(emitter):
    """Two queued handlers that answer each other's events stay within their queues; every drop is counted."""
    for name in "ab":
        emitter.add_handler(
            Collect(act=lambda envelope: emitter.emit(Paid()), linger_s=0, queue_size=10, batch_size=5), name=name
        )
    emitter.emit(Paid())
    assert eventually(lambda: emitter.ledger().handler("a").delivered > 50)
    report = emitter.shutdown(2)
    assert report.errors == ()
    ledger = emitter.ledger()
    assert ledger.is_settled
    assert ledger.handler("a").dropped["recursion"] > 0


# -- secrets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delivery", ["inline", "queued"])
@pytest.mark.parametrize("handler_type", [Collect, CollectBatches])
def test_no_handler_sees_a_sensitive_value(emitter, delivery, handler_type):
    """No sensitive value reaches a handler unredacted: what is marked ``Sensitive`` is redacted before."""
    seen = []

    def look(got):
        envelopes = got if isinstance(got, list) else [got]
        seen.extend((repr(e), repr(e.event), dict(e.payload), e.get("card")) for e in envelopes)

    emitter.add_handler(handler_type(act=look, delivery=delivery, linger_s=0))
    emitter.emit(Refused(card="4111 1111 1111 1111"))
    assert emitter.flush()
    assert len(seen) == 1
    assert "4111" not in repr(seen)
    assert seen[0][2]["card"] == "[REDACTED]"
    assert seen[0][2]["reason"] == "expired"


def test_nested_emits_are_redacted_too(emitter):
    """What a handler emits is redacted like anything else."""
    seen = []

    def look(envelope):
        seen.append(envelope.get("card"))
        if envelope.name == "shop.paid":
            emitter.emit(Refused(card="4111 1111 1111 1111"))

    inline(emitter, look)
    emitter.emit(Paid())
    assert seen == [ec.unset, "[REDACTED]"]


# -- bound emitters ----------------------------------------------------------------------------------------------------


def test_bind_puts_fields_on_everything_emitted_through_it(emitter):
    """``bind(**fields)`` puts fields on what goes through it, and on nothing else."""
    handler = inline(emitter)
    bound = emitter.bind(tenant="a").bind(shard=1)
    bound.emit(Paid(), severity="error", tags=("t",))
    emitter.emit(Paid())
    with bound.operation(Charge, provider="adyen"):
        emitter.emit(Paid())
    emitter.emit(Paid())
    both = {"tenant": "a", "shard": 1}
    assert [dict(e.scope.bound) for e in handler.got] == [both, {}, both, both, {}]
    assert (handler.got[0].severity, handler.got[0].tags) == (ec.Severity.ERROR, ("t",))
    assert bound.enabled(Paid)


def test_bound_fields_add_to_those_of_the_context(emitter):
    """Fields of a bound emitter add to those bound around the emit, and win."""
    handler = inline(emitter)
    with ec.bound(tenant="outer", request="r", correlation_id="c"):
        emitter.bind(tenant="mine").emit(Paid())
    assert handler.got[0].scope.bound == {"tenant": "mine", "request": "r"}
    assert handler.got[0].correlation_id == "c"


def test_operations_of_a_bound_emitter_work_in_every_way(emitter):
    """Operations of a bound emitter work as ``async with`` and as decorators, and add to what is bound around them."""
    handler = inline(emitter)
    bound = emitter.bind(tenant="a")

    @bound.operation(Charge)
    async def coroutine():
        return ec.current_operation().fields

    @bound.operation(Charge)
    def generator():
        yield from range(2)

    async def main():
        async with bound.operation(Charge):
            await coroutine()

    asyncio.run(main())
    with ec.bound(request="r", tenant="outer"):
        assert list(generator()) == [0, 1]
    assert [dict(e.scope.bound) for e in handler.got] == [{"tenant": "a"}] * 2 + [{"request": "r", "tenant": "a"}]
    assert {e.outcome for e in handler.got} == {"success"}


def test_everything_prints_itself(emitter):
    """Emitter, handlers, attachments and routes print themselves usefully."""
    handler = inline(emitter, name="mine")
    assert repr(emitter) == "<Emitter unknown_service: mine>"
    assert repr(handler) == "<Collect mine>"
    assert repr(emitter.attachments[0]) == "<Attachment mine: <Collect mine>, inline>"
    assert repr(emitter._routes[Paid, None]) == "<Route shop.paid INFO end -> mine>"
    emitter.emit(Paid())
    assert "mine" in str(emitter.ledger())
