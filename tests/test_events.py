import copy
import datetime as dt
import enum
import pickle
from array import array
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from pydantic import ConfigDict, ValidationError

import eventcore as ec
from eventcore.field_spec import finite_values

# pytest imports annotations' names from this module, so it does not defer their evaluation.


class CheckoutPaid(ec.Event, name="checkout.paid", category=ec.Category.USER, message="{amount} {currency} paid"):
    currency: Annotated[Literal["eur", "usd"], ec.Label]
    amount: Annotated[float, ec.Measure(unit="1")]
    card: Annotated[str, ec.Sensitive]
    note: str = ""


class ChargeCard(
    ec.Operation,
    name="checkout.charge_card",
    category="integration",
    span="charge",
    start_message="charging with {provider}",
    failure_message="charge failed: {error_type}",
    failure_severity="critical",
):
    provider: Annotated[Literal["stripe", "adyen"], ec.Label]
    attempts: Annotated[int, ec.Measure(unit="1")] = ec.unset


# -- class keywords ----------------------------------------------------------------------------------------------------


def test_class_facts_are_kept_in_one_spec():
    """Class facts are class keywords kept in one ``__event__`` spec."""
    spec = CheckoutPaid.__event__
    assert (spec.name, spec.category, spec.severity) == ("checkout.paid", ec.Category.USER, ec.Severity.INFO)
    assert spec.message == "{amount} {currency} paid"
    assert spec.logger == "checkout"
    assert not spec.is_operation
    assert list(spec.fields) == ["currency", "amount", "card", "note"]


def test_operation_facts_are_kept_in_the_spec():
    """An operation's span name, start message and failure facts are class keywords like the others."""
    spec = ChargeCard.__event__
    assert spec.is_operation
    assert spec.category is ec.Category.INTEGRATION
    assert spec.span == "charge"
    assert spec.start_message == "charging with {provider}"
    assert spec.severity_of("success") is ec.Severity.INFO
    assert spec.severity_of("failure") is ec.Severity.CRITICAL
    assert spec.severity_of("cancelled") is ec.Severity.WARNING
    assert spec.message_of("failure") == "charge failed: {error_type}"


def test_span_defaults_to_the_name_and_failure_to_error():
    """Without keywords of their own, a span bears the event's name and a failure is an ERROR."""

    class Plain(ec.Operation, name="plain.work", category="system"):
        pass

    assert Plain.__event__.span == "plain.work"
    assert Plain.__event__.severity_of("failure") is ec.Severity.ERROR


def test_a_misspelt_class_keyword_is_an_error_at_definition():
    """A misspelt class keyword is an error at definition that names class, keyword and the likely one."""
    with pytest.raises(ec.DefinitionError, match=r"Wrong: 'mesage' is no class keyword of an event.*'message'"):

        class Wrong(ec.Event, name="a.b", category="user", mesage="x"):
            pass


def test_keywords_of_operations_do_not_fit_events():
    """A keyword that only operations have is an error on an event."""
    with pytest.raises(ec.DefinitionError, match=r"'start_message' is no class keyword of an event"):

        class Wrong(ec.Event, name="a.b", category="user", start_message="x"):
            pass


@pytest.mark.parametrize("name", ["", "Checkout", "checkout paid", "checkout.", ".paid", "1checkout", "a..b", 7])
def test_a_name_is_dotted_lower_case(name):
    """A name that is not dotted lower case is an error that shows a right one."""
    with pytest.raises(ec.DefinitionError, match=r"must be dotted lower case, such as 'checkout\.paid'"):
        type(ec.Event)("Wrong", (ec.Event,), {"__module__": __name__}, name=name, category="user")


def test_a_missing_category_is_an_error_that_lists_them():
    """An event type without a category is an error that names all categories."""
    with pytest.raises(ec.DefinitionError, match=r"Wrong: category is missing.*system.*execution.*data"):

        class Wrong(ec.Event, name="a.b"):
            pass


def test_an_unknown_category_is_an_error_with_a_remedy():
    """An unknown category is an error that names the class, the value and what there is."""
    with pytest.raises(ec.DefinitionError, match=r"Wrong: .*'securty'.*security"):

        class Wrong(ec.Event, name="a.b", category="securty"):
            pass


