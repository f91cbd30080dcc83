"""What a learner takes of the States that it hears: the valid ones, once each, in order. numpy only."""

from __future__ import annotations

from enum import Enum

from mbrl_dynamics.spec import Spec
from mbrl_dynamics.transition import Transition, WorldId


class Verdict(Enum):
    """What becomes of a State."""

    STEP = "it follows the State before"
    START = "an episode begins"
    GAP = "States before it were lost: it is kept, but not joined to them"
    REPEATED = "it, or a later one, was heard before"
    REFUSED = "it does not fit the spec"


class Intake:
    """Judges States in the order in which they come, and counts.

    Attributes:
        last: newest State that was taken; None = none yet.
        episodes: episodes that began, or were joined in their middle.
        steps: transitions that can be learned from.
        gaps: how often States were missing.
        refused: States that do not fit the spec.
        fault: why the last one was refused, in one sentence; empty = none was.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.last: Transition | None = None
        self.episodes = self.steps = self.gaps = self.refused = 0
        self.fault = ""
        self._past: set[WorldId] = set()  # worlds that were replaced

    def judge(self, transition: Transition) -> Verdict:
        """Decide about a State, and remember it if it is taken."""
        fault = transition.fault(self.spec)
        if fault:
            self.refused += 1
            self.fault = f"episode {transition.episode}, step {transition.step}: {fault}"
            return Verdict.REFUSED
        if self._late(transition):
            return Verdict.REPEATED
        joined, last = transition.follows(self.last), self.last
        self.last = transition
        self.steps += joined
        if joined:
            return Verdict.STEP
        if last is not None and last.world_id != transition.world_id:
            self._past.add(last.world_id)
        self.episodes += last is None or last.key[:2] != transition.key[:2]
        if transition.first:
            return Verdict.START
        self.gaps += 1
        return Verdict.GAP

    def restart_counting(self) -> None:
        """Count gaps and refusals from now on; what an earlier run has recorded is judged by then."""
        self.gaps = self.refused = 0

    def _late(self, transition: Transition) -> bool:
        last = self.last
        if last is None or transition.world_id != last.world_id:
            return transition.world_id in self._past
        return transition.key <= last.key
