"""`mbrl evaluate` on recorded data, from the command line on; and what bad input gets.

Mutations that these tests notice: a stored model judged on all that it was trained on; a fit anew to the
episodes that it is judged on; the report's section added once more by each evaluation.
"""

from __future__ import annotations

import dataclasses
import json
import math
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch

from mbrl_bringup import calibration
from mbrl_bringup import trust_section as trust
from mbrl_bringup.cli import main
from mbrl_bringup.evaluate import dataset_of, fitted, plain, recorded, stored
from mbrl_bringup.evaluate_config import EvaluateConfig
from mbrl_bringup.evidence import MODEL
from mbrl_dynamics.buffer import ReplayBuffer
from mbrl_dynamics.episodes import EpisodeStore, read
from mbrl_dynamics.interfaces import Budget
from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
from mbrl_dynamics.models.observed import ObservationModel
from mbrl_dynamics.models.tdmpc import LatentDynamics
from mbrl_dynamics.snapshot import pack
from mbrl_dynamics.spec import Spec
from mbrl_dynamics.testing import PointMass, point_mass_spec
from mbrl_dynamics.trainer import is_held_out
from mbrl_dynamics.transition import Transition
from mbrl_dynamics.types import Prediction
from mbrl_sim.simulator import Simulator
from mbrl_sim.tasks.cliff import Cliff
from mbrl_sim.tasks.pendulum import Pendulum

WORLD, EPISODES, STEPS = uuid.UUID(int=7).bytes, 6, 60


class Still(ObservationModel):
    """Foretells that nothing changes, and knows no doubt."""

    def step(self, state, action, noise=None):
        return Prediction(state, state)

    def fit(self, buffer, budget, progress=None):
        return {"train_loss": 0.0, "holdout_error": 0.0}