@pytest.mark.parametrize("keyword", ["severity", "failure_severity"])
def test_an_unknown_severity_is_an_error_with_a_remedy(keyword):
    """An unknown severity is an error that names the class, the value and the likely one."""
    with pytest.raises(ec.DefinitionError, match=r"Wrong: unknown severity 'eror'; did you mean 'error'\?"):
        type(ec.Operation)(
            "Wrong",
            (ec.Operation,),
            {"__module__": __name__, "__qualname__": "Wrong"},
            name="a.b",
            category="user",
            **{keyword: "eror"},
        )


@pytest.mark.parametrize("severity", [ec.Severity.WARNING, "warning", "WARNING", 13])
def test_a_severity_is_a_member_a_name_or_a_number(severity):
    """A severity may be given as a member, by its name in any case, or by its number."""

    class Event(ec.Event, name="a.b", category="user", severity=severity):
        pass

    assert Event.__event__.severity is ec.Severity.WARNING


def test_severities_follow_opentelemetry():
    """Severities follow OpenTelemetry's numbers: TRACE 1, DEBUG 5, INFO 9, WARNING 13, ERROR 17, CRITICAL 21."""
    numbers = {severity.name: int(severity) for severity in ec.Severity}
    assert numbers == {"TRACE": 1, "DEBUG": 5, "INFO": 9, "WARNING": 13, "ERROR": 17, "CRITICAL": 21}


def test_categories_are_the_designs():
    """There are the nine categories of the design."""
    names = "SYSTEM EXECUTION MODEL CACHE SECURITY PERFORMANCE USER INTEGRATION DATA"
    assert [category.name for category in ec.Category] == names.split()


# -- abstract types ----------------------------------------------------------------------------------------------------


def test_a_subclass_without_a_name_is_abstract():
    """A subclass without ``name=`` is abstract, and emitting it is an error that says so."""

    class Base(ec.Event, category="model"):
        n: int

    assert Base.is_abstract()
    with pytest.raises(TypeError, match=r"Base is abstract \(it has no name=\)"):
        ec.Emitter().emit(Base(n=1))


def test_a_subclass_inherits_keywords_and_fields_but_no_name():
    """A named subclass takes over its parent's keywords and fields; an unnamed one is abstract again."""

    class Base(ec.Event, category="model", severity="debug", message="n is {n}", logger="deep"):
        n: int

    class Named(Base, name="named.child"):
        m: int = 0

    class Unnamed(Named):
        pass

    spec = Named.__event__
    assert (spec.category, spec.severity) == (ec.Category.MODEL, ec.Severity.DEBUG)
    assert (spec.message, spec.logger, list(spec.fields)) == ("n is {n}", "deep", ["n", "m"])
    assert Unnamed.is_abstract()
    assert not Named.is_abstract()


def test_a_grandchild_may_be_named_again():
    """Naming a subclass of a named type gives it a spec of its own and leaves its parent's alone."""

    class Parent(ec.Event, name="family.parent", category="data"):
        n: int = 0

    class Child(Parent, name="family.child", severity="error"):
        pass

    assert Parent.__event__.name == "family.parent"
    assert Parent.__event__.severity is ec.Severity.INFO
    assert Child.__event__.name == "family.child"


def test_a_field_whose_type_is_unknown_is_an_error_at_definition():
    """A type that cannot be resolved is an error when the class is made, not at the first emit."""
    with pytest.raises(ec.DefinitionError, match=r"Wrong: a field's type cannot be resolved"):

        class Wrong(ec.Event, name="a.b", category="data"):
            later: "DefinedNowhere"  # noqa: F821 - that it is not defined is the point


# -- payload -----------------------------------------------------------------------------------------------------------


def test_events_are_immutable():
    """An event is an immutable typed fact."""
    event = CheckoutPaid(currency="eur", amount=1, card="x")
    with pytest.raises(ValidationError, match="frozen"):
        event.amount = 2.0


def test_an_event_type_cannot_be_made_mutable():
    """``frozen=False`` on an event type is an error at definition."""
    with pytest.raises(ec.DefinitionError, match="events are immutable; remove frozen=False"):

        class Wrong(ec.Event, name="a.b", category="data"):
            model_config = ConfigDict(frozen=False)


