"""The guard against its specification, docs/safety.md."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mbrl_bringup.guard import SLOWEST, Guard, Phase, Reading, Wanted
from mbrl_bringup.guard_config import Actuator, Bound, GuardConfig
from mbrl_dynamics.errors import UserError

PERIOD = 0.01
JOINTS = (
    Actuator("slide", "position", -1.0, 1.0, rate=2.0),
    Actuator("wheel", "velocity", -3.0, 3.0, rate=10.0),
    Actuator("arm", "effort", -5.0, 5.0, rate=100.0, damping=0.5),
)
CONFIG = GuardConfig(
    joints=JOINTS,
    bounds=(Bound("arm velocity", -8.0, 8.0),),
    period=PERIOD,
    tail_steps=3,
    trip_after=0.1,
    max_age=0.05,
    driver_timeout=0.2,
    slow_above=1.0,
    trip_above=2.0,
)
LOW, HIGH, RATE = (np.array([getattr(j, name) for j in JOINTS]) for name in ("low", "high", "rate"))
STILL = Reading(np.array([0.2, 0.0, 0.0]), np.zeros(3), np.zeros(1))


class Bench:
    """A guard with a clock."""

    def __init__(self, config: GuardConfig = CONFIG) -> None:
        self.guard, self.now, self.reading = Guard(config), 100.0, STILL

    def pass_time(self, seconds: float, wanted: Wanted | None = None) -> list[np.ndarray]:
        """Read and tick once a period; returns the commands."""
        sent = []
        for _ in range(round(seconds / PERIOD)):
            self.now += PERIOD
            self.guard.read(self.reading, self.now)
            command = self.guard.tick(wanted, self.now)
            if command is not None:
                sent.append(command.values)
        return sent

    def running(self) -> "Bench":
        self.pass_time(1.2)
        assert self.guard.arm(self.now) == ""
        assert self.guard.run() == ""
        return self


def wanted(*values: float, **more: float) -> Wanted:
    return Wanted(np.array(values), **more)


def test_disarmed_it_commands_nothing_and_armed_what_is_safe() -> None:
    bench = Bench()
    assert bench.pass_time(1.2) == []
    assert bench.guard.arm(bench.now) == ""
    sent = bench.pass_time(0.05, wanted(1.0, 1.0, 1.0))
    np.testing.assert_allclose(sent, np.tile([0.2, 0.0, 0.0], (5, 1)))  # it stands where it was
    assert bench.guard.phase is Phase.ARMED


def test_what_is_wanted_is_reached_at_the_rates_and_no_limit_is_passed() -> None:
    bench = Bench().running()
    sent = np.array(bench.pass_time(1.0, wanted(7.0, -7.0, 7.0)))
    np.testing.assert_allclose(sent[0], [0.22, -0.1, 1.0])
    np.testing.assert_allclose(sent[-1], [1.0, -3.0, 5.0])


def test_late_is_bridged_by_the_tail_then_by_what_is_safe_and_passes_by_itself() -> None:
    bench = Bench().running()
    bench.pass_time(1.0, wanted(0.5, 2.0, 1.0))
    assert [c[1] for c in bench.pass_time(0.03, wanted(0.5, 2.5, 1.0, tail=3))][-1] == pytest.approx(2.3)
    bench.reading = replace(STILL, velocity=np.array([0.0, 0.0, 4.0]))
    sent = np.array(bench.pass_time(0.02, wanted(0.9, 2.5, 1.0, tail=4)))  # too far in the tail
    np.testing.assert_allclose(sent[-1], [0.5, 2.1, -1.0])  # held, on its way to zero, damped
    assert bench.guard.phase is Phase.RUNNING and bench.guard.late_periods == 5
    assert bench.pass_time(0.01, wanted(0.5, 2.2, 0.0))[0][1] == pytest.approx(2.2)


def test_late_for_too_long_trips_and_only_arming_lets_it_move_again() -> None:
    bench = Bench().running()
    bench.pass_time(0.05, wanted(0.3, 0.0, 0.0))
    bench.pass_time(0.1)
    assert bench.guard.phase is Phase.RUNNING
    bench.pass_time(0.03)
    assert bench.guard.phase is Phase.TRIPPED and "late" in bench.guard.reason
    sent = bench.pass_time(0.5, wanted(0.9, 3.0, 3.0))
    np.testing.assert_allclose(sent, np.tile([0.3, 0.0, 0.0], (50, 1)))
    assert "well for" in bench.guard.arm(bench.now)
    bench.pass_time(0.6)
    assert bench.guard.arm(bench.now) == "" and bench.guard.reason == ""


def test_the_first_answer_of_an_episode_has_time() -> None:
    bench = Bench().running()
    bench.pass_time(3.0)
    assert bench.guard.phase is Phase.RUNNING


def test_old_readings_are_late_not_wrong() -> None:
    bench = Bench().running()
    want = wanted(0.3, 1.0, 1.0)
    bench.pass_time(0.2, want)
    for _ in range(8):  # the sensors fall silent
        bench.now += PERIOD
        command = bench.guard.tick(want, bench.now)
    assert bench.guard.phase is Phase.RUNNING and command.safe
    assert command.values[2] == 0.0  # an old velocity damps nothing
    for _ in range(10):
        bench.now += PERIOD
        bench.guard.tick(want, bench.now)
    assert bench.guard.phase is Phase.TRIPPED


def test_disagreement_slows_down_and_then_trips() -> None:
    bench = Bench().running()
    free = bench.pass_time(0.01, wanted(1.0, 3.0, 0.0, disagreement=0.9))[0]
    slow = bench.pass_time(0.01, wanted(1.0, 3.0, 0.0, disagreement=1.5))[0]
    speed = (1.0 + SLOWEST) / 2
    assert bench.guard.speed == pytest.approx(speed)
    assert slow[0] - free[0] == pytest.approx(speed * 0.02)
    assert bench.pass_time(1.0, wanted(1.0, 2.0, 0.0, disagreement=1.5))[-1][1] == pytest.approx(2 * speed)
    assert bench.pass_time(1.0, wanted(1.0, 2.0, 0.0))[-1][1] == 2.0  # unknown is no reason to be slow
    bench.pass_time(0.01, wanted(1.0, 2.0, 0.0, disagreement=2.0))
    assert bench.guard.phase is Phase.TRIPPED and "disagreement" in bench.guard.reason


WRONG = {
    "the action is not finite": lambda b: b.guard.tick(wanted(0.0, math.nan, 0.0), b.now),
    "the action has 2 elements": lambda b: b.guard.tick(wanted(0.0, 0.0), b.now),
    "the position of 'slide' is not finite": lambda b: b.guard.read(
        replace(STILL, position=np.full(3, math.nan)), b.now
    ),
    "the velocity of 'arm' is not finite": lambda b: b.guard.read(
        replace(STILL, velocity=np.array([0.0, 0.0, math.inf])), b.now
    ),
    "'arm velocity' is 8.1, not within -8 and 8": lambda b: b.guard.read(
        replace(STILL, watched=np.array([8.1])), b.now
    ),
    "'arm velocity' is nan": lambda b: b.guard.read(replace(STILL, watched=np.array([math.nan])), b.now),
    "the emergency stop was pressed": lambda b: b.guard.stop(True, b.now),
    "1 other publisher on a command topic": lambda b: b.guard.publishers(1, b.now),
    "nothing was commanded for 0.20 s": lambda b: b.guard.tick(wanted(0.0, 0.0, 0.0), b.now + 0.2),
}


@pytest.mark.parametrize("reason", WRONG)
def test_wrong_is_latched_at_once(reason: str) -> None:
    bench = Bench().running()
    bench.pass_time(0.1, wanted(0.3, 1.0, 1.0))
    WRONG[reason](bench)
    assert bench.guard.phase is Phase.TRIPPED and bench.guard.reason.startswith(reason)
    assert (
        "well for" in bench.guard.arm(bench.now)
        or "no good reading" in bench.guard.arm(bench.now)
        or (bench.guard._stopped or bench.guard._others)
    )
    bench.pass_time(0.2, wanted(0.3, 1.0, 1.0))
    assert bench.guard.phase is Phase.TRIPPED and bench.guard.reason.startswith(reason)


def test_what_presses_on_must_be_released_before_it_is_armed() -> None:
    bench = Bench()
    bench.guard.stop(True, bench.now)
    bench.pass_time(1.5)
    assert bench.guard.arm(bench.now) == "the emergency stop is pressed"
    bench.guard.stop(False, bench.now)
    bench.guard.publishers(2, bench.now)
    assert bench.guard.arm(bench.now) == "2 other publishers on a command topic"
    bench.guard.publishers(0, bench.now)
    bench.pass_time(1.1)
    assert bench.guard.arm(bench.now) == ""


def test_a_heartbeat_that_is_lost_trips_also_while_nothing_moves() -> None:
    bench = Bench(replace(CONFIG, heartbeat=0.1))
    bench.pass_time(1.2)
    assert bench.guard.arm(bench.now) == "the emergency stop sends no heartbeat"
    bench.guard.heartbeat(bench.now)
    bench.pass_time(0.05)
    bench.guard.heartbeat(bench.now)
    assert "well for" in bench.guard.arm(bench.now)
    for _ in range(30):
        bench.guard.heartbeat(bench.now)
        bench.pass_time(0.05)
    assert bench.guard.arm(bench.now) == ""
    bench.pass_time(0.2)
    assert bench.guard.phase is Phase.TRIPPED and "heartbeat" in bench.guard.reason


def test_a_driver_without_a_timeout_is_armed_only_on_purpose() -> None:
    bench = Bench(replace(CONFIG, driver_timeout=0.0))
    bench.pass_time(1.2)
    assert "'wheel' is commanded by velocity and its driver has no timeout" in bench.guard.arm(bench.now)
    assert bench.guard.phase is Phase.DISARMED
    assert bench.guard.arm(bench.now, without_timeout=True) == ""
    still = Bench(replace(CONFIG, joints=JOINTS[:1], driver_timeout=0.0))
    still.reading = Reading(np.zeros(1), np.zeros(1), np.zeros(1))
    still.pass_time(1.2)
    assert still.guard.arm(still.now) == ""  # a position is held by the driver itself


def test_a_joint_outside_its_limits_is_not_armed() -> None:
    bench = Bench()
    bench.reading = replace(STILL, position=np.array([1.5, 0.0, 0.0]))
    bench.pass_time(1.2)
    assert bench.guard.arm(bench.now).startswith("'slide' stands at 1.5, not within -1 and 1")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"tail_steps": 10}, "trip_after is 0.1 s, but must be longer than the 10 periods"),
        ({"slow_above": 2.0}, "slow_above is 2.0, but must be below trip_above"),
        ({"joints": (JOINTS[0], JOINTS[0])}, "joint 'slide' appears twice"),
        ({"joints": (replace(JOINTS[0], low=1.0),)}, "'slide' has low 1.0, which must be below its high"),
        (
            {"joints": (replace(JOINTS[1], low=1.0),)},
            "'wheel' may command 1.0 to 3.0, but zero must be among",
        ),
        ({"joints": (replace(JOINTS[1], damping=1.0),)}, "'wheel' has damping, but is commanded by velocity"),
        ({"bounds": (Bound("x", 1.0, 1.0),)}, "'x' has low 1.0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(change: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Guard(replace(CONFIG, **change))


def test_it_loads_no_torch() -> None:
    code = "import sys, mbrl_bringup.guard; sys.exit('torch' in sys.modules or 'rclpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


numbers = st.floats(allow_nan=True, allow_infinity=True, width=32) | st.floats(-2.0, 2.0)
vectors = st.lists(numbers, min_size=3, max_size=3).map(np.array) | st.lists(numbers, max_size=4).map(
    np.array
)


class Anything(RuleBasedStateMachine):
    """Whatever comes in, in whatever order: what goes out is finite, limited, and only what is allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.guard, self.now = Guard(CONFIG), 50.0
        self.sent: np.ndarray | None = None
        self.good_since = math.inf  # as the specification sees it: since when nothing was wrong
        self.read_at = -math.inf
        self.pressed, self.others = False, 0

    @rule(seconds=st.sampled_from([0.0, 0.001, PERIOD, PERIOD, 0.04, 0.06, 0.12, 0.5, 1.1]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def all_is_well_for_a_while(self) -> None:
        self.pressed, self.others = False, 0
        self.guard.stop(False, self.now)
        self.guard.publishers(0, self.now)
        for _ in range(28):
            self.now += 4 * PERIOD
            self.guard.read(STILL, self.now)
            self.note_good()
            self.tick(None)

    @rule(position=vectors, velocity=vectors, watched=numbers)
    def reads(self, position: np.ndarray, velocity: np.ndarray, watched: float) -> None:
        if position.size != 3 or velocity.size != 3:
            return  # the bridge makes readings by name: they always have their length
        self.guard.read(Reading(position, velocity, np.array([watched])), self.now)
        good = math.isfinite(position[0]) and math.isfinite(velocity[2]) and -8.0 <= watched <= 8.0
        if good:
            self.note_good()
        else:
            self.good_since = math.inf
            assert self.guard.phase in (Phase.DISARMED, Phase.TRIPPED)

    def note_good(self) -> None:
        if math.isinf(self.good_since) or self.now - self.read_at > CONFIG.max_age:
            self.good_since = self.now
        self.read_at = self.now

    @rule(pressed=st.booleans())
    def emergency_stop(self, pressed: bool) -> None:
        self.pressed = pressed
        self.guard.stop(pressed, self.now)
        assert not pressed or self.guard.phase in (Phase.DISARMED, Phase.TRIPPED)

    @rule(others=st.integers(0, 2))
    def others_publish(self, others: int) -> None:
        self.others = others
        self.guard.publishers(others, self.now)
        assert not others or self.guard.phase in (Phase.DISARMED, Phase.TRIPPED)

    @rule()
    def arms(self) -> None:
        before, refused = self.guard.phase, self.guard.arm(self.now)
        if refused:
            assert self.guard.phase is before
        else:
            assert before in (Phase.DISARMED, Phase.TRIPPED)
            assert not self.pressed and not self.others
            assert self.now - self.good_since >= CONFIG.healthy_for
            assert self.now - self.read_at <= CONFIG.max_age
            self.sent = None

    @rule()
    def begins_an_episode(self) -> None:
        """Most of what matters happens while it runs, which chance alone seldom brings about."""
        self.disarms()
        self.all_is_well_for_a_while()
        self.arms()
        self.runs()
        assert self.guard.phase is Phase.RUNNING

    @rule()
    def runs(self) -> None:
        before, refused = self.guard.phase, self.guard.run()
        assert (refused == "") == (before is Phase.ARMED)

    @rule()
    def rests(self) -> None:
        before = self.guard.phase
        self.guard.rest()
        assert self.guard.phase is (Phase.ARMED if before is Phase.RUNNING else before)

    @rule()
    def disarms(self) -> None:
        self.guard.disarm()
        self.sent = None

    @rule(
        values=vectors,
        tail=st.integers(-1, 5),
        disagreement=st.sampled_from([math.nan, 0.0, 1.5, 3.0, math.inf]),
    )
    def ticks(self, values: np.ndarray, tail: int, disagreement: float) -> None:
        self.tick(Wanted(values, tail, disagreement))

    @precondition(lambda self: self.guard.phase is Phase.RUNNING)
    @rule(
        values=st.tuples(*[st.floats(-9.0, 9.0)] * 3).map(np.array),
        tail=st.sampled_from([0, 0, 0, -1, 3, 4]),
        periods=st.integers(1, 15),
    )
    def moves(self, values: np.ndarray, tail: int, periods: int) -> None:
        for _ in range(periods):
            self.now += PERIOD
            self.guard.read(STILL, self.now)
            self.note_good()
            self.tick(Wanted(values, tail))

    def tick(self, wanted: Wanted | None) -> None:
        before = self.guard.phase
        command = self.guard.tick(wanted, self.now)
        after = self.guard.phase
        assert (command is None) == (after is Phase.DISARMED)
        assert after in (before, Phase.TRIPPED)  # a tick never arms, runs or disarms
        if command is None:
            return
        assert command.values.shape == (3,) and np.isfinite(command.values).all()
        assert (command.values >= LOW).all() and (command.values <= HIGH).all()
        if self.sent is not None:
            assert (np.abs(command.values - self.sent) <= RATE * PERIOD + 1e-9).all()
            if command.safe:
                assert command.values[0] == self.sent[0]  # a position is held
                assert abs(command.values[1]) <= abs(self.sent[1])  # a velocity only ends
        if not command.safe:
            assert after is Phase.RUNNING and wanted is not None and 0 <= wanted.tail <= CONFIG.tail_steps
            assert self.now - self.read_at <= CONFIG.max_age
            assert not (self.pressed or self.others)
        self.sent = command.values

    @invariant()
    def a_trip_has_a_reason(self) -> None:
        assert (self.guard.phase is not Phase.TRIPPED) or self.guard.reason


Anything.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
test_whatever_happens = Anything.TestCase