def swing(folder: Path) -> Spec:
    """Episodes of the pendulum under random torques, recorded as by a learner; the second one a person's."""
    task, rng = Pendulum(), np.random.default_rng(0)
    simulator, store = Simulator(task, 0), EpisodeStore(folder, task.spec)
    for episode in range(EPISODES):
        store.add(Transition(WORLD, episode, 0, simulator.reset(), np.zeros(1), first=True))
        for k in range(1, STEPS + 1):
            action = rng.uniform(-2.0, 2.0, 1)
            done = simulator.step(action)
            who, last = "person" if episode == 1 else "icem", k == STEPS
            store.add(
                Transition(
                    WORLD,
                    episode,
                    k,
                    done.observation,
                    action,
                    done.reward,
                    truncated=last,
                    controller_id=who,
                )
            )
    store.close()
    return task.spec


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run whose model was trained on all episodes but the last two."""
    torch.set_num_threads(1)
    spec = swing(tmp_path / "dataset")
    buffer = ReplayBuffer(spec)
    for state in read(tmp_path / "dataset", ("state",)):
        assert isinstance(state, Transition)
        if state.episode < EPISODES - 2:
            buffer.add(state)
    model = Ensemble(spec, EnsembleConfig(members=3, elites=3, hidden=(32,)))
    model.fit(buffer, Budget(300))
    packed = pack(model, model_id="ensemble", run_id=str(uuid.uuid4()), version=2,
                  trained_world_id=WORLD.hex(), trained_episode=EPISODES - 3)  # fmt: skip
    (tmp_path / MODEL).write_bytes(packed.weights)
    (tmp_path / "report.md").write_text("# A run\n\n## How it was made\n\n```\nmbrl demo\n```\n")
    return tmp_path


def test_a_run_is_evaluated_on_what_its_model_has_not_seen(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "--horizon", "20"]) == 0
    shown = capsys.readouterr().out
    assert all(
        text in shown for text in ("angle_cos", "rad/s", "temperature", "return gap", "[steps]", "[nat]")
    )
    found = json.loads((run / trust.RESULT).read_text())
    held_out = int(is_held_out(np.arange((EPISODES - 2) * STEPS)).sum())
    assert found["unseen_steps"] == 2 * STEPS + held_out and found["steps"] == EPISODES * STEPS
    assert len(found["horizon"]["error"]) == 21 and found["horizon"]["error"][0] < 1e-6
    assert 0.0 < found["elements"]["velocity"]["relative"] < 0.5, "something was learned"
    assert found["intervals"]["steps"] > 0 and len(found["lookahead"]["horizons"]) == 3
    assert found["visits"]["ratio"] > 0.0
    gap = found["return_gap"]
    total = gap["expert_error"] + gap["planning_error"] + gap["policy_error"]
    assert total == pytest.approx(gap["expert_true"] - gap["policy_true"], abs=1e-3)
    assert (run / trust.PICTURE).stat().st_size > 10_000


def test_the_report_has_one_section_however_often(run: Path) -> None:
    main(["evaluate", str(run), "--horizon", "5"])
    main(["evaluate", str(run), "--horizon", "5"])
    text = (run / "report.md").read_text()
    assert text.count(trust.TITLE) == 1 and text.count(trust.AFTER) == 1
    assert text.startswith("# A run\n") and text.endswith("mbrl demo\n```\n")
    assert f"]({trust.PICTURE})" in text and "| velocity | rad/s |" in text
    assert trust.trust_section(run)[0] == trust.TITLE and trust.trust_section(run / "dataset") == []


def test_what_a_stored_model_was_trained_on_is_known(run: Path) -> None:
    data = recorded(dataset_of(run))
    subject = stored(run, run / "dataset", data, EvaluateConfig())
    assert subject.whole.nonzero()[0].tolist() == list(range((EPISODES - 2) * STEPS, EPISODES * STEPS))
    assert subject.notes == ()
    old = pack(subject.model.model, model_id="ensemble", run_id="", version=1)
    (run / "old.safetensors").write_bytes(old.weights)
    subject = stored(run, run / "dataset", data, EvaluateConfig(model=str(run / "old.safetensors")))
    assert not subject.whole.any() and (subject.unseen == is_held_out(np.arange(len(data)))).all()
    assert "trained on every episode" in subject.notes[0]


def test_a_fit_anew_never_sees_what_it_is_judged_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        Still, "fit", lambda self, buffer, budget: seen.append(buffer.all().obs["vector"][:, 1])
    )
    data = recorded(run / "dataset")
    subject = fitted(run, run / "dataset", data, EvaluateConfig(model=f"{__name__}:Still"))
    episodes = data.episodes
    assert sorted(set(episodes[subject.unseen])) == [0, EPISODES - 1], "the newest, and each fifth before it"
    assert (subject.unseen == subject.whole).all()
    expected = data.buffer.all().obs["vector"][~subject.unseen, 1]
    assert torch.equal(seen[0], expected)


def test_a_model_without_uncertainty_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run / "elsewhere"
    arguments = ["--model", f"{__name__}:Still", "--out", str(out), "--expert", "nobody"]
    assert main(["evaluate", str(run / "dataset"), *arguments]) == 0
    found = json.loads((out / trust.RESULT).read_text())
    assert found["intervals"] is None and found["elements"]["velocity"]["log_likelihood"] is None
    assert found["elements"]["velocity"]["relative"] == pytest.approx(1.0)
    notes = " ".join(found["notes"])
    assert "says nothing of its uncertainty" in notes and "No episode of an expert ('nobody')" in notes
    assert "total" not in found["return_gap"] and found["return_gap"]["policy_true"] < 0.0
    assert not (run / "dataset" / trust.RESULT).exists()


def test_a_model_that_remembers_is_evaluated_with_what_it_saw_before(run: Path) -> None:
    """A latent that filters, fitted anew: with errors, intervals and returns like any other model."""
    out = run / "elsewhere"
    assert main(["evaluate", str(run / "dataset"), "--model", "latent", "--fit-steps", "100",
                 "--horizon", "5", "--out", str(out)]) == 0  # fmt: skip
    found = json.loads((out / trust.RESULT).read_text())
    assert 0.0 < found["elements"]["velocity"]["relative"] < 1.5 and len(found["horizon"]["error"]) == 6
    assert found["elements"]["velocity"]["log_likelihood"] is not None and found["intervals"]["steps"] > 0
    assert "policy_true" in found["return_gap"]


def failing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["evaluate", *arguments]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1
    return shown


def test_bad_data_get_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    assert "holds no recording" in failing([str(tmp_path / "none")], capsys)
    assert "holds no recording" in failing([str(tmp_path)], capsys)
    store = EpisodeStore(tmp_path / "empty", point_mass_spec())
    store.add(Transition(WORLD, 0, 0, np.zeros(2), np.zeros(1), first=True))
    store.close()
    assert "holds no steps" in failing([str(tmp_path / "empty"), "--model", "ensemble"], capsys)
    store = EpisodeStore(tmp_path / "grid", Cliff().spec)
    for k in range(3):
        store.add(Transition(WORLD, 0, k, np.zeros(1), np.zeros(1), first=not k))
    store.close()
    assert "numbers of cells" in failing([str(tmp_path / "grid"), "--model", "tabular"], capsys)
    assert not list(tmp_path.rglob(trust.RESULT))


def test_a_model_that_does_not_fit_gets_one_sentence(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, path = str(run / "dataset"), run / "other.safetensors"
    assert "name a model to be fitted" in failing([data], capsys)
    assert "unknown model 'ensembel' (did you mean 'ensemble'?)" in failing(
        [data, "--model", "ensembel"], capsys
    )
    assert "there is no model" in failing([data, "--model", str(path)], capsys)
    path.write_bytes(b"nonsense")
    assert "cannot be used" in failing([data, "--model", str(path)], capsys)
    other = Ensemble(point_mass_spec(), EnsembleConfig(members=1, hidden=(4,)))
    path.write_bytes(pack(other, model_id="ensemble", run_id="", version=1).weights)
    assert "is for dynamics hash" in failing([data, "--model", str(path)], capsys)
    latent = LatentDynamics(Pendulum().spec)
    path.write_bytes(pack(latent, model_id="tdmpc", run_id="", version=1).weights)
    assert "does not foretell observations" in failing([data, "--model", str(path)], capsys)
    assert "'horizon' is '0'" in failing([data, "--horizon", "0"], capsys)


def test_one_episode_is_not_enough_for_a_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = EpisodeStore(tmp_path, point_mass_spec())
    for k in range(5):
        store.add(Transition(WORLD, 0, k, np.full(2, 0.1 * k), np.zeros(1), first=not k))
    store.close()
    assert "holds one episode" in failing([str(tmp_path), "--model", "ensemble"], capsys)


def test_plain_values_are_json() -> None:
    value = {"a": np.array([1.0, np.nan]), "b": (1, 2.00000001), "c": {"d": None, "e": "x", "f": math.inf}}
    assert plain(value) == {"a": [1.0, None], "b": [1, 2.0], "c": {"d": None, "e": "x", "f": None}}


def test_sensor_noise_is_what_it_says_and_stays_on_the_circle() -> None:
    rng, task = np.random.default_rng(0), Pendulum()
    obs = np.array([0.6, 0.8, 2.0])
    seen = np.array([calibration.noisy(task.spec, obs, rng) for _ in range(4000)])
    assert np.allclose(np.hypot(seen[:, 0], seen[:, 1]), 1.0)
    angle = np.arctan2(seen[:, 1], seen[:, 0])
    assert angle.mean() == pytest.approx(math.atan2(0.8, 0.6), abs=1e-3)
    assert angle.std() == pytest.approx(calibration.ANGLE, rel=0.05)
    assert seen[:, 2].std() == pytest.approx(calibration.NOISE["rad/s"], rel=0.05)


def test_calibration_is_judged_on_both_kinds_of_motion() -> None:
    data, known = calibration.record("pendulum", 0, episodes=6)
    assert len(known) == 4 * Pendulum.max_steps and len(data) == 6 * Pendulum.max_steps
    unseen = [e for e in range(calibration.EPISODES) if not e % calibration.EVERY][::-1]
    for half in (unseen[::2], unseen[1::2]):  # judged, and what the temperature is fitted to
        kinds = [episode // (2 * calibration.EVERY) % 2 for episode in half]
        assert 2 * sum(kinds) == len(kinds) > 2


def test_a_point_mass_is_its_own_best_model(tmp_path: Path) -> None:
    """The exact model has no error at any horizon, and promises what is got."""
    mass, rng, spec = PointMass(), np.random.default_rng(0), dataclasses.replace(point_mass_spec())
    store = EpisodeStore(tmp_path, spec)
    for episode in range(3):
        state = rng.uniform(-1.0, 1.0, 2)
        store.add(Transition(WORLD, episode, 0, state, np.zeros(1), first=True))
        for k in range(1, 31):
            action = rng.uniform(-1.0, 1.0, 1)
            reward = float(mass.reward(state, action, state))
            state = mass.A @ state + mass.B @ action
            store.add(Transition(WORLD, episode, k, state, 2.0 * action, reward, truncated=k == 30))
    store.close()
    assert main(["evaluate", str(tmp_path), "--model", f"{__name__}:Exact"]) == 0
    found = json.loads((tmp_path / trust.RESULT).read_text())
    assert max(found["horizon"]["error"]) < 1e-5 and found["return_gap"]["policy_error"] == pytest.approx(
        0.0, abs=1e-4
    )
    assert found["lookahead"]["horizons"] == [25, 25, 25]


class Exact(PointMass):
    """The point mass as a plugin."""

    def __init__(self, spec: Spec, config: object = None, *, seed: int = 0) -> None:
        super().__init__()

    def fit(self, buffer, budget, progress=None):
        return {"train_loss": 0.0, "holdout_error": 0.0}
