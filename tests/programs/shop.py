"""A shop that says what happens and nothing of where that goes: one operation, one event, two metrics."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import eventcore as ec


class CheckoutPaid(ec.Event, name="checkout.paid", category=ec.Category.USER, message="{amount} {currency} paid"):
    """A customer has paid."""

    currency: Annotated[Literal["eur", "usd"], ec.Label]
    amount: Annotated[float, ec.Measure(unit="1")]
    card: Annotated[str, ec.Sensitive]


class ChargeCard(ec.Operation, name="checkout.charge_card", category=ec.Category.INTEGRATION):
    """Charging a card at its provider."""

    provider: Annotated[Literal["stripe", "adyen"], ec.Label]
    attempts: Annotated[int, ec.Measure(unit="1")] = ec.unset


METRICS = [
    ec.Counter("shop_paid_total", on=CheckoutPaid, labels={"currency": "currency"}, help="Payments."),
    ec.Histogram(
        "shop_charge_duration_seconds",
        on=ChargeCard,
        value="duration_s",
        labels={"provider": "provider", "status": "outcome"},
        help="Time to charge a card.",
    ),
]

with ec.configure(service="shop", instruments=METRICS) as emitter:
    with emitter.operation(ChargeCard, provider="stripe") as op:
        op.set(attempts=2)
        emitter.emit(CheckoutPaid(currency="eur", amount=12.5, card="4111 1111 1111 1111"))
    sys.stdin.read()  # stays up until its standard input ends, so that somebody may look at it
