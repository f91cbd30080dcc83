"""How far a model can be trusted: its errors, its intervals and its horizon, on data that it has not seen.

Everything is measured on forecasts (see forecasts.py). A model that is uncertain draws its futures; their
mean is its prediction, their standard deviation what it says of its own error.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import NDArray
from scipy.spatial import KDTree

from mbrl_dynamics.forecasts import Array, Forecasts, Steps
from mbrl_dynamics.spec import Spec

Kind = TypeVar("Kind", bound=np.generic)
LEVELS = np.arange(1, 20) / 20.0  # of the reliability curve
POINTS = 2000  # of the newest data whose distance is measured, at most


# Errors -----------------------------------------------------------------------------------------------------


def errors_by_element(f: Forecasts, spec: Spec) -> dict[str, dict[str, Any]]:
    """What one step of prediction is worth, by observation element.

    Returns:
        name -> "unit"; "rmse" [unit]; "relative", as a share of the error of saying that nothing changes;
        "log_likelihood", mean of a Gaussian with the model's mean and spread [nat], NaN without a spread.
    """
    error, std = f.error[:, 1], f.std[:, 1]
    change = f.happened[:, 1] - f.happened[:, 0]
    rmse, still = _rms(error), _rms(change)
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = scipy.stats.norm.logpdf(error, scale=std).mean(0)
        relative = rmse / still
    return {
        element.name: {
            "unit": element.unit,
            "rmse": float(rmse[d]),
            "relative": float(relative[d]),
            "log_likelihood": float(likelihood[d]) if std[:, d].all() else float("nan"),
        }
        for d, element in enumerate(spec.observation)
    }


def errors_by_horizon(f: Forecasts, scale: Array) -> tuple[Array, Array, Array]:
    """Error, the spread that the model says it has, and the error of saying that nothing changes: each RMS
    over starts and elements [H+1], in units of `scale` [D].
    """
    still = f.happened - f.happened[:, :1]
    error, spread, unmoved = (np.sqrt(np.square(x / scale).mean((0, 2))) for x in (f.error, f.std, still))
    return error, spread, unmoved


def rank_correlation(f: Forecasts, scale: Array, step: int) -> float:
    """Spearman's correlation of disagreement and error after `step` steps; NaN without members."""
    if f.disagreement is None:
        return float("nan")
    size = np.sqrt(np.square(f.error[:, step] / scale).mean(-1))
    return float(scipy.stats.spearmanr(f.disagreement[:, step - 1], size).statistic)


def scale_of(observations: Array) -> Array:
    """Standard deviation [D] of observations [N, D]; 1 where nothing changes."""
    std = observations.std(0)
    return np.where(std > 1e-9, std, 1.0)


# Intervals --------------------------------------------------------------------------------------------------


def standard_scores(f: Forecasts) -> Array:
    """One-step errors in units of the spread that the model foretold, [M, D]; NaN where it foretold none."""
    std = f.std[:, 1]
    return np.divide(f.error[:, 1], std, out=np.full(std.shape, np.nan), where=std > 0)


def temperature(scores: Array, level: float = 0.9) -> Array:
    """What to multiply the spread of each element with [D], so that the interval of a level holds its share
    of the scores [M, D] (split conformal prediction: Lei et al., 2018, https://arxiv.org/abs/1604.04173).

    Not their root mean square, which is the most likely one for a Gaussian: a few impacts decide that.
    """
    known = ~np.isnan(scores).all(0)
    factor = np.full(scores.shape[1], np.nan)
    factor[known] = np.nanquantile(np.abs(scores[:, known]), level, axis=0)
    return factor / scipy.special.ndtri(0.5 + 0.5 * level)


def coverage(scores: Array, levels: Iterable[float]) -> Array:
    """Share of the outcomes inside the central intervals of these levels, [L, D] for scores [M, D]."""
    inside = [np.abs(scores) <= scipy.special.ndtri(0.5 + 0.5 * level) for level in levels]
    return np.where(np.isnan(scores).all(0), np.nan, np.array(inside).mean(1))