def test_event_types_are_complete_models_when_they_are_made():
    """Only the two base classes leave their validators for later; types made from them are complete at once."""

    class Made(ec.Event, name="made", category="data"):
        number: int

    assert Made.__pydantic_complete__
    assert "defer_build" not in Made.model_config
    assert Made.model_validate_json('{"number": 3}') == Made(number=3)
    assert ec.Event.model_json_schema()["additionalProperties"] is False
    assert ec.Operation.model_validate({}) == ec.Operation()


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"currency": "eur", "amount": "much", "card": "x"}, ["CheckoutPaid", "amount"]),
        ({"currency": "gbp", "amount": 1.0, "card": "x"}, ["CheckoutPaid", "currency", "'eur' or 'usd'"]),
        ({"currency": "eur", "card": "x"}, ["CheckoutPaid", "amount", "required"]),
        ({"currency": "eur", "amount": 1.0, "card": "x", "crad": "y"}, ["CheckoutPaid", "crad", "not permitted"]),
    ],
)
def test_a_wrong_event_raises_where_it_is_built(fields, names):
    """A wrong event raises where it is built (pydantic's error, naming type and field)."""
    with pytest.raises(ValidationError) as caught:
        CheckoutPaid(**fields)
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize(
    "fields",
    [
        {"currency": "eur", "card": "4111 1111 1111 1111"},
        {"currency": "eur", "amount": 1.0, "card": 4111111111111111},
        {"currency": "eur", "amount": 1.0, "card": ["4111 1111 1111 1111"]},
    ],
)
def test_a_validation_error_shows_no_sensitive_value(fields):
    """No sensitive value reaches an exception message unredacted."""
    with pytest.raises(ValidationError) as caught:
        CheckoutPaid(**fields)
    assert "4111" not in str(caught.value)
    assert "4111" not in repr(caught.value)


def test_payload_fields_may_bear_any_name():
    """Payload fields may bear any name, ``name``, ``id`` and ``severity`` included."""

    class Odd(ec.Event, name="odd.names", category="data", message="{name} {id} {severity}"):
        name: str
        id: int
        severity: Literal["mild", "wild"]
        category: str = "c"
        time: float = 0.5
        event: str = "e"
        message: str = "m"
        tags: tuple[str, ...] = ()
        logger: str = "l"
        span: str = "s"
        type: str = "t"
        model_name: str = "n"

    assert Odd.__event__.name == "odd.names"
    assert Odd.__event__.severity is ec.Severity.INFO
    event = Odd(name="n", id=1, severity="wild")
    assert (event.name, event.id, event.severity, event.model_name) == ("n", 1, "wild", "n")


# -- roles -------------------------------------------------------------------------------------------------------------


def test_roles_are_read_from_the_type():
    """Field roles are said once on the type: Label, Measure(unit=…), Sensitive; unmarked: an attribute."""
    fields = CheckoutPaid.__event__.fields
    assert fields["currency"].role is ec.Label
    assert fields["currency"].values == ("eur", "usd")
    assert isinstance(fields["amount"].role, ec.Measure)
    assert fields["amount"].unit == "1"
    assert fields["card"].role is ec.Sensitive
    assert fields["note"].role is None
    assert CheckoutPaid.__event__.sensitive == {"card"}


def test_a_field_may_become_a_label_by_role_or_by_its_finite_values():
    """A field is a label by its role, or because its values are finite; a sensitive one never is."""

    class Kinds(ec.Event, name="kinds", category="data"):
        marked: Annotated[str, ec.Label]
        finite: Literal["a", "b"]
        flag: bool
        text: str
        hidden: Annotated[Literal["a", "b"], ec.Sensitive]

    is_label = {name: spec.is_label for name, spec in Kinds.__event__.fields.items()}
    assert is_label == {"marked": True, "finite": True, "flag": True, "text": False, "hidden": False}


def test_a_field_has_one_role():
    """Two roles on one field are an error that names class and field."""
    with pytest.raises(ec.DefinitionError, match=r"Wrong\.a: a field has one role, not \[ec\.Label, ec\.Sensitive\]"):

        class Wrong(ec.Event, name="a.b", category="data"):
            a: Annotated[str, ec.Label, ec.Sensitive]


def test_a_measure_has_a_unit():
    """``ec.Measure`` without a unit is an error that says how to write it."""
    with pytest.raises(ec.DefinitionError, match=r"Wrong\.a: write ec\.Measure\(unit=…\)"):

        class Wrong(ec.Event, name="a.b", category="data"):
            a: Annotated[float, ec.Measure]


