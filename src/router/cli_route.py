"""``router route``: one request decided by a prompt model and a policy, and explained."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.table import Table

from router.choice import Budget, Guaranteed, TargetShare, Threshold
from router.cli_eval import AsJson, ModelFile, guarantee_of, held_out_of
from router.cli_output import errors, say, stdout
from router.embedding import open_embedder
from router.errors import ConfigError, InvalidRequest
from router.model_file import BUNDLED_PROMPT_MODEL, load_prompt_model
from router.prompt_model import need_of
from router.prompts import SURFACE_NAMES, surface_features
from router.uncertainty import wilson_interval

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from router.choice import Policy
    from router.prompt_model import NeedCalibration, PromptModel

    Array = NDArray[np.floating[Any]]

__all__ = ["route"]

ALPHA = 0.05
LIKE = 100
"""Held-out prompts of about the same need that say what such prompts come to."""


def route(  # noqa: PLR0917 - typer calls it by name
    prompt: Annotated[str, typer.Argument(help="The request's text; - reads standard input.")],
    model: ModelFile = BUNDLED_PROMPT_MODEL,
    alpha: Annotated[
        float | None, typer.Option(help=f"Policy: promise at most this rate of harm. The default, with {ALPHA}.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Policy: accept a loss of quality up to this.")] = None,
    share: Annotated[
        float | None, typer.Option(help="Policy: at most this share of requests to the strong model.")
    ] = None,
    budget: Annotated[float | None, typer.Option(help="Policy: the best quality at this mean price.")] = None,
    prices: Annotated[tuple[float, float], typer.Option(help="Of a request to the weak and to the strong model.")] = (
        1.0,
        10.0,
    ),
    as_json: AsJson = False,  # noqa: FBT002 - typer makes an option of it
) -> None:
    """Route one request and explain it: features, score, interval, policy and decision."""
    with errors():
        loaded = load_prompt_model(model)
        text = typer.get_text_stream("stdin", errors="replace").read() if prompt == "-" else prompt
        if not text.strip():
            raise InvalidRequest("the prompt is empty: give the request's text, or - and the text on standard input")
        known = held_out_of(loaded)
        price = np.array(prices)
        policy, said = _policy(loaded, price, alpha=alpha, threshold=threshold, share=share, budget=budget)
        quality = loaded.quality_of_text([text], open_embedder(loaded.embedder))
        need = float(need_of(quality)[0])
        place = int(policy.choose(quality, price)[0])
        found = {
            "prompt_characters": len(text),
            "features": _features(loaded, text),
            "quality": {head: round(float(value), 4) for head, value in zip(loaded.heads, quality[0], strict=True)},
            "need": round(need, 4),
            "harm_of_like_prompts": _harm_of_like(known, need),
            **said,
            "calibration_size": len(known.need),
            "in_calibration": _in_calibration(policy, price, known),
            "decision": loaded.heads[place],
        }
    if as_json:
        stdout.print_json(json.dumps(found))
    else:
        _show(found)


def _policy(
    model: PromptModel,
    price: Array,
    *,
    alpha: float | None,
    threshold: float | None,
    share: float | None,
    budget: float | None,
) -> tuple[Policy, dict[str, Any]]:
    """Return the policy that was asked for, and what to say of it: its name, its setting, its limit of the need."""
    given = {"alpha": alpha, "threshold": threshold, "share": share, "budget": budget}
    asked = [f"--{name}" for name, value in given.items() if value is not None]
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(asked)} are two policies: give one of --{', --'.join(given)}")
    if not 0.0 <= price[0] < price[1] < math.inf:
        raise ConfigError(
            f"the prices are {price[0]:g} and {price[1]:g}: give that of the weak model, then a higher one"
        )
    quality = _qualities(held_out_of(model).need)
    if threshold is not None:
        return Threshold(threshold), _said("threshold", threshold, threshold)
    if share is not None:
        target = TargetShare.fit(share, quality, price)
        return target, _said("share", share, target.tolerance)
    if budget is not None:
        spent = Budget.fit(budget, quality, price)
        return spent, _said("budget", budget, spent.multiplier * float(price[1] - price[0]))
    promise = guarantee_of(model, ALPHA if alpha is None else alpha, None)
    return Guaranteed(promise), _said("alpha", promise.alpha, promise.threshold)


def _said(policy: str, setting: float, limit: float) -> dict[str, Any]:
    return {
        "policy": policy,
        policy: setting,
        "threshold": round(limit, 4) if math.isfinite(limit) else str(limit),
    }


def _qualities(need: Array) -> Array:
    """Return qualities (n, 2) of the weak and the strong model that differ by the needs: policies look no further."""
    return np.stack([np.zeros(len(need)), need], axis=1)


def _features(model: PromptModel, text: str) -> dict[str, dict[str, float]]:
    """Return each surface feature and how many standard deviations it is from the mean of the training prompts."""
    values = surface_features([text])[0]
    away = (values - model.surface_mean) / model.surface_std
    return {
        name: {"value": round(float(value), 4), "deviations": round(float(deviations), 2)}
        for name, value, deviations in zip(SURFACE_NAMES, values, away, strict=True)
    }


def _harm_of_like(known: NeedCalibration, need: float) -> dict[str, float]:
    """Return how often the weak model did harm to the held-out prompts nearest in need, with Wilson's 95 % interval."""
    nearest = np.argsort(np.abs(known.need - need), kind="stable")[:LIKE]
    harmed = int(known.harm[nearest].sum())
    low, high = wilson_interval(harmed, len(nearest))
    return {
        "rate": round(harmed / len(nearest), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "prompts": len(nearest),
    }


def _in_calibration(policy: Policy, price: Array, known: NeedCalibration) -> dict[str, float]:
    """Return the shares of the held-out prompts that the policy sends to the weak model, and that come to harm."""
    weak = policy.choose(_qualities(known.need), price) == 0
    return {
        "to_weak": round(float(weak.mean()), 4),
        "harmed": round(float((weak * known.harm).mean()), 4),
        "mean_price": round(float(np.where(weak, price[0], price[1]).mean()), 4),
    }


_WHY: Mapping[str, str] = {
    "alpha": "the threshold at which at most {:.1%} of requests are harmed",
    "threshold": "the loss of quality of {:g} that is accepted",
    "share": "the threshold at which at most {:.1%} of requests go to the strong model",
    "budget": "what its surcharge is worth at a budget of {:g} per request",
}


def _show(found: dict[str, Any]) -> None:
    features = Table(title="What is seen of it", title_justify="left")
    for heading in ("feature", "value", "standard deviations from the training prompts"):
        features.add_column(heading, justify="left" if heading == "feature" else "right")
    for name, feature in found["features"].items():
        features.add_row(name, f"{feature['value']:g}", f"{feature['deviations']:+.2f}")
    stdout.print(features)
    policy, like, seen = found["policy"], found["harm_of_like_prompts"], found["in_calibration"]
    setting = float(found[policy])  # JSON has no infinity: an unlimited one is a text
    grid = Table.grid(padding=(0, 2))
    grid.add_row("score", ", ".join(f"{head} {value}" for head, value in found["quality"].items()))
    grid.add_row("need", f"{found['need']} (strong less weak)")
    grid.add_row(
        "interval",
        f"of the {like['prompts']} held-out prompts nearest in need, the weak model harms {like['rate']:.1%} "
        f"(95 %: {like['low']:.1%} to {like['high']:.1%})",
    )
    grid.add_row("policy", f"{policy} {setting:g}: weak where the need is below {found['threshold']}")
    grid.add_row(
        "in calibration",
        f"{seen['to_weak']:.1%} of {found['calibration_size']} prompts go to the weak model, {seen['harmed']:.2%} are "
        f"harmed, at a mean price of {seen['mean_price']:g}",
    )
    grid.add_row("decision", found["decision"])
    stdout.print(grid)
    below = "below" if found["decision"] == "weak" else "not below"
    say(f"Sent to the {found['decision']} model: its need for the strong one is {below} "
        f"{_WHY[policy].format(setting)}.")  # fmt: skip
