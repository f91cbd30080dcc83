"""Trains any model with a `loss`: minibatches, held-out data, a plateau, early stopping."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.training_state import load_optimizer, optimizer_tensors
from mbrl_dynamics.types import Metrics, Trajectory

EVALUATE_EVERY = 100  # gradient steps between two looks at the held-out data
# Largest norm of a gradient. A model that was sure of itself is surprised by new data, and a likelihood
# punishes that without bound: Adam's second moments would then be so large for hundreds of steps that little
# is learned.
CLIP = 100.0


class Trainable(Protocol):
    """What the trainer asks of a model."""

    def loss(self, batch: Trajectory) -> tuple[Tensor, Metrics]:
        """The loss to minimise, and what to log."""
        ...

    def holdout(self, batch: Trajectory) -> Tensor:
        """Error of each member on held-out data [E], in standard deviations of the targets."""
        ...

    def parameters(self) -> Any:
        """What to optimise; tensors whose first dimension is E belong to the members."""
        ...


def is_held_out(index: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which transitions are held out: about one in ten, scattered, and for ever the same ones."""
    return (index.astype(np.uint64) * np.uint64(2654435761) >> np.uint64(16)) % np.uint64(10) == 0


def fitted_steps(buffer: ReplayBuffer) -> NDArray[np.int64]:
    """Steps for models that take all data at once, as much of every stratum; none that is held out.

    Raises:
        ValueError: the buffer is empty.
    """
    if not len(buffer):
        raise ValueError("there is nothing to train on: the replay buffer is empty")
    return _alike([_split(steps)[0] for steps in buffer.strata()])


class Trainer:
    """AdamW at two step sizes. Each goes on until no member gets better on held-out data; the best weights
    of each member are kept.

    Args:
        model: what to train.
        config: fields learning_rate, final_learning_rate, weight_decay, batch_size, patience.
        seed: of the minibatches.
        length: of the slices that the model is trained and judged on [steps].
    """

    def __init__(self, model: nn.Module, config: Any, seed: int, length: int = 1) -> None:
        self.model: Any = model
        self.config, self.length = config, length
        self._generator = torch.Generator().manual_seed(seed)
        self.best_errors = torch.zeros(1)
        self._best: list[Tensor] = []

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """Made when it is first needed: a model that is only used needs none, and PyTorch takes two seconds
        over the first one of a process.
        """
        c = self.config
        return torch.optim.AdamW(
            self.model.parameters(), lr=c.learning_rate, weight_decay=c.weight_decay, fused=True
        )

    def fit(
        self, buffer: ReplayBuffer, budget: Budget, progress: Callable[[Metrics], None] | None = None
    ) -> Metrics:
        """Train until the plateau or the end of the budget.

        Args:
            progress: called at each look at the held-out data; an exception that it raises ends the fit.

        Returns:
            "train_loss", "holdout_error" (mean over the members),
            "steps" and "seconds".

        Raises:
            ValueError: the buffer is empty.
        """
        if not len(buffer):
            raise ValueError("there is nothing to train on: the replay buffer is empty")
        begin, steps, loss = time.monotonic(), 0, math.nan
        strata = [_split(steps) for steps in buffer.strata()]
        train, held_out = [part for part, _ in strata], [part for _, part in strata]
        judge = buffer.slices(_alike(held_out), self.length)
        self._start(judge)
        for rate, share in ((self.config.learning_rate, 0.7), (self.config.final_learning_rate, 1.0)):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            patience = self.config.patience
            while patience > 0 and steps < share * budget.steps and time.monotonic() - begin < budget.seconds:
                count = min(EVALUATE_EVERY, budget.steps - steps)
                loss = self._descend(buffer, train, count)
                steps += count
                patience = self.config.patience if self._judge(judge) else patience - 1
                if progress is not None:
                    progress({"steps": steps, "train_loss": loss, "holdout_error": self._error()})
        self._restore()
        seconds = time.monotonic() - begin
        return {"train_loss": loss, "holdout_error": self._error(), "steps": steps, "seconds": seconds}

    def state_dict(self) -> dict[str, Tensor]:
        """Optimiser and random numbers as flat tensors."""
        return {"generator": self._generator.get_state(), **optimizer_tensors(self.optimizer)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        self._generator.set_state(state["generator"])
        load_optimizer(self.optimizer, state)

    def _descend(self, buffer: ReplayBuffer, train: list[NDArray[np.int64]], steps: int) -> float:
        """Some gradient steps, each on as much of every stratum; returns the mean loss."""
        total = 0.0
        sizes = [len(part) for part in np.array_split(np.arange(self.config.batch_size), len(train))]
        draws = [
            part[torch.randint(len(part), (steps, size), generator=self._generator).numpy()]
            for part, size in zip(train, sizes, strict=True)
        ]
        for draw in np.concatenate(draws, axis=1):
            loss, metrics = self.model.loss(buffer.slices(draw, self.length))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.optimizer.step()
            total += metrics["train_loss"]
        return total / steps

    def _start(self, judge: Trajectory) -> None:
        self.best_errors = self.model.holdout(judge)
        self._best = [p.detach().clone() for p in self.model.parameters()]

    @torch.no_grad()
    def _judge(self, judge: Trajectory) -> bool:
        """Keep the weights of each member that got better; returns whether any did by one per cent."""
        errors = self.model.holdout(judge)
        better = errors < self.best_errors
        progress = bool((errors < 0.99 * self.best_errors).any())
        for best, parameter in zip(self._best, self.model.parameters(), strict=True):
            if parameter.shape[0] == len(better) and parameter.ndim > 1:
                best[better] = parameter[better]
            elif better.any():
                best.copy_(parameter)
        self.best_errors = torch.where(better, errors, self.best_errors)
        return progress

    @torch.no_grad()
    def _restore(self) -> None:
        for best, parameter in zip(self._best, self.model.parameters(), strict=True):
            parameter.copy_(best)

    def _error(self) -> float:
        return float(self.best_errors.mean())


def _split(index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Training and held-out transitions; with very few, they are judged on what they train on."""
    held_out = is_held_out(index)
    if held_out.all() or not held_out.any():
        return index, index
    return index[~held_out], index[held_out]


def _alike(strata: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Strata side by side, the smaller ones repeated so that all count as much."""
    largest = max(len(stratum) for stratum in strata)
    return np.concatenate([np.resize(stratum, largest) for stratum in strata])
