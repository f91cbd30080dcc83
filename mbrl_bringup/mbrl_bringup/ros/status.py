"""`mbrl status`: what the latched topics of a running stack say."""

from __future__ import annotations

import sys
import time

import rclpy
from rclpy.signals import SignalHandlerOptions

from mbrl_bringup.ros.client import StackClient
from mbrl_msgs.msg import GuardStatus, LearnerStatus, ModelStatus, PolicyStatus, Spec, WorldStatus

NOTHING_HEARD = 1  # exit code
SETTLE = 0.5  # after the first message the others are not far [s]

_WORLD = {
    WorldStatus.NEEDS_RESET: "needs a reset",
    WorldStatus.RUNNING: "running",
    WorldStatus.PAUSED: "paused",
    WorldStatus.RESETTING: "resetting",
}
_MODE = {
    WorldStatus.LOCKSTEP: "lock-step",
    WorldStatus.REALTIME: "real time",
    WorldStatus.FREE: "free-running",
}
_POLICY = {
    PolicyStatus.IDLE: "idle",
    PolicyStatus.LEARNING: "learning",
    PolicyStatus.FAILED: "failed",
    PolicyStatus.OFF: "acts only",
}
_GUARD = {
    GuardStatus.DISARMED: "disarmed",
    GuardStatus.ARMED: "armed",
    GuardStatus.RUNNING: "running",
    GuardStatus.TRIPPED: "tripped",
}
_LEARNER = {
    LearnerStatus.IDLE: "idle",
    LearnerStatus.TRAINING: "training",
    LearnerStatus.FAILED: "failed",
}


def print_status(namespace: str, wait: float) -> int:
    """Listen for at most `wait` [s] and print; returns the exit code, 1 if nothing was heard."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    client = StackClient(namespace)
    try:
        begin = time.monotonic()
        client.wait_for(lambda: all((client.spec, client.world, _deciders(client))), timeout=wait)
        client.spin(min(SETTLE, max(0.0, wait - (time.monotonic() - begin))))
    finally:
        client.close()
        rclpy.try_shutdown()
    if not any((client.spec, client.world, client.learner, client.models, client.policy)):
        where = f"namespace '{namespace}'" if namespace else "no namespace"
        print(f"nothing is running ({where}, nothing heard for {wait:g} s)", file=sys.stderr)
        return NOTHING_HEARD
    for text in (
        spec_text(client.spec),
        world_text(client.world),
        *([] if client.guard is None else [guard_text(client.guard)]),
        *([] if client.policy is None else [policy_text(client.policy)]),
        *([] if client.policy is not None and client.learner is None else [learner_text(client.learner)]),
        *(model_text(status) for _, status in sorted(client.models.items())),
    ):
        print(text)
    return 0


def _deciders(client: StackClient) -> bool:
    """Whether a policy, or a planner and its learner, have been heard."""
    return client.policy is not None or bool(client.learner and client.models)


def policy_text(status: PolicyStatus) -> str:
    """The policy and its learning, in a few lines."""
    metrics = ", ".join(f"{n} {v:.3g}" for n, v in zip(status.metric_names, status.metrics, strict=True))
    lines = [
        f"policy    {status.agent}, {_POLICY.get(status.status, '?')}: {status.updates} updates "
        f"({status.owed} owed, {status.acting_updates} behind the policy in use) on {status.env_steps} steps",
        f"          {status.swaps} swaps, {status.refused} policies refused, "
        f"{status.missed_deadlines} deadlines missed, {status.restarts} restarts",
    ]
    lines += [f"          {metrics}"] if metrics else []
    lines += [f"          {event}" for event in status.events]
    lines += [f"          error: {status.error_msg}"] if status.error_msg else []
    return "\n".join(lines)


def spec_text(spec: Spec | None) -> str:
    """The task, in one line."""
    if spec is None:
        return "task      unknown"
    observation = ", ".join(f"{element.name} [{element.unit}]" for element in spec.observation)
    action = ", ".join(f"{element.name} [{element.unit}]" for element in spec.action)
    return f"task      {spec.task}: {observation} -> {action}, every {spec.control_period:g} s"


def world_text(world: WorldStatus | None) -> str:
    """The world, in a few lines."""
    if world is None:
        return "world     not heard"
    lines = [
        f"world     {_WORLD.get(world.status, '?')}, {_MODE.get(world.mode, '?')}, "
        f"episode {world.episode}, step {world.step}, {world.real_time_factor:.2f} x real time",
        f"          controlled by {world.controller_id or 'nobody'}: {world.accepted} actions accepted, "
        f"{world.refused} refused, {world.missed_steps} steps missed, {world.repeated} States repeated",
    ]
    if world.last_refusal:
        lines.append(f"          last refusal: {world.last_refusal}")
    if world.last_fault:
        lines.append(f"          last fault: {world.last_fault}")
    return "\n".join(lines)


def guard_text(guard: GuardStatus) -> str:
    """The guard of a robot, in a line or two."""
    lines = [f"guard     {_GUARD.get(guard.phase, '?')}, {guard.late_periods} periods late"]
    if guard.passive:
        lines[0] += ", a dry run: nothing is commanded"
    if guard.speed < 1.0:
        lines[0] += f", slowed down to {guard.speed:.0%}"
    lines += [f"          tripped: {guard.reason}"] if guard.reason else []
    lines += [f"          cannot be armed: {guard.refusal}"] if guard.refusal else []
    return "\n".join(lines)


def learner_text(learner: LearnerStatus | None) -> str:
    """The learner, in a few lines."""
    if learner is None:
        return "learner   not heard"
    recording = "recording" if learner.recording else "not recording"
    lines = [
        f"learner   {_LEARNER.get(learner.status, '?')}, version {learner.version}, {learner.transitions} "
        f"transitions of {learner.episodes} episodes, {recording}",
        f"          held-out error {learner.holdout_error:.4f}, last fit {learner.fit_seconds:.1f} s, "
        f"{learner.refused} States refused, {learner.gaps} gaps",
    ]
    if learner.error_msg:
        lines.append(f"          error: {learner.error_msg}")
    return "\n".join(lines)


def model_text(status: ModelStatus) -> str:
    """The model that one node uses, in a line or two."""
    used = f"{status.model_id} version {status.version}" if status.in_use else "no model"
    lines = [
        f"model     {status.node}: {used}, error {status.error:.3g}, {status.swaps} swaps, "
        f"{status.refused} updates refused, {status.rollbacks} given up"
    ]
    lines += [f"          last refusal: {status.last_refusal}"] if status.last_refusal else []
    lines += [f"          error: {status.error_msg}"] if status.error_msg else []
    return "\n".join(lines)
