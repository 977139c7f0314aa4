"""Shared by all tests: a clean default emitter, and no silent skips where servers must be present."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import eventcore as ec
from eventcore.context import ROOT, SCOPE
from eventcore.plugins import Plugins
from tests.support import acme

pytest_plugins = ["pytester"]

CHECKOUT = Path(__file__).parents[1]
SEEDS = Path(os.environ.get("EVENTCORE_SEEDS", CHECKOUT.parent / "shared" / "seeds"))  # read before it is cleaned away


@pytest.fixture(autouse=True)
def _clean_emitter(monkeypatch, tmp_path):
    """Start and end each test unconfigured, away from settings of the machine."""
    for name in list(os.environ):
        if name.startswith(("EVENTCORE_", "OTEL_")) and name not in {"EVENTCORE_DATA", "EVENTCORE_REQUIRE_SERVERS"}:
            monkeypatch.delenv(name)
    for name in ("LOG_LEVEL", "LOG_FORMAT", "ENABLE_METRICS", "METRICS_PORT", "TRACEPARENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    SCOPE.set(ROOT)
    yield
    ec.shutdown()
    ec.set_emitter(None)


@pytest.fixture
def emitter():
    """Return an emitter of the test's own, without handlers; it is shut down at the end."""
    with ec.Emitter() as emitter:
        yield emitter


@pytest.fixture
def configure():
    """Return ``ec.configure`` with the tests' own plugin, acme."""

    def configure(**options):
        return ec.configure(plugins=[acme.Acme()], **options)

    return configure


@pytest.fixture
def write():
    """Return a function that writes ``eventcore.toml`` with the installed plugins left out."""

    def write(text="", name="eventcore.toml", block=acme.BLOCK):
        Path(name).write_text(text + "\n" + block, encoding="utf-8")

    write()
    return write


@pytest.fixture
def checkout():
    """Return the root of the checkout."""
    return CHECKOUT


@pytest.fixture
def promtool():
    """Return the path of promtool (Debian: prometheus), or skip."""
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    return path


@pytest.fixture
def routing_data():
    """Return the folder of real routing data, or skip."""
    folder = Path(os.environ.get("EVENTCORE_DATA", CHECKOUT.parent / "shared" / "data"))
    if not (folder / "routing").is_dir():
        pytest.skip(f"no routing data at {folder} (set EVENTCORE_DATA)")
    return folder


@pytest.fixture
def seeds():
    """Return the folder of the four guides, or skip."""
    if not (SEEDS / "tiny-dancer.md").is_file():
        pytest.skip(f"no guides at {SEEDS} (set EVENTCORE_SEEDS)")
    return SEEDS


@pytest.fixture(scope="session")
def declared_everywhere():
    """Return the catalog of everything installed, with all metric packs, and the plugins."""
    plugins = Plugins()
    catalog = ec.Catalog(packs=plugins.packs(), contributed=plugins.events)
    for pack in catalog.packs:
        catalog.pack(pack)
    return catalog, plugins


@pytest.fixture(scope="session")
def live(tmp_path_factory):
    """Run the live application with real servers around it, once for all tests that ask for it."""
    from tests.support.live import live as running

    with running(tmp_path_factory.mktemp("live")) as everything:
        yield everything


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Make a skipped ``server`` test a failure where servers must be present (in CI)."""
    report = yield
    if report.skipped and os.environ.get("EVENTCORE_REQUIRE_SERVERS") == "1" and item.get_closest_marker("server"):
        report.outcome = "failed"
        report.longrepr = f"skipped although EVENTCORE_REQUIRE_SERVERS=1: {report.longrepr}"
    return report
