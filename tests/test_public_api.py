"""Every public constructor, function and method with what nobody means: the answer is a named error, or a finite result.

`CASES` has valid arguments for each, the only part written by hand; a public name without an entry fails.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch

import bocmdp_gym
import followers
import leaders
from bocmdp_gym import errors, games, wrappers
from leaders import gradients, objectives, updates
from leaders.gradients.registry import ESTIMATORS
from tests.games import Game, bonus, leader_reward
from tests.problems import linear_quadratic, random_model
from tests.registries import restored

#: In the place of any argument.
WRONG: list[Any] = [
    float("nan"), float("inf"),
    -float("inf"), -1, 0, 1.5, -0.5, 1e300, 10**30, "x", "", b"x", None, True, 1 + 2j, [], (), {}, [1],
    np.complex128(1j), [[1, 2]], ["a"], [float("nan")] * 2, np.zeros(0), np.zeros(2), np.zeros((2, 2, 2)), np.array([1 + 2j]),
    np.ma.masked_array([1.0, 2.0], [True, False]), torch.zeros(3), torch.tensor(float("nan")), object(), object, gym.Env,
    lambda *arguments: None, gym.spaces.Discrete(2), np.datetime64("2020-01-01"), range(3), {1: 2},
]  # fmt: skip

#: Those of them that are neither numbers nor flags.
NEVER = [one for one in WRONG if isinstance(one, (str, bytes, complex, dict, type)) or (isinstance(one, float) and one != one)]

#: Made by the library and handed to users, who read them.
RESULTS = {
    "ConfiguredMDPs", "Solution", "Weights", "Trajectories", "Benchmark", "Task", "Suboptimality", "EmpiricalPolicy", "Result",
    "RegularizationEstimate", "Progress", "History", "ComparedGradient", "GradientComparison", "PolicyEvaluation", "Estimate",
    "RewardModel", "Equilibrium", "GameStep", "PopulationResponse", "LinearQuadraticSolution", "LinearGaussianPolicy",
}  # fmt: skip
#: Bases to derive from, protocols, and types.
BASES = {
    "BOCMDP", "Configurable", "ConfigurableEnv", "ConfigurableWrapper", "Hooks", "TransitionOperator", "Follower",
    "IterativeFollower", "Policy", "Solve", "Estimator", "PolicyEstimator", "Loss", "Objective", "Parametrization",
}  # fmt: skip
#: No callables.
OTHERS = {"__version__", "errors", "objectives", "ESTIMATORS"}
#: Used by estimators on what they have checked.
INNER = {"exact_weights", "first_order_weights", "geometric_loss_weights", "geometric_weights", "monte_carlo_weights"}


class Case(NamedTuple):
    """A callable with valid arguments; ``only``: the arguments to vary, if not all."""

    call: Callable[..., Any]
    valid: Callable[[], dict[str, Any]]
    only: tuple[str, ...] | None = None


@functools.cache
def linear() -> bocmdp_gym.LinearQuadraticBOCMDP:
    return linear_quadratic()


@functools.cache
def model() -> bocmdp_gym.TabularBOCMDP:
    return random_model(0, contexts=2, states=3, actions=2, dim=2, discount=0.6, leader_discount=0.5)


def arrays() -> dict[str, Any]:
    return {
        "reward": np.arange(4.0).reshape(1, 2, 2),
        "leader_reward": lambda x: x.reshape(1, 1, 2),
        "transition": np.full((1, 2, 2, 2), 0.5),
        "initial": [0.5, 0.5],
        "leader_dim": 2,
        "discount": 0.9,
    }


def crowded() -> dict[str, Any]:
    return {
        "reward": lambda x, loads: torch.stack([-loads[0], x[0]]).reshape(1, 1, 2),
        "load": np.array([[[1.0, 0.0]]]),
        "mass": [2.0],
        "objective": lambda x, loads, values: loads[0] + values[0, 0],
        "transition": np.ones((1, 1, 2, 1)),
        "initial": [[1.0]],
        "leader_dim": 1,
        "discount": 0.9,
        "load_discount": 0.5,
    }


@functools.cache
def population() -> bocmdp_gym.PopulationBOCMDP:
    return bocmdp_gym.PopulationBOCMDP(**crowded())


def planner() -> followers.SoftPolicyIteration:
    return followers.SoftPolicyIteration(0.5)


@functools.cache
def env() -> Any:
    return bocmdp_gym.TabularEnv(model(), horizon=10)


def oracle() -> followers.TrajectoryOracle:
    return followers.TrajectoryOracle(model(), planner())


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def response() -> followers.TabularPolicy:
    policy = oracle().respond(np.zeros(2), 0, rng())
    assert isinstance(policy, followers.TabularPolicy)
    return policy


def batch() -> bocmdp_gym.Trajectories:
    return oracle().sample(response(), 20, rng())


def run(**options: Any) -> dict[str, Any]:
    return {"env": model(), "leader": leaders.ExactGradient(), "follower": planner(), "iterations": 2, **options}


def cart() -> Any:
    return gym.make("CartPole-v1")


def point(x: Any, observations: Any, actions: Any, context: Any) -> Any:
    return x[0] * observations[:, 0]


def problem() -> Any:
    return bocmdp_gym.configurable(gym.make("bocmdp/PrincipalAgent-v0"))


def registering(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with restored():
            return function(*args, **kwargs)

    return call


def greedy(observation: Any) -> int:
    return 0


LAMBDA = {"regularization": 0.5}
CASES: dict[str, Case] = {
    # ---------------------------------------------------------------------------------------------------- bocmdp_gym
    "TabularBOCMDP": Case(bocmdp_gym.TabularBOCMDP, arrays),
    "TabularBOCMDP.solve": Case(model().solve, lambda: {"x": np.zeros(2), **LAMBDA}),
    "TabularBOCMDP.leader_return": Case(model().leader_return, lambda: {"x": np.zeros(2), **LAMBDA, "tolerance": 1e-9}),
    "TabularBOCMDP.loss": Case(model().loss, lambda: {"x": np.zeros(2), "f": lambda x, p, c: x.sum() + p[0, 0], **LAMBDA}),
    "TabularBOCMDP.configure": Case(model().configure, lambda: {"x": np.zeros(2)}),
    "TabularBOCMDP.jacobians": Case(model().jacobians, lambda: {"x": np.zeros(2)}),
    "TabularBOCMDP.acting_leader": Case(
        bocmdp_gym.TabularBOCMDP.acting_leader,
        lambda: {
            "reward": np.ones((1, 2, 2)), "leader_reward": np.ones((1, 2, 2)), "transition": np.ones((1, 2, 2, 1)),
            "initial": np.ones(1), "discount": 0.9,
        },
    ),
    "TabularBOCMDP.from_gymnasium": Case(
        bocmdp_gym.TabularBOCMDP.from_gymnasium, lambda: {"env": gym.make("FrozenLake-v1"), "discount": 0.9}
    ),
    "PopulationBOCMDP": Case(bocmdp_gym.PopulationBOCMDP, crowded),
    "PopulationBOCMDP.equilibrium": Case(
        population().equilibrium, lambda: {"x": [0.1], **LAMBDA, "start": [0.3], "tolerance": 1e-9, "max_iterations": 20}
    ),
    "PopulationBOCMDP.equilibria": Case(population().equilibria, lambda: {"x": [0.1], **LAMBDA, "starts": 2, "rng": rng()}),
    "PopulationBOCMDP.leader_return": Case(population().leader_return, lambda: {"x": [0.1], **LAMBDA}),
    "PopulationBOCMDP.point": Case(population().point, lambda: {"x": [0.1], "loads": [0.3]}),
    "PopulationBOCMDP.visits": Case(
        population().visits, lambda: {"x": [0.1], "loads": [0.3], "policy": np.full((1, 1, 2), 0.5), "horizon": 3}
    ),
    "PopulationBOCMDP.loads_of": Case(population().loads_of, lambda: {"visits": np.full((1, 1, 2), 0.5)}),
    "PopulationBOCMDP.at": Case(population().at, lambda: dict(LAMBDA)),
    "LinearQuadraticBOCMDP": Case(
        bocmdp_gym.LinearQuadraticBOCMDP,
        lambda: {
            "state_matrix": lambda x: torch.exp(-x).reshape(1, 1),
            "input_matrix": np.ones((1, 1)),
            "noise_covariance": np.eye(1),
            "cost": np.eye(2),
            "leader_cost": np.eye(2),
            "initial_covariance": np.eye(1),
            "leader_dim": 1,
            "discount": 0.5,
            "leader_bonus": 0.5,
            "initial_mean": [0.5],
            "leader_discount": 0.4,
            "context_probabilities": [1.0],
            "example": [0.0],
        },
    ),
    "LinearQuadraticBOCMDP.solve": Case(linear().solve, lambda: {"x": np.zeros(2), **LAMBDA}),
    "LinearQuadraticBOCMDP.parts": Case(linear().parts, lambda: {"x": np.zeros(2), "context": 0}),
    "LinearQuadraticBOCMDP.best_response": Case(
        linear().best_response, lambda: {"x": np.zeros(2), **LAMBDA, "context": 0, "leader_share": 0.1}
    ),
    "LinearQuadraticBOCMDP.policy_return": Case(
        linear().policy_return,
        lambda: {"x": np.zeros(2), "gain": np.zeros((2, 3)), "covariance": np.eye(2), "context": 0},
    ),
    "LinearQuadraticBOCMDP.context_return": Case(
        linear().context_return, lambda: {"x": np.zeros(2), **LAMBDA, "context": 0, "leader_share": 0.1}
    ),
    "LinearQuadraticBOCMDP.leader_return": Case(
        linear().leader_return, lambda: {"x": np.zeros(2), **LAMBDA, "per_context": True}
    ),
    "LinearQuadraticEnv": Case(bocmdp_gym.LinearQuadraticEnv, lambda: {"model": linear(), "horizon": 5, "clip": 5.0}),
    "LinearQuadraticVectorEnv": Case(
        bocmdp_gym.LinearQuadraticVectorEnv, lambda: {"env": bocmdp_gym.LinearQuadraticEnv(linear()), "num_envs": 2}
    ),
    "TabularEnv": Case(bocmdp_gym.TabularEnv, lambda: {"model": model(), "horizon": 5}),
    "TabularEnv.set_leader": Case(env().set_leader, lambda: {"x": np.zeros(2)}),
    "TabularEnv.set_context": Case(env().set_context, lambda: {"context": 0}),
    "TabularVectorEnv": Case(bocmdp_gym.TabularVectorEnv, lambda: {"env": env(), "num_envs": 2}),
    "Affine": Case(bocmdp_gym.Affine, lambda: {"base": np.zeros((1, 2, 2)), "matrix": np.zeros((4, 3))}),
    "Identity": Case(bocmdp_gym.Identity, dict),
    "Softmax": Case(bocmdp_gym.Softmax, dict),
    "Sigmoid": Case(bocmdp_gym.Sigmoid, lambda: {"low": [-1.0, 0.0], "high": [1.0, 2.0]}),
    "DenseTransitions": Case(bocmdp_gym.DenseTransitions, lambda: {"values": torch.full((1, 2, 2, 2), 0.5)}),
    "SuccessorTransitions": Case(
        bocmdp_gym.SuccessorTransitions, lambda: {"successors": np.zeros((2, 2, 1), dtype=int), "values": torch.ones(2, 2, 1)}
    ),
    "SuccessorTransitions.from_sparse": Case(
        bocmdp_gym.SuccessorTransitions.from_sparse, lambda: {"matrices": __import__("scipy.sparse").sparse.eye_array(2).tocsr()}
    ),
    "FactoredTransitions": Case(
        bocmdp_gym.FactoredTransitions, lambda: {"values": torch.full((2, 2, 2), 0.5), "index": [0, 1, 0]}
    ),
    "check_configurable_env": Case(bocmdp_gym.check_configurable_env, lambda: {"env": env(), "steps": 2}),
    "configurable": Case(bocmdp_gym.configurable, lambda: {"env": env()}),
    "gymnasium_tables": Case(bocmdp_gym.gymnasium_tables, lambda: {"env": gym.make("FrozenLake-v1")}),
    "ActionMasks": Case(wrappers.ActionMasks, lambda: {"env": gym.make("Taxi-v4")}),
    "ContextWrapper": Case(
        wrappers.ContextWrapper, lambda: {"env": cart(), "contexts": [[0.1], [0.2]], "names": ["length"]}
    ),
    "LeaderParameters": Case(
        wrappers.LeaderParameters,
        lambda: {"env": cart(), "names": ["length"], "low": 0.1, "high": 1.0, "leader_reward": point, "discount": 0.9},
    ),
    "LeaderReward": Case(
        wrappers.LeaderReward,
        lambda: {"env": cart(), "bonus": point, "leader_space": 1, "leader_reward": point, "discount": 0.9},
    ),
    "ObserveContext": Case(wrappers.ObserveContext, lambda: {"env": problem()}),
    "MarkovGame": Case(
        games.MarkovGame,
        lambda: {"env": Game(), "bonus": bonus, "leader_space": 1, "leader_reward": leader_reward, "discount": 0.9},
    ),
    "EscapeRoom": Case(games.EscapeRoom, lambda: {"n_agents": 3, "n_levers": 2, "horizon": 4}),
    "paid_escape_room": Case(games.paid_escape_room, lambda: {"n_agents": 3, "n_levers": 2, "highest": 2.0}),
    # ----------------------------------------------------------------------------------------------------- followers
    "SoftPolicyIteration": Case(followers.SoftPolicyIteration, lambda: LAMBDA),
    "SoftValueIteration": Case(followers.SoftValueIteration, lambda: LAMBDA),
    "SoftQLearning": Case(followers.SoftQLearning, lambda: {**LAMBDA, "iterations": 5}),
    "VanillaPolicyGradient": Case(followers.VanillaPolicyGradient, lambda: {**LAMBDA, "iterations": 5}),
    "NaturalPolicyGradient": Case(followers.NaturalPolicyGradient, lambda: LAMBDA),
    "LinearProgramming": Case(followers.LinearProgramming, dict),
    "LinearQuadratic": Case(followers.LinearQuadratic, lambda: LAMBDA),
    "BestOf": Case(followers.BestOf, lambda: {"agents": [greedy, greedy], "episodes": 2}),
    "CallableFollower": Case(followers.CallableFollower, lambda: {"agent": greedy}),
    "SB3Follower": Case(followers.SB3Follower, lambda: {"algorithm": "PPO", "total_timesteps": 64, "n_steps": 64}),
    "IndependentLearners": Case(
        followers.IndependentLearners, lambda: {"learner": followers.SB3Follower("PPO", 64, n_steps=64), "rounds": 2}
    ),
    "SoftDQN": Case(followers.SoftDQN, lambda: {"policy": "MlpPolicy", "env": cart(), **LAMBDA}, ("regularization",)),
    "SoftDQNFollower": Case(followers.SoftDQNFollower, lambda: {**LAMBDA, "total_timesteps": 200}),
    "SACFollower": Case(followers.SACFollower, lambda: {**LAMBDA, "total_timesteps": 200}),
    "StepSize": Case(followers.StepSize, lambda: {"scale": 1.0, "offset": 2.0, "per_pair": True}),
    "StepSize.constant": Case(followers.StepSize.constant, lambda: {"scale": 1.0}),
    "StepSize.harmonic": Case(followers.StepSize.harmonic, lambda: {"scale": 1.0, "offset": 2.0}),
    "StepSize.visits": Case(followers.StepSize.visits, lambda: {"scale": 1.0}),
    "TabularPolicy": Case(
        followers.TabularPolicy, lambda: {"table": np.full((3, 2), 0.5), "leader": np.zeros(2), "context": 0}, ("table", "leader")
    ),
    "InterpolatedPolicy": Case(
        followers.InterpolatedPolicy,
        lambda: {"table": np.full((3, 2), 0.5), "leader": np.zeros(2), "context": 0, "core": env()},
        ("table", "leader"),
    ),
    "TrajectoryOracle": Case(followers.TrajectoryOracle, lambda: {"env": model(), "follower": planner()}),
    "TrajectoryOracle.respond": Case(oracle().respond, lambda: {"x": np.zeros(2), "context": 0, "rng": rng()}),
    "TrajectoryOracle.sample": Case(
        oracle().sample, lambda: {"policy": response(), "env_steps": 10, "rng": rng(), "start": [[0, 1]]}
    ),
    "RayOracle": Case(followers.RayOracle, lambda: {"env": model(), "follower": planner(), "workers": 1}, ()),
    "check_follower": Case(followers.check_follower, lambda: {"follower": planner()}, ("follower", "delta", "shortfall", "seed")),
    "empirical_policy": Case(followers.empirical_policy, lambda: {"batch": batch(), "n_states": 3, "n_actions": 2}),
    "estimate_regularization": Case(
        followers.estimate_regularization,
        lambda: {"oracle": oracle(), "policy": response(), "env_steps": 20, "rng": rng()},
    ),
    "FictitiousPlay": Case(
        followers.FictitiousPlay,
        lambda: {"follower": planner(), "rounds": 2, "tolerance": 0.1, "step": 0.5, "sample_steps": 10},
    ),
    "PopulationOracle": Case(
        followers.PopulationOracle,
        lambda: {"env": population(), "follower": planner(), "rounds": 2, "tolerance": 0.1, "step": 0.5, "sample_steps": 10},
    ),
    "PopulationOracle.play": Case(
        followers.PopulationOracle(population(), planner(), rounds=2).play, lambda: {"x": [0.1], "rng": rng()}
    ),
    "exploitability": Case(
        followers.exploitability,
        lambda: {"population": population(), "policies": np.full((1, 1, 2), 0.5), "x": [0.1], "loads": [0.3], **LAMBDA},
    ),
    "suboptimality": Case(
        followers.suboptimality, lambda: {"model": model(), "policy": np.full((2, 3, 2), 0.5), "x": np.zeros(2), **LAMBDA}
    ),
    "register": Case(registering(followers.register), lambda: {"name": "mine", "make": followers.SoftPolicyIteration}),
    # ------------------------------------------------------------------------------------------------------- leaders
    "AMD": Case(leaders.AMD, lambda: {"learning_rate": 0.1, "sweeps": 3}),
    "ExactGradient": Case(leaders.ExactGradient, lambda: {"learning_rate": 0.1}),
    "FirstOrder": Case(leaders.FirstOrder, lambda: {"learning_rate": 0.1, "weight": 0.1}),
    "HPGD": Case(leaders.HPGD, lambda: {"learning_rate": 0.1, "env_steps": 10, "estimator": "monte_carlo"}),
    "ZeroOrder": Case(leaders.ZeroOrder, lambda: {"learning_rate": 0.1}),
    "Leader": Case(leaders.Leader, lambda: {"estimator": gradients.ExactEstimator(), "update": updates.Update(0.1)}),
    "Update": Case(updates.Update, lambda: {"learning_rate": 0.1}),
    "project_to_simplex": Case(updates.project_to_simplex, lambda: {"x": torch.ones(2), "total": 1.0}),
    "Checkpoints": Case(leaders.Checkpoints, lambda: {"folder": "no-such-folder", "every": 3}),
    "Annealing": Case(leaders.Annealing, lambda: {"initial": 0.1}),
    "Constraint": Case(leaders.Constraint, lambda: {"name": "c", "outcome": "follower", "at_least": 0.1}),
    "SampledConstraint": Case(leaders.SampledConstraint, lambda: {"name": "c", "outcome": "follower", "at_most": 0.1}),
    "Mean": Case(objectives.Mean, dict),
    "Min": Case(objectives.Min, lambda: {"memory": 3}),
    "CVaR": Case(objectives.CVaR, lambda: {"level": 0.2}),
    "SoftMin": Case(objectives.SoftMin, lambda: {"temperature": 0.2}),
    "EqualityTimesProductivity": Case(objectives.EqualityTimesProductivity, dict),
    "Function": Case(objectives.Function, lambda: {"function": torch.sum}),
    "LeaderEnv": Case(leaders.LeaderEnv, lambda: {"env": model(), "follower": planner(), "bounds": (-1.0, 1.0)}),
    "optimize": Case(leaders.optimize, lambda: run(x0=[0.0, 0.0], seed=0)),
    "optimize_many": Case(leaders.optimize_many, lambda: run(seeds=[0, 1])),
    "multistart": Case(leaders.multistart, lambda: run(starts=2, rounds=1, progress=False)),
    "check_gradient": Case(
        leaders.check_gradient,
        lambda: {"estimator": leaders.ExactGradient(), "env": model(), "follower": planner(), "repeats": 2},
    ),
    "compare_gradients": Case(
        leaders.compare_gradients,
        lambda: {
            "env": model(), "estimators": {"e": leaders.ExactGradient()}, "x": np.zeros(2), "follower": planner(), "repeats": 2,
            "show": False,
        },
    ),
    "evaluate_policy": Case(
        leaders.evaluate_policy,
        lambda: {"env": model(), "follower": planner(), "x": np.zeros(2), "env_steps": 50, "contexts": 2, "seed": 0},
    ),
    "register_estimator": Case(
        registering(leaders.register_estimator), lambda: {"name": "mine", "kind": gradients.ExactEstimator}
    ),
    **{
        kind.__name__: Case(kind, dict)
        for kind in (
            gradients.ExactEstimator,
            gradients.AdaptiveModelDesignEstimator,
            gradients.FirstOrderEstimator,
            gradients.ZeroOrderEstimator,
        )
    },
    **{kind.__name__: Case(kind, dict) for kind in ESTIMATORS.values()},
}  # fmt: skip


def outcome(case: Case, keywords: dict[str, Any]) -> str:
    """What a call comes to: "named", "fine", or a description of the fault."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = case.call(**keywords)
    except errors.BOCMDPError:
        return "named"
    except TypeError as error:
        return "named" if "missing" in str(error) and "required" in str(error) else f"TypeError: {error}"
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        frames = traceback.extract_tb(error.__traceback__)
        return "named" if frames[-1].filename == __file__ and len(frames) > 1 else f"{type(error).__name__}: {error}"
    return "fine" if all(map(math.isfinite, numbers(result))) else "a result that is not finite"


