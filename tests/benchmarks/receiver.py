"""A small OTLP/HTTP receiver in a process of its own; it hands back what it got. ``python -m … receiver`` serves."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import urllib.request
from typing import ClassVar

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n"


class Receiver:
    """The running process; ``traces_url`` takes POSTs of any number of clients."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.receiver"], stdout=subprocess.PIPE, stdin=subprocess.PIPE
        )
        port = int(self._process.stdout.readline())
        self.url = f"http://127.0.0.1:{port}"
        self.traces_url = f"{self.url}/v1/traces"

    def take(self) -> list[ExportTraceServiceRequest]:
        """Return the decoded requests since the last call, and forget them."""
        with urllib.request.urlopen(f"{self.url}/take") as answer:
            data = answer.read()
        requests = []
        while data:
            size = int.from_bytes(data[:4], "big")
            requests.append(ExportTraceServiceRequest.FromString(data[4 : 4 + size]))
            data = data[4 + size :]
        return requests

    def close(self) -> None:
        """End the process: it lives as long as its standard input is open."""
        self._process.stdin.close()
        self._process.wait(5)


class _Connection(asyncio.Protocol):
    bodies: ClassVar[list[bytes]] = []

    def connection_made(self, transport) -> None:
        self._transport = transport
        self._data = b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head, rest = self._data[:end].lower(), self._data[end + 4 :]
            size = int(head.split(b"content-length:")[1].split(b"\r\n")[0]) if b"content-length:" in head else 0
            if len(rest) < size:
                return
            self._data = rest[size:]
            if head.startswith(b"get"):
                answer = b"".join(len(body).to_bytes(4, "big") + body for body in self.bodies)
                self.bodies.clear()
                self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
            else:
                self.bodies.append(rest[:size])
                self._transport.write(_ANSWER)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve())
