"""Checks one PromQL expression against the series that exist.

The expression is parsed (promql-parser, the grammar of Prometheus 2.45) and walked once from its leaves: each node gets
the ``Vector`` that it can return, and whatever can never return data is a ``Problem``: a series, label or label value
that does not exist; a function that does not fit the metric; two vectors that can never join (promql_matching).
"""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Any, Protocol

from promql_parser import (
    AggModifierType,
    AggregateExpr,
    BinaryExpr,
    Call,
    MatchOp,
    MatrixSelector,
    NumberLiteral,
    ParenExpr,
    StringLiteral,
    SubqueryExpr,
    UnaryExpr,
    ValueType,
    VectorMatchCardinality,
    VectorSelector,
    parse,
)

from eventcore_generate.promql_matching import joined
from eventcore_generate.promql_problems import Problem, closest
from eventcore_generate.promql_variables import VARIABLE, as_names, as_numbers
from eventcore_generate.promql_vectors import OPEN, SCALAR_VECTOR, KnownSeries, Values, Vector, union

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from promql_parser import Expr, Matcher

__all__ = ["Known", "check"]

_OF_COUNTERS = frozenset({"increase", "irate", "rate", "resets"})
_OF_GAUGES = frozenset({"delta", "deriv", "double_exponential_smoothing", "holt_winters", "idelta", "predict_linear"})
_OF_BUCKETS = frozenset({"histogram_fraction", "histogram_quantile", "histogram_quantiles"})
_KEEPS_ELEMENTS = frozenset({"bottomk", "limit_ratio", "limitk", "topk"})
_COMPARISONS = {
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}


class Known(Protocol):
    """What an expression is held against."""

    def get(self, name: str) -> KnownSeries | None:
        """Return the series of this name, if there is one."""

    def names(self) -> Iterable[str]:
        """Return the names of all series."""

    def missing(self, name: str) -> Problem:
        """Say that there is no such series, and what to do."""


def check(text: str, known: Known, labels: Iterable[tuple[str, str]] = ()) -> tuple[Vector, list[Problem]]:
    """Return what the expression can return, and what is wrong with it.

    ``labels``: who names a label of the result, such as a legend, and which.
    """
    try:
        tree = _parsed(text)
    except ValueError as error:
        problem = Problem("unparsable", f"this is no PromQL: {error}", "correct the expression", "")
        return OPEN, [problem]
    walk = _Walk(known)
    vector = walk.vector(tree) or SCALAR_VECTOR
    for who, label in labels:
        walk.need(vector, (label,), who)
    return vector, walk.problems


def _parsed(text: str) -> Expr:
    """Parse, with Grafana's variables as names or, where a number is wanted, as numbers."""
    try:
        return parse(as_names(text))
    except ValueError:
        if as_numbers(text) == as_names(text):
            raise
        return parse(as_numbers(text))


