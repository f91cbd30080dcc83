"""The simulator itself as a model: what a planner reaches that knows the world exactly."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mbrl_dynamics import plugins
from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.imagine import imagine_by_steps
from mbrl_dynamics.interfaces import Budget, Capabilities, Noise, Policy
from mbrl_dynamics.models.holdout import holdout_error
from mbrl_dynamics.models.observed import NoConfig
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.types import Metrics, Prediction, Rollout
from mbrl_sim.rollouts import Late, Rollouts
from mbrl_sim.tasks.base import MujocoTask


class WorldState(NamedTuple):
    """Where a simulated world stands.

    Attributes:
        physics: [..., S] positions, then velocities.
        member: [...] int64, which of the model's worlds goes on; None = the first.
        before: [..., A] scaled, the last action, which goes on until the next one takes effect; None = they
            do so at once.
    """

    physics: Tensor
    member: Tensor | None = None
    before: Tensor | None = None


class SimulatorModel(nn.Module):
    """MuJoCo with the MJCF of the task that the spec names, in as many threads as torch uses.

    It begins with what an observation tells of positions and velocities (`MujocoTask.pose`, `motion`); what
    was changed in a world beside these, such as a goal that was moved, it does not know. Predictions have the
    precision of the observation that they began with.

    Args:
        spec: of the world.
        config: not needed.
        seed: not needed.
        task: whose MJCF it is; None = the installed one that the spec names.

    Raises:
        UserError: there is no such task, it is of other dynamics, or an observation does not tell the state.
    """

    Config: type = NoConfig
    capabilities = Capabilities()

    def __init__(
        self, spec: Spec, config: Any = None, *, seed: int = 0, task: MujocoTask | None = None
    ) -> None:
        super().__init__()
        self.spec, self.config = spec, config or self.Config()
        self.task = _world_of(spec) if task is None else task
        ours = replace(
            self.task.spec, action_delay_steps=spec.action_delay_steps, cameras=spec.cameras
        ).dynamics_hash
        if ours != spec.dynamics_hash:
            raise UserError(f"the dynamics of task '{self.task.spec.task}' are not those of the world's spec")
        self.rollouts = Rollouts(self.task)
        try:
            self.rollouts.restore(np.zeros(spec.observation_dim))
        except NotImplementedError:
            raise UserError(
                f"task '{spec.task}' does not tell positions and velocities from an observation: "
                "it needs the methods pose and motion"
            ) from None

    def worlds(self) -> Sequence[Any]:
        """The members: MjModels that futures are simulated with."""
        return [self.rollouts.model]

    def delays(self) -> NDArray[np.float64] | None:
        """How late actions take effect in each member [P, A], in control periods; None = at once."""
        return None

    def fit(
        self, buffer: ReplayBuffer, budget: Budget, progress: Callable[[Metrics], None] | None = None
    ) -> Metrics:
        """There is nothing to learn; how well it predicts the held-out steps is measured.

        Raises:
            ValueError: the buffer is empty.
        """
        return {"train_loss": 0.0, "holdout_error": holdout_error(self, buffer)}

    def training_state(self) -> dict[str, Tensor]:
        """What a fit goes on with after a restart, beside the state: nothing."""
        return {}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `training_state`."""

    # Prediction ---------------------------------------------------------------------------------------------

    def observe(
        self,
        state: WorldState | None,
        action: Tensor | None,
        obs: Mapping[str, Tensor],
        first: Tensor | None = None,
    ) -> WorldState:
        """What the observation tells of positions and velocities."""
        seen = obs["vector"]
        return WorldState(_tensor(self.rollouts.restore(_array(seen)), seen))

    def step(self, state: WorldState, action: Tensor, noise: Noise = None) -> Prediction:
        """Simulate one control period, with each state's own world, else the first."""
        physics = self._simulate(state, action.unsqueeze(-2))[..., 0, :]
        before = None if state.before is None else action
        after = WorldState(_tensor(physics, state.physics), state.member, before)
        return Prediction(after, self._seen(physics, state))

    def imagine(
        self,
        state: WorldState,
        actions: Tensor | Policy,
        *,
        particles: int | None = None,
        horizon: int | None = None,
        noise: Noise = None,
        keep: Collection[str] = (),
    ) -> Rollout:
        """Simulate candidates [B, N, H, A], each once a member; reward is zero (see models/with_task.py)."""
        members = len(self.worlds())
        share = -(-(particles or members) // members)  # particles a member
        if callable(actions):
            return imagine_by_steps(self, state, actions, members * share, horizon, noise, keep)
        batch, candidates, steps, width = actions.shape
        shape = (batch, candidates, members)
        physics = state.physics[:, None, None].expand(*shape, -1)
        before = None if state.before is None else state.before[:, None, None].expand(*shape, -1)
        plans = actions[:, :, None].expand(*shape, steps, width)
        path = self._simulate(WorldState(physics, torch.arange(members).expand(shape), before), plans)
        obs = torch.cat([self.decode(WorldState(physics))[..., None, :], self._seen(path, state)], dim=-2)
        disagreement = self.spread_of(obs[..., 1:, :]) if members > 1 else None
        last, obs = _tensor(path[..., -1, :], physics).repeat(1, 1, share, 1), obs.repeat(1, 1, share, 1, 1)
        before = None if before is None else plans[..., -1, :].repeat(1, 1, share, 1)
        ones = actions.new_ones(batch, candidates, members * share, steps)
        return Rollout(
            reward=torch.zeros_like(ones),
            alive=ones,
            disagreement=disagreement,
            last=WorldState(last, before=before),
            obs=obs if "obs" in keep else None,
            action=actions.unsqueeze(2).expand(-1, -1, members * share, -1, -1) if "action" in keep else None,
        )

    def spread_of(self, obs: Tensor) -> Tensor:
        """How far the members' observations [B, N, K, H, D] are apart [B, N, H]."""
        return obs.std(2, correction=0).mean(-1)

    def spread(self, state: WorldState, particles: int) -> WorldState:
        """The state [B, S] as particles [B, P, S], each with the member that it keeps."""
        physics = state.physics.unsqueeze(1).expand(-1, particles, -1)
        member = torch.arange(particles).remainder(len(self.worlds())).expand(len(physics), -1)
        before = None if state.before is None else state.before.unsqueeze(1).expand(-1, particles, -1)
        return WorldState(physics, member, before)

    def feature(self, state: WorldState) -> Tensor:
        """The observation."""
        return self.decode(state)

    def decode(self, state: WorldState) -> Tensor:
        """The observation."""
        return self._seen(_array(state.physics), state)

    def _seen(self, physics: NDArray[np.float64], like: WorldState) -> Tensor:
        return _tensor(self.rollouts.observe(physics), like.physics)

    def _simulate(self, state: WorldState, actions: Tensor) -> NDArray[np.float64]:
        """States [..., H, S] from states [..., S] under scaled actions [..., H, A]."""
        shape = (*state.physics.shape[:-1], *actions.shape[-2:])
        si = self.spec.unscale_action(_array(actions)).reshape(-1, *shape[-2:])
        self.rollouts.use(torch.get_num_threads())  # of the caller: who judges or trains may have one alone
        start, worlds = _array(state.physics).reshape(len(si), -1), self.worlds()
        member = None if len(worlds) == 1 else state.member
        which = [0] * len(si) if member is None else member.flatten().tolist()
        models = [worlds[i] for i in which]
        return self.rollouts(start, si, models, self._late(state, which)).reshape(*shape[:-1], -1)

    def _late(self, state: WorldState, which: list[int]) -> Late | None:
        """How late the first actions take effect after states [...], each in the member `which` [M]."""
        delays = self.delays()
        if delays is None or state.before is None:
            return None
        before = self.spec.unscale_action(_array(state.before))
        return Late(before.reshape(len(which), -1), delays[which])


def _world_of(spec: Spec) -> MujocoTask:
    """The installed task that a spec names, at its control period."""
    name = spec.task  # it may have been received: only what is installed is loaded
    if name in plugins.names("tasks"):
        task = plugins.find("tasks", name)()
    else:
        family = name.partition("/")[0]
        task = getattr(plugins.make_task(name), "twin", None) if family in plugins.families() else None
    if not isinstance(task, MujocoTask):
        raise UserError(f"there is no MJCF to simulate: '{name}' is no installed task with a world in MuJoCo")
    frames = round(spec.control_period / task.frame)
    return task if frames == task.action_repeat else type(task)(action_repeat=max(frames, 1))


def _array(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().cpu().numpy().astype(np.float64)


def _tensor(array: NDArray[np.float64], like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(like)
