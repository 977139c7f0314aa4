"""Sells two things. It does not know who listens: eventcore.toml does."""

import eventcore as ec


class Sold(ec.Event, name="shop.sold", category=ec.Category.USER, message="{item} sold"):
    item: str


with ec.configure() as emitter:
    emitter.emit(Sold(item="lamp"))
    emitter.emit(Sold(item="chair"))
    ec.emit_error_event("the till is jammed", category="system")
