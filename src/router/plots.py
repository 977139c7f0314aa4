"""Pictures of an evaluation: quality against cost, and how true the probabilities are; matplotlib is in ``eval``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from router.errors import RouterError

if TYPE_CHECKING:
    from pathlib import Path

    from router.evaluation import Comparison
    from router.report import Evaluation

__all__ = ["draw"]

SHARES = np.linspace(0.0, 1.0, 201)


def draw(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write PNG files into ``folder``, which is made, and return their paths: one for each way, one of reliability."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RouterError("plots need matplotlib: pip install 'eventcore[eval]'") from error
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for way, comparison in evaluation.comparisons.items():
        figure = Figure(figsize=(8, 5.5), layout="constrained")
        FigureCanvasAgg(figure)
        _quality_against_cost(figure.add_subplot(), way, comparison, evaluation.ours)
        paths.append(folder / f"quality-cost-{way.split()[0]}.png")
        figure.savefig(paths[-1], dpi=110)
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    _reliability(figure.add_subplot(), evaluation)
    paths.append(folder / "reliability.png")
    figure.savefig(paths[-1], dpi=110)
    return paths


def _quality_against_cost(axes: Any, way: str, comparison: Comparison, ours: str) -> None:
    gap = comparison.strong_accuracy - comparison.weak_accuracy
    for name, curves in sorted(comparison.curves.items(), key=lambda item: -comparison.scores[item[0]].apgr.mean()):
        recovered = np.mean([np.interp(SHARES, curve.strong_share, curve.recovered) for curve in curves], axis=0)
        apgr = comparison.scores[name].apgr.mean()
        axes.plot(
            SHARES,
            comparison.weak_accuracy + gap * recovered,
            label=f"{apgr:.3f}  {name}",
            linewidth=2.4 if name == ours else 1.0,
            zorder=3 if name == ours else 2,
        )
    splits = len(comparison.curves[ours])
    axes.set(
        xlabel="share of prompts sent to the strong model",
        ylabel="share of right answers",
        title=f"Quality against cost, {way} ({comparison.prompts} prompts, {splits} splits)",
        xlim=(0, 1),
    )
    axes.grid(alpha=0.3)
    axes.legend(title="APGR", fontsize="small", loc="lower right")


def _reliability(axes: Any, evaluation: Evaluation) -> None:
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    for name, (claimed, observed) in evaluation.reliability.items():
        axes.plot(claimed, observed, marker="o", markersize=4, label=f"{name} model")
    axes.set(
        xlabel="claimed probability of a right answer",
        ylabel="share of right answers",
        title=f"Reliability: {evaluation.ours}",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    axes.grid(alpha=0.3)
    axes.legend()
