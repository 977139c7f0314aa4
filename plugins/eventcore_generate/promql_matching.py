"""Vector matching: whether the two sides of an operator can ever join.

Prometheus joins elements whose matching labels are equal, an absent label being empty: all labels, or those ``on(…)``
names, or all but those ``ignoring(…)`` names. A label that one side always bears and the other never does keeps every
pair apart. Source: https://prometheus.io/docs/prometheus/latest/querying/operators/, "Vector matching".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from promql_parser import BinaryExpr, LabelModifierType, VectorMatchCardinality

from eventcore_generate.promql_problems import Problem
from eventcore_generate.promql_variables import VARIABLE
from eventcore_generate.promql_vectors import Vector, union

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["TARGET_LABELS", "joined"]

TARGET_LABELS = frozenset({"instance", "job"})
"""Labels that Prometheus itself gives each target."""

_SETS = frozenset({"and", "or", "unless"})


def joined(expr: BinaryExpr, left: Vector, right: Vector) -> tuple[Vector, list[Problem]]:
    """Return what ``left op right`` returns, and why it never returns anything or fails."""
    op = str(expr.op)
    if op == "or":
        return union((left, right)), []
    problems = []
    if not _has_fill(expr):
        problems = _apart(expr, op, left, right)
        if not problems and op not in _SETS:
            problems = _ambiguous(expr, op, left, right)
    return _result(expr, op, left, right), problems


def _matching(expr: BinaryExpr) -> tuple[bool | None, frozenset[str]]:
    """Return ``(is_on, labels)``; None: all labels match."""
    matching = expr.modifier.matching if expr.modifier is not None else None
    if matching is None:
        return None, frozenset()
    return matching.type == LabelModifierType.Include, frozenset(matching.labels)


def _has_fill(expr: BinaryExpr) -> bool:
    fill = expr.modifier.fill_values if expr.modifier is not None else None
    return fill is not None and (fill.lhs is not None or fill.rhs is not None)


def _matched(expr: BinaryExpr, label: str) -> bool:
    is_on, named = _matching(expr)
    return is_on is None or (label in named) is is_on


def _apart(expr: BinaryExpr, op: str, left: Vector, right: Vector) -> list[Problem]:
    only_left = _lonely(expr, left, right)
    only_right = _lonely(expr, right, left)
    if only_left or only_right:
        sides = [
            f"only the {side} side has {_list(labels)}"
            for side, labels in (("left", only_left), ("right", only_right))
            if labels
        ]
        shared = sorted((left.labels.keys() & right.labels.keys()) - TARGET_LABELS)
        remedy = (
            f"aggregate both sides to what they share, such as sum by ({', '.join(shared)}) (…)"
            if shared
            else "aggregate both sides, such as sum(…) / sum(…)"
        )
        what = "excludes nothing" if op == "unless" else "never has a result"
        return [
            Problem(
                "never-joins", f"{op!r} {what}: {', '.join(sides)}", f"{remedy}, or match with on(…), ignoring(…)", op
            )
        ]
    for label in sorted(left.certain & right.certain):
        mine, theirs = left.values(label), right.values(label)
        if _matched(expr, label) and mine is not None and theirs is not None and not mine & theirs:
            message = f"{op!r} never has a result: {label!r} is {_list(mine)} left and {_list(theirs)} right"
            return [
                Problem("never-joins", message, f"select the same {label!r} on both sides, or ignoring({label})", op)
            ]
    return []


def _lonely(expr: BinaryExpr, one: Vector, other: Vector) -> list[str]:
    """Return labels that keep the sides apart: matched, always on ``one``, never on ``other``."""
    return sorted(
        label for label in one.certain if _matched(expr, label) and VARIABLE not in label and not other.may_bear(label)
    )


def _ambiguous(expr: BinaryExpr, op: str, left: Vector, right: Vector) -> list[Problem]:
    """Report a side that has several elements for one of the other: an error of Prometheus when it happens."""
    card = expr.modifier.card if expr.modifier is not None else VectorMatchCardinality.OneToOne
    sides = [
        (side, vector)
        for side, vector, many in (
            ("left", left, VectorMatchCardinality.ManyToOne),
            ("right", right, VectorMatchCardinality.OneToMany),
        )
        if card != many
    ]
    for side, vector in sides:
        extra = sorted(
            label
            for label, values in vector.labels.items()
            if not _matched(expr, label) and label not in TARGET_LABELS and (values is None or len(values) > 1)
        )
        if extra:
            group = "group_left" if side == "left" else "group_right"
            remedy = f"aggregate {_list(extra)} away on the {side} side"
            if card == VectorMatchCardinality.OneToOne:
                remedy += f", or add {group}()"
            message = (
                f"{op!r} fails as soon as {_list(extra)} of the {side} side has two values: they match one element"
            )
            return [Problem("many-to-one", message, remedy, op)]
    return []


def _result(expr: BinaryExpr, op: str, left: Vector, right: Vector) -> Vector:
    if op in _SETS:
        return left
    card = expr.modifier.card if expr.modifier is not None else VectorMatchCardinality.OneToOne
    if card in (VectorMatchCardinality.ManyToOne, VectorMatchCardinality.OneToMany):
        many, one = (left, right) if card == VectorMatchCardinality.ManyToOne else (right, left)
        result = many
        for label in (expr.modifier.group_labels if expr.modifier is not None else None) or ():
            result = result.with_label(label, one.values(label), is_certain=label in one.certain)
        return result.also_made_of(one)
    is_on, labels = _matching(expr)
    if is_on:
        result = left.only(labels)
    elif is_on is False:
        result = left.without(labels)
    else:
        result = left
    return result.also_made_of(right)


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names)))