def numbers(result: Any, depth: int = 3) -> Iterator[float]:
    """The numbers of a result."""
    if isinstance(result, (float, np.floating)):
        yield float(result)
    elif isinstance(result, torch.Tensor) and result.is_floating_point():
        yield float(result.detach().sum() * 0)
    elif isinstance(result, np.ndarray) and result.dtype.kind == "f" and not isinstance(result, gym.Space):
        yield float(result.sum() * 0)
    elif isinstance(result, followers.EmpiricalPolicy):
        return  # NaN where nothing was seen, as it says
    elif depth and isinstance(
        result, (leaders.Result, bocmdp_gym.Solution, bocmdp_gym.Equilibrium, followers.Suboptimality, followers.StepSize)
    ):
        yield from (n for value in vars(result).values() for n in numbers(value, depth - 1))
    elif depth and isinstance(result, (list, tuple)):
        yield from (n for value in result for n in numbers(value, depth - 1))
    elif depth and isinstance(result, dict):
        yield from (n for value in result.values() for n in numbers(value, depth - 1))


def parameters(case: Case) -> list[str]:
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [p.name for p in inspect.signature(case.call).parameters.values() if p.kind not in kinds]


def is_number(case: Case, parameter: str) -> bool:
    """Whether a parameter is said to be a number or a flag (or None)."""
    found = inspect.signature(case.call).parameters.get(parameter)
    return found is not None and str(found.annotation).removesuffix(" | None") in ("int", "float", "bool")


