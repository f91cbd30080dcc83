"""How well the physics model finds the numbers of a cart-pole that is not as its MJCF says.

    python mbrl_sim/benchmark/physics_fit.py --out docs/results/physics_fit.json

The world has other masses and more damping than the MJCF that the model begins with. It is pushed at random
for 20 s, every push 0.15 s long, and seen with the noise of the stand-in for a robot
(config/cartpole_swingup.yaml of mbrl_bringup).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from mbrl_dynamics.interfaces import Budget
from mbrl_sim.models.physics import FittedPhysics
from mbrl_sim.stranger import NOISE, STEPS, play, stranger
from mbrl_sim.tasks.cartpole_swingup import CartpoleSwingup

TRUTH = {
    "mass:cart": 1.3,
    "mass:pole": 0.14,
    "damping:slider": 0.4,
    "damping:hinge": 0.01,
}  # kg, N s/m, N m s
EPISODES = 2


def recover(seed: int, folder: Path) -> list[dict[str, float | str | int]]:
    """What the model finds, a row a parameter."""
    model = FittedPhysics(CartpoleSwingup().spec)
    begin = time.monotonic()
    told = model.fit(play(stranger(CartpoleSwingup, TRUTH, folder), seed, episodes=EPISODES), Budget())
    wall = time.monotonic() - begin
    return [
        {
            "seed": seed,
            "parameter": name,
            "nominal": next(p.nominal for p in model.fitted if p.name == name),
            "true": true,
            "found": told[name],
            "standard_error": told[f"{name}:error"],
            "off_percent": 100.0 * (told[name] / true - 1.0),
            "fit_s": round(wall, 1),
        }
        for name, true in TRUTH.items()
    ]


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
        rows = [row for seed in range(options.seeds) for row in recover(seed, Path(folder))]
    for row in rows:
        print(
            f"seed {row['seed']} {row['parameter']:<15} true {row['true']:<6} found {row['found']:.5g} "
            f"+- {row['standard_error']:.2g} ({row['off_percent']:+.2f} %)"
        )
    result = {
        "seconds": EPISODES * STEPS * CartpoleSwingup().spec.control_period,
        "noise": NOISE,
        "largest_off_percent": max(abs(float(row["off_percent"])) for row in rows),
        "rows": rows,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
