import pickle
import subprocess
import sys
import textwrap
from typing import Any, Generic, TypeVar

import pytest
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, computed_field, field_validator
from pydantic.version import VERSION

import eventcore as ec

T = TypeVar("T")
_OWN = {  # each class has its own of Python, and pydantic keeps the variables around one made in a function
    *("__doc__", "__module__", "__qualname__", "__annotations__", "__abstractmethods__", "_abc_impl", "__weakref__"),
    "__pydantic_parent_namespace__",
}


class Boxed(ec.Event, Generic[T], name="boxed", category="data"):
    item: T


class IntBoxed(Boxed[int], name="boxed.int"):
    pass


class Checked(ec.Event, name="checked", category="data"):
    text: str
    _note: str = "kept"

    @field_validator("text")
    @classmethod
    def _strip(cls, text: str) -> str:
        return text.strip()

    @computed_field
    @property
    def size(self) -> int:
        return len(self.text)


def of_pydantic(base):
    """Return the class that pydantic itself makes in place of an event's base class."""
    config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)
    return type(base.__name__, (BaseModel,), {"__module__": base.__module__, "model_config": config})


@pytest.mark.parametrize("base", [ec.Event, ec.Operation])
def test_a_base_class_is_what_pydantic_would_have_made(base):
    """Whatever pydantic writes on a model class without fields is on ``Event`` and ``Operation``, and is the same."""
    twin = of_pydantic(base)
    missing = [key for key in twin.__dict__ if key not in base.__dict__ and key not in _OWN]
    assert missing == []
    for key in set(twin.__dict__) - _OWN - {"model_config"}:
        ours, theirs = base.__dict__[key], twin.__dict__[key]
        assert type(ours) is type(theirs), key
        if " at 0x" not in repr(theirs):
            assert ours == theirs, key
    assert base.__hash__.__code__ is twin.__hash__.__code__
    assert type(base) is type(BaseModel)


def test_the_installed_pydantic_is_one_that_was_compared():
    """The shorter way is taken with the pydantic of the tests; after an update, compare and name its release too."""
    out = run("from eventcore import Event; import sys; print('pydantic.fields' in sys.modules)")
    assert out == "False", f"eventcore.base_class does not know pydantic {VERSION}"


USE = """
    from typing import Annotated
    import eventcore as ec
    from pydantic import BaseModel
    class Said(ec.Event, name="said", category="data"):
        text: Annotated[str, ec.Label] = "hello"
    class Work(ec.Operation, name="work", category="data"):
        number: int = 1
    class Holds(BaseModel):
        event: ec.Event
    assert Holds(event=Said()).event == Said() != Said(text="no")
    assert ec.Event() == ec.Event() and hash(Said()) == hash(Said())
    assert isinstance(Said(), BaseModel) and Work().number == 1
    print(Said().model_dump_json())
"""


@pytest.mark.parametrize("version", [None, "2.99.0"])
def test_an_unknown_release_of_pydantic_makes_the_base_classes_itself(version):
    """Event types work the same whether eventcore or pydantic makes their base; with unknown releases pydantic does."""
    before = f"import pydantic.version; pydantic.version.VERSION = {version!r}\n" if version else ""
    check = "import sys; from eventcore import Event; print('pydantic.fields' in sys.modules)\n"
    assert run(before + check + textwrap.dedent(USE)).split() == [str(version is not None), '{"text":"hello"}']


def test_the_base_classes_are_models_themselves():
    """``Event`` may be a field's type, has a schema and no field, and is built when it is first needed."""

    class Holder(BaseModel):
        event: ec.Event

    assert Holder(event=Checked(text=" a ")).event == Checked(text="a")
    assert TypeAdapter(ec.Operation).json_schema()["properties"] == {}
    assert ec.Event.model_json_schema()["additionalProperties"] is False
    assert ec.Event.model_fields == {}
    assert ec.Event() == ec.Event()
    assert repr(ec.Event()) == "Event()"
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        ec.Event(x=1)
    with pytest.raises(ValidationError, match="frozen"):
        ec.Event().x = 1


def test_event_types_have_all_that_models_have():
    """Validators, computed fields, private attributes, generics, hashing and pickling are pydantic's, unchanged."""
    event = Checked(text=" abc ")
    assert (event.text, event.size, event._note) == ("abc", 3, "kept")
    assert event.model_dump() == {"text": "abc", "size": 3}
    assert pickle.loads(pickle.dumps(event)) == event
    assert len({event, Checked(text="abc"), Checked(text="x")}) == 2
    assert Boxed[int](item="3").item == 3
    assert IntBoxed(item="3").item == 3
    assert str(Checked.__signature__) == "(*, text: str) -> None"


def test_an_event_type_may_have_another_model_for_a_base():
    """A model class beside ``Event`` hands its fields on; pydantic's metaclass is the only one."""

    class Stamped(BaseModel):
        by: str = "me"

    class Signed(Stamped, ec.Event, name="signed", category="data"):
        text: str

    assert Signed(text="a").model_dump() == {"by": "me", "text": "a"}
    assert set(Signed.__event__.fields) == {"by", "text"}


def test_a_type_may_name_one_that_is_defined_later():
    """An abstract event type whose field's type is not known yet is completed by pydantic when it is."""
    space: dict[str, Any] = {"ec": ec, "__name__": "later"}
    exec(
        textwrap.dedent("""
            class Tree(ec.Event):
                child: "Leaf"
            class Leaf(ec.Event):
                size: int
        """),
        space,
    )
    space["Tree"].model_rebuild(_types_namespace=space)
    assert space["Tree"](child={"size": "3"}).child == space["Leaf"](size=3)


def run(program):
    """Run a program in a fresh interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