# What it is used for ----------------------------------------------------------------------------------------


def distances(
    inputs: Array, episodes: Steps, known: NDArray[np.bool_], newest: NDArray[np.bool_]
) -> dict[str, float]:
    """How far what a policy visits is from what is known, to the nearest neighbour, in standard scores.

    Args:
        inputs: [N, F] observations and actions.
        episodes: [N] of each.
        known: [N] the model was trained on it.
        newest: [N] the policy came by; these do not count as known, and there must be others that do.

    Returns:
        "own", median distance of the known from that of other episodes; "newest", of the newest from the
        known; "ratio" of the two; "beyond", share of the newest that is farther than 95 % of the known. NaN
        where there is nothing to compare with.
    """
    known = known & ~newest
    scores = (inputs - inputs[known].mean(0)) / scale_of(inputs[known])
    near = [
        _nearest(scores[known & (episodes != one)], scores[known & (episodes == one)])
        for one in evenly(np.unique(episodes[known]), 10)
    ]
    own, far = np.concatenate(near), _nearest(scores[known], evenly(scores[newest], POINTS))
    beyond = np.nan if np.isnan(own).all() else (far > np.quantile(own, 0.95)).mean()
    middle, theirs = float(np.median(own)), float(np.median(far))
    ratio = theirs / middle if middle > 0 else float("nan")
    return {"own": middle, "newest": theirs, "ratio": ratio, "beyond": float(beyond)}


def _nearest(among: Array, points: Array) -> Array:
    """Distance of each point [M, F] from the nearest of some others [N, F]; NaN if there are none."""
    return KDTree(among).query(points)[0] if len(among) else np.full(len(points), np.nan)


def evenly(values: NDArray[Kind], count: int) -> NDArray[Kind]:
    """At most so many of them, evenly spread."""
    return values[np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).astype(np.int64))]


def return_errors(f: Forecasts, discount: float) -> Array:
    """RMS error [H+1] of the promised discounted return of 0, 1 ... H steps; NaN if it is not known."""
    if f.promised is None:
        return np.full(f.reward.shape[1] + 1, np.nan)
    wrong = (f.promised - f.reward) * discount ** np.arange(f.reward.shape[1])
    wrong = np.cumsum(wrong, axis=1)[np.isfinite(wrong).all(1)]
    return np.concatenate([[0.0], _rms(wrong) if len(wrong) else np.full(f.reward.shape[1], np.nan)])


def value_spread(reward: Array, episodes: Steps, discount: float) -> float:
    """Standard deviation of the discounted return that is still to come, over the first halves of episodes:
    the error of a value function that knows no more than its mean; NaN where rewards are not known.

    Args:
        reward: [N] in the order of time within each episode.
        episodes: [N].
    """
    found = []
    for episode in np.unique(episodes):
        total, rest = 0.0, []
        for gain in reward[episodes == episode][::-1]:
            total = float(gain) + discount * total
            rest.append(total)
        found += rest[len(rest) // 2 :]
    return float(np.std(found)) if found else float("nan")


def balanced_horizon(errors: Array, value_error: float, discount: float) -> int:
    """The horizon H = 0 .. at which a forecast's error and that of the value function behind it are least:
    argmin of errors[H] + discount^H value_error.

    The first term grows with H, the second shrinks: the trade-off behind MBPO's branches (Janner et al.,
    2019, https://arxiv.org/abs/1906.08253, section 4) and adaptive horizons (Xiao et al., 2019,
    https://arxiv.org/abs/1912.11206), with the error of the return as it was measured.
    """
    return int(np.argmin(errors + discount ** np.arange(len(errors)) * value_error))


def _rms(values: Array) -> Array:
    return np.sqrt(np.square(values).mean(0))
