import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

import eventcore as ec


class DeskConfig(ec.HandlerConfig):
    path: Path = Field(Path("tally.jsonl"), description="The sheet; written anew at every flush and at the end.")


class DeskHandler(ec.Handler):
    """Keeps a tally sheet: a JSON line per event type with its count, worst severity, last time and last message."""

    Config = DeskConfig
    config: DeskConfig
    kind = "desk"

    def __init__(self, config: ec.HandlerConfig | None = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.sheet: dict[str, dict[str, Any]] = {}

    def handle_batch(self, envelopes: Sequence[ec.Envelope]) -> None:
        for envelope in envelopes:
            before = self.sheet.get(envelope.name, {"count": 0, "worst": ec.Severity.TRACE})
            self.sheet[envelope.name] = {
                "event": envelope.name,
                "count": before["count"] + 1,
                "worst": max(before["worst"], envelope.severity),
                "last": envelope.time.isoformat(),
                "message": envelope.message,
            }

    def flush(self) -> None:
        lines = [json.dumps(line | {"worst": line["worst"].name.lower()}) for line in self.sheet.values()]
        self.config.path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def close(self) -> None:
        self.flush()

    def describe(self) -> dict[str, Any]:
        return {"path": str(self.config.path), "event_types": len(self.sheet)}
