"""An agent whose learning goes wrong once, or whose loss does again and again."""

from __future__ import annotations

import math

import torch

from mbrl_planner.agents.sac import SAC


class Poisoned(SAC):
    """SAC with a weight that turns NaN between its 40th and 80th gradient step."""

    def learn(self, buffer, model, count):
        metrics = super().learn(buffer, model, count)
        if 40 <= self.updates < 80:
            with torch.no_grad():
                next(self.policy.parameters()).fill_(math.nan)
            metrics["critic_loss"] = math.nan
        return metrics
