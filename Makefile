# Each target sets up what it needs the first time (tools/setup.sh) and nothing the second time.
SHELL := bash
ARGS ?=

.PHONY: help demo test test-slow lint format types bench mutants faults faults-full setup lock clean distclean

help:  ## list these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo:  ## watch a simulated robot learn, from nothing (ARGS="--task pendulum --seed 1")
	@tools/run mbrl demo $(ARGS)

test:  ## all tests but the slow ones, side by side (ARGS="-k reset"; ARGS="-n 0 --pdb" in one process)
	@tools/run --dev pytest -n logical --maxprocesses 4 --dist worksteal $(ARGS)

test-slow:  ## the tests that take long: most of the learning, and some restarts
	@tools/run --dev pytest -m slow $(ARGS)

lint:  ## style of the code
	@tools/run --dev ruff check
	@tools/run --dev ruff format --check

format:  ## put the style in order
	@tools/run --dev ruff check --fix
	@tools/run --dev ruff format

types:  ## type checker
	@tools/run --dev mypy

bench:  ## measure speed against references; writes build/bench.json
	@tools/run --dev python tools/bench.py $(ARGS)

mutants:  ## break each algorithm on purpose: does its learning test notice? writes build/mutants.json
	@tools/run --dev python tools/mutants.py $(ARGS)

setup:  ## only set up: environment, pinned packages, colcon build
	@tools/setup.sh --dev

faults:  ## do harm to a robot on purpose, in under 15 minutes; writes build/faults.json (ARGS="--only rogue")
	@tools/run --dev python -m mbrl_bringup.ros.faults --quick $(ARGS)

faults-full:  ## the same with all trials: hours
	@tools/run --dev python -m mbrl_bringup.ros.faults --full $(ARGS)

lock:  ## write the exact versions of the environment to requirements/lock.txt
	@tools/run --dev python tools/lock.py

clean:  ## remove what was built
	@rm -rf build install log

distclean: clean  ## remove the environment as well
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
