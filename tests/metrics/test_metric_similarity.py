"""The formulas: identities, slow references, and intervals that cover what they should."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from duolora.errors import InputError
from duolora.metrics.similarity import (
    all_pairs_mean,
    bootstrap_interval,
    cosines,
    matched,
    normalised,
)


def random_rows(n, d=5, seed=0):
    return normalised(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))


def slow_cosine(u, v):
    u, v = u.tolist(), v.tolist()
    dot = sum(x * y for x, y in zip(u, v, strict=True))
    return dot / math.sqrt(sum(x * x for x in u)) / math.sqrt(sum(y * y for y in v))


@given(st.integers(1, 5), st.integers(2, 5), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_means_are_loops_over_pairs(n, m, seed):
    a, b = random_rows(n, seed=seed), random_rows(m, seed=seed + 100)
    every = [slow_cosine(u, v) for u in a for v in b]
    assert all_pairs_mean(a, b) == pytest.approx(sum(every) / (n * m), abs=1e-6)
    own = [slow_cosine(u, v) for u, v in zip(a, a.flip(0), strict=True)]
    assert matched(a, a.flip(0)).tolist() == pytest.approx(own, abs=1e-6)


def test_known_angles():
    a = torch.tensor([[1.0, 0], [0, 1]])
    b = torch.tensor([[1.0, 0], [0.6, 0.8]])
    torch.testing.assert_close(cosines(a, b), torch.tensor([[1, 0.6], [0, 0.8]]))
    assert all_pairs_mean(a, b) == pytest.approx(0.6)
    assert float(matched(a, b).mean()) == pytest.approx(0.9)


def test_pairs_have_no_order_and_an_image_resembles_itself():
    a, b = random_rows(4), random_rows(3, seed=1)
    assert all_pairs_mean(a, b) == pytest.approx(all_pairs_mean(b, a))
    assert float(matched(a, a).mean()) == pytest.approx(1)
    assert float(matched(a, -a).mean()) == pytest.approx(-1)


def test_normalised_rows_have_length_one_and_the_same_direction():
    rows = torch.tensor([[3e-20, 4e-20], [3e18, 4e18]])
    torch.testing.assert_close(normalised(rows), torch.tensor([[0.6, 0.8], [0.6, 0.8]]))


@pytest.mark.parametrize("bad", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_a_row_without_direction_is_named(bad):
    with pytest.raises(InputError, match="embedding 1: expected finite values, not all zero"):
        normalised(torch.tensor([[1.0, 0], bad]))


def test_unnormalised_or_missing_embeddings_are_refused():
    with pytest.raises(InputError, match="length 1, the second has 2"):
        all_pairs_mean(random_rows(2), 2 * random_rows(2))
    with pytest.raises(InputError, match="the first has none"):
        all_pairs_mean(torch.zeros(0, 5), random_rows(2))


def test_interval_has_the_width_of_the_normal_one():
    """For a mean of many values the percentile bootstrap is the mean ± 1.96 standard errors."""
    values = np.random.default_rng(0).normal(0.5, 0.1, 400)
    found = bootstrap_interval(values.tolist())
    half = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=1e-3)
    assert found.count == 400


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        found = bootstrap_interval(rng.normal(0, 1, 40).tolist(), seed=trial, level=0.8, resamples=500)
        hits += found.low <= 0 <= found.high
    assert 0.70 <= hits / 200 <= 0.88


def test_the_seed_settles_the_interval():
    values = [0.1, 0.5, 0.7, 0.2]
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values, resamples=50) != bootstrap_interval(values, seed=1, resamples=50)
    assert bootstrap_interval([0.4]).low == bootstrap_interval([0.4]).high == 0.4


def test_shifting_and_stretching_goes_through():
    values = [0.1, 0.5, 0.7, 0.2, 0.9]
    a, b = bootstrap_interval(values), bootstrap_interval([2 * v + 1 for v in values])
    assert (b.low, b.high) == pytest.approx((2 * a.low + 1, 2 * a.high + 1))


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [([], {}, "at least one value"), ([math.nan], {}, "all finite"), ([1.0], {"level": 1.0}, "0 < level < 1"),
     ([1.0], {"resamples": 0}, "resamples ≥ 1")],
)  # fmt: skip
def test_intervals_of_nonsense_are_refused(values, options, message):
    with pytest.raises(InputError, match=message):
        bootstrap_interval(values, **options)
