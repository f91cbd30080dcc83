"""A model that learns in a millisecond: the next observation as a linear function, by ridge regression."""

import os
import time
from pathlib import Path
from typing import Annotated

import torch
from torch import nn

from mbrl_dynamics.config import Field, config
from mbrl_dynamics.interfaces import Capabilities
from mbrl_dynamics.types import Prediction


@config
class LinearConfig:
    ridge: Annotated[float, Field(ge=0, description="regularisation [1]")] = 1e-6
    fail: Annotated[bool, Field(description="whether every fit fails")] = False
    hold: Annotated[str, Field(description="fits wait while this file exists; empty = they do not")] = ""


class LinearModel(nn.Module):
    Config = LinearConfig
    capabilities = Capabilities(differentiable=True)

    def __init__(self, spec, config=None, *, seed=0):
        super().__init__()
        self.spec, self.config = spec, config or LinearConfig()
        size = spec.observation_dim
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(size + spec.inner_action_dim + 1, size, generator=generator))
        self.fits = torch.zeros(1)  # stands for an optimiser

    def observe(self, state, action, obs, first=None):
        return obs["vector"].float()

    def step(self, state, action, noise=None):
        after = torch.cat([state, action, torch.ones_like(state[:, :1])], -1) @ self.weight
        return Prediction(after, after)

    def decode(self, state):
        return state

    def fit(self, buffer, budget, progress=None):
        with torch.no_grad():
            self.weight.fill_(torch.nan)  # a fit that is broken off leaves ruins
        while self.config.hold and Path(self.config.hold).exists():
            if progress is not None:
                progress({"train_loss": 1.0})
            time.sleep(0.01)
        if self.config.fail:
            raise RuntimeError("the fit was told to fail")
        data = buffer.all()
        x = torch.cat([data.obs["vector"][:, 0], data.action[:, 0]], -1)
        x, y = torch.cat([x, torch.ones_like(x[:, :1])], -1).double(), data.obs["vector"][:, 1].double()
        eye = self.config.ridge * torch.eye(x.shape[1], dtype=torch.double)
        solution = torch.linalg.solve(x.T @ x + eye, x.T @ y)
        with torch.no_grad():
            self.weight.copy_(solution)
        self.fits += 1
        error = float((x @ solution - y).square().mean().sqrt())
        return {"train_loss": error, "holdout_error": error, "pid": float(os.getpid())}

    def training_state(self):
        return {"fits": self.fits.clone()}

    def load_training_state(self, state):
        self.fits = state["fits"].clone()
