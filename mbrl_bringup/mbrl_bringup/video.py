"""Films recorded observations, in a process of its own: a graphics driver that crashes takes nothing with it.

python -m mbrl_bringup.video TASK OBSERVATIONS.npy PERIOD OUT.webm
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

WIDTH, HEIGHT = 480, 360  # [px]
MAX_FPS = 60.0


def film(task: str, observations: Path, period: float, out: Path) -> str:
    """Render an episode to a VP9 video.

    Args:
        task: whose world is drawn.
        observations: file with an array [T, D], SI.
        period: between two observations [s].

    Returns:
        Why there is no video, in one sentence; empty if there is one.
    """
    command = [sys.executable, "-m", "mbrl_bringup.video", task, str(observations), str(period), str(out)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, start_new_session=True, check=False
        )
    except subprocess.TimeoutExpired:
        return "rendering took longer than 5 minutes"
    if done.returncode == 0:
        return ""
    out.unlink(missing_ok=True)
    lines = (done.stderr.strip() or f"the renderer ended with exit code {done.returncode}").splitlines()
    return lines[-1].removeprefix("error: ")


def main(arguments: list[str]) -> int:
    """Render; exit code 1 with one sentence where nothing can be drawn."""
    import cv2

    from mbrl_dynamics.errors import UserError
    from mbrl_dynamics.plugins import make_task
    from mbrl_sim.physics import make_simulator

    task_name, source, period, out = arguments
    task = make_task(task_name)
    if not hasattr(task, "pose"):
        print(f"error: the observations of '{task_name}' do not tell how it stood", file=sys.stderr)
        return 1
    observations = np.load(source)
    stride = max(1, round(1.0 / (float(period) * MAX_FPS)))
    fps = 1.0 / (float(period) * stride)
    simulator = make_simulator(task)
    writer = None
    try:
        for observation in observations[::stride]:
            frame = simulator.render(WIDTH, HEIGHT, pose=task.pose(observation))
            if writer is None:
                writer = cv2.VideoWriter(out, cv2.VideoWriter.fourcc(*"VP90"), fps, (WIDTH, HEIGHT))
                if not writer.isOpened():
                    raise UserError("this build of OpenCV cannot write VP9 video")
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        simulator.close()
        if writer is not None:
            writer.release()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