def test_every_public_name_has_a_case() -> None:
    modules = (bocmdp_gym, followers, leaders, wrappers, games, gradients, objectives)
    names = {name for module in modules for name in module.__all__}
    known = CASES.keys() | RESULTS | BASES | OTHERS | INNER
    assert not names - known, "give these valid arguments in CASES"
    assert not (RESULTS | BASES) & CASES.keys()


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_valid_arguments_are_taken(name: str) -> None:
    if name != "RayOracle":
        assert outcome(CASES[name], CASES[name].valid()) == "fine"


@pytest.mark.parametrize("name", CASES)
def test_misspelt_keywords_are_refused_with_the_nearest(name: str) -> None:
    case = CASES[name]
    if "." in name or name in (
        "SoftDQN",
        "register",
    ):  # Python's own, Stable-Baselines3's, and any keyword goes on to the follower
        return  # Python's own, Stable-Baselines3's, and any keyword goes on to the follower
    for right in [p for p in parameters(case) if len(p) > 2]:
        wrong = right[:-2] + right[-1] + right[-2] if right[-1] != right[-2] else right + "s"
        for value in (None, 1):
            with pytest.raises(errors.UnknownOptionError, match=f"Did you mean '{right}'"):
                case.call(**case.valid(), **{wrong: value})


