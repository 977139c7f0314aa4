import random

import pytest

import eventcore as ec
from tests.support.handlers import Collect
from tests.support.shop import Charge, Paid, Refused, Traced, emit_all, inline


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, {"shop.paid", "shop.refused", "deep.inside", "shop.charge"}),
        ({"events": ("shop.*",)}, {"shop.paid", "shop.refused", "shop.charge"}),
        ({"events": "shop.paid"}, {"shop.paid"}),
        ({"events": ("*.re*", "deep.*")}, {"shop.refused", "deep.inside"}),
        ({"events": ("shop",)}, set()),
        ({"events": ("SHOP.*",)}, set()),
        ({"exclude": ("shop.[pr]*",)}, {"deep.inside", "shop.charge"}),
        ({"events": ("shop.*",), "exclude": "shop.charge"}, {"shop.paid", "shop.refused"}),
        ({"categories": ("user", "system")}, {"shop.paid", "deep.inside"}),
        ({"categories": "security"}, {"shop.refused"}),
        ({"min_severity": "info"}, {"shop.paid", "shop.refused"}),
        ({"min_severity": ec.Severity.ERROR}, {"shop.refused"}),
        ({"min_severity": 21}, set()),
        ({"categories": ("user", "security"), "min_severity": "warning"}, {"shop.refused"}),
        ({"sampling": 0}, set()),
    ],
)
@pytest.mark.parametrize("delivery", ["inline", "queued"])
def test_a_handlers_filter_decides(emitter, options, names, delivery):
    """A handler's configuration carries its filter: name globs, categories, minimum severity, sampling."""
    handler = emitter.add_handler(Collect(delivery=delivery, linger_s=0, **options))
    emit_all(emitter)
    assert emitter.flush()
    assert set(handler.names) == names


def test_the_severity_of_the_emit_is_filtered(emitter):
    """The minimum severity looks at the severity of the emit, and for operations at that of their outcome."""
    handler = inline(emitter, min_severity="error")
    emitter.emit(Paid(), severity="error")
    emitter.emit(Refused(), severity="info")
    with emitter.operation(Charge):
        pass
    with pytest.raises(KeyError), emitter.operation(Charge):
        raise KeyError
    assert handler.names == ["shop.paid", "shop.charge"]


def test_sampling_takes_a_share(emitter):
    """Sampling takes about the share it is told, and counts both kinds."""
    random.seed(4)
    handler = inline(emitter, sampling=0.25)
    for _ in range(2000):
        emitter.emit(Paid())
    row = emitter.ledger().handler("collect")
    assert 400 < len(handler.got) < 600
    assert (row.accepted, row.sampled, row.delivered) == (len(handler.got), 2000 - len(handler.got), len(handler.got))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_severity": "loud"}, r"Collect: option 'min_severity' is 'loud': .*unknown severity 'loud'"),
        ({"categories": ("users",)}, r"Collect: option 'categories\.0' is 'users'"),
        ({"sampling": 1.5}, r"Collect: option 'sampling' is 1\.5: .*less than or equal to 1"),
        ({"queue_size": 0}, r"Collect: option 'queue_size' is 0"),
        ({"overflow": "explode"}, r"Collect: option 'overflow' is 'explode': .*'drop_newest'"),
        ({"min_severty": "info"}, r"Collect: unknown option 'min_severty'; did you mean 'min_severity'\?"),
    ],
)
def test_a_wrong_option_is_one_clear_error(options, message):
    """A wrong or misspelt option of a handler is an error that names handler, option, value and remedy."""
    with pytest.raises(ec.ConfigurationError, match=message):
        Collect(**options)


def test_enabled_tells_whether_anybody_listens(emitter):
    """``enabled(EventType)`` says whether any handler wants it, at its own severity or another."""
    assert not emitter.enabled(Paid)
    handler = inline(emitter, min_severity="error", events=("shop.*",))
    assert emitter.enabled(Refused)
    assert not emitter.enabled(Paid)
    assert emitter.enabled(Paid, ec.Severity.ERROR)
    assert not emitter.enabled(Traced, ec.Severity.CRITICAL)
    emitter.remove_handler(handler)
    assert not emitter.enabled(Refused)


def test_an_emitter_can_be_silenced(emitter):
    """The switch silences an emitter and lets it speak again; operations go on having ids."""
    handler = inline(emitter)
    emitter.is_enabled = False
    emit_all(emitter)
    assert handler.got == []
    assert not emitter.enabled(Paid)
    assert not emitter.is_enabled
    with emitter.operation(Charge):
        assert ec.current_trace().trace_id
    emitter.is_enabled = True
    emitter.emit(Paid())
    assert handler.names == ["shop.paid"]
