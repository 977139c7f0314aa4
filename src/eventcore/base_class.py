"""The metaclass of ``Event`` and ``Operation`` themselves: a model class without fields, made without what fields need.

Making any model class, be it without a field, makes pydantic import what describes fields, and that imports OpenSSL: a
sixth of ``from eventcore import Event``. The two base classes have no field. So they are made as pydantic makes
``BaseModel`` itself, by ``ABCMeta``, and are given by hand what its metaclass writes on a class without fields; classes
made from them are made by pydantic, and pay then, like any first model. What it writes is pydantic's own affair: this
is done for the releases that the tests have compared, any other makes the base classes itself (decision 044).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic.version import VERSION

__all__ = ["BaseClass"]

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass as BaseClass
else:
    ModelMetaclass = type(BaseModel)

    def _fieldless(name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> type:
        from pydantic._internal._mock_val_ser import set_model_mocks
        from pydantic._internal._model_construction import make_hash_func

        made = super(ModelMetaclass, ModelMetaclass).__new__(ModelMetaclass, name, bases, namespace)
        made.model_config = {**bases[0].model_config, **namespace.get("model_config", {})}
        made.__class_vars__ = set()
        made.__private_attributes__ = {}
        made.__pydantic_complete__ = False
        made.__pydantic_computed_fields__ = {}
        made.__pydantic_custom_init__ = False
        made.__pydantic_decorators__ = type(BaseModel.__pydantic_decorators__)()
        made.__pydantic_extra_info__ = None
        made.__pydantic_fields__ = {}
        made.__pydantic_generic_metadata__ = {"origin": None, "args": (), "parameters": ()}
        made.__pydantic_parent_namespace__ = None
        made.__pydantic_post_init__ = None
        made.__pydantic_setattr_handlers__ = {}
        made.__hash__ = make_hash_func(made)  # frozen
        set_model_mocks(made)  # its validator is built on first use, if ever
        return made

    BaseClass = _fieldless if VERSION.startswith(("2.13.", "2.14.")) else ModelMetaclass