@pytest.mark.parametrize("name", CASES)
def test_values_that_nobody_means_are_refused_or_harmless(name: str) -> None:
    case, faults = CASES[name], []
    for parameter in case.only if case.only is not None else {**dict.fromkeys(parameters(case)), **case.valid()}:
        for value in WRONG:
            found = outcome(case, {**case.valid(), parameter: value})
            if found == "fine" and any(value is never for never in NEVER) and is_number(case, parameter):
                found = "was taken"
            if found not in ("named", "fine"):
                faults.append(f"{name}({parameter}={value!r}): {found}"[:300])
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.only is None])
def test_swapped_arguments_and_classes_are_refused_or_harmless(name: str) -> None:
    case, faults = CASES[name], []
    for first, second in itertools.combinations(case.valid(), 2):
        keywords = case.valid()
        keywords[first], keywords[second] = keywords[second], keywords[first]
        found = outcome(case, keywords)
        if found not in ("named", "fine"):
            faults.append(f"{name} with {first} and {second} swapped: {found}"[:300])
    for parameter, value in case.valid().items():
        found = outcome(case, {**case.valid(), parameter: type(value)})
        if found not in ("named", "fine"):
            faults.append(f"{name}({parameter}={type(value).__name__}): {found}"[:300])
    assert not faults, "\n" + "\n".join(faults)
