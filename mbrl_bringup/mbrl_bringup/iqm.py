"""Interquartile means and their intervals (Agarwal et al., 2021, https://arxiv.org/abs/2108.13264), as their
library rliable defines them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import trim_mean

Array = NDArray[np.float64]


def iqm(scores: Array) -> Array:
    """Mean over the first axis [N, ...] without the lowest and the highest quarter -> [...].

    A quarter of N is rounded down, so that up to three scores are all averaged.
    """
    return np.asarray(trim_mean(scores, 0.25, axis=0))


def interval(
    strata: Sequence[Array], *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[Array, Array]:
    """Percentile bootstrap interval of the interquartile mean, stratified by task.

    Args:
        strata: scores [seeds, ...] of each task; one array for a curve of one task.
        level: how often the interval holds the true value.
        draws: how often the seeds are drawn.
        seed: of the draws.

    Returns:
        Lower and upper end [...]; NaN if no stratum has two seeds.
    """
    if max(map(len, strata)) < 2:
        nothing = np.full(np.shape(strata[0])[1:], np.nan)
        return nothing, nothing.copy()
    rng = np.random.default_rng(seed)
    drawn = [scores[rng.integers(len(scores), size=(len(scores), draws))] for scores in strata]
    values = iqm(np.concatenate(drawn))  # [draws, ...]
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(values, (tail, 1.0 - tail), axis=0)
    return low, high
