"""Routes a stream of requests with every handler on, and ends with a summary.

Without arguments: the requests of ``examples/requests.jsonl``, at 100 a second. The model fails for a while on the way,
so that the circuit breaker is seen opening, probing and closing. Then questions whose answers are known: a policy
chooses who answers, feedback says whether that was right, and as the questions get harder, drift is found.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from answers import Answering, all_questions
from intake import EXAMPLES, BadInput, Intake, read_lines
from outage import FailingForAWhile
from receiver import Receiver
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from summary import Tally, show

import eventcore as ec
from router import Router, RouterConfig, RouterError, load_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

OWN_CONFIG = Path(__file__).parent / "eventcore.toml"
OUTAGE_AFTER = 60  # calls of the model
OUTAGE_CALLS = 6  # five failures open the breaker, the sixth is the first probe


def main() -> int:
    """Run the demo; 0 when all signals agree, 1 when not, 2 when lines of the input could not be used."""
    options = _options()
    console = Console()
    source = str(Path(options.source).resolve()) if options.source not in ("-", "") else options.source
    asked = [] if source else list(all_questions())
    config = Path(options.config).resolve() if options.config else OWN_CONFIG
    try:
        lines = list(read_lines(source or str(EXAMPLES / "requests.jsonl"))) if source != "-" else read_lines("-")
        intake = Intake(Path(options.candidates) if options.candidates else EXAMPLES / "candidates.toml")
        _work_in(Path(options.out).resolve())
    except BadInput as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1
    receiver = Receiver()
    try:
        emitter = _configure(config, receiver, options.port, console)
    except ec.ConfigurationError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1
    tally = Tally()
    # At full speed the whole stream would pass while the breaker is open for the first time.
    model = FailingForAWhile(load_model(), first=OUTAGE_AFTER + 1, count=OUTAGE_CALLS if options.rate else 0)
    with emitter:
        router = Router(RouterConfig(circuit_breaker_timeout_s=0.2), model=model)
        _each("routing", lines, lambda line: _route(router, intake, tally, *line), options.rate, console)
        if asked:
            answering = Answering(tally)
            _each("answering", asked, answering.answer, options.rate, console)
            answering.finish()
        if not emitter.flush(10.0):
            console.print("some handlers did not finish within 10 s; see pending in the ledger", style="red")
        agrees = show(console, tally, emitter, receiver)
        if options.serve:
            _serve(emitter, console)
    receiver.close()
    if tally.bad_lines:
        return 2
    return 0 if agrees else 1


def _work_in(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise BadInput(
            f"nothing can be written to {folder}: {error.strerror}; choose another folder by --out"
        ) from None


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo ARGS=…", description=__doc__)
    parser.add_argument("source", nargs="?", default="", help="a file of JSON lines, or - for standard input")
    parser.add_argument("--serve", action="store_true", help="keep /metrics up at the end, until interrupted")
    parser.add_argument("--port", type=int, help="port of /metrics (default 9090, or a free one if that is taken)")
    parser.add_argument("--rate", type=_rate, default=100.0, help="requests per second; 0: no pause and no outage")
    parser.add_argument("--config", help="an eventcore.toml of your own")
    parser.add_argument("--candidates", help="a candidates.toml of your own")
    parser.add_argument("--out", default="demo-output", help="folder for log and spans (default demo-output)")
    return parser.parse_args()


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0.0 <= rate < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no rate: give requests per second, or 0")
    return rate


def _configure(config: Path, receiver: Receiver, port: int | None, console: Console) -> ec.Emitter:
    given: dict[str, Any] = {}
    if config == OWN_CONFIG:
        for name in ("log.jsonl", "spans.jsonl"):
            Path(name).unlink(missing_ok=True)  # the files of this run only
        given["handlers"] = {"oncall": {"url": receiver.url, "secret": receiver.secret, "allow_private": True}}
    if port is not None:
        return ec.configure(config=config, http={"port": port}, **given)
    try:
        return ec.configure(config=config, **given)
    except ec.ConfigurationError as error:
        if config != OWN_CONFIG or "in use" not in str(error):
            raise
        emitter = ec.configure(config=config, http={"port": 0}, **given)
        console.print(f"port 9090 is taken; metrics are at {emitter.services['http'].url}/metrics", style="yellow")
        return emitter


def _each(what: str, items: Iterable[Any], do: Callable[[Any], None], rate: float, console: Console) -> None:
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=console.is_terminal) as progress:
        task = progress.add_task(what, total=len(items) if isinstance(items, list) else None)
        started = time.monotonic()
        for number, item in enumerate(items, start=1):
            do(item)
            progress.advance(task)
            if rate:
                time.sleep(max(0.0, started + number / rate - time.monotonic()))


def _route(router: Router, intake: Intake, tally: Tally, where: str, line: str) -> None:
    try:
        request = intake.parse(where, line)
    except BadInput as error:
        tally.bad_lines.append(str(error))
        return
    try:
        response = router.route(request)
    except RouterError as error:
        tally.errors[error.error_type] += 1
        if error.error_type == "invalid_input":
            tally.bad_lines.append(f"{where}: {error}")
        return
    tally.add(response)


def _serve(emitter: ec.Emitter, console: Console) -> None:
    if "http" not in emitter.services:
        console.print("nothing to serve: the configuration has no [http]", style="red")
        return
    try:
        console.print(f"serving {emitter.services['http'].url}/metrics until interrupted (Ctrl-C)")
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        console.print("stopped")


if __name__ == "__main__":
    sys.exit(main())
