"""How well the physics model finds the numbers of a cart-pole that is not as its MJCF says.

    python mbrl_sim/benchmark/physics_fit.py --out docs/results/physics_fit.json

The world has other masses and more damping than the MJCF that the model begins with. It is pushed at random
for 20 s, every push 0.15 s long, and seen with the noise of the stand-in for a robot
(config/cartpole_swingup.yaml of mbrl_bringup). Then all of it again with a motor that obeys late, which is
fitted with the rest.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from mbrl_dynamics.interfaces import Budget
from mbrl_sim.models.physics import FittedPhysics, PhysicsConfig
from mbrl_sim.stranger import NOISE, STEPS, play, stranger
from mbrl_sim.tasks.cartpole_swingup import CartpoleSwingup

TRUTH = {
    "mass:cart": 1.3,
    "mass:pole": 0.14,
    "damping:slider": 0.4,
    "damping:hinge": 0.01,
}  # kg, N s/m, N m s
DELAY = 0.02  # of the motor that obeys late: 0.4 control periods [s]
EPISODES = 2

Row = dict[str, float | str | int]


def recover(seed: int, folder: Path, delay: float = 0.0) -> list[Row]:
    """What the model finds, a row a parameter; a delay is one of them where there is one [s]."""
    world, truth = stranger(CartpoleSwingup, TRUTH, folder), dict(TRUTH)
    config = PhysicsConfig()
    if delay:
        truth["delay:force"] = delay
        config = PhysicsConfig(parameters=(*config.parameters, "delay:*"))
    model, data = FittedPhysics(world.spec, config), play(world, seed, episodes=EPISODES, delay=delay)
    begin = time.process_time()
    told = model.fit(data, Budget())
    spent = time.process_time() - begin
    return [
        {
            "seed": seed,
            "parameter": name,
            "nominal": next(p.nominal for p in model.fitted if p.name == name),
            "true": true,
            "found": told[name],
            "standard_error": told[f"{name}:error"],
            "off_percent": 100.0 * (told[name] / true - 1.0),
            "fit_cpu_s": round(spent, 1),
        }
        for name, true in truth.items()
    ]


def largest(rows: list[Row]) -> float:
    """What is missed at most [%]."""
    return max(abs(float(row["off_percent"])) for row in rows)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="numbers of a cart-pole, found from 20 s of noisy motion")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/results/physics_fit.json"), help="file to write"
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows, late = (
            [row for seed in range(options.seeds) for row in recover(seed, Path(folder), delay)]
            for delay in (0.0, DELAY)
        )
    for row in rows + late:
        print(
            f"seed {row['seed']} {row['parameter']:<15} true {row['true']:<6} found {row['found']:.5g} "
            f"+- {row['standard_error']:.2g} ({row['off_percent']:+.2f} %)"
        )
    result = {
        "seconds": EPISODES * STEPS * CartpoleSwingup().spec.control_period,
        "noise": NOISE,
        "largest_off_percent": largest(rows),
        "largest_off_percent_with_delay": largest(late),
        "rows": rows,
        "rows_with_delay": late,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
