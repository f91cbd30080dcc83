"""The learner without ROS: what it takes, when it trains, what survives a restart."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_model import LinearConfig, LinearModel
from worlds import OTHER_SPEC, OTHER_WORLD, SPEC, WORLD, episode, transition

from mbrl_dynamics import checkpoint
from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.episodes import files, read
from mbrl_dynamics.errors import UserError
from mbrl_dynamics.intake import Intake, Verdict
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.learner import Learner, LearnerConfig, Status
from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
from mbrl_dynamics.snapshot import restore
from mbrl_dynamics.training_worker import Phase
from mbrl_dynamics.transition import Answer

HANG = 30.0  # [s]


@contextmanager
def learner(model: type = LinearModel, config=None, **settings) -> Iterator[Learner]:
    made = Learner(SPEC, model, config or model.Config(), "linear", LearnerConfig(threads=1, **settings))
    try:
        yield made
    finally:
        assert made.close()


def wait_for(learner: Learner, condition) -> Status:
    """The first status that meets a condition."""
    end = time.monotonic() + HANG
    while True:
        status = learner.status()
        if condition(status):
            return status
        assert time.monotonic() < end, status
        time.sleep(0.005)


def trained(number: int, world: bytes = WORLD):
    return lambda s: (
        s.phase is Phase.IDLE and (s.trained_world_id, s.trained_episode) == (world.hex(), number)
    )


def folders(tmp_path: Path) -> dict[str, str]:
    return {"dataset": str(tmp_path / "dataset"), "checkpoint": str(tmp_path / "checkpoint")}


def test_trains_at_the_end_of_each_episode() -> None:
    with learner() as one:
        for number in range(3):
            for state in episode(number):
                assert one.hear(state) in (Verdict.START, Verdict.STEP)
            status = wait_for(one, trained(number))
            assert (status.version, status.episodes, status.transitions) == (
                number + 1,
                number + 1,
                10 * (number + 1),
            )
            update = one.take()
            assert (update.version, update.trained_episode, update.run_id) == (
                number + 1,
                number,
                status.run_id,
            )
            assert one.take() is None
        assert status.holdout_error < 1e-3
        model = restore(update, SPEC, LinearModel)
    after = model.step(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5]])).obs  # u = 1 N
    assert after.detach().numpy() == pytest.approx(np.array([[1.2, 2.3]]), abs=1e-3)


def test_an_episode_ends_with_the_first_state_of_the_next() -> None:
    with learner() as one:
        for state in list(episode(0))[:-1]:
            one.hear(state)
        assert one.status().trained_episode == -1
        one.hear(transition(1, 0))
        wait_for(one, trained(0))


def test_an_unfinished_episode_is_trained_on_after_a_silence() -> None:
    with learner(idle_seconds=1e-3) as one:
        for state in list(episode(0))[:-1]:
            one.hear(state)

        def ticked(status: Status) -> bool:
            one.tick()
            return trained(0)(status)

        assert wait_for(one, ticked).version == 1
        for _ in range(3):
            one.tick()
        assert wait_for(one, lambda s: s.phase is Phase.IDLE).version == 1  # nothing new, nothing trained


def test_trains_within_an_episode_if_told_to() -> None:
    with learner(train_every_steps=4) as one:
        for state in list(episode(0))[:6]:
            one.hear(state)
        status = wait_for(one, lambda s: s.version > 0)
        assert status.trained_episode == -1  # not the whole of it


def test_a_bad_state_is_refused_and_counted(tmp_path: Path) -> None:
    bad = [
        {"observation": np.array([np.nan, 0.0])},
        {"observation": np.zeros(3)},
        {"action": np.array([np.inf])},
        {"action": np.zeros(2)},
        {"reward": np.inf},
        {"images": {"eye": np.zeros((3, 4, 3), np.uint8)}},
    ]
    with learner(**folders(tmp_path)) as one:
        one.hear(transition(0, 0))
        for changes in bad:
            assert one.hear(transition(0, 1, **changes)) is Verdict.REFUSED
        assert one.hear(transition(0, 1)) is Verdict.STEP
        status = one.status()
        assert (status.refused, status.transitions, status.gaps) == (len(bad), 1, 0)
    assert [s.step for s in read(tmp_path / "dataset", ["state"])] == [0, 1]


def test_repeated_and_late_states_change_nothing(tmp_path: Path) -> None:
    states = list(episode(0))
    with learner(**folders(tmp_path)) as one:
        for state in states:
            assert one.hear(state) is not Verdict.REPEATED
            assert one.hear(state) is Verdict.REPEATED
            assert one.hear(states[0]) is Verdict.REPEATED
        assert one.status().transitions == 10
        assert one.hear(transition(0, 0, world=OTHER_WORLD)) is Verdict.START
        assert one.hear(states[5]) is Verdict.REPEATED  # of a world that is gone
    assert len(list(read(tmp_path / "dataset", ["state"]))) == 12


def test_no_transition_joins_across_a_gap() -> None:
    with learner() as one:
        for state in episode(0):
            if state.step not in (4, 5):
                one.hear(state)
        status = wait_for(one, trained(0))
        assert (status.gaps, status.transitions) == (1, 7)  # 0-1 1-2 2-3 | 6-7 ... 9-10


def test_intake_and_buffer_agree_on_any_mess() -> None:
    states = [*episode(0, 4), *episode(1, 3), *episode(0, 3, world=OTHER_WORLD)]

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.integers(0, len(states) - 1), max_size=40))
    def check(order: list[int]) -> None:
        intake, buffer, steps = Intake(SPEC), ReplayBuffer(SPEC), []
        for index in order:
            verdict = intake.judge(states[index])
            if verdict not in (Verdict.REFUSED, Verdict.REPEATED):
                assert buffer.add(states[index]) == (verdict is Verdict.STEP)
                if verdict is Verdict.STEP:
                    steps.append(states[index].key)
        assert len(buffer) == intake.steps == len(steps) == len(set(steps))

    check()


def test_a_fit_that_fails_is_told_and_undone(tmp_path: Path) -> None:
    with learner(config=LinearConfig(fail=True), **folders(tmp_path)) as one:
        for state in episode(0):
            one.hear(state)
        status = wait_for(one, lambda s: s.phase is Phase.FAILED)
        assert status.error == "training failed: the fit was told to fail"
        assert (status.version, status.trained_episode) == (0, -1)
        for state in episode(1):
            one.hear(state)
        assert one.status().recording
    assert len(list(read(tmp_path / "dataset", ["state"]))) == 22


class Diverging(LinearModel):
    def fit(self, buffer, budget, progress=None):
        metrics = super().fit(buffer, budget, progress)
        if len(buffer) > 10:
            with torch.no_grad():
                self.weight.fill_(torch.inf)
        return metrics


def test_weights_that_are_not_finite_are_not_handed_over() -> None:
    with learner(Diverging) as one:
        for state in episode(0):
            one.hear(state)
        wait_for(one, trained(0))
        good = one.newest
        for state in episode(1):
            one.hear(state)
        assert "not finite" in wait_for(one, lambda s: s.phase is Phase.FAILED).error
        assert one.newest is good


def test_goes_on_after_a_restart(tmp_path: Path) -> None:
    with learner(**folders(tmp_path)) as one:
        for state in episode(0):
            one.hear(state)
        before = wait_for(one, trained(0))
        weights = restore(one.newest, SPEC, LinearModel).weight
    with learner(**folders(tmp_path)) as two:
        after = two.status()
        assert (after.transitions, after.episodes, after.holdout_error) == (10, 1, before.holdout_error)
        assert after.run_id != before.run_id
        update = two.take()
        assert (update.version, update.run_id, update.trained_episode) == (1, after.run_id, 0)
        assert torch.equal(restore(update, SPEC, LinearModel).weight, weights)
        for state in episode(1):
            two.hear(state)
        assert wait_for(two, trained(1)).transitions == 20
        assert two._worker._model.fits == 2  # the optimiser went on as well
    assert [path.name for path in files(tmp_path / "dataset")] == ["000.mcap", "001.mcap"]


def test_what_no_checkpoint_has_seen_is_trained_on_at_the_start(tmp_path: Path) -> None:
    with learner(dataset=str(tmp_path / "dataset")) as one:
        for state in episode(0):
            one.hear(state)
    with learner(**folders(tmp_path)) as two:
        assert wait_for(two, trained(0)).version == 1


def test_a_restart_in_the_middle_of_an_episode_does_not_join(tmp_path: Path) -> None:
    states = list(episode(0))
    with learner(**folders(tmp_path)) as one:
        for state in states[:4]:
            one.hear(state)
    with learner(**folders(tmp_path)) as two:
        for state in states[6:]:  # 4 and 5 came while nobody listened
            two.hear(state)
        status = wait_for(two, trained(0))
        assert (status.transitions, status.gaps) == (3 + 4, 1)


def test_a_fit_is_broken_off_at_the_end(tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    one = Learner(
        SPEC, LinearModel, LinearConfig(hold=str(hold)), "linear", LearnerConfig(**folders(tmp_path))
    )
    for state in episode(0):
        one.hear(state)
    wait_for(one, lambda s: s.phase is Phase.TRAINING)
    for state in episode(1):  # recording does not wait for the fit
        one.hear(state)
    assert one.close(timeout=HANG)
    assert one.newest is None
    assert not (tmp_path / "checkpoint").exists()
    assert torch.isfinite(one._worker._model.weight).all()
    assert len(list(read(tmp_path / "dataset", ["state"]))) == 22


def test_data_that_came_during_a_fit_are_trained_on_next(tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    with learner(config=LinearConfig(hold=str(hold))) as one:
        for number in range(3):
            for state in episode(number):
                one.hear(state)
            wait_for(one, lambda s: s.phase is Phase.TRAINING)
        hold.unlink()
        assert wait_for(one, trained(2)).version == 2


def test_a_damaged_checkpoint_is_told_and_not_used(tmp_path: Path) -> None:
    with learner(**folders(tmp_path)) as one:
        for state in episode(0):
            one.hear(state)
        wait_for(one, trained(0))
    file = tmp_path / "checkpoint" / "learner.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with learner(**folders(tmp_path)) as two:
        wait_for(two, trained(0))  # learned anew from the data
    file.write_bytes(b"nonsense")
    settings = {"checkpoint": str(tmp_path / "checkpoint")}
    with learner(**settings) as three:
        assert "is not a safetensors file" in three.status().error


def test_another_configuration_does_not_take_the_checkpoint(tmp_path: Path) -> None:
    with learner(**folders(tmp_path)) as one:
        for state in episode(0):
            one.hear(state)
        wait_for(one, trained(0))
    with pytest.raises(ValueError, match="another architecture"):
        checkpoint.load(tmp_path / "checkpoint", LinearModel(SPEC, LinearConfig(ridge=1.0)), "linear")


def test_a_checkpoint_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with learner(checkpoint=str(tmp_path / "file" / "checkpoint")) as one:
        for state in episode(0):
            one.hear(state)
        status = wait_for(one, trained(0))
        assert "checkpoint" in status.error
        assert status.version == 1


def test_other_dynamics_are_refused(tmp_path: Path) -> None:
    with learner(**folders(tmp_path)) as one:
        for state in episode(0):
            one.hear(state)
        one.announce(replace(SPEC, task="another"), OTHER_WORLD)  # a new world and task, the same dynamics
        with pytest.raises(UserError, match="start another one"):
            one.announce(OTHER_SPEC, OTHER_WORLD)
    with pytest.raises(UserError, match="choose another folder"):
        Learner(OTHER_SPEC, LinearModel, LinearConfig(), "linear", LearnerConfig(**folders(tmp_path)))


def test_answers_are_recorded_beside(tmp_path: Path) -> None:
    with learner(**folders(tmp_path)) as one:
        one.hear(transition(0, 0))
        one.hear_answer(Answer(WORLD, 0, 0, "mpc", np.ones((3, 1))), 1.5)
    (answer,) = read(tmp_path / "dataset", ["action"])
    assert answer.controller_id == "mpc"


def test_without_recording_the_dataset_is_read_only(tmp_path: Path) -> None:
    with learner(**folders(tmp_path)) as one:
        for state in episode(0):
            one.hear(state)
    with learner(record=False, **folders(tmp_path)) as two:
        for state in episode(1):
            two.hear(state)
        assert not two.status().recording
        assert two.status().transitions == 20
    assert len(files(tmp_path / "dataset")) == 1


def test_the_ensemble_goes_on_where_it_was(tmp_path: Path) -> None:
    """Weights, normaliser and optimiser after a restart are those before it: the next fit is the same."""
    settings = {"fit_steps": 120, **folders(tmp_path)}
    config = EnsembleConfig(members=2, hidden=(8, 8), batch_size=16)
    first, second = list(episode(0, 30)), list(episode(1, 30))
    with learner(Ensemble, config, **settings) as one:
        for state in first:
            one.hear(state)
        wait_for(one, trained(0))
        copy, buffer = one._worker._model, ReplayBuffer(SPEC)
        for state in [*first, *second]:
            buffer.add(state)
    with learner(Ensemble, config, **settings) as two:
        for state in second:
            two.hear(state)
        wait_for(two, trained(1))
        resumed = restore(two.newest, SPEC, Ensemble)
    copy.fit(buffer, Budget(steps=120))
    for name, value in copy.state_dict().items():
        assert torch.allclose(resumed.state_dict()[name], value, atol=1e-6), name
