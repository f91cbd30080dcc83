"""What counts as solved, task by task, and the figures that a run is measured by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mbrl_bringup.result import Result


@dataclass(frozen=True)
class Goal:
    """A figure of a run, and where it should be."""

    text: str
    unit: str
    wanted: float
    measure: Callable[[Result], float]  # NaN = cannot be said yet
    at_most: bool = False

    def reached(self, result: Result) -> bool | None:
        """Whether the figure is where it should be; None = cannot be said yet."""
        value = self.measure(result)
        if math.isnan(value):
            return None
        return value <= self.wanted if self.at_most else value >= self.wanted


@dataclass(frozen=True)
class Demo:
    """How a task is demonstrated.

    Attributes:
        episodes: how many, the first one random.
        solved: whether these returns show that the task is solved.
        early_stop: whether to stop as soon as it is.
        goals: figures for the report, beside those of every run.
        policy: return that a learned policy should have in the end; NaN = nobody knows.
    """

    episodes: int = 10
    solved: Callable[[Sequence[float]], bool] = lambda returns: False
    early_stop: bool = False
    goals: tuple[Goal, ...] = ()
    policy: float = math.nan


def best(returns: Sequence[float]) -> float:
    """The largest return; NaN if there is none."""
    return max(returns, default=math.nan)


def mean(returns: Sequence[float], count: int) -> float:
    """Mean of exactly `count` returns; NaN if there are not so many."""
    return sum(returns) / count if len(returns) == count else math.nan


def best_mean(returns: Sequence[float], count: int) -> float:
    """The best mean of `count` successive returns; NaN if there are not so many."""
    return best([mean(returns[i : i + count], count) for i in range(len(returns) - count + 1)])


def best_within(result: Result, steps: int) -> float:
    """The largest return among the episodes that end within so many steps of experience."""
    seen, returns = 0, []
    for episode in result.episodes:
        seen += episode.steps
        if seen <= steps:
            returns.append(episode.ret)
    return best(returns)


def last_success(result: Result, count: int) -> float:
    """Mean share of success of exactly the last `count` episodes; NaN if there are not so many."""
    return mean([episode.success for episode in result.episodes[-count:]], count)


def _minutes(limit: float) -> Goal:
    return Goal("wall clock", "min", limit, lambda r: r.wall_s / 60.0, at_most=True)


_REACHING = Demo(
    episodes=12,
    solved=lambda returns: mean(returns[-3:], 3) >= 930.0,
    policy=900.0,
    goals=(
        Goal(
            "share of the last ten episodes within 2 cm of the goal", "1", 0.8, lambda r: last_success(r, 10)
        ),
        Goal("robot time", "min", 20.0, lambda r: r.robot_s / 60.0, at_most=True),
    ),
)
EVERY_RUN = (
    Goal("planning time, median", "ms", 20.0, lambda r: r.planning_ms_median, at_most=True),
    Goal("missed steps", "steps", 0.0, lambda r: float(r.missed_steps), at_most=True),
)

DEMOS = {
    "cartpole_swingup": Demo(
        solved=lambda returns: mean(returns[-3:], 3) >= 865.0,
        goals=(
            Goal("best return of episodes 1-6", "1", 800.0, lambda r: best(r.returns[:6])),
            Goal("mean return of episodes 8-10", "1", 865.0, lambda r: mean(r.returns[7:10], 3)),
            _minutes(4.0),
        ),
        policy=800.0,
    ),
    "cartpole_pets": Demo(
        solved=lambda returns: best(returns) >= 170.0,
        early_stop=True,
        goals=(
            Goal("best return within 1000 steps", "1", 170.0, lambda r: best_within(r, 1000)),
            _minutes(5.0),
        ),
        policy=170.0,
    ),
    "pendulum": Demo(
        solved=lambda returns: mean(returns[-3:], 3) >= -250.0,
        early_stop=True,
        goals=(
            Goal(
                "best mean return of three episodes in a row",
                "1",
                -250.0,
                lambda r: best_mean(r.returns[:10], 3),
            ),
        ),
        policy=-250.0,
    ),
    "arm_reach": _REACHING,
    "arm_reach_obstacle": _REACHING,
    "adroit_pen": Demo(
        solved=lambda returns: best(returns) >= 1000.0,
        goals=(Goal("best return", "1", 1000.0, lambda r: best(r.returns)),),
        policy=1000.0,
    ),
    "pendulum_swingup": Demo(
        solved=lambda returns: mean(returns[-3:], 3) >= 700.0,
        early_stop=True,
        goals=(Goal("best return", "1", 700.0, lambda r: best(r.returns)),),
        policy=700.0,
    ),
    "maze": Demo(
        solved=lambda returns: best(returns) >= 1.0,
        goals=(Goal("best return", "1", 1.0, lambda r: best(r.returns)),),
        policy=1.0,
    ),
    "cliff": Demo(
        solved=lambda returns: best(returns) >= -17.0,
        goals=(Goal("best return", "1", -17.0, lambda r: best(r.returns)),),
        policy=-17.0,
    ),
}


POLICY_EPISODES = 20
TRIALS = 3  # episodes at the end in which a learned policy shows what it can
TRIAL_EVERY = 5  # episodes before, one of which shows how far it has come


def demo_of(task: str, agent: str = "mpc") -> Demo:
    """How a task is demonstrated; a task that nobody described runs for ten episodes.

    An agent that learns a policy explores, which costs return, but for a trial now and then.
    """
    demo = DEMOS.get(task, Demo())
    if agent == "mpc":
        return demo
    text = f"mean return of the last {TRIALS} episodes, without exploration"
    final = Goal(
        text, "1", demo.policy, lambda r: mean(r.returns[-TRIALS:], TRIALS) if r.finished else math.nan
    )
    goals = () if math.isnan(demo.policy) else (final,)
    return Demo(POLICY_EPISODES, demo.solved, goals=goals, policy=demo.policy)


def mode_of(index: int, episodes: int, agent: str) -> str:
    """How episode `index` of a demonstration is run: "random", "explore" or "exploit"."""
    if agent == "mpc":
        return "exploit" if index else "random"
    trial = index >= episodes - TRIALS or index % TRIAL_EVERY == TRIAL_EVERY - 1
    return "exploit" if trial else "explore"
