"""Grid worlds: the book's maps, the contract of tasks and worlds.

Mutations that these tests notice: rows and columns exchanged in `_moves` (shortest ways); a fall that leaves
one on the cliff; the fall judged by the cell after it.
"""

import itertools
from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.testing import check_task
from mbrl_sim.grid import CLIFF, WALL
from mbrl_sim.tasks.cliff import Cliff
from mbrl_sim.tasks.maze import Maze
from mbrl_sim.world import World, WorldConfig
from mbrl_sim.worlds import Worlds

torch.set_num_threads(1)
UP, RIGHT, DOWN, LEFT = ([float(move)] for move in range(4))


@pytest.fixture(params=[Maze, Cliff])
def task(request):
    return request.param()


def shortest(task) -> int:
    """Steps of the shortest way, by breadth-first search over the simulator itself."""
    simulator, seen, queue = task.make_simulator(), {task.start}, deque([(task.start, 0)])
    while queue:
        cell, length = queue.popleft()
        for move in (UP, RIGHT, DOWN, LEFT):
            simulator.reset(initial_state=[cell])
            result = simulator.step(move)
            if result.terminated:
                return length + 1
            after = int(result.observation[0])
            if after not in seen:
                seen.add(after)
                queue.append((after, length + 1))
    raise AssertionError("the goal cannot be reached")


@pytest.mark.parametrize("kind, shape, steps", [(Maze, (6, 9), 14), (Cliff, (4, 12), 13)])
def test_the_maps_are_the_books(kind, shape, steps):
    task = kind()
    assert task.letters.shape == shape
    assert shortest(task) == steps


def test_contract(task):
    simulator, rng = task.make_simulator(0), np.random.default_rng(0)
    observations = [simulator.reset()]
    for _ in range(200):
        result = simulator.step([float(rng.integers(4))])
        observations.append(simulator.reset() if result.terminated else result.observation)
    check_task(task, np.array(observations))


def test_a_task_tells_what_its_world_does(task):
    simulator = task.make_simulator()
    free = [c for c, letter in enumerate(task.letters.ravel()) if letter in ".S"]
    for cell, move in itertools.product(free, range(4)):
        before = simulator.reset(initial_state=[cell])
        result = simulator.step([float(move)])
        reward = task.reward(before[None], np.eye(4)[[move]], result.observation[None])
        assert result.reward == reward[0]
        assert task.letters.ravel()[int(result.observation[0])] not in (WALL, CLIFF)
        assert result.terminated == (result.observation[0] == task.goal)


def test_a_fall_leads_back_to_the_start_and_goes_on():
    task = Cliff()
    simulator = task.make_simulator()
    result = simulator.step(RIGHT)
    assert (result.reward, result.observation.tolist(), result.terminated) == (-100.0, [36.0], False)
    assert simulator.step(DOWN).reward == -1.0  # bumps into the edge of the map, beside the cliff
    simulator.reset(initial_state=[34])
    assert simulator.step(DOWN).reward == -100.0


def test_the_maze_rewards_its_goal_alone():
    simulator = Maze().make_simulator()
    simulator.reset(initial_state=[17])
    result = simulator.step(UP)
    assert (result.reward, result.terminated) == (1.0, True)
    simulator.reset(initial_state=[19])
    assert simulator.step(RIGHT).observation.tolist() == [19.0]  # a wall


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.sampled_from([Maze, Cliff]))
def test_the_world_and_the_table_of_moves_agree(moves, kind):
    task = kind()
    simulator, cell = task.make_simulator(), task.start
    for move in moves:
        cell = task.after[cell, move]
        assert simulator.step([float(move)]).observation == cell
        if cell == task.goal:
            break


def test_worlds_of_it_here_and_in_processes(task):
    rng = np.random.default_rng(1)
    actions = rng.integers(4, size=(30, 2, 1)).astype(float)
    seen = []
    for processes in (False, True):
        with Worlds(task.name, 2, processes=processes) as worlds:
            worlds.reset_all()
            seen.append([[t.observation[0] for t in worlds.step(a)] for a in actions])
    assert seen[0] == seen[1]


def test_an_episode_is_truncated_as_the_task_says():
    task = Cliff()
    world = World(task.make_simulator(), WorldConfig(mode="realtime", max_steps=3))
    world.reset(0.0)
    assert [world.tick(float(t)).truncated for t in range(1, 4)] == [False, False, True]


def test_the_map_can_be_seen(task):
    simulator = task.make_simulator(image_size=48)
    assert simulator.cameras[0].name == "map"
    image = simulator.images()["map"]
    assert image.shape == (48, 48, 3)
    simulator.step(UP)
    assert (simulator.images()["map"] != image).any()
    assert simulator.render(90, 60).shape == (60, 90, 3)
    assert simulator.renderer_error() == ""
    assert task.points(np.array([[0.0]])).tolist() == [[[0.5, task.letters.shape[0] - 0.5, 0.0]]]
    with pytest.raises(UserError, match="unknown camera 'side'; valid: map"):
        simulator.render(camera="side")


def test_mistakes_get_one_sentence():
    with pytest.raises(UserError, match="on a grid it must be 1"):
        Maze(4)
    for state in ([7.0], [8.0], [54.0], [1.5], [0.0, 0.0], [np.nan]):
        with pytest.raises(UserError, match="number of a free cell"):
            Maze().make_simulator().reset(initial_state=state)
    with pytest.raises(ValueError, match="from 0 to 3"):
        Maze().make_simulator().step([4.0])