class _Walk:
    def __init__(self, known: Known) -> None:
        self._known = known
        self.problems: list[Problem] = []

    def vector(self, expr: Any) -> Vector | None:  # noqa: PLR0911 - one return per kind of node
        """Return what a node can return; None for a scalar or a string."""
        match expr:
            case NumberLiteral() | StringLiteral():
                return None
            case ParenExpr() | UnaryExpr() | SubqueryExpr():
                return self.vector(expr.expr)
            case VectorSelector():
                return self._selected(expr)
            case MatrixSelector():
                return self._selected(expr.vector_selector)
            case AggregateExpr():
                return self._aggregated(expr)
            case BinaryExpr():
                return self._combined(expr)
            case Call():
                return self._called(expr)
        return OPEN

    def need(self, vector: Vector, labels: Iterable[str], who: str) -> None:
        """Report labels that a vector can never bear."""
        for label in labels:
            if VARIABLE not in label and not vector.may_bear(label):
                there = sorted(vector.labels)
                self._report(
                    "unknown-label",
                    f"{who} names the label {label!r}, which is not on {_these(vector)} here",
                    closest(label, there)
                    or f"there are {_list(there)}; if scraping adds it, say --target-label {label}",
                    label,
                )

    def _report(self, code: str, message: str, remedy: str, token: str) -> None:
        self.problems.append(Problem(code, message, remedy, token))

    # -- selectors -----------------------------------------------------------------------------------------------------

    def _selected(self, expr: VectorSelector) -> Vector:
        matchers = [*expr.matchers.matchers]
        names = [matcher for matcher in matchers if matcher.name == "__name__"]
        found = self._named(expr.name, names)
        if found is None:
            return OPEN
        vector = union(one.vector for one in found)
        for matcher in (*matchers, *(each for group in expr.matchers.or_matchers for each in group)):
            if matcher.name != "__name__":
                self._check_matcher(vector, matcher)
        for matcher in matchers:
            vector = _narrowed(vector, matcher)
        return vector

    def _named(self, name: str | None, matchers: Sequence[Matcher]) -> list[KnownSeries] | None:
        """Return the series selected by name, None where that says nothing."""
        exact = [name] if name else [matcher.value for matcher in matchers if matcher.op == MatchOp.Equal]
        if exact:
            known = self._known.get(exact[0])
            if known is None and VARIABLE not in exact[0]:
                self.problems.append(self._known.missing(exact[0]))
            return None if known is None else [known]
        patterns = [matcher.value for matcher in matchers if matcher.op == MatchOp.Re]
        if not patterns or VARIABLE in patterns[0]:
            return None
        compiled = _compiled(patterns[0])
        if compiled is None:
            return None
        found = [self._known.get(each) for each in self._known.names() if compiled.fullmatch(each)]
        if not found:
            self._report(
                "unknown-series", f"no series has a name like {patterns[0]!r}", "correct the pattern", patterns[0]
            )
        return [one for one in found if one is not None] or None

    def _check_matcher(self, vector: Vector, matcher: Matcher) -> None:
        label, value = matcher.name, matcher.value
        if VARIABLE in label or (matcher.op == MatchOp.Equal and not value):
            return
        if not vector.may_bear(label):
            self.need(vector, (label,), f"{{{matcher}}}")
            return
        values = vector.values(label)
        if values is None or VARIABLE in value:
            return
        for wrong in _wrong_values(matcher, values):
            does = "is never true" if matcher.op in (MatchOp.Equal, MatchOp.Re) else "excludes nothing"
            self._report(
                "unknown-label-value",
                f"{{{matcher}}} {does} for {wrong!r}: label {label!r} of {_these(vector)} is never that",
                (label != "le" and closest(wrong, values)) or f"its values are {_list(sorted(values))}",
                wrong,
            )

    # -- functions and aggregations ------------------------------------------------------------------------------------

    def _aggregated(self, expr: AggregateExpr) -> Vector:
        if expr.param is not None:
            self.vector(expr.param)
        vector = self.vector(expr.expr) or SCALAR_VECTOR
        op = str(expr.op)
        labels = expr.modifier.labels if expr.modifier is not None else []
        is_without = expr.modifier is not None and expr.modifier.type == AggModifierType.Without
        self.need(vector, labels, f"{op} {'without' if is_without else 'by'} ({', '.join(labels)})")
        if op in _KEEPS_ELEMENTS:
            return vector
        result = vector.without(labels) if is_without else vector.only(labels)
        if any(VARIABLE in label for label in labels):
            result = OPEN.also_made_of(vector)
        if op == "count_values" and isinstance(expr.param, StringLiteral):
            return result.with_label(expr.param.val, None)
        return result

    def _called(self, expr: Call) -> Vector | None:
        name = expr.func.name
        vectors = [self.vector(argument) for argument in expr.args]
        first = next((vector for vector in vectors if vector is not None), SCALAR_VECTOR)
        self._check_kind(name, expr.args)
        texts = [argument.val for argument in expr.args if isinstance(argument, StringLiteral)]
        if expr.func.return_type == ValueType.Scalar:
            return None
        if name in _OF_BUCKETS:
            self._check_buckets(name, first)
            return first.without(("le",))
        if name in ("absent", "absent_over_time"):
            return _absent(expr.args[0]).also_made_of(first)
        if name == "label_replace" and len(texts) == 4:
            self.need(first, [texts[2]] if texts[2] else [], "label_replace")
            return first.with_label(texts[0], None, is_certain=False)
        if name == "label_join" and texts:
            self.need(first, texts[2:], "label_join")
            return first.with_label(texts[0], None, is_certain=False)
        return OPEN.also_made_of(first) if name == "info" else first

    def _check_kind(self, function: str, arguments: Sequence[Any]) -> None:
        for argument in arguments:
            selector = argument.vector_selector if isinstance(argument, MatrixSelector) else None
            series = self._known.get(selector.name or "") if selector is not None else None
            if series is None:
                continue
            if function in _OF_COUNTERS and series.role == "gauge":
                self._report(
                    f"{function}-over-gauge",
                    f"{function}() is for counters, and {series.name!r} is a gauge: each fall counts as a restart",
                    f"use {'delta' if function == 'increase' else 'deriv'}(), or query the gauge as it is",
                    function,
                )
            if function in _OF_GAUGES and series.role not in ("gauge", "unknown"):
                self._report(
                    f"{function}-over-counter",
                    f"{function}() is for gauges, and {series.name!r} is a counter: a restart makes it negative",
                    f"use {'increase' if function == 'delta' else 'rate'}()",
                    function,
                )

    def _check_buckets(self, function: str, vector: Vector) -> None:
        roles = set(vector.made_of.values())
        if not roles or "unknown" in roles:
            return
        if "bucket" not in roles:
            self._report(
                "quantile-over-no-histogram",
                f"{function}() needs the buckets of a histogram, and {_these(vector)} has none",
                "give it the rate of a series …_bucket",
                function,
            )
        elif not vector.may_bear("le"):
            self._report(
                "quantile-without-le",
                f"{function}() needs the label 'le', which was aggregated away",
                "keep it: sum by (le, …) (rate(…_bucket[5m]))",
                function,
            )

    def _combined(self, expr: BinaryExpr) -> Vector | None:
        left, right = self.vector(expr.lhs), self.vector(expr.rhs)
        if left is None or right is None:
            self._check_states(expr)
            return left if right is None else right
        result, problems = joined(expr, left, right)
        matching = expr.modifier.matching if expr.modifier is not None else None
        if matching is not None:
            self.need(union((left, right)), matching.labels, f"{expr.op} on or ignoring ({', '.join(matching.labels)})")
        self._check_group_labels(expr, left, right)
        self.problems += problems
        return result

    def _check_group_labels(self, expr: BinaryExpr, left: Vector, right: Vector) -> None:
        """Report labels that ``group_left`` or ``group_right`` takes from the other side, which does not have them."""
        modifier = expr.modifier
        if modifier is None or not modifier.group_labels:
            return
        is_left = modifier.card == VectorMatchCardinality.ManyToOne
        group = f"group_{'left' if is_left else 'right'} ({', '.join(modifier.group_labels)})"
        self.need(right if is_left else left, modifier.group_labels, group)

    def _check_states(self, expr: BinaryExpr) -> None:
        """Report a comparison of a gauge that shows states with what is none of them."""
        selector, number = expr.lhs, expr.rhs
        compare = _COMPARISONS.get(str(expr.op))
        if compare is None or not isinstance(selector, VectorSelector) or not isinstance(number, NumberLiteral):
            return
        series = self._known.get(selector.name or "")
        if series is None or not series.states or any(compare(state, number.val) for state in series.states):
            return
        self._report(
            "unknown-value",
            f"'{expr.op} {number.val:g}' is never true for {series.name!r}, which shows states as numbers",
            f"its values are {', '.join(f'{state:g}' for state in sorted(series.states))}",
            series.name,
        )


