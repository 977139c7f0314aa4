"""Tells eventcore of the handler kind ``desk``; light, because it is loaded by every ``configure()``."""

import eventcore as ec


@ec.hookimpl
def eventcore_handlers() -> dict[str, str]:
    return {"desk": "desk_handler.handler:DeskHandler"}
