"""A Gaussian mixture over (observation, action, change), conditioned on the first two (Ghahramani and Jordan,
1993, https://proceedings.neurips.cc/paper/1993/hash/f2201f5191c4e92cc5af043eebfd0946-Abstract.html; for
dynamics Khansari-Zadeh and Billard, 2011, https://doi.org/10.1109/TRO.2011.2159412).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbrl_dynamics import draws
from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.config import Field, config
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.interfaces import Budget, Capabilities, Noise
from mbrl_dynamics.models.holdout import holdout_error
from mbrl_dynamics.models.observed import ObservationModel, project
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.trainer import fitted_steps
from mbrl_dynamics.types import Metrics, Prediction

RAISES = 6  # how often the least variance may be raised by ten, where a component has none


@config
class GMMConfig:
    """Configuration of GMM."""

    components: Annotated[
        int, Field(ge=1, le=256, description="Gaussians at most; those not needed get no weight [1]")
    ] = 16
    least_variance: Annotated[
        float, Field(gt=0, description="added to each component's variances [of whitened data]")
    ] = 1e-6
    iterations: Annotated[int, Field(ge=1, description="of expectation maximisation a fit at most [1]")] = 200


class Conditional(NamedTuple):
    """What K Gaussians over (x, y) say of y, given x: each a line with noise, and how likely x is.

    Attributes:
        log_weight: [K] of the mixture, with the constant of each density.
        centre: [K, X].
        root: [K, X, X], precision of x = root rootᵀ.
        gain: [K, Y, X].
        offset: [K, Y].
        noise: [K, Y, Y] lower factor of the covariance of y, given x.
    """

    log_weight: Tensor
    centre: Tensor
    root: Tensor
    gain: Tensor
    offset: Tensor
    noise: Tensor

    @classmethod
    def of(cls, weight: Tensor, mean: Tensor, covariance: Tensor, size: int) -> Conditional:
        """From the joint mixture: weights [K], means [K, X + Y], covariances [K, X + Y, X + Y]; size is X."""
        lower = torch.linalg.cholesky(covariance)
        first, cross = lower[:, :size, :size], lower[:, size:, :size]
        one = torch.eye(size, dtype=mean.dtype)
        root = torch.linalg.solve_triangular(first.mT, one, upper=True)
        gain = cross @ root.mT
        return cls(
            log_weight=weight.log() - first.diagonal(dim1=-2, dim2=-1).log().sum(-1),
            centre=mean[:, :size],
            root=root,
            gain=gain,
            offset=mean[:, size:] - torch.einsum("kyx,kx->ky", gain, mean[:, :size]),
            noise=lower[:, size:, size:],
        )

    def responsibility(self, x: Tensor) -> Tensor:
        """How likely each component is, given x [M, X]: [M, K]."""
        distance = torch.einsum("mkx,kxr->mkr", x.unsqueeze(1) - self.centre, self.root).square().sum(-1)
        return torch.softmax(self.log_weight - 0.5 * distance, dim=-1)

    def means(self, x: Tensor) -> Tensor:
        """Mean of y in each component [M, K, Y]."""
        return torch.einsum("mx,kyx->mky", x, self.gain) + self.offset

    def mean(self, x: Tensor) -> Tensor:
        """Mean of y [M, Y], given x [M, X]."""
        return (self.responsibility(x).unsqueeze(-1) * self.means(x)).sum(1)

    def draw(self, x: Tensor, noise: torch.Generator) -> Tensor:
        """A sample of y [M, Y], given x [M, X]: of a component drawn by its responsibility."""
        bound = self.responsibility(x).cumsum(-1)[:, :-1]
        which = (bound <= draws.uniform((len(x), 1), noise, dtype=x.dtype, after=1)).sum(-1)
        normal = draws.normal((len(x), self.offset.shape[-1]), noise, dtype=x.dtype)
        scattered = torch.einsum("myz,mz->my", self.noise[which], normal)
        return self.means(x)[torch.arange(len(x)), which] + scattered


class GMM(ObservationModel):
    """A Bayesian Gaussian mixture over (observation, action, change), fitted by variational inference.

    Observation and action are whitened together, and so is the change, so that neither scales nor what goes
    together in the data (cosines and sines, for one) matter. A prediction weighs the components by how likely
    they make the observation and the action, anew each time.

    Without noise, the mean of the change; with it, a draw. Nobody disagrees: where components differ, the
    world has several outcomes, or changes from one line to another. What is not known is not told.

    Args:
        spec: the interface whose dynamics are learned.
        config: see GMMConfig.
        seed: of the first assignment of data to components.
    """

    Config = GMMConfig
    capabilities = Capabilities(differentiable=True, stochastic=True)
    seed: Tensor
    centre: Tensor
    whiten: Tensor
    weight: Tensor
    mean: Tensor
    covariance: Tensor

    def __init__(self, spec: Spec, config: GMMConfig | None = None, *, seed: int = 0) -> None:
        super().__init__(spec, config, seed=seed)
        count, self.inputs = self.config.components, spec.observation_dim + spec.inner_action_dim
        joint = self.inputs + spec.observation_dim
        self.register_buffer("seed", torch.tensor(seed))
        self.register_buffer("centre", torch.zeros(joint, dtype=torch.float64))
        self.register_buffer("whiten", torch.eye(joint, dtype=torch.float64))
        self.register_buffer("weight", torch.full((count,), 1.0 / count, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(count, joint, dtype=torch.float64))
        self.register_buffer("covariance", torch.eye(joint, dtype=torch.float64).repeat(count, 1, 1))
        self._folded: tuple[Conditional, Tensor, Tensor] | None = None

    # Learning -----------------------------------------------------------------------------------------------

    def fit(
        self, buffer: ReplayBuffer, budget: Budget, progress: Callable[[Metrics], None] | None = None
    ) -> Metrics:
        """Fit the mixture anew; the budget does not matter, since it takes a second.

        Returns:
            "train_loss", mean negative log likelihood of whitened data [nat], "holdout_error" as an ensemble,
            "steps" of the inference, "converged" (1 or 0), "components" that have more than a thousandth of
            the weight, "raised", how often the least variance had to be raised, and "seconds".

        Raises:
            UserError: scikit-learn is not installed.
            ValueError: the buffer is empty.
        """
        begin = time.monotonic()
        data = buffer.slices(fitted_steps(buffer))
        obs = data.obs["vector"].double()
        joint = torch.cat([obs[:, 0], data.action[:, 0].double(), obs[:, 1] - obs[:, 0]], dim=-1)
        self._folded = None
        self.centre.copy_(joint.mean(0))
        parts = (joint - self.centre).tensor_split([self.inputs], dim=-1)
        self.whiten.copy_(torch.block_diag(*map(whitening, parts)))
        white = ((joint - self.centre) @ self.whiten).numpy()
        mixture, raised = fit_mixture(white, self.config, int(self.seed))
        count = len(mixture.weights_)
        for buffered, value in zip(
            (self.weight.zero_(), self.mean, self.covariance),
            (mixture.weights_, mixture.means_, mixture.covariances_),
            strict=True,
        ):
            buffered[:count] = torch.from_numpy(value)
        return {
            "train_loss": -float(mixture.score(white)),
            "holdout_error": holdout_error(self, buffer),
            "steps": mixture.n_iter_,
            "converged": float(mixture.converged_),
            "components": int((self.weight > 1e-3).sum()),
            "raised": raised,
            "seconds": time.monotonic() - begin,
        }

    # Prediction ---------------------------------------------------------------------------------------------

    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True, assign: bool = False):  # type: ignore[no-untyped-def]
        """Load mixture and whitening."""
        self._folded = None
        return super().load_state_dict(state, strict, assign)

    def step(self, state: Tensor, action: Tensor, noise: Noise = None) -> Prediction:
        """As the class says; state [..., D], action [..., A]."""
        if self._folded is None:
            conditional = Conditional.of(self.weight, self.mean, self.covariance, self.inputs)
            back = torch.linalg.inv(self.whiten[self.inputs :, self.inputs :])
            self._folded = Conditional(*(x.float() for x in conditional)), self.whiten.float(), back.float()
        conditional, whiten, back = self._folded
        size, centre = self.inputs, self.centre.to(state)
        x = (torch.cat([state, action], dim=-1).flatten(0, -2) - centre[:size]) @ whiten[:size, :size]
        y = conditional.mean(x) if noise is None else conditional.draw(x, noise)
        change = (y @ back + centre[size:]).view_as(state)
        after = project(state + change, self.spec)
        return Prediction(after, after)


def whitening(data: Tensor) -> Tensor:
    """The matrix W [J, J] that makes centred data [N, J] white: data @ W; what does not vary stays."""
    deviation = data.square().mean(0).sqrt()
    scale = torch.where(deviation > 0, deviation, 1.0)  # before what goes together: units may differ by far
    value, vector = torch.linalg.eigh((data / scale).T @ (data / scale) / len(data))
    return (vector / scale.unsqueeze(-1)) * torch.where(value > 1e-10, value, 1.0).rsqrt()


def fit_mixture(white: NDArray[np.float64], config: GMMConfig, seed: int) -> tuple[Any, int]:
    """scikit-learn's mixture of whitened data [N, J], and how often the least variance had to be raised.

    Raises:
        UserError: scikit-learn is not installed.
        ValueError: no least variance helps.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning  # takes a second, and only a fit needs it
        from sklearn.mixture import BayesianGaussianMixture
    except ImportError:
        raise UserError("a Gaussian mixture learns by scikit-learn: pip install scikit-learn") from None
    white = np.resize(white, (max(len(white), 2), white.shape[1]))  # scikit-learn wants two at least
    spread = np.cov(white.T, ddof=0).reshape(2 * white.shape[1:])
    for raised in range(RAISES + 1):
        least = config.least_variance * 10.0**raised
        mixture = BayesianGaussianMixture(
            n_components=min(config.components, len(white)),
            reg_covar=least,
            # A component without data is what was assumed before, where scikit-learn adds no least variance:
            # singular if an element never changes, or nothing is noisy.
            covariance_prior=spread + least * np.eye(len(spread)),
            max_iter=config.iterations,
            random_state=seed,
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # told as "converged"
                return mixture.fit(white), raised
        except ValueError as error:
            if "ill-defined empirical covariance" not in str(error):
                raise
    raise ValueError("no Gaussian mixture can be fitted: its components have no variance")
