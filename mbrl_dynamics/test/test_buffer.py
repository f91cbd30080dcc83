"""The replay buffer: slices that never cross an episode or a gap."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import CAMERA_SPEC, OTHER_WORLD, SPEC, episode, transition

from mbrl_dynamics.buffer import ReplayBuffer


def filled(*episodes, spec=SPEC, capacity: int = 4) -> ReplayBuffer:
    buffer = ReplayBuffer(spec, capacity)
    for states in episodes:
        for state in states:
            buffer.add(state)
    return buffer


def test_holds_what_was_added() -> None:
    states = list(episode(0, 10))
    batch = filled(states).all()
    obs = np.stack([s.observation for s in states])
    np.testing.assert_allclose(batch.obs["vector"][:, 0], obs[:-1], rtol=1e-6)
    np.testing.assert_allclose(batch.obs["vector"][:, 1], obs[1:], rtol=1e-6)
    np.testing.assert_allclose(batch.action[:, 0, 0], [s.action[0] / 2.0 for s in states[1:]], rtol=1e-6)
    np.testing.assert_array_equal(batch.reward[:, 0], np.arange(1, 11))
    np.testing.assert_array_equal(batch.extras["index"][:, 0], np.arange(10))
    assert batch.first[:, 0].tolist() == [True] + 9 * [False]


def test_counts() -> None:
    buffer = filled(
        episode(0, 3), [s for s in episode(1, 5) if s.step != 2], episode(2, 2, world=OTHER_WORLD)
    )
    assert (len(buffer), buffer.episodes, buffer.gaps) == (3 + 1 + 2 + 2, 3, 1)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=5),
    st.integers(1, 6),
    st.sets(st.integers(1, 6), max_size=2),
)
def test_slices_never_reach_across(lengths: list[int], length: int, lost: set[int]) -> None:
    """Observations here tell (episode, step), so that a slice shows where it has been."""
    buffer = ReplayBuffer(SPEC, 1)
    for number, steps in enumerate(lengths):
        for step in range(steps + 1):
            if step not in lost:
                buffer.add(transition(number, step, observation=np.array([float(number), float(step)])))
    if not len(buffer):
        return
    batch = buffer.slices(np.arange(len(buffer)), length)
    before, after = batch.obs["vector"][:, :-1], batch.obs["vector"][:, 1:]
    valid = batch.valid
    assert valid[:, -1].all()
    assert (before[..., 0] == after[..., 0]).all()
    assert (after[..., 1] - before[..., 1])[valid].eq(1).all()
    assert (after[..., 1] - before[..., 1])[~valid].eq(0).all()
    assert (valid[:, 1:] >= valid[:, :-1]).all()  # padded in front only


def test_repeated_states_are_kept_once() -> None:
    states = list(episode(0, 3))
    assert len(filled([s for state in states for s in (state, state)])) == 3


def test_images() -> None:
    batch = filled(episode(0, 4, spec=CAMERA_SPEC), spec=CAMERA_SPEC).slices(np.array([2]), 2)
    assert batch.obs["eye"].shape == (1, 3, 3, 4, 3)
    assert batch.obs["eye"].dtype == torch.uint8
    assert batch.obs["eye"][0, :, 0, 0, 0].tolist() == [1, 2, 3]


def test_sampling_is_seeded() -> None:
    buffer = filled(episode(0, 20))
    draws = [buffer.sample(8, 3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0].obs["vector"], draws[1].obs["vector"])
    assert not torch.equal(draws[0].obs["vector"], draws[2].obs["vector"])


def test_an_empty_buffer_cannot_be_sampled() -> None:
    with pytest.raises(ValueError, match="no steps"):
        filled([transition(0, 0)]).sample(1)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="'velocity' is not finite"):
        filled([transition(observation=np.array([0.0, np.nan]))])


def test_later_steps_stay_within_their_episode() -> None:
    buffer = filled(episode(0, 4), episode(1, 3))  # steps 0 .. 3, then 4 .. 6
    steps, counts = np.array([0, 0, 2, 3, 4, 6]), np.array([0, 2, 9, 1, 1, 5])
    assert buffer.later(steps, counts).tolist() == [0, 2, 3, 3, 5, 6]


def test_later_steps_of_worlds_side_by_side() -> None:
    buffer = ReplayBuffer(SPEC, 1)
    for one, other in zip(episode(0, 3), episode(0, 3, world=OTHER_WORLD), strict=True):
        buffer.add(one), buffer.add(other)
    assert buffer.later(np.array([0, 1]), np.array([1, 9])).tolist() == [2, 5]


def by(controller: str, states):
    """The same States as if that controller had chosen every action."""
    return [dataclasses.replace(state, controller_id=controller) for state in states]


def test_what_models_are_fitted_on() -> None:
    shown, own, lately = by("person", episode(0, 6)), by("mpc", episode(1, 30)), by("mpc", episode(2, 4))
    strata = {}
    for fit_on in ("all", "half", "latest"):
        buffer = ReplayBuffer(SPEC, 4, demonstrators=("person",), fit_on=fit_on)
        assert buffer.strata() == []
        for state in [*shown, *own, *lately]:
            buffer.add(state)
        strata[fit_on] = [part.tolist() for part in buffer.strata()]
    everything = list(range(40))
    assert strata == {
        "all": [everything],
        "half": [everything[6:], everything[:6]],
        "latest": [everything[36:]],
    }
    alone = ReplayBuffer(SPEC, 4, demonstrators=("person",), fit_on="half")
    for state in own:
        alone.add(state)
    assert [part.tolist() for part in alone.strata()] == [list(range(30))]
