"""Runs the benchmarks of the packages and writes build/bench.json.

Each package's benchmark/bench_*.py has `figures(quick: bool) -> list[dict]`. A figure has name, value,
unit, and reference (what it is compared with) and reference_value, or None for both. Each file runs in a
process of its own, one after the other, so that none disturbs another.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KEYS = ("name", "value", "unit", "reference", "reference_value")


def benchmarks(only: str) -> list[Path]:
    """The benchmark files whose path contains `only`."""
    return [file for file in sorted(ROOT.glob("mbrl_*/benchmark/bench_*.py")) if only in str(file)]


def measure(file: Path, quick: bool) -> list[dict[str, Any]]:
    """The figures of one benchmark file, in this process.

    Raises:
        ValueError: a figure lacks a key.
    """
    specification = importlib.util.spec_from_file_location(file.stem, file)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules[file.stem] = module
    sys.path.insert(0, str(file.parent))  # a benchmark may share code with its neighbours
    specification.loader.exec_module(module)
    figures: list[dict[str, Any]] = module.figures(quick)
    for figure in figures:
        if missing := [key for key in KEYS if key not in figure]:
            raise ValueError(f"{file.name}: the figure {figure} lacks {', '.join(missing)}")
    return figures


def measure_apart(file: Path, quick: bool) -> list[dict[str, Any]]:
    """The figures of one benchmark file, from a process of its own.

    Raises:
        subprocess.CalledProcessError: the benchmark failed; what it printed is on the terminal.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "figures.json")
        command = [sys.executable, __file__, "--file", str(file), "--out", str(out)]
        subprocess.run(command + ["--quick"] * quick, check=True)
        return list(json.loads(out.read_text()))


def machine() -> dict[str, Any]:
    """What this runs on, as far as it decides about speed."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    cores = len(os.sched_getaffinity(0))
    return {"cpu": cpu, "cores": cores, "system": platform.platform(), "python": platform.python_version()}


def commit() -> str:
    """The commit that is measured, with a mark if files differ from it; empty outside a repository."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def line(figure: dict[str, Any]) -> str:
    """One figure for the terminal."""
    text = f"{figure['name']:<56} {figure['value']:>12.4g} {figure['unit']}"
    if figure["reference_value"] is not None:
        text += f"  ({figure['reference']}: {figure['reference_value']:.4g})"
    return text


def main() -> int:
    """Measure everything, or, when told a file, that file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="shorter and less exact")
    parser.add_argument("--only", default="", help="only files whose path contains this")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench.json", help="where to write")
    arguments = parser.parse_args()
    if arguments.file:
        arguments.out.write_text(json.dumps(measure(arguments.file, arguments.quick)))
        return 0

    figures, failed = [], []
    for file in benchmarks(arguments.only):
        print(file.relative_to(ROOT), flush=True)
        try:
            found = measure_apart(file, arguments.quick)
        except subprocess.CalledProcessError:
            failed.append(str(file.relative_to(ROOT)))
            continue
        figures += found
        for figure in found:
            print("  " + line(figure), flush=True)
    result = {"figures": figures, "machine": machine(), "commit": commit()}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {arguments.out}")
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