# -- values and texts --------------------------------------------------------------------------------------------------


def _wrong_values(matcher: Matcher, values: frozenset[str]) -> list[str]:
    """Return what the matcher names that the label never is."""
    if matcher.op in (MatchOp.Equal, MatchOp.NotEqual):
        return [matcher.value] if matcher.value and matcher.value not in values else []
    inner = matcher.value[1:-1] if re.fullmatch(r"\([^()]*\)", matcher.value) else matcher.value
    if re.fullmatch(r"[\w\-+ /|]*", inner):
        return [each for each in inner.split("|") if each and each not in values]
    compiled = _compiled(matcher.value)
    if compiled is None or any(compiled.fullmatch(value) for value in values):
        return []
    return [matcher.value]


def _narrowed(vector: Vector, matcher: Matcher) -> Vector:
    """Return the vector after a matcher has selected from it."""
    label, value = matcher.name, matcher.value
    if label == "__name__" or VARIABLE in value or VARIABLE in label:
        return vector
    values: Values = vector.values(label)
    if matcher.op == MatchOp.Equal:
        return vector.with_label(label, frozenset({value})) if value else vector.without((label,))
    if values is None:
        return vector
    if matcher.op == MatchOp.NotEqual:
        kept = values - {value}
    else:
        compiled = _compiled(value)
        if compiled is None:
            return vector
        kept = frozenset(each for each in values if bool(compiled.fullmatch(each)) is (matcher.op == MatchOp.Re))
    return vector.with_label(label, kept, is_certain=label in vector.certain or "" not in kept) if kept else vector


def _absent(argument: Any) -> Vector:
    """Return what ``absent`` returns: an element with the labels that the selector demands."""
    selector = argument.vector_selector if isinstance(argument, MatrixSelector) else argument
    if not isinstance(selector, VectorSelector):
        return SCALAR_VECTOR
    demanded = {m.name: frozenset({m.value}) for m in selector.matchers.matchers if m.op == MatchOp.Equal}
    demanded.pop("__name__", None)
    return Vector(demanded, frozenset(demanded))


def _compiled(pattern: str) -> re.Pattern[str] | None:
    """Return a pattern of RE2 as Python's, None where they differ too much."""
    try:
        return re.compile(pattern)
    except re.error:
        return None


def _these(vector: Vector) -> str:
    names = sorted(name for name in vector.made_of if name)
    return _list(names) if names else "the expression"


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) if names else "none"
