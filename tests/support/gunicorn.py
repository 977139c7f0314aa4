"""gunicorn with preloaded workers, for tests."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys

import pytest


@contextlib.contextmanager
def gunicorn_in(folder, application, programs, workers):
    """Yield a function that starts gunicorn in ``folder`` and returns its process and address; kill what it started.

    ``application`` is a module in ``programs`` and the name in it; the function takes further options of gunicorn.
    """
    pytest.importorskip("gunicorn")
    started = []

    def start(*options):
        listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with listener, (folder / "gunicorn.log").open("a") as errors:
            command = [sys.executable, "-m", "gunicorn", "--bind", f"fd://{listener.fileno()}", "--pythonpath"]
            command += [str(programs), "--preload", "--workers", str(workers), "--no-control-socket", *options]
            process = subprocess.Popen([*command, application], cwd=folder, stderr=errors, pass_fds=[listener.fileno()])
        started.append(process)
        return process, address

    try:
        yield start
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.wait(10)
