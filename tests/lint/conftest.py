"""What the linter's tests share: a small shop, and the four guides."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest

import eventcore as ec
from eventcore.exposition import Metric, exposition_of
from eventcore.plugins import Plugins
from eventcore_generate.lint_known import Vocabulary


class Paid(ec.Event, name="shop.paid", category=ec.Category.USER):
    currency: Annotated[Literal["eur", "usd"], ec.Label]
    amount: Annotated[float, ec.Measure(unit="1")]


class Charge(ec.Operation, name="shop.charge", category=ec.Category.INTEGRATION):
    provider: Annotated[Literal["stripe", "adyen"], ec.Label]
    region: Annotated[str, ec.Label] = "eu"


SHOP = (
    ec.Counter("shop_paid_total", on=Paid, labels={"currency": "currency"}, help="?"),
    ec.Counter(
        "shop_failed_total",
        on=Charge,
        where={"outcome": "failure"},
        labels={"provider": "provider", "why": "error_type"},
        help="?",
    ),
    ec.Counter("shop_charges_total", on=Charge, labels={"provider": "provider", "region": "region"}, help="?"),
    ec.Gauge("shop_open", on=Charge, phase="start", labels={"provider": "provider"}, help="?"),
    ec.Gauge("shop_currency", on=Paid, value=ec.codes("currency", eur=1, usd=2), help="?"),
    ec.Histogram(
        "shop_charge_seconds",
        on=Charge,
        value="duration_s",
        labels={"provider": "provider"},
        buckets=(0.1, 0.5, 1.0),
        help="?",
    ),
)


@pytest.fixture(scope="session")
def shop():
    """Return what a shop exposes."""
    return exposition_of(ec.Catalog(instruments=SHOP))


@pytest.fixture(scope="session")
def known(shop):
    """Return the vocabulary of the shop."""
    return Vocabulary(shop)


@pytest.fixture(scope="session")
def tiny_dancer():
    """Return what a router with the pack ``tiny_dancer`` exposes."""
    plugins = Plugins()
    catalog = ec.Catalog(packs=plugins.packs())
    catalog.pack("tiny_dancer")
    return exposition_of(catalog, plugins)


@pytest.fixture(scope="session")
def other_systems():
    """Return the vocabularies of the TinyLLM and MoE guides, with the labels that these guides list."""
    listed = {
        "tinyllm_requests_total": "model graph request_type",
        "tinyllm_errors_total": "error_type model graph",
        "tinyllm_cache_hits_total": "cache_type",
        "tinyllm_cache_misses_total": "cache_type",
        "dynamic_moe_routing_requests_total": "model_name backend status",
        "dynamic_moe_flops_computed_total": "model_name layer_type",
        "dynamic_moe_flops_saved_total": "model_name",
        "dynamic_moe_routing_errors_total": "model_name error_type",
    }
    gauges = {"dynamic_moe_load_balance_score": "model_name layer_id", "dynamic_moe_memory_usage_bytes": "model_name"}
    histograms = {
        "tinyllm_request_latency_seconds": "model graph",
        "tinyllm_node_execution_duration_seconds": "node graph",
        "dynamic_moe_routing_duration_seconds": "model_name backend",
        "dynamic_moe_experts_used_per_token": "model_name",
    }
    kinds = {"counter": listed, "gauge": gauges, "histogram": histograms}
    return [
        Metric(
            name=name,
            kind=kind,
            help="?",
            labels=dict.fromkeys(labels.split()),
            buckets=(1.0,) if kind == "histogram" else (),
        )
        for kind, metrics in kinds.items()
        for name, labels in metrics.items()
    ]
