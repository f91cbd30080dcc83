"""A model as bytes: the same model comes back, and whatever is wrong is found and named."""

import hashlib
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_model import LinearConfig, LinearModel
from worlds import OTHER_SPEC, SPEC

from mbrl_dynamics import snapshot as snapshots
from mbrl_dynamics.models.ensemble import Ensemble, EnsembleConfig
from mbrl_dynamics.snapshot import Snapshot, check, pack, restore

RUN = "11111111-0000-0000-0000-000000000000"


def make(version: int = 3, model=None, **changes) -> Snapshot:
    packed = pack(
        model or LinearModel(SPEC, seed=1),
        model_id="linear",
        run_id=RUN,
        version=version,
        trained_world_id="ab",
        trained_episode=4,
        metrics={"holdout_error": 0.5},
    )
    return replace(packed, **changes)


@pytest.mark.parametrize(
    "model", [LinearModel(SPEC, seed=1), Ensemble(SPEC, EnsembleConfig(members=2, hidden=(8, 8)), seed=1)]
)
def test_round_trip(model) -> None:
    packed = make(model=model)
    assert check(packed, SPEC, model_id="linear") == ""
    copy = restore(packed, SPEC, type(model))
    assert copy.config == model.config
    assert copy.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, copy.state_dict()[name]) for name, value in model.state_dict().items())


def test_it_does_not_change_with_the_model() -> None:
    model = LinearModel(SPEC)
    packed = make(model=model)
    before = packed.weights
    with torch.no_grad():
        model.weight.zero_()
    assert packed.weights == before
    assert not torch.equal(restore(packed, SPEC, LinearModel).weight, model.weight)


def with_nan() -> LinearModel:
    model = LinearModel(SPEC)
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    return model


@pytest.mark.parametrize(
    "packed, reason",
    [
        (make(weights=make().weights[:-1]), "truncated or altered"),
        (make(weights=b""), "truncated or altered"),
        (make(dynamics_hash=OTHER_SPEC.dynamics_hash), "is for dynamics hash"),
        (make(model_id="ensemble"), "is a model 'ensemble', but 'linear' is wanted"),
        (make(version=2), "is not newer than version 2"),
        (make(version=1), "is not newer than version 2"),
        (make(model=with_nan()), "not finite: 'weight'"),
        (make(trained_episode=9), "contradicts itself: trained_episode is 9, but 4 inside"),
        (make(architecture='{"ridge":1.0}'), "contradicts itself: architecture"),
    ],
)
def test_what_is_wrong_is_refused(packed: Snapshot, reason: str) -> None:
    assert reason in check(packed, SPEC, model_id="linear", current=make(version=2))


def test_another_run_may_start_over() -> None:
    assert check(make(version=1), SPEC, model_id="linear", current=replace(make(), run_id="another")) == ""


def test_too_large_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(snapshots, "MAX_BYTES", 100)
    assert "100 are the limit" in check(make(), SPEC, model_id="linear")


def resealed(data: bytes) -> Snapshot:
    return make(weights=data, sha256=hashlib.sha256(data).hexdigest())


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_bytes_break_it(data) -> None:
    """Damage that somebody even sealed with a right digest is refused or harmless, never an exception."""
    weights = bytearray(make().weights)
    for _ in range(data.draw(st.integers(1, 4))):
        weights[data.draw(st.integers(0, len(weights) - 1))] = data.draw(st.integers(0, 255))
    damaged = resealed(bytes(weights[: data.draw(st.integers(0, len(weights)))]))
    reason = check(damaged, SPEC, model_id="linear")
    if not reason:
        with suppress(ValueError):
            restore(damaged, SPEC, LinearModel)


@pytest.mark.parametrize(
    "tensors, reason",
    [
        ({}, "lacks the tensor 'weight'"),
        ({"weight": torch.zeros(4, 2), "more": torch.zeros(1)}, "has a tensor 'more'"),
        ({"weight": torch.zeros(2, 4)}, r"\[2, 4\] where its architecture wants torch.float32 \[4, 2\]"),
        ({"weight": torch.zeros(4, 2, dtype=torch.double)}, "float64"),
    ],
)
def test_tensors_must_be_those_of_the_architecture(tensors, reason: str) -> None:
    manifest = snapshots.from_bytes(make().weights)[1]
    with pytest.raises(ValueError, match=reason):
        restore(resealed(snapshots.to_bytes(tensors, manifest)), SPEC, LinearModel)


@pytest.mark.parametrize("text", ["{", "[]", '{"layers":3}', '{"ridge":-1.0}'])
def test_architecture_must_be_one(text: str) -> None:
    model = LinearModel(SPEC)
    manifest = snapshots.from_bytes(make().weights)[1] | {"architecture": text}
    packed = resealed(snapshots.to_bytes(model.state_dict(), manifest))
    with pytest.raises(ValueError, match="cannot be built"):
        restore(replace(packed, architecture=text), SPEC, LinearModel)


def test_restore_does_not_take_other_dynamics() -> None:
    with pytest.raises(ValueError, match="another dynamics hash"):
        restore(make(), OTHER_SPEC, LinearModel)


def test_architecture_is_canonical() -> None:
    assert json.loads(make().architecture) == {"ridge": 1e-6, "fail": False, "hold": ""}
    assert snapshots.architecture(LinearConfig()) == '{"fail":false,"hold":"","ridge":1e-06}'


def test_a_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "new" / "file"
    snapshots.write_atomically(path, b"one")

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshots.os, "replace", full)
    with pytest.raises(OSError):
        snapshots.write_atomically(path, b"two")
    assert path.read_bytes() == b"one"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("hidden", [(50_000, 50_000), (1,) * 30_000])
def test_a_few_words_cannot_take_the_memory(hidden: tuple[int, ...]) -> None:
    packed = make(model=Ensemble(SPEC, EnsembleConfig(members=2, hidden=(8,))))
    told = snapshots.architecture(EnsembleConfig(members=2, hidden=hidden))
    tensors, manifest = snapshots.from_bytes(packed.weights)
    weights = snapshots.to_bytes(tensors, manifest | {"architecture": told})
    forged = replace(packed, architecture=told, weights=weights, sha256=hashlib.sha256(weights).hexdigest())
    assert check(forged, SPEC, model_id="linear") == ""
    with pytest.raises(ValueError, match="cannot be built: it would take more memory"):
        restore(forged, SPEC, Ensemble)
