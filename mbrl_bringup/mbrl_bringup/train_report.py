"""The report of a training: its learning curve, an episode of the agent, and what its model makes of it.

It can be written at any time, also of a training that was interrupted, and written again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mbrl_bringup import training_result
from mbrl_bringup.evidence import MODEL, load_model
from mbrl_bringup.report import CURVE, FORECAST, attempt, minutes
from mbrl_bringup.result import atomic_write
from mbrl_bringup.training_result import TrainingResult
from mbrl_bringup.trust_section import markdown_table, trust_section
from mbrl_dynamics.errors import UserError

STRIP, VIDEO = "imagined_against_happened.png", "evaluation_episode.webm"
MARKS = ("frames", "steps", "updates", "minutes", "score", "std", "lowest", "highest")

FILES = (
    "`train.yaml` holds the arguments that it began with, `config.yaml` all of them with the parameters, "
    "`dataset/` what happened (MCAP), `checkpoint/` the agent to go on with or to deploy, `events.out.*` the "
    "curves of everything (`tensorboard --logdir` this folder)."
)


def is_training(folder: Path) -> bool:
    """Whether a run's folder is that of a training."""
    try:
        return "evaluation" in json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        return False


def write_report(folder: Path, *, video: bool = True, play: bool = True) -> str:
    """Write report.md with its pictures and the video into a training's folder.

    A part that cannot be made is left out, and the report says why.

    Args:
        folder: of the training.
        video: whether the episode is filmed.
        play: whether an episode is played at all.

    Returns:
        The essence, for the terminal.
    """
    from mbrl_bringup import plots  # matplotlib takes a while to load

    result = training_result.read(folder)
    notes: list[str] = []
    if result.episodes or result.evaluations:
        attempt(lambda: plots.training_curve(result, folder / CURVE), "the learning curve", notes)
    episode = _episode(folder, video, notes) if play else []
    text = "\n".join([*_head(result, folder), *episode, *_tail(result, folder, notes)]) + "\n"
    atomic_write(folder / "report.md", text)
    marks = markdown_table(MARKS, mark_rows(result)[-3:]) if result.evaluations else ["no evaluation yet"]
    return "\n".join(["", *marks, *notes, f"report: {folder / 'report.md'}"])


def mark_rows(result: TrainingResult) -> list[tuple[str, ...]]:
    """The evaluations, one row each."""
    return [
        (
            str(mark.frames),
            str(mark.env_steps),
            str(mark.updates),
            f"{mark.wall_s / 60.0:.1f}",
            f"{mark.score:.1f}",
            f"{mark.spread:.1f}",
            f"{min(mark.returns):.1f}",
            f"{max(mark.returns):.1f}",
        )
        for mark in result.evaluations
    ]


def _head(result: TrainingResult, folder: Path) -> list[str]:
    model = f", model `{result.model}` with the reward {result.reward}" if result.model else ""
    lines = [
        f"# {result.task}: {result.agent}{'' if result.finished else ', an interrupted training'}",
        "",
        f"Agent `{result.agent}`{model}, seed {result.seed}; {result.frames} frames ({result.env_steps} "
        f"steps of {result.control_period_s:g} s, {len(result.episodes)} episodes) in "
        f"{minutes(result.wall_s)}.",
        "",
    ]
    if (folder / CURVE).exists():
        lines += [f"![Return of evaluations and episodes]({CURVE})", ""]
    if result.evaluations:
        count = len(result.evaluations[-1].returns)
        lines += [
            f"Evaluations: {count} episodes with the deterministic policy, on seeds of their own.",
            "",
            *markdown_table(MARKS, mark_rows(result)),
            "",
        ]
    return lines


def _episode(folder: Path, video: bool, notes: list[str]) -> list[str]:
    """Play an evaluation episode: its video, and what the agent's model foretells of it."""
    from mbrl_bringup import playback

    try:
        played = playback.play(folder, film=video)
    except (UserError, RuntimeError) as error:
        notes.append(f"No episode could be played: {error}.")
        return []
    lines = ["## An evaluation episode", "", f"Its return is {played.ret:.1f}.", ""]
    if video:
        why = playback.write_film(played, folder / VIDEO)
        if why:
            notes.append(f"There is no video: {why}.")
        else:
            lines += [f"[Video of the episode]({VIDEO})", ""]
    attempt(lambda: lines.extend(_imagined(folder, played)), "what the model foretells", notes)
    return lines


def _imagined(folder: Path, played: Any) -> list[str]:
    """Pictures of the episode as the model imagines it; nothing for an agent without a model."""
    from mbrl_bringup import imagination, plots

    world = getattr(played.agent, "world", None)
    if world is None and (folder / MODEL).is_file():
        world = load_model(folder / MODEL, played.spec)
    if world is None or not world.capabilities.decodes:
        return []
    lines: list[str] = []
    if played.spec.observation_dim:
        found = imagination.forecasts(world, played.spec, played.states)
        happened = np.stack([state.observation for state in played.states])
        over = "the draws" if world.capabilities.recurrent else "the ensemble"
        plots.predicted_against_happened(played.spec, happened, found, folder / FORECAST, over)
        errors = plots.error_by_horizon(happened, found)
        shown = ", ".join(f"{errors[h]:.3f} after {h} steps" for h in (1, 5, 10, 25) if h < len(errors))
        lines += [
            "From several States of this episode on, which it was not trained on, the newest model predicts "
            "what the executed actions lead to, without looking again. RMS error in standard deviations of "
            f"what happened: {shown}.",
            "",
            f"![Predicted against happened, by element of the observation]({FORECAST})",
            "",
        ]
    strips = imagination.strip(world, played.spec, played.states)
    if strips:
        plots.imagined_strip(strips, played.spec.control_period, folder / STRIP)
        lines += [f"![Imagined images against what happened]({STRIP})", ""]
    return lines


def _tail(result: TrainingResult, folder: Path, notes: list[str]) -> list[str]:
    lines = [f"{note}\n" for note in notes]
    if result.events:
        lines += ["## Events", "", *(f"- {event}" for event in result.events), ""]
    settings = yaml.safe_dump(result.settings, sort_keys=False) if result.settings else "all as by default\n"
    lines += trust_section(folder)
    where = f"Commit {result.commit or 'unknown'}, on {result.machine or 'an unknown machine'}."
    made = ["```", result.command, "```", "", where, "", "What differs from the defaults:", ""]
    return [*lines, "## How it was made", "", *made, "```yaml", settings.rstrip(), "```", "", FILES]