@pytest.mark.parametrize(
    "annotation",
    [
        Annotated[str, ec.Sensitive] | None,
        list[Annotated[str, ec.Sensitive]],
        dict[str, Annotated[str, ec.Sensitive]],
    ],
)
def test_a_role_inside_another_type_is_never_ignored(annotation):
    """``Sensitive`` inside ``… | None``, a list or a mapping is honoured or refused at definition, never lost."""
    namespace = {"__module__": __name__, "__annotations__": {"card": annotation}, "card": None}
    try:
        made = type(ec.Event)("Hidden", (ec.Event,), namespace, name="a.b", category="data")
    except ec.DefinitionError as error:
        assert "card" in str(error)  # noqa: PT017 - being refused is one of two good ends
    else:
        assert made.__event__.sensitive == {"card"}


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@pytest.mark.parametrize(
    ("annotation", "values"),
    [
        (bool, (False, True)),
        (Literal["a", 1], ("a", 1)),
        (Colour, ("red", "blue")),
        (ec.Severity, (1, 5, 9, 13, 17, 21)),
        (Literal["a"] | None, ("a", None)),
        (Literal["a"] | bool, ("a", False, True)),
        (Annotated[Literal["a", "b"], "anything"], ("a", "b")),
        (str, None),
        (int | bool, None),
        (list[Literal["a"]], None),
        (Any, None),
    ],
)
def test_finite_values_of_a_type_are_known(annotation, values):
    """``Literal``, ``Enum``, ``bool`` and unions of them have a finite set of values; other types have none."""
    assert finite_values(annotation) == values


# -- unset -------------------------------------------------------------------------------------------------------------


def test_unset_is_false_and_prints_itself():
    """``ec.unset`` is falsy and prints as it is written."""
    assert not ec.unset
    assert repr(ec.unset) == "ec.unset"


def test_unset_stays_one_object():
    """``ec.unset`` is the same object after copying and pickling, so ``is`` may test for it."""
    assert copy.copy(ec.unset) is ec.unset
    assert copy.deepcopy(ec.unset) is ec.unset
    assert pickle.loads(pickle.dumps(ec.unset)) is ec.unset


def test_results_default_to_unset():
    """Results default to ``ec.unset``, which is not validated against the field's type."""
    assert ChargeCard(provider="stripe").attempts is ec.unset
    assert ChargeCard(provider="stripe", attempts=0).attempts == 0


# -- arrays ------------------------------------------------------------------------------------------------------------


class Scored(ec.Event, name="scored", category="model", each=("scores", "names")):
    scores: Annotated[ec.Array[float], ec.Measure(unit="1")]
    names: ec.Array[str] = ec.unset
    batch: int = 0


def test_a_list_is_copied_at_emit():
    """Array fields are copied: the caller may go on changing its own list."""
    scores = [0.1, 0.2]
    event = Scored(scores=scores)
    scores.append(0.3)
    assert event.scores == (0.1, 0.2)


def test_a_numpy_array_is_copied_and_read_only():
    """A numpy array is copied and read-only in the event, and stays writable outside."""
    scores = np.array([0.1, 0.2], dtype=np.float32)
    event = Scored(scores=scores)
    scores[0] = 9.0
    assert event.scores[0] == np.float32(0.1)
    assert event.scores.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        event.scores[0] = 1.0


def test_a_view_of_a_numpy_array_does_not_keep_the_whole():
    """A view is copied too, so changes of its base do not show."""
    base = np.arange(10.0)
    event = Scored(scores=base[::2])
    base[:] = -1
    assert event.scores.tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]


@pytest.mark.parametrize("value", [(1.0, 2.0), array("d", [1.0, 2.0]), (x for x in (1.0, 2.0)), range(1, 3)])
def test_any_sequence_makes_an_array(value):
    """Any one-dimensional sequence makes an array field."""
    assert list(Scored(scores=value).scores) == [1.0, 2.0]


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((2, 2)),
        np.float64(1.0).reshape(()),
        "text",
        b"bytes",
    ],
)
def test_what_is_no_sequence_of_elements_makes_no_array(value):
    """Text and arrays of other than one dimension are refused where the event is built, naming the field."""
    with pytest.raises(ValidationError, match="scores"):
        Scored(scores=value)


def test_arrays_are_known_with_the_type_of_their_elements():
    """The spec knows an array field, its role and the type of its elements."""
    field = Scored.__event__.fields["scores"]
    assert field.is_array
    assert field.annotation is float
    assert field.unit == "1"


