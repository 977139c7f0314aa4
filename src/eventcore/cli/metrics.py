"""``eventcore metrics``: metrics of another process, of a folder of workers, or of a stream of events.

A server of its own never has counts of its own: without a source it would serve zeros that look like a quiet service.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventcore.cli.address import Address
from eventcore.cli.metric_sources import Folder, PassedOn, Stream
from eventcore.cli.output import fail, note, say
from eventcore.cli.source import Config, Import  # noqa: TC001 - typer reads annotations when it runs
from eventcore.errors import EventCoreError

if TYPE_CHECKING:
    from eventcore.cli.metric_sources import MetricSource

__all__ = ["metrics"]


def metrics(
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to serve /metrics on; 0 for any.")] = 9090,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    url: Annotated[str | None, typer.Option(metavar="URL", help="Pass on the metrics of a running process.")] = None,
    folder: Annotated[
        str | None, typer.Option("--dir", metavar="DIR", help="The multiprocess folder of a prefork server.")
    ] = None,
    handler: Annotated[str, typer.Option(metavar="NAME", help="With --dir: name of the metric handler.")] = "metric",
    stream: Annotated[
        str | None, typer.Option(metavar="FILE", help="Events as lines of JSON, such as a JSON log; - for stdin.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on reading --stream as it grows.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Print the metrics and end; serve nothing.")] = False,
    pack: Annotated[list[str] | None, typer.Option(metavar="PACK", help="Metric pack; may be repeated.")] = None,
    instruments: Annotated[
        list[str] | None, typer.Option(metavar="MODULE:NAME", help="List of your own instruments; may be repeated.")
    ] = None,
    config: Config = None,
    modules: Import = None,
) -> None:
    """Serve metrics that come from elsewhere: a running process, a folder of workers, or a stream of events.

    Exit code 1 with --once when a line of the stream is no event; 2 without a source, or where it does not answer.
    """
    given = [option for option, value in (("--url", url), ("--dir", folder), ("--stream", stream)) if value is not None]
    if len(given) != 1:
        fail(
            f"{' and '.join(given) or 'no source'}: say whose metrics to serve, with one of --url URL (a running "
            "process), --dir DIR (a multiprocess folder) and --stream FILE (events as lines of JSON, - for stdin)"
        )
    if follow and (stream in (None, "-") or once):
        fail("--follow goes with --stream FILE, and without --once")
    folded: dict[str, Any] = {"packs": pack or (), "instruments": instruments or (), "modules": modules or ()}
    try:
        if url is not None:
            source: MetricSource = PassedOn(Address.parse(url), config)
            source.render()  # who does not answer now is a mistake; later it is an outage, which scrapes show
        elif folder is not None:
            source = Folder(Path(folder), handler, config)
            source.render()
        else:
            source = Stream(str(stream), config, follow=follow, **folded)
        with source.emitter:
            if once:
                _print(source)
            else:
                _serve(source, host, port)
    except EventCoreError as error:
        fail(error)
    if source.wrong and once:
        raise typer.Exit(1)


def _print(source: MetricSource) -> None:
    source.feed(threading.Event())
    _say_read(source)
    sys.stdout.write(source.render().decode())
    sys.stdout.flush()


def _serve(source: MetricSource, host: str, port: int) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with source.served(host, port) as served:
        say(f"{served}/metrics")
        sys.stdout.flush()
        reader = threading.Thread(target=source.feed, args=(stop,), name="eventcore-feed", daemon=True)
        reader.start()
        try:
            while reader.is_alive() and not stop.is_set():
                reader.join(0.1)
            _say_read(source)
            while not stop.wait(60.0):
                pass
        except KeyboardInterrupt:
            stop.set()


def _say_read(source: MetricSource) -> None:
    if isinstance(source, Stream):
        note(source.summary())
