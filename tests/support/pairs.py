"""Tables of recorded pairs, made up: what two models made of the same prompts."""

from __future__ import annotations

import csv

import numpy as np

COLUMNS = ["domain", "prompt", "weak_correct", "strong_correct"]


def write_pairs(path, rows, columns=COLUMNS):
    """Write a table; return its path."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def rows_by_chance(count, weak=0.6, strong=0.9, domains=2):
    """Return rows of short prompts that say nothing of which model is right."""
    random = np.random.default_rng(0)
    return [
        [
            "abc"[number % domains],
            f"{number} " + " ".join(f"w{random.integers(60)}" for _ in range(int(random.integers(2, 20)))),
            random.uniform() < weak,
            random.uniform() < strong,
        ]
        for number in range(count)
    ]


def rows_by_length(count):
    """Return rows of two domains: the weak model fails on long prompts, and in one domain."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(count):
        domain = "ab"[number % 2]
        words = int(random.integers(4, 40))
        prompt = f"{number} " + " ".join(f"{domain}{random.integers(60)}" for _ in range(words))
        weak = random.uniform() < (0.9 if domain == "a" else 0.3) - 0.01 * words
        rows.append([domain, prompt, weak, random.uniform() < 0.95])
    return rows
