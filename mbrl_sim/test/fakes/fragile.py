"""A task of somebody else's, with a fault in its reward."""

from mbrl_sim.tasks.pendulum import Pendulum


class Fragile(Pendulum):
    def frame_reward(self, obs, action, next_obs):
        if (action > 0.9).any():
            raise ZeroDivisionError("the reward divides by zero")
        return super().frame_reward(obs, action, next_obs)
