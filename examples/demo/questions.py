"""Questions whose answers are known, and two small programs that answer them: a cheap one and a dear one.

Both read the text and nothing else, and both are sometimes wrong, each in its way. So the demo can tell the router at
once, truly, how good each answer was, as an application does that hears from its users.
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

NAMES = ("Ada", "Ben", "Carla", "Dan", "Eva", "Farid")
THINGS = ("apples", "marbles", "stamps", "buttons", "shells")
EASY, HARD = (1, 1), (3, 6)  # steps, from and to


class Question(NamedTuple):
    """A problem of school mathematics."""

    prompt: str
    answer: int


def questions(count: int, steps: tuple[int, int], seed: int) -> Iterator[Question]:
    """Yield ``count`` problems of so many steps; the same seed gives the same ones."""
    draw = random.Random(seed)  # noqa: S311 - questions, not secrets
    for _ in range(count):
        name, things, number = draw.choice(NAMES), draw.choice(THINGS), draw.randint(4, 40)
        sentences = [f"{name} has {number} {things}."]
        for _ in range(draw.randint(*steps)):
            sentence, number = _step(draw, name, things, number)
            sentences.append(sentence)
        yield Question(" ".join([*sentences, f"How many {things} does {name} have in the end?"]), number)


def _step(draw: random.Random, name: str, things: str, number: int) -> tuple[str, int]:
    """Return a sentence in which something happens to the number, and what it is then."""
    kind = draw.choices(("buy", "give", "grow", "share", "half"), weights=(5, 5, 2, 2, 1))[0]
    shares = [friends for friends in range(2, 7) if number % friends == 0]
    if kind == "give" and number > 2:
        given = draw.randint(1, number - 1)
        return f"{name} gives {given} of the {things} away.", number - given
    if kind == "grow":
        factor = draw.randint(2, 4)
        return f"On the next day there are {factor} times as many.", number * factor
    if kind == "share" and shares:
        friends = draw.choice(shares)
        return f"{name} shares them equally among {friends} children and keeps one share.", number // friends
    if kind == "half" and number % 2 == 0 and number > 2:
        return f"Half of the {things} get lost.", number // 2
    bought = draw.randint(2, 30)
    return f"{name} buys {bought} more {things} at the market.", number + bought


def weak(prompt: str) -> int:
    """Answer as one does who reads no further than the first two sentences."""
    return _read(_sentences(prompt)[:2])


def strong(prompt: str) -> int:
    """Answer after reading everything."""
    return _read(_sentences(prompt))


def _sentences(prompt: str) -> list[str]:
    return re.findall(r"[^.?]+", prompt)


def _read(sentences: list[str]) -> int:
    """Do what the sentences say with the first number; what is not understood, such as a half, is left out."""
    rules: tuple[tuple[str, Callable[[int, int], int]], ...] = (
        ("buys", lambda number, by: number + by),
        ("away", lambda number, by: number - by),
        ("times as many", lambda number, by: number * by),
        ("equally among", lambda number, by: number // by),
    )
    number = _number_in(sentences[0])
    for sentence in sentences[1:]:
        for words, apply in rules:
            if words in sentence:
                number = apply(number, _number_in(sentence))
    return number


def _number_in(sentence: str) -> int:
    return int(re.findall(r"\d+", sentence)[0])


SOLVERS: Mapping[str, Callable[[str], int]] = {"weak": weak, "strong": strong}
"""By the names that the shipped prompt model has for its two models."""
