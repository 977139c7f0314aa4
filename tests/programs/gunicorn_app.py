"""An application for gunicorn, preloaded: the master configures and emits, its forked workers go on."""

import json
import os

import eventcore as ec


class Served(ec.Event, name="prefork.served", category="execution"):
    n: int
    pid: int


class Request(ec.Operation, name="prefork.request", category="execution"):
    n: int


class Account(ec.Handler):
    """Writes the account of its process down when that ends: one line, appended."""

    kind = "account"

    def __init__(self, **options):
        super().__init__(**options)
        self.got = []

    def handle(self, envelope):
        if envelope.name == "prefork.served":
            self.got.append((os.getpid(), envelope.event.n))  # the list is inherited by forked workers

    def close(self):
        ledger = self.emitter.ledger()
        (row,) = [row for row in ledger.rows if (row.handler, row.event) == ("account", "prefork.served")] or [None]
        account = {
            "pid": os.getpid(),
            "got": [n for pid, n in self.got if pid == os.getpid()],
            "delivered": row.delivered if row else 0,
            "emitted": row.emitted if row else 0,
            "recovered": row.recovered if row else 0,
            "forked": row.dropped["forked"] if row else 0,
            "balanced": all(r.accepted + r.recovered == r.settled for r in ledger.rows if r.handler == "account"),
            "operations": dict(ledger.operations),
        }
        descriptor = os.open("accounts.json", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        os.write(descriptor, json.dumps(account).encode() + b"\n")
        os.close(descriptor)


emitter = ec.configure(
    service="prefork",
    handlers={
        "log": {"format": "json", "output": "log.json"},
        "account": Account(linger_s=0.5, delivery=os.environ["PREFORK_DELIVERY"]),
    },
)
for number in range(-5, 0):
    emitter.emit(Served(n=number, pid=os.getpid()))  # most likely still waiting when the workers are forked


def application(environ, start_response):
    """Answer with the process's id, when the event is emitted."""
    n = int(environ["QUERY_STRING"])
    with emitter.operation(Request, n=n):
        emitter.emit(Served(n=n, pid=os.getpid()))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
