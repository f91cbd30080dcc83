"""Plans as graphs, without a GPU: in the place of CUDA's graphs stands a tape that replays, on the CPU, the
operations that it has seen, on the same memory, and refuses what CUDA could not capture.
"""

import copy
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.models.ensemble import Ensemble
from mbrl_dynamics.models.network import Network
from mbrl_dynamics.models.with_task import WithTask, knows_reward
from mbrl_dynamics.plugins import find, names
from mbrl_planner.agents.mpc import MPC
from mbrl_planner.planners import graphed
from mbrl_planner.planners.graphed import WARM_UPS, Graphed, captured, check_task, on_device

TASK = "cartpole_swingup"
OBS = torch.tensor([[0.1, -1.0, 0.0, 0.2, -0.3]])
SMALL = {"horizon": 4, "candidates": 16, "iterations": 2}
PLANNERS = ("random_shooting", "cem", "icem", "mppi", "pddm")
OPTIONS = (
    {},
    {"aleatoric": True, "particles": 6},
    {"knots": 3, "interpolation": "cubic"},
    {"caution": 0.3, "worst_share": 0.5, "discount": 0.9, "constraints": ("cart_position<0.12",)},
)
SYNCHRONOUS = {  # on CUDA these wait for the GPU, or take memory that the GPU does not see
    *("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "unique_consecutive"),
    *("bincount", "lift_fresh"),
}

DRAWING = {"rand", "randn", "randint", "randperm", "normal_", "uniform_", "exponential_", "multinomial"}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


def planner(name, **options):
    cls = find("planners", name)
    return cls(cls.Config(**SMALL | options))


def model(seed=0, task=TASK, kind=Ensemble, **options):
    settings = {"hidden": (16, 16)} | options
    wanted = find("tasks", task)()
    return WithTask(kind(wanted.spec, kind.Config(**settings), seed=seed), wanted)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def belief(of, obs=OBS):
    return of.observe(None, None, {"vector": obs})


def tensors(plan):
    return [x for x in pytree.tree_leaves(plan) if isinstance(x, Tensor)]


def same(one, other):
    return all(
        torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
        for a, b in zip(tensors(one), tensors(other), strict=True)
    )


class Tape(TorchDispatchMode):
    """What a CUDA graph does, on the CPU."""

    def __init__(self):
        super().__init__()
        self.done, self.replays = [], 0
        self.generator = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with self:  # what an operation is made of
            result = func.decompose(*args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
        name = func.overloadpacket.__name__
        if name in SYNCHRONOUS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        if name in ("index", "index_put", "index_put_") and any(
            x is not None and x.dtype == torch.bool for x in args[1]
        ):
            raise RuntimeError(f"operation not permitted when stream is capturing: {name} by a mask")
        result = func(*args, **(kwargs or {}))
        given = (kwargs or {}).get("generator")
        if given is not None or name in DRAWING:
            states = [g.get_state() for g in (given or torch.default_generator, self.generator)]
            assert torch.equal(*states), "numbers from a generator that is not registered"
        self.done.append((func, args, kwargs or {}, result))
        return result

    def register_generator_state(self, generator):
        assert not self.done, "to be registered before the capture"
        self.generator = generator

    @torch.inference_mode()
    def replay(self):
        self.replays += 1
        for func, args, kwargs, result in self.done:
            again = func(*args, **kwargs)
            for old, new in zip(tensors(result), tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Cuda:
    """Behaves like torch.cuda, as far as it is used; keeps what was done."""

    def __init__(self):
        self.graphs, self.streams = [], []

    def CUDAGraph(self):
        self.graphs.append(Tape())
        return self.graphs[-1]

    def Stream(self):
        return self

    current_stream = Stream

    def wait_stream(self, other):
        pass

    def device(self, device):
        return nullcontext()

    @contextmanager
    def stream(self, stream):
        self.streams.append(stream)
        yield

    @contextmanager
    def graph(self, graph, capture_error_mode):
        assert graph.generator is not None, "its random numbers would be the same each time"
        with graph:
            yield


def on_tape(searches):
    """A planner whose plans are replayed, and the graphs that it makes."""
    cuda = Cuda()
    wrapped = Graphed(searches, "cpu", record=lambda work, device: captured(work, device, cuda))
    return wrapped, cuda.graphs


def derived(noise):
    """The source of random numbers of a replay, for which a caller's generator has given the seed."""
    return seeded(int(torch.randint(2**62, (), generator=noise)))


# The same plans ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "aleatoric", "knots", "risk"])
@pytest.mark.parametrize("name", PLANNERS)
def test_on_the_cpu_it_is_the_planner_itself(name, options):
    """Same seed, same plans: afresh, warm, with something to display, through two models in turn."""
    plain, ones, others = planner(name, **options), seeded(3), seeded(3)
    wrapped, guess = Graphed(plain, "cpu"), None
    for step, now in enumerate((model(0), model(0), model(1), model(0))):
        settings = {"shift": step, "display": 3 * (step % 2)}
        mine = plain.plan(now, belief(now, OBS + step), guess, noise=ones, **settings)
        theirs = wrapped.plan(now, belief(now, OBS + step), guess, noise=others, **settings)
        assert same(mine, theirs) and len(tensors(mine)) > 5
        guess = mine.guess


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "aleatoric", "knots", "risk"])
@pytest.mark.parametrize("name", PLANNERS)
def test_a_replay_plans_as_the_planner_does(name, options):
    """From other states, other warm starts and with other weights than what was captured: nothing of them is
    held fast, nothing synchronises, and all random numbers come from the registered generator.
    """
    plain = planner(name, **options)
    (wrapped, graphs), caller, guess = on_tape(plain), seeded(5), None
    for step, now in enumerate((model(0), model(0), model(1), model(2), model(0))):
        start = belief(now, OBS + 0.1 * step)
        expected = derived(copy_of(caller))
        theirs = wrapped.plan(now, start, guess, shift=step, noise=caller)
        assert same(plain.plan(now, start, guess, shift=step, noise=expected), theirs), step
        guess = theirs.guess
    assert [graph.replays for graph in graphs] == [1, 4], "one capture afresh, and one for a warm start"


def copy_of(generator):
    return torch.Generator().set_state(generator.get_state())


@pytest.mark.parametrize("options", [{"components": 2}, {"propagation": "ts1"}, {"terminations": True}])
def test_ensembles_of_all_kinds_are_replayed(options):
    plain = planner("icem", aleatoric=True)
    (wrapped, _), caller = on_tape(plain), seeded(5)
    for now in (model(0, **options), model(1, **options)):
        expected = derived(copy_of(caller))
        assert same(
            plain.plan(now, belief(now), noise=expected), wrapped.plan(now, belief(now), noise=caller)
        )


def test_a_network_is_replayed():
    (wrapped, graphs), plain = on_tape(planner("cem")), planner("cem")
    for seed in (0, 1):
        now = model(seed, kind=Network)
        wanted = plain.plan(now, belief(now), noise=derived(seeded(5)))
        assert same(wanted, wrapped.plan(now, belief(now), noise=seeded(5)))
    assert len(graphs) == 1


def test_agents_need_not_know():
    """MPC over an episode with a late action and a new model, with one planner and the other."""
    pair = [MPC(p, model(0), seed=4) for p in (planner("icem"), Graphed(planner("icem"), "cpu"))]
    said = []
    for agent in pair:
        carry, action, rows = None, None, []
        for step in range(5):
            if step == 3:
                agent.swap(model(1))
            first = torch.tensor([step == 0])
            carry = agent.observe({"vector": OBS + 0.1 * step}, carry, first=first, prev_action=action)
            action, carry = agent.choose(carry, pending=torch.full((1, 2, 1), 0.3))
            rows, action = [*rows, action], action[:, 0]
        said.append(torch.stack(rows))
    assert torch.equal(*said) and not torch.equal(said[0][0], said[0][1])


# What is captured, and when ---------------------------------------------------------------------------------


def test_one_capture_serves_until_something_that_it_holds_fast_changes():
    wrapped, graphs = on_tape(planner("icem"))

    def plan(now, batch=1, **settings):
        return wrapped.plan(now, belief(now, OBS.expand(batch, -1)), noise=seeded(), **settings)

    def counts():
        return [graph.replays for graph in graphs]

    first, second = model(0), model(1)
    plan(first)
    plan(first)
    plan(second)
    plan(first)
    assert counts() == [4]
    plan(first, batch=2)
    plan(first)
    plan(first, batch=2)
    assert counts() == [5, 2], "both shapes are kept"
    plan(first, display=2)
    plan(first, guess=plan(first).guess)
    assert counts() == [6, 2, 1, 1]
    plan(model(0, hidden=(8,)))
    assert counts() == [6, 2, 1, 1, 1], "another architecture"
    plan(first)
    assert counts() == [6, 2, 1, 1, 1, 1], "the first one was given up with its model"
    first.task.goal = 1.0
    plan(first)
    assert counts() == [6, 2, 1, 1, 1, 1, 1], "another goal"


def test_few_shapes_are_kept():
    wrapped, graphs = on_tape(planner("mppi"))
    now = model()
    for batch in (*range(1, graphed.KEPT + 2), 1):
        wrapped.plan(now, belief(now, OBS.expand(batch, -1)), noise=seeded())
    assert len(graphs) == graphed.KEPT + 2 and len(wrapped._captures) == 2


def test_weights_that_change_in_place_are_noticed():
    (wrapped, graphs), plain, now = on_tape(planner("cem")), planner("cem"), model(0)
    wrapped.plan(now, belief(now), noise=seeded())
    now.load_state_dict(model(1).state_dict())
    wanted = plain.plan(now, belief(now), noise=derived(seeded(5)))
    assert same(wanted, wrapped.plan(now, belief(now), noise=seeded(5))) and len(graphs) == 1


def test_libraries_get_ready_on_another_stream_before_the_capture():
    calls, cuda = [], Cuda()
    work = captured(lambda noise: calls.append(len(cuda.streams)), torch.device("cpu"), cuda)
    assert calls == [1] * (WARM_UPS + 1) and len(cuda.graphs) == 1
    work(seeded())
    assert len(calls) == WARM_UPS + 1 and cuda.graphs[0].replays == 1, "a replay runs no Python"


def test_the_caller_s_seed_says_what_is_drawn():
    (wrapped, _), now = on_tape(planner("icem", aleatoric=True)), model()
    one, again, other = (wrapped.plan(now, belief(now), noise=seeded(s)) for s in (1, 1, 2))
    assert same(one, again) and not torch.equal(one.actions, other.actions)
    caller = seeded(1)
    first, second = (wrapped.plan(now, belief(now), noise=caller) for _ in range(2))
    assert same(first, one) and not torch.equal(first.actions, second.actions)


@pytest.mark.parametrize("make", [lambda p: Graphed(p, "cpu"), lambda p: on_tape(p)[0]])
@pytest.mark.parametrize("name", PLANNERS)
def test_what_was_returned_stays_as_it_is(name, make):
    wrapped, now = make(planner(name)), model()
    start = belief(now)
    guess = wrapped.plan(now, start, noise=seeded(0)).guess
    plan = wrapped.plan(now, start, guess, shift=0, noise=seeded(1), display=3)
    before = copy.deepcopy(plan)
    wrapped.plan(now, belief(now, -OBS), replace(guess, mean=-guess.mean), noise=seeded(2), display=3)
    assert same(before, plan)
    with torch.inference_mode():
        for mine in tensors((start, guess)):
            mine.fill_(0.25)
    assert same(before, plan)
    own = tensors([c._inputs for c in wrapped._captures.values()])
    assert not {x.untyped_storage().data_ptr() for x in own} & {
        x.untyped_storage().data_ptr() for x in tensors(plan)
    }


# Nothing waits, nothing moves -------------------------------------------------------------------------------


class OnOneDevice(TorchFunctionMode):
    """Refuses calls that bring data from one device to another."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        came = {x.device.type for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        went = {x.device.type for x in pytree.tree_leaves(result) if isinstance(x, Tensor)}
        name = getattr(func, "__name__", str(func))
        made = name in ("tensor", "as_tensor", "asarray", "from_numpy", "scalar_tensor")
        assert len(came | went) <= 1, f"{name} takes data from device to device"
        assert not made or went == {"cpu"}, f"{name} brings data from the processor"
        return result


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "aleatoric", "knots", "risk"])
@pytest.mark.parametrize("name", PLANNERS)
def test_a_plan_runs_where_there_are_no_values(name, options):
    """On torch's device "meta" tensors have shapes only, so that whatever looks at a value raises; and a
    tensor of another device is one too many.
    """
    plain, now = planner(name, **options), away(model())
    start = belief(now, OBS.to("meta"))
    guess = plain.plan(now, start, noise=seeded(), display=3).guess  # constants are made, and kept, now
    with OnOneDevice():
        plan = plain.plan(now, start, guess, noise=seeded(), display=3)
    assert {x.device.type for x in tensors(plan)} == {"meta"}
    assert plan.actions.shape == (1, 4, 1)


@pytest.mark.parametrize("task", names("tasks"))
def test_tasks_say_their_reward_on_any_device_or_that_they_cannot(task):
    wanted = find("tasks", task)()
    if wanted.spec.discrete or not knows_reward(wanted):
        pytest.skip("no ensemble plans there")
    if task in ("adroit_pen", "arm_reach_obstacle"):  # which have tables of numbers
        with pytest.raises(
            UserError,
            match=f"reward of task '{task}' needs numbers that are not on device 'cuda'.*set device to cpu",
        ):
            check_task(wanted, "cuda")
        return
    check_task(wanted, "cuda")
    now = away(model(task=task))
    start = belief(now, torch.zeros(1, wanted.spec.observation_dim, device="meta"))
    plain = planner("random_shooting")
    plain.plan(now, start, noise=seeded())
    with OnOneDevice():
        plain.plan(now, start, noise=seeded())


def away(now):
    return WithTask(copy.deepcopy(now.model).to("meta"), now.task)


# What cannot be --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(names("planners")) - set(PLANNERS)))
def test_planners_that_look_at_what_they_compute_are_refused(name):
    cls = find("planners", name)
    with pytest.raises(
        UserError, match=f"planner '{name}' cannot plan on device 'cpu'; set device to cpu, or"
    ):
        Graphed(cls(cls.Config()), "cpu")


def test_settings_that_do_not_fit_are_told_at_once():
    with pytest.raises(
        UserError, match=r"time_budget is 0.1 s, but .*; set time_budget to 0, or device to cpu"
    ):
        Graphed(planner("icem"), "cpu", time_budget=0.1)
    with pytest.raises(UserError, match=r"rrt_expansions is 5, but .*; set rrt_expansions to 0, or device"):
        Graphed(planner("icem", rrt_expansions=5), "cpu")
    with pytest.raises(UserError, match="device 'cuda:77' is not on this machine; valid: cpu"):
        Graphed(planner("icem"), "cuda:77")
    wrapped, now = Graphed(planner("icem"), "cpu"), model()
    with pytest.raises(UserError, match="continuous"):
        wrapped.check(find("tasks", "cliff")().spec)
    with pytest.raises(UserError, match="cannot end early: it takes no time_budget"):
        wrapped.plan(now, belief(now), deadline=1.0)
    with pytest.raises(UserError, match="takes no terminal value and no policy"):
        wrapped.plan(now, belief(now), heads=object())


@pytest.mark.parametrize("name", names("models"))
def test_models_say_whether_they_can_be_captured(name):
    cls, wrapped = find("models", name), Graphed(planner("icem"), "cpu")
    if name in ("ensemble", "network"):
        wrapped.check(find("tasks", TASK)().spec, cls)
    else:
        with pytest.raises(
            UserError, match=f"model {cls.__name__} cannot be captured, .*; set device to cpu, or"
        ):
            wrapped.check(find("tasks", TASK)().spec, cls)


def test_the_processor_needs_no_graph():
    plain, task = planner("icem"), find("tasks", TASK)()
    assert on_device(plain, "cpu", task, time_budget=0.1) is plain
    with pytest.raises(UserError, match="device 'gpu' is not on this machine"):
        on_device(plain, "gpu", task)


@pytest.mark.parametrize(
    "look",
    [
        lambda plan: plan.value.item(),
        lambda plan: bool(plan.valid.all()),
        lambda plan: plan.actions[plan.actions > 0],
        lambda plan: plan.actions + torch.tensor([1.0]),
        lambda plan: torch.rand(3, generator=seeded()),
        lambda plan: torch.rand(3),
    ],
)
def test_the_tape_refuses_what_cuda_would(look):
    searches, now = planner("icem"), model()
    search = searches.plan

    def looking(*args, **kwargs):
        plan = search(*args, **kwargs)
        look(plan)
        return plan

    searches.plan = looking
    with pytest.raises((RuntimeError, AssertionError), match=r"not permitted|not registered"):
        on_tape(searches)[0].plan(now, belief(now), noise=seeded())
