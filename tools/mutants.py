"""Breaks each algorithm on purpose and sees whether its learning test notices; writes build/mutants.json.

A test of learning that a wrong implementation passes is worth nothing, and learning is forgiving. Each
mutant below is one mistake of the kind that is easily made, in a copy of the sources; the test must fail with
it, by its own assertion. `--check` only looks whether each mistake can still be made where it is described.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from mbrl_bringup.result import atomic_write, commit_id, machine_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mbrl_dynamics", "mbrl_planner", "mbrl_sim", "mbrl_bringup")
AGENTS, MODELS = "mbrl_planner/mbrl_planner/agents/", "mbrl_dynamics/mbrl_dynamics/models/"
TESTS, PLANNERS = "mbrl_planner/test/", "mbrl_planner/mbrl_planner/planners/"
OPTIONS, LEARNED = TESTS + "test_", "mbrl_dynamics/test/test_"
LOCAL, TREE = TESTS + "test_gradient_planners.py::", TESTS + "test_rrt.py::"


class Mutant(NamedTuple):
    """A mistake, and the test that must notice it."""

    agent: str
    mistake: str
    test: str
    file: str
    right: str  # occurs once in the file
    wrong: str


SAC = TESTS + "test_sac.py::test_sac_learns_the_point_mass"
MBPO = TESTS + "test_sac.py::test_mbpo_learns_the_point_mass_from_600_steps"
MBA = TESTS + "test_sac.py::test_mba_learns_the_point_mass"
MVE = TESTS + "test_sac.py::test_mve_learns_the_point_mass"
SVG = TESTS + "test_sac.py::test_svg_learns_the_point_mass"
LATENT = TESTS + "test_sac.py::test_latent_sac_finds_a_hidden_velocity"
PG = TESTS + "test_pg.py::test_it_learns_the_point_mass"
MBMF = TESTS + "test_mbmf.py::test_it_learns_the_point_mass"
CLONE = TESTS + "test_mbmf.py::test_a_clone_does_as_it_was_shown"
CUE = TESTS + "test_dreamer.py::test_recalls_a_cue_after_ten_steps"
HIDDEN = TESTS + "test_dreamer.py::test_finds_a_hidden_velocity_and_a_planner_can_plan_in_its_world"
TDMPC = TESTS + "test_tdmpc.py::test_learns_a_point_mass_in_the_plane"
DYNA = "mbrl_bringup/test/test_maze.py::test_planning_finds_the_shortest_way_in_a_few_episodes"
MPC = "mbrl_bringup/test/test_learning.py::test_ensemble_and_icem_learn_the_pendulum"

MUTANTS = [
    Mutant("sac", "the target has no value of what comes next", SAC, AGENTS + "sac.py",
           "self.config.discount * (1.0 - batch.terminated) * value", "0.0 * value"),
    Mutant("sac", "the policy does not ask the critics", SAC, AGENTS + "sac.py",
           "(temperature * log_prob - self.critic(feature, action).amin(0)).mean()",
           "(temperature * log_prob).mean()"),
    Mutant("mbpo", "what is imagined to come next is where it began", MBPO, AGENTS + "mbpo.py",
           "step = Batch(feature, action, reward, self.normalizer(ahead.obs),",
           "step = Batch(feature, action, reward, feature,"),
    Mutant("mbpo", "imagined steps count as the last of their episode", MBPO, AGENTS + "mbpo.py",
           "self.normalizer(ahead.obs), (~going_on).float())",
           "self.normalizer(ahead.obs), going_on.float())"),
    Mutant("mba", "no imagined data", MBA, AGENTS + "mba.py", "if not imagined:", "if imagined:"),
    Mutant("mba", "what is imagined to come next is where it began", MBA, AGENTS + "mbpo.py",
           "step = Batch(feature, action, reward, self.normalizer(ahead.obs),",
           "step = Batch(feature, action, reward, feature,"),
    Mutant("mve", "imagined actions go with the states after them", MVE, AGENTS + "mve.py",
           "feature.append(path.feature[h, 0])", "feature.append(path.feature[h + 1, 0])"),
    Mutant("mve", "futures count as ended where they go on", MVE, AGENTS + "mve.py",
           "going = (1.0 - batch.terminated)", "going = batch.terminated"),
    Mutant("svg", "no gradient through the model", SVG, AGENTS + "svg.py",
           "state, feature = ahead.state, self.normalizer(ahead.obs)",
           "state, feature = ahead.state.detach(), self.normalizer(ahead.obs).detach()"),
    Mutant("svg", "descends where it should ascend", SVG, AGENTS + "svg.py",
           "loss = -self.imagined_return(future).mean()", "loss = self.imagined_return(future).mean()"),
    Mutant("latent_sac", "the filter forgets at each step", LATENT, AGENTS + "latent_sac.py",
           "if carry is None or prev_action is None or steps > 1:", "if True:"),
    Mutant("latent_sac", "targets with the value of the state before", LATENT, AGENTS + "latent_sac.py",
           "feature[1:][used],", "feature[:-1][used],"),
    Mutant("pg", "descends where it should ascend", PG, AGENTS + "pg.py",
           "loss = -likelihood_ratio(", "loss = likelihood_ratio("),
    Mutant("pg", "the reward of the step alone, not what follows", PG, AGENTS + "pg.py",
           "gain = reward_to_go(paths.reward, self.config.discount)", "gain = paths.reward"),
    Mutant("pg", "the score of other actions than those rewarded", PG, AGENTS + "gradients.py",
           "density = log_density(policy, paths.obs[:-1].detach(), paths.raw.detach())",
           "density = log_density(policy, paths.obs[:-1].detach(), paths.raw.detach().flip(1))"),
    Mutant("mbmf", "clones the decisions of other states", CLONE, AGENTS + "mbmf.py",
           "return obs[index].to(self.device), action[index].to(self.device)",
           "return obs[index].to(self.device), action[index.flip(0)].to(self.device)"),
    Mutant("mbmf", "refines in the wrong direction", MBMF, AGENTS + "mbmf.py",
           "loss, entropy = super().policy_loss(feature, normal, temperature)",
           "loss, entropy = super().policy_loss(feature, normal, temperature)\n        loss = -loss"),
    Mutant("dreamer", "the filter forgets at each step", CUE, AGENTS + "dreamer.py",
           "if steps > 1 or prev_action is None:", "if True:"),
    Mutant("dreamer", "drawn latents pass no gradient", CUE, MODELS + "recurrent.py",
           "return hot if not prob.requires_grad else hot + (prob - prob.detach())", "return hot"),
    Mutant("dreamer", "the actor descends where it should ascend", CUE, AGENTS + "dreamer.py",
           "actor_loss = -(gain + c.entropy", "actor_loss = (gain + c.entropy"),
    Mutant("dreamer", "returns without what comes after", HIDDEN, AGENTS + "dreamer.py",
           "total = known[t] + trace * discount[t] * total", "total = reward[t]"),
    Mutant("tdmpc", "targets without the value of what comes next", TDMPC, AGENTS + "tdmpc.py",
           "return reward + self.discount * (~terminated) * value", "return reward"),
    Mutant("tdmpc", "the model does not see the action", TDMPC, MODELS + "tdmpc.py",
           "return self.dynamics(torch.cat([latent, action], -1))",
           "return self.dynamics(torch.cat([latent, 0.0 * action], -1))"),
    Mutant("dyna_q", "planning is left out", DYNA, AGENTS + "dyna_q.py",
           "if not self._pairs or not self.config.planning_steps:", "if True:"),
    Mutant("dyna_q", "planned outcomes taken for where they began", DYNA, AGENTS + "dyna_q.py",
           "ahead.obs[:, 0].long()", "obs[:, 0].long()"),
    Mutant("mpc", "targets are the next observation, not its change", MPC, MODELS + "ensemble.py",
           "target = self.delta_normalizer(self.changes(batch))",
           'target = self.delta_normalizer(batch.obs["vector"][:, 1:].flatten(0, 1))'),
    Mutant("mpc", "prefers the worst candidates", MPC, "mbrl_planner/mbrl_planner/planners/sampling.py",
           "self.returns.topk(count, dim=1)", "self.returns.topk(count, dim=1, largest=False)"),
    Mutant("pddm", "the temperature for its inverse",
           OPTIONS + "planners.py::test_pddm_weighs_by_return_whatever_the_rewards_scale",
           PLANNERS + "pddm.py",
           "1.0 / self.config.gamma", "self.config.gamma"),
    Mutant("pddm", "noise that is added up instead of filtered",
           OPTIONS + "planners.py::test_pddm_filters_its_noise_as_the_paper_does",
           PLANNERS + "noise.py",
           "beta * (1.0 - beta) ** age", "beta * 1.0 ** age"),
    Mutant("gradient", "keeps the worse of two plans",
           LOCAL + "test_the_best_of_several_ways_up_is_followed",
           PLANNERS + "gradient.py",
           "better = now.returns > self.returns", "better = now.returns < self.returns"),
    Mutant("gradient", "descends where it should ascend",
           LOCAL + "test_gradient_ascent_reaches_the_optimum_with_warm_starts",
           PLANNERS + "gradient.py",
           "maximize=True", "maximize=False"),
    Mutant("lqr", "the path without its drift",
           LOCAL + "test_a_drift_is_answered_by_the_exact_optimum",
           PLANNERS + "lqr.py",
           "away.append(here.a[0] @ away[-1] + drift)", "away.append(here.a[0] @ away[-1])"),
    Mutant("lqr", "the slope of the cost as if nothing moved",
           LOCAL + "test_a_drift_is_answered_by_the_exact_optimum",
           PLANNERS + "lqr.py",
           "(here.slope + path[:-1] @ here.curvature[0, :size])", "here.slope"),
    Mutant("ilqr", "half of what state and action cost together",
           LOCAL + "test_finite_horizon_is_the_riccati_recursion",
           PLANNERS + "riccati.py",
           " + gain.T @ qux + qux.T @ gain", " + gain.T @ qux"),
    Mutant("ilqr", "gains that push on in the wrong direction",
           LOCAL + "test_gains_make_a_perturbed_path_better_than_open_loop",
           PLANNERS + "ilqr.py",
           "deviation = flat(state) - plan.states[:, step]",
           "deviation = plan.states[:, step] - flat(state)"),
    Mutant("mcts", "what comes after counts as if nothing ended",
           TESTS + "test_mcts.py::test_what_comes_after_a_likely_end_counts_by_how_likely_it_goes_on",
           PLANNERS + "mcts.py",
           "self.config.discount * step.outcome.alive * value", "self.config.discount * value"),
    Mutant("mcts", "later rewards count as much",
           TESTS + "test_mcts.py::test_later_rewards_count_less",
           PLANNERS + "mcts.py",
           "self.config.discount * step.outcome.alive * value", "step.outcome.alive * value"),
    Mutant("rrt", "grows from the root alone",
           TREE + "test_a_tree_fills_the_plane_where_random_plans_stay_at_home",
           PLANNERS + "rrt.py",
           "tree._expand(int(state[1][0]))", "tree._expand(0)"),
    Mutant("rrt", "branches that break constraints stay",
           TREE + "test_no_branch_breaks_a_constraint_on_its_way",
           PLANNERS + "rrt.py",
           "if broken or not alive", "if not alive"),
    Mutant("rrt", "a branch told shorter than it is",
           TREE + "test_every_node_is_where_its_plan_leads",
           PLANNERS + "rrt.py",
           "action.expand(steps, -1)", "action.expand(1, -1)"),
    Mutant("random_shooting", "the best futures for the worst",
           OPTIONS + "planner_options.py::test_the_worst_mean_goes_from_the_worst_to_the_mean",
           PLANNERS + "scoring.py",
           "returns.sort(-1).values", "returns.sort(-1, descending=True).values"),
    Mutant("random_shooting", "what breaks constraints may win",
           OPTIONS + "planner_options.py::test_constraints_are_kept_though_they_cost",
           PLANNERS + "sampling.py",
           "returns.where(kept, -torch.inf), -broken", "returns, -broken"),
    Mutant("random_shooting", "each candidate its own luck",
           OPTIONS + "planner_options.py::"
           "test_candidates_meet_the_same_luck_in_an_iteration_and_other_luck_in_the_next",
           PLANNERS + "sampling.py",
           "if config.common_noise else", "if not config.common_noise else"),
    Mutant("gp", "kernels that do not fall with distance",
           LEARNED + "gp.py::test_mean_and_draws_are_those_of_the_closed_form",
           MODELS + "pathwise.py",
           "torch.exp(raw[..., self.waves :] - near)", "torch.exp(raw[..., self.waves :])"),
    Mutant("gp", "candidates on functions of their own",
           LEARNED + "draws.py::test_a_particle_of_every_candidate_follows_the_same_function",
           "mbrl_dynamics/mbrl_dynamics/imagine.py",
           "_tiled(x, candidates), model.spread(state, particles)",
           "_tiled(x, 1), model.spread(state, candidates * particles)"),
    Mutant("gmm", "components without their weights",
           LEARNED + "gmm.py::test_conditioning_agrees_with_samples_of_the_joint",
           MODELS + "gmm.py",
           "self.log_weight - 0.5 * distance", "-0.5 * distance"),
    Mutant("gmm", "lines through the origin",
           LEARNED + "gmm.py::test_conditioning_agrees_with_samples_of_the_joint",
           MODELS + "gmm.py",
           "x, self.gain) + self.offset", "x, self.gain)"),
    Mutant("network", "a variance that is learned",
           LEARNED + "network.py::test_loss_is_the_mean_squared_error_of_standard_scores",
           MODELS + "network.py",
           "log_var=torch.zeros_like(said.log_var)", "log_var=said.log_var"),
    Mutant("network", "outcomes that are drawn",
           LEARNED + "network.py::test_nothing_is_drawn_and_nobody_disagrees",
           MODELS + "network.py",
           "return super().step(state, action)", "return super().step(state, action, noise)"),
    Mutant("mixture", "components drawn by the weights of others",
           LEARNED + "mixture.py::test_components_are_drawn_by_their_weights",
           MODELS + "mixture.py",
           "(bound <= drawn.unsqueeze(-1)).sum(-1)", "(bound > drawn.unsqueeze(-1)).sum(-1)"),
    Mutant("mixture", "a spread without that of the means",
           LEARNED + "mixture.py::test_density_spread_and_draws_in_other_units",
           MODELS + "mixture.py",
           "(self.log_var.exp() + apart.square())", "self.log_var.exp()"),
    Mutant("physics", "members that are all the same",
           "mbrl_sim/test/test_physics_model.py::test_members_disagree_as_far_as_the_numbers_are_unknown",
           "mbrl_sim/mbrl_sim/models/physics.py",
           "@ root.T", "@ (0.0 * root.T)"),
    Mutant("physics", "what is known told for what is not",
           "mbrl_sim/test/test_physics_model.py::test_standard_errors_are_honest",
           "mbrl_sim/mbrl_sim/models/shooting.py",
           "np.linalg.inv(found.jac.T @ found.jac)", "found.jac.T @ found.jac"),
    Mutant("residual", "what is missed added the wrong way round",
           LEARNED + "residual.py::test_it_beats_the_base_and_the_ensemble_on_little_data",
           MODELS + "residual.py",
           "change[:, :size] -= self._expected", "change[:, :size] += self._expected"),
    Mutant("residual", "the base is not asked",
           LEARNED + "residual.py::test_a_base_that_is_right_is_hardly_touched",
           MODELS + "residual.py",
           "return predicted", "return obs"),
    Mutant("bco", "what was inferred is not cloned",
           TESTS + "test_bco.py::test_it_learns_the_point_mass_from_states_alone", AGENTS + "bco.py",
           "belief.log_prob(self._inferred[index])",
           "belief.log_prob(torch.zeros_like(self._inferred[index]))"),
    Mutant("bco", "actions inferred backwards in time",
           TESTS + "test_bco.py::test_actions_of_demonstrations_are_inferred_and_cloned", AGENTS + "bco.py",
           '{"vector": shown[:, 0]}, {"vector": shown[:, 1]}',
           '{"vector": shown[:, 1]}, {"vector": shown[:, 0]}'),
    Mutant("rrt", "a tree that grows on from its root alone",
           TESTS + "test_rrt.py::test_every_node_is_where_its_plan_leads", PLANNERS + "rrt.py",
           "torch.cat([node.plan, action.expand(steps, -1)])", "action.expand(steps, -1)"),
    Mutant("rrt", "always the same aim",
           TESTS + "test_rrt.py::test_a_tree_fills_the_plane_where_random_plans_stay_at_home",
           PLANNERS + "rrt.py",
           "torch.rand(len(self._unit), generator=self.noise, dtype=torch.float64).numpy()",
           "np.zeros(len(self._unit))"),
    Mutant("latent", "what is foretold compared with what came at once",
           LEARNED + "latent.py::test_what_is_foretold_is_compared_with_what_came_that_many_steps_later",
           MODELS + "latent.py", 'obs["vector"][1:][rows]', 'obs["vector"][1:][starts]'),
    Mutant("latent", "a belief that costs nothing",
           LEARNED + "latent.py::test_the_loss_is_the_lower_bound_by_hand",
           MODELS + "latent.py", "weight * mean_over(free_kl", "0.0 * mean_over(free_kl"),
    Mutant("inverse", "nothing is drawn",
           LEARNED + "inverse.py::test_of_two_actions_that_lead_there_both_are_told",
           MODELS + "inverse.py", "self.mixture.draw(noise)", "self.mixture.expected()"),
    Mutant("inverse", "what is of no use is kept",
           LEARNED + "inverse.py::test_features_keep_what_is_controlled_and_nothing_of_the_rest",
           MODELS + "inverse.py", "return fit + cost * nats", "return fit + 0.0 * nats"),
    Mutant("action_free", "the end is not looked at",
           LEARNED + "action_free.py::test_paths_between_two_states_are_those_of_the_exact_bridge",
           MODELS + "action_free.py", "at + (end - at) / left", "at"),
    Mutant("action_free", "the same number of steps left all the way",
           LEARNED + "action_free.py::test_paths_between_two_states_are_those_of_the_exact_bridge",
           MODELS + "action_free.py", "self._next(at, end, left)", "self._next(at, end, steps)"),
]  # fmt: skip


def mutated(mutant: Mutant, root: Path) -> str:
    """The file of that mutant below `root`, with the mistake in it.

    Raises:
        ValueError: what it changes is not there exactly once.
    """
    text = (root / mutant.file).read_text()
    if (count := text.count(mutant.right)) != 1:
        raise ValueError(
            f"{mutant.agent}, {mutant.mistake}: {mutant.file} has {count} times {mutant.right!r}"
        )
    return text.replace(mutant.right, mutant.wrong)


def run(mutant: Mutant) -> dict[str, Any]:
    """Make the mistake in a copy of the sources and run its test there.

    Raises:
        RuntimeError: the test did not run, or failed by something else than what it asserts.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for package in PACKAGES:
            shutil.copytree(ROOT / package, copy / package)
        shutil.copy(ROOT / "pyproject.toml", copy)
        (copy / mutant.file).write_text(mutated(mutant, copy))
        path = [str(copy / package) for package in PACKAGES] + [os.environ.get("PYTHONPATH", "")]
        options = ["-m", "", "-q", "-s", "-n", "0", "-p", "no:cacheprovider", "--timeout=1800"]
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, mutant.test],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    scores = re.search(r"scores (\[.*\])", done.stdout)
    asserted = re.search(r"^E +(AssertionError|assert) ?", done.stdout, re.MULTILINE)
    if done.returncode not in (0, 1) or (done.returncode and not asserted):
        raise RuntimeError(f"{mutant.test} did not run to its assertion:\n{done.stdout}\n{done.stderr}")
    return {
        **{name: getattr(mutant, name) for name in ("agent", "mistake", "test", "file")},
        "noticed": bool(done.returncode),
        "scores": json.loads(scores[1]) if scores else None,  # of seeds 0, 1 ..., until most agree
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> int:
    """Try all mutants, or those of one agent; 1 if one went unnoticed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="only mutants of agents whose name begins with this")
    parser.add_argument("--check", action="store_true", help="only see whether each mistake can be made")
    parser.add_argument(
        "--add", action="store_true", help="only those that the file does not have, which are added to it"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="tests side by side")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "mutants.json", help="where to write")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if mutant.agent.startswith(arguments.only)]
    known = json.loads(arguments.out.read_text())["mutants"] if arguments.add else []
    tried = {(result["agent"], result["mistake"], result["test"]) for result in known}
    chosen = [m for m in chosen if (m.agent, m.mistake, m.test) not in tried]
    for mutant in chosen:
        mutated(mutant, ROOT)
    if arguments.check:
        return 0

    commit, began, results = commit_id(), time.monotonic(), known
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for result in pool.map(run, chosen):
            results.append(result)
            verdict = "noticed" if result["noticed"] else "NOT NOTICED"
            print(
                f"{result['agent']:<11} {result['mistake']:<55} {verdict:<12} {result['scores'] or ''}",
                flush=True,
            )
    about = {
        "command": " ".join(["python", "tools/mutants.py", *sys.argv[1:]]),
        "commit": commit,
        "machine": machine_name(),
    }
    seconds = round(time.monotonic() - began)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(
        arguments.out, json.dumps({**about, "seconds": seconds, "mutants": results}, indent=1) + "\n"
    )
    return int(not all(result["noticed"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
