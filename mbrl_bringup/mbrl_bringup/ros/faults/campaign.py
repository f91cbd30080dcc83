"""Which faults there are, what must hold, and how often each is tried."""

from __future__ import annotations

import importlib
import math
import time
import traceback
from dataclasses import dataclass
from typing import Any

from mbrl_bringup.ros.faults.outcome import Outcome


@dataclass(frozen=True)
class Fault:
    """One line of the table in docs/safety.md.

    Attributes:
        name: what it is called.
        must_hold: in one sentence.
        inflict: module.function below this package; it gets an Outcome, the amount and the seed.
        quick, full: the amount: trials, or what the function says.
        seconds: after which no trial of the quick campaign begins, so that it ends in time on a busy machine.
    """

    name: str
    must_hold: str
    inflict: str
    quick: int
    full: int
    seconds: float


_FINITE = "every command is finite, of its length and within its limits"
_SAFE = "the last command is safe within T_trip and a period"
_READABLE = "all is readable, at most 1 s of data is lost"
_REFUSED = "none is taken, none runs, memory rises by less than 50 MB"
_ENDED = "a safe command last, all gone within 5 s, exit 0, data valid"

FAULTS = (  # the most dangerous first
    Fault("generated_core", f"{_FINITE}, and as fast as its rate", "generated_faults.core", 10**5, 10**6, 60),
    Fault("generated", _FINITE, "generated_faults.over_dds", 10_000, 10**5, 45),
    Fault("planner_killed", _SAFE, "planner_faults.killed", 60, 200, 85),
    Fault("planner_real", _SAFE, "planner_faults.killed_real", 24, 48, 50),
    Fault("rogue", "it trips within two periods", "bridge_faults.rogue", 24, 200, 40),
    Fault("table", "no point of the arm leaves its workspace", "table_faults.table", 6, 60, 35),
    Fault("planner_late", "no command from a plan older than k steps", "planner_faults.late", 20, 600, 40),
    Fault("bridge_killed", "the driver's own timeout ends the force", "bridge_faults.killed", 24, 200, 45),
    Fault("no_timeout", "arming is refused where none is declared", "bridge_faults.undeclared", 20, 100, 10),
    Fault("signals", _ENDED, "signal_faults.bridge", 24, 100, 50),
    Fault("signals_stack", _ENDED, "signal_faults.stack", 3, 60, 25),
    Fault("learner_killed", _READABLE, "learner_faults.killed", 100, 300, 50),
    Fault("learner_real", _READABLE, "learner_faults.killed_real", 3, 30, 30),
    Fault("updates_core", _REFUSED, "model_faults.core", 7, 1, 40),
    Fault("updates", _REFUSED, "model_faults.over_dds", 100, 1000, 45),
    Fault("worse_weights", "none is taken", "worse_weights.worse", 20, 100, 60),
    Fault("disk", "an error in the status, control goes on", "learner_faults.disk", 3, 30, 55),
    Fault("clock", "no transition across, no watchdog waits", "clock_faults.clock", 20, 200, 35),
    Fault("namespaces", "no message crosses", "clock_faults.namespaces", 15, 120, 40),
)


def inflict(fault: Fault, full: bool, seed: int) -> dict[str, Any]:
    """Try one fault, and print its verdict."""
    print(f"{fault.name:<16} ...", flush=True)
    outcome, begin = Outcome(fault.name, fault.must_hold), time.monotonic()
    outcome.deadline = begin + (math.inf if full else fault.seconds)
    module, _, function = fault.inflict.partition(".")
    try:
        run = getattr(importlib.import_module(f"mbrl_bringup.ros.faults.{module}"), function)
        run(outcome, fault.full if full else fault.quick, seed)
    except Exception as error:
        outcome.tried(f"the trial broke off: {error}")
        traceback.print_exc()
    outcome.figures["seconds"] = round(time.monotonic() - begin, 1)
    print(f"{outcome.line()}  ({outcome.figures['seconds']:.0f} s)", flush=True)
    return outcome.json()
