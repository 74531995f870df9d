"""Shares and agreement of a user study: plain counting, no files."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from duolora.errors import InputError
from duolora.metrics.similarity import ends, resampled

Choices = Mapping[str, Mapping[str, str]]
"""What each person chose, {person: {question: choice}}; a question may be left out."""


def fleiss_kappa(counts: Sequence[Sequence[int]]) -> float | None:
    """Fleiss' κ = (P̄ − P̄ₑ) / (1 − P̄ₑ) (1971) of how many people put each question (rows) in each category (columns).

    P̄ is the chance that two people who answered a question agree on it, P̄ₑ that they would by chance. Questions may
    have different numbers of answers; those with fewer than two are left out. None where agreement has no meaning:
    no question with two answers, or all in one category.

    Raises:
        InputError: rows of different lengths, or a count below zero.
    """
    if len({len(row) for row in counts}) > 1 or any(n < 0 for row in counts for n in row):
        raise InputError("agreement: expected one count of 0 or more for every category in every question")
    table = np.array([row for row in counts if sum(row) > 1], float)
    if not table.size:
        return None
    n = table.sum(1)
    agree = float(((table**2).sum(1) - n) @ (1 / (n * (n - 1))) / len(table))
    chance = float(((table.sum(0) / table.sum()) ** 2).sum())
    return None if chance == 1 else (agree - chance) / (1 - chance)


def counted(choices: Choices, questions: Sequence[str], categories: Sequence[str]) -> list[list[int]]:
    """How many people put each question in each category."""
    return [[sum(c.get(q) == k for c in choices.values()) for k in categories] for q in questions]


def shares(
    choices: Choices, questions: Sequence[str], categories: Sequence[str], seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """Share of all answers that each category got, with a 95 % interval.

    The interval is a percentile bootstrap over people and over questions, both resampled each time, since answers of
    one person, and answers to one question, are not independent.

    Raises:
        InputError: nobody answered anything.
    """
    index = {name: k for k, name in enumerate(categories)}
    table = np.zeros((len(choices), len(questions), len(categories)))
    for i, answers in enumerate(choices.values()):
        for j, question in enumerate(questions):
            if question in answers:
                table[i, j, index[answers[question]]] = 1
    if not table.sum():
        raise InputError("shares: expected at least one answer, got none")
    asked = resampled(lambda rows: _counts(rows, len(questions)), len(questions), seed)
    people = resampled(lambda rows: _counts(rows, len(choices)), len(choices), seed + 1)
    totals = np.einsum("ni,nj,ijk->nk", people, asked, table, optimize=True)
    there = totals.sum(1) > 0
    spread, mean = totals[there] / totals[there].sum(1, keepdims=True), table.sum((0, 1)) / table.sum()
    return {name: (float(mean[k]), *ends(spread[:, k])) for name, k in index.items()}


def _counts(rows: NDArray[np.int64], number: int) -> NDArray[np.int64]:
    """How often each unit is in each sample, (n, number)."""
    return (rows[:, :, None] == np.arange(number)).sum(1)
