"""``eventcore generate``: its options, where files go, and that the same input gives the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from eventcore_generate.cli import MAKERS

SHOP = """
import eventcore as ec

class Sold(ec.Event, name="shop.sold", category="user"):
    articles: int = 1

BASKETS = ec.gauge("shop_baskets", help="Baskets in use.")
METRICS = [ec.Counter("shop_sold_total", on=Sold, help="Sold.")]
ONE = METRICS[0]
"""


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """Write a module with an event type and an instrument of an application."""
    (tmp_path / "acme_shop.py").write_text(SHOP)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("acme_shop", None)


@pytest.mark.parametrize("name", MAKERS)
def test_the_same_input_gives_the_same_bytes(name, settings, tmp_path):
    """Two processes with different hash seeds write the same bytes, to a folder."""
    outputs = []
    for seed in ("1", "2"):
        folder = tmp_path / f"out{seed}"
        subprocess.run(
            [sys.executable, "-m", "eventcore", "generate", name, "--config", settings, "--output", folder],
            check=True,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            timeout=60,
        )
        outputs.append({p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()})
    assert outputs[0]
    assert outputs[0] == outputs[1]


def test_one_file_goes_to_standard_output(generate):
    """Without ``--output`` a single file is printed as it is, fit for a pipe."""
    assert generate("docs").startswith("# Events and metrics of tiny-dancer\n")


def test_a_folder_is_made(generate, tmp_path):
    """``--output`` makes the folder and says what was written where."""
    generate("docs", "--output", tmp_path / "deep" / "down")
    assert (tmp_path / "deep" / "down" / "reference.md").is_file()


def test_a_folder_that_cannot_be_written_is_one_error(generate, tmp_path):
    """A file in the folder's place is one error that names it."""
    (tmp_path / "taken").write_text("")
    assert "taken" in generate("docs", "--output", tmp_path / "taken", code=2)


def test_a_pack_that_is_none_is_one_error(generate):
    """``--pack`` with a name that nobody offers ends with 2 and a suggestion."""
    assert "did you mean 'tiny_dancer'" in generate("docs", "--pack", "tiny_dancr", code=2)


def test_types_and_instruments_of_an_application_are_known(generate, shop):
    """``--import`` adds the event types of a module, ``--instruments`` a list that code gives to ``configure()``."""
    assert "`shop.sold`" in generate("docs", "--import", "acme_shop")
    assert "`shop_sold_total`" in generate("docs", "--instruments", "acme_shop:METRICS")
    assert "`shop_sold_total`" in generate("docs", "--instruments", "acme_shop:ONE")


@pytest.mark.parametrize("path", ["acme_missing:METRICS", "router.metrics:NONE", "router.events:RouteRequest"])
def test_instruments_that_are_none_are_one_error(generate, path):
    """A path that leads nowhere, or to something else than instruments, is named with its remedy."""
    assert f"--instruments {path}" in generate("docs", "--instruments", path, code=2)


def test_metrics_by_hand_are_the_applications(settings, shop):
    """A metric that an imported module declares by hand is shown beside its instruments, not among the bus's."""
    code = (
        "from eventcore_generate.source import Source\n"
        f"source = Source({str(settings)!r}, modules=['acme_shop'], instruments=['acme_shop:METRICS'])\n"
        "parts = {part.name: [metric.name for metric in part.metrics] for part in source.parts}\n"
        "assert parts['application'] == ['shop_sold_total', 'shop_baskets'], parts\n"
        "assert 'shop_baskets' not in parts['eventcore']\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(settings.parent)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)


def test_debug_adds_its_series(generate, settings):
    """With ``debug = true`` the series that it adds are in the reference and on the bus's dashboard."""
    assert "eventcore_debug" not in generate("docs")
    settings.write_text("debug = true\n" + settings.read_text())
    assert "`eventcore_debug_misuses_total`" in generate("docs")
    assert "eventcore_debug_misuses_total" in generate("grafana")


def test_no_secret_is_needed(generate, settings):
    """Files are made where the application does not run: what secrets it reads there need not be here."""
    handlers = '[handlers.oncall]\nuse = "webhook"\nurl = "https://example.com"\nsecret = "env:NOT_SET_HERE"\n'
    settings.write_text(settings.read_text() + 'token = "env:NOT_SET_HERE"\n' + handlers)
    assert "NOT_SET_HERE" not in generate("all")


@pytest.mark.parametrize("given", ["tiny_dancer_errors_total = [1]", "tiny_dancer_routing_latency_seconds = 1"])
def test_buckets_that_are_none_are_one_error(generate, settings, given):
    """Buckets for what is no histogram, or that are no list, are named with what to give."""
    settings.write_text(settings.read_text().replace("[http]", f"[handlers.metric.buckets]\n{given}\n[http]"))
    assert "give histograms a list of upper bounds" in generate("docs", code=2).replace("\n", " ")


def test_packs_that_are_no_list_are_one_error(generate, settings):
    """A text in the place of the list of packs is named with its place."""
    settings.write_text(settings.read_text().replace('["tiny_dancer", "router"]', '"tiny_dancer"'))
    assert "expected a list of metric packs, not 'tiny_dancer'" in generate("docs", code=2)
