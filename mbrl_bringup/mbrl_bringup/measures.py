"""The measurements of `mbrl evaluate`, put together from mbrl_dynamics.evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mbrl_bringup.evaluate_config import EvaluateConfig
from mbrl_dynamics.bounds import ReturnGap, return_gap
from mbrl_dynamics.evaluation import (
    LEVELS,
    balanced_horizon,
    coverage,
    distances,
    errors_by_element,
    errors_by_horizon,
    evenly,
    rank_correlation,
    return_errors,
    scale_of,
    standard_scores,
    temperature,
    value_spread,
)
from mbrl_dynamics.forecasts import Array, Forecasts, Recorded, Steps, forecast, steps_left

STARTS, FAR_STARTS = 3000, 400  # of forecasts of one step, and of many, at most
SHOWN = (0.5, 0.9, 0.95)  # levels of the table
SHARES = (1.0, 0.3, 0.1)  # errors of a value function, as shares of what it would be without knowing anything
NEWEST = 5  # episodes of the policy whose return is judged

Mask = NDArray[np.bool_]


def measure(model: Any, data: Recorded, unseen: Mask, whole: Mask, options: EvaluateConfig) -> dict[str, Any]:
    """Everything that can be said of a model, as the content of evaluation.json; NaN = not known.

    Args:
        model: foretells observations, and rewards where they can be had.
        data: what happened; N steps.
        unseen: [N] steps that the model was not trained on.
        whole: [N] those of them whose whole episodes it was not trained on.
        options: see EvaluateConfig.
    """
    buffer, spec, episodes = data.buffer, data.buffer.spec, data.episodes
    everything = buffer.all()
    observations = everything.obs["vector"][:, 1].double().numpy()
    scale = scale_of(observations)
    near = forecast(model, buffer, evenly(np.flatnonzero(unseen), STARTS), seed=options.seed)
    pool = np.flatnonzero(whole if whole.any() else unseen)
    horizon = min(options.horizon, int(np.bincount(episodes)[episodes[pool]].max()))
    pool = pool[steps_left(buffer, pool, horizon)] if horizon > 1 else pool
    if not len(pool):
        horizon, pool = 1, np.flatnonzero(unseen)
    far = forecast(model, buffer, evenly(pool, FAR_STARTS), horizon, seed=options.seed)
    notes = [
        f"{f.lost} forecasts of {f.happened.shape[1] - 1} steps are not finite and left out."
        for f in (near, far)
        if f.lost
    ]
    error, spread, still = errors_by_horizon(far, scale)
    inputs = torch.cat([everything.obs["vector"][:, 0], everything.action[:, 0]], -1).double().numpy()
    return {
        "task": spec.task,
        "steps": len(data),
        "unseen_steps": int(unseen.sum()),
        "control_period_s": spec.control_period,
        "elements": errors_by_element(near, spec),
        "horizon": {"error": error, "spread": spread, "nothing_changes": still},
        "intervals": intervals(near, episodes, [e.name for e in spec.observation], notes),
        "rank_correlation": {
            "steps": [1, horizon],
            "values": [rank_correlation(near, scale, 1), rank_correlation(far, scale, horizon)],
        },
        "visits": _visits(inputs, episodes, ~unseen, notes),
        "return_gap": _gap(model, data, horizon, options, notes),
        "lookahead": _lookahead(far, everything.reward[:, 0].double().numpy(), episodes, options.discount),
        "notes": notes,
    }


def intervals(near: Forecasts, episodes: Steps, names: list[str], notes: list[str]) -> dict[str, Any] | None:
    """Coverage as it is, and with a temperature fitted to every second episode, judged on the others."""
    if not near.std[:, 1].any():
        notes.append("The model says nothing of its uncertainty, so that there are no intervals to judge.")
        return None
    scores, of = standard_scores(near), episodes[near.starts]
    judged = np.isin(of, np.unique(of)[::-2])
    if judged.all():
        notes.append("A temperature is not fitted: that takes a second episode that was not trained on.")
    factor = temperature(scores[~judged]) if not judged.all() else np.full(scores.shape[1], np.nan)
    raw, fitted = scores[judged], scores[judged] / factor
    return {
        "steps": int(judged.sum()),
        "temperature": dict(zip(names, factor, strict=True)),
        "levels": SHOWN,
        "raw": dict(zip(names, coverage(raw, SHOWN).T, strict=True)),
        "fitted": dict(zip(names, coverage(fitted, SHOWN).T, strict=True)),
        "curve": {
            "levels": LEVELS,
            "raw": _mean(coverage(raw, LEVELS)),
            "fitted": _mean(coverage(fitted, LEVELS)),
        },
    }


def _visits(inputs: Array, episodes: Steps, known: Mask, notes: list[str]) -> dict[str, float] | None:
    newest = episodes == episodes.max()
    if not (known & ~newest).any():
        notes.append("There is one episode, so that its distance to others is not known.")
        return None
    return distances(inputs, episodes, known, newest)


def _gap(
    model: Any, data: Recorded, horizon: int, options: EvaluateConfig, notes: list[str]
) -> dict[str, float] | None:
    """Returns of the first `horizon` steps of episodes, as they were and as the model has them."""
    episodes, shown = data.episodes, data.chosen_by((options.expert,))
    firsts = np.unique(episodes, return_index=True)[1]
    firsts = firsts[steps_left(data.buffer, firsts, horizon)]
    policy, expert = firsts[~shown[firsts]][-NEWEST:], firsts[shown[firsts]]
    if not len(policy) or np.isnan(_returns(model, data, policy, horizon, options)).any():
        return None
    true, promised = _returns(model, data, policy, horizon, options)
    found: dict[str, float] = {"policy_true": true, "policy_model": promised, "policy_error": promised - true}
    if not len(expert):
        notes.append(f"No episode of an expert ('{options.expert}') is there to compare the policy with.")
        return found
    best, believed = _returns(model, data, expert, horizon, options)
    gap: ReturnGap = return_gap(best, believed, promised, true)
    return {**found, "expert_true": best, "expert_model": believed, **vars(gap), "total": gap.total}


def _returns(
    model: Any, data: Recorded, firsts: Steps, horizon: int, options: EvaluateConfig
) -> tuple[float, float]:
    told = forecast(model, data.buffer, firsts, horizon, seed=options.seed)
    if told.promised is None:
        return float("nan"), float("nan")
    return float(told.reward.sum(1).mean()), float(told.promised.sum(1).mean())


def _lookahead(far: Forecasts, reward: Array, episodes: Steps, discount: float) -> dict[str, Any] | None:
    """Which horizon balances the model's error against a value function's."""
    errors, ignorance = return_errors(far, discount), value_spread(reward, episodes, discount)
    if np.isnan(errors).any() or np.isnan(ignorance):
        return None
    return {
        "discount": discount,
        "return_error": errors,
        "value_spread": ignorance,
        "value_error_shares": SHARES,
        "horizons": [balanced_horizon(errors, share * ignorance, discount) for share in SHARES],
    }


def _mean(values: Array) -> Array:
    """Mean [L] over the elements that have a spread, of [L, D]."""
    known = ~np.isnan(values).all(0)
    return values[:, known].mean(1) if known.any() else np.full(len(values), np.nan)