def test_arrays_can_be_dumped():
    """Events with arrays dump to plain JSON, numpy or not."""
    event = Scored(scores=np.array([0.5, 1.5]), names=["a", "b"])
    assert event.model_dump(mode="json") == {"scores": [0.5, 1.5], "names": ["a", "b"], "batch": 0}


class ScoredTwice(Scored, name="scored.twice"):
    again: ec.Array[float] = ec.unset


class Abstract(ec.Event, each=("scores",)):
    scores: ec.Array[float]


@pytest.mark.parametrize("kind", [Scored, ScoredTwice])
def test_aligned_arrays_of_unequal_length_are_refused_where_the_event_is_built(kind):
    """Arrays named by ``each`` must have equal lengths: the error is the building's, with type and lengths."""
    for scores in ([0.1, 0.2], np.array([0.1, 0.2]), ()):
        with pytest.raises(ValidationError, match=rf"(?s){kind.__name__}.*differ in length: .*'names': 1") as caught:
            kind(scores=scores, names=["a"])
        assert caught.value.error_count() == 1
    assert len(kind(scores=[0.1], names=["a"]).scores) == 1


def test_a_single_name_may_be_given_as_it_is():
    """``each="scores"`` names one field, and not one per letter."""

    class Alone(ec.Event, name="alone", category="model", each="scores"):
        scores: ec.Array[float]

    assert Alone.__event__.each == ("scores",)


def test_an_aligned_array_that_is_unset_fits_any():
    """What is unset has no length; a type without a name of its own is not asked."""
    assert Scored(scores=[0.1, 0.2]).names is ec.unset
    assert Abstract(scores=[0.1]).scores == (0.1,)


@pytest.mark.parametrize("each", [("missing",), ("batch",)])
def test_each_names_array_fields(each):
    """``each`` that names no field, or no array field, is an error at definition."""
    with pytest.raises(ec.DefinitionError, match=rf"Wrong: each='{each[0]}' must name an ec\.Array field"):

        class Wrong(ec.Event, name="a.b", category="data", each=each):
            batch: int = 0
            scores: ec.Array[float] = ()


# -- messages ----------------------------------------------------------------------------------------------------------


def _with_message(template, base=ec.Event):
    annotations = {"amount": float, "when": dt.datetime, "card": Annotated[str, ec.Sensitive]}
    namespace = {"__module__": __name__, "__qualname__": "Wrong", "__annotations__": annotations}
    return type(base)("Wrong", (base,), namespace, name="a.b", category="data", message=template)


def test_a_message_names_fields_that_exist():
    """A message that names an unknown field is an error that names class, field and the likely one."""
    with pytest.raises(ec.DefinitionError, match=r"Wrong: message .* names 'amont'; did you mean 'amount'\?"):
        _with_message("{amont} paid")


@pytest.mark.parametrize("template", ["{}", "{0}", "{amount"])
def test_a_message_is_a_template_over_names(template):
    """Positions and unclosed braces in a message are errors at definition."""
    with pytest.raises(ec.DefinitionError, match="Wrong: message"):
        _with_message(template)


def test_a_message_may_not_show_a_sensitive_field():
    """A message that shows a sensitive field is an error at definition."""
    with pytest.raises(ec.DefinitionError, match="shows the sensitive field 'card'"):
        _with_message("paid with {card}")


@pytest.mark.parametrize("template", ["{amount:{width}}", "{amount:{card}}"])
def test_fields_inside_a_format_specification_are_checked_too(template):
    """An unknown or sensitive field in a nested format specification is an error at definition, not in a handler."""
    with pytest.raises(ec.DefinitionError, match="Wrong: message"):
        _with_message(template)


def test_only_operations_have_an_outcome_to_show():
    """A message may name the envelope facts that its type has: an event has no outcome."""
    _with_message("{id} at {time}")
    _with_message("{outcome} after {duration_s:.3f} s", base=ec.Operation)
    with pytest.raises(ec.DefinitionError, match="names 'outcome'"):
        _with_message("{outcome}")


def test_attributes_and_items_of_a_field_may_be_shown():
    """A message may reach into a field's attributes and items."""
    assert _with_message("{when.year} {amount!r:>8}").__event__.message == "{when.year} {amount!r:>8}"
