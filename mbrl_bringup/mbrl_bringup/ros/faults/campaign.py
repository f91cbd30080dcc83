"""Which faults there are, what must hold, and how often each is tried."""

from __future__ import annotations

import importlib
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
    """

    name: str
    must_hold: str
    inflict: str
    quick: int
    full: int


_FINITE = "every command is finite, of its length and within its limits"
_SAFE = "the last command is safe within T_trip and a period"
_REFUSED = "none is taken, none runs, memory rises by less than 50 MB"
_ENDED = "a safe command last, all gone within 5 s, exit 0, data valid"

FAULTS = (  # the most dangerous first
    Fault(
        "generated_core",
        f"{_FINITE}, and changes no faster than its rate",
        "generated_faults.core",
        10**5,
        10**6,
    ),
    Fault("generated", _FINITE, "generated_faults.over_dds", 10_000, 10**5),
    Fault("planner_killed", _SAFE, "planner_faults.killed", 80, 200),
    Fault("planner_real", _SAFE, "planner_faults.killed_real", 16, 48),
    Fault("rogue", "it trips within two periods", "bridge_faults.rogue", 24, 200),
    Fault("planner_late", "no command from a plan older than k steps", "planner_faults.late", 60, 600),
    Fault("bridge_killed", "the driver's own timeout ends the force", "bridge_faults.killed", 24, 200),
    Fault(
        "no_timeout", "arming is refused where no timeout is declared", "bridge_faults.undeclared", 20, 100
    ),
    Fault("signals", _ENDED, "signal_faults.bridge", 24, 100),
    Fault("signals_stack", _ENDED, "signal_faults.stack", 3, 60),
    Fault(
        "learner_killed", "all is readable, at most 1 s of data is lost", "learner_faults.killed", 100, 300
    ),
    Fault(
        "learner_real", "all is readable, at most 1 s of data is lost", "learner_faults.killed_real", 3, 30
    ),
    Fault("updates_core", _REFUSED, "model_faults.core", 7, 1),
    Fault("updates", _REFUSED, "model_faults.over_dds", 100, 1000),
    Fault("disk", "an error in the status, control goes on", "learner_faults.disk", 3, 30),
    Fault(
        "clock", "no transition across the jump, the watchdog does not wait", "clock_faults.clock", 20, 200
    ),
    Fault("namespaces", "no message crosses", "clock_faults.namespaces", 15, 120),
)


def inflict(fault: Fault, full: bool, seed: int) -> dict[str, Any]:
    """Try one fault, and print its verdict."""
    print(f"{fault.name:<16} ...", flush=True)
    outcome, begin = Outcome(fault.name, fault.must_hold), time.monotonic()
    module, _, function = fault.inflict.partition(".")
    try:
        run = getattr(importlib.import_module(f"mbrl_bringup.ros.faults.{module}"), function)
        run(outcome, fault.full if full else fault.quick, seed)
    except Exception as error:
        outcome.tried(f"the trial broke off: {error}")
        traceback.print_exc()
    outcome.figures["seconds"] = round(time.monotonic() - begin, 1)
    print(f"{outcome.line()}  ({outcome.figures['seconds']:.0f} s)", flush=True)
    for example in outcome.examples:
        print(f"    {example}", flush=True)
    return outcome.json()
