"""Random inputs to the public API, and what becomes of each: right, a named error, another exception, or silent nonsense."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from scipy import sparse

import followers
import leaders
from bocmdp_gym import SuccessorTransitions, TabularBOCMDP, errors
from bocmdp_gym.registration import ENVIRONMENTS
from tests.fuzz import brute_force
from tests.test_public_api import CASES, WRONG, numbers, outcome, parameters, planner

#: Too slow for thousands of calls, or made once.
_SLOW = {"RayOracle", "check_follower", "SoftDQN", "TabularBOCMDP.from_gymnasium"}
_NAMES = sorted(CASES.keys() - _SLOW)
Model = dict[str, Any]


def number(rng: np.random.Generator) -> Any:
    """A number of any size and type, or what is none."""
    choice = rng.integers(6)
    if choice == 0:
        return WRONG[rng.integers(len(WRONG))]
    size = float(rng.choice([-1.0, 1.0]) * 10.0 ** rng.uniform(-12, 12))
    small = int(rng.integers(-2, 6))
    return [size, small, np.float32(size), np.int64(small), abs(size)][choice - 1]


def model(rng: np.random.Generator) -> tuple[Model, float]:
    """Arguments of a small model that is right, in random units, and lambda."""
    c, s, a = (int(n) for n in rng.integers(1, 4, size=3))
    unit = 10.0 ** rng.uniform(-6, 6)
    arguments = {
        "reward": unit * rng.standard_normal((c, s, a)),
        "leader_reward": rng.standard_normal((c, s, a)),
        "transition": rng.dirichlet(np.full(s, 0.5), size=(c, s, a)),
        "initial": rng.dirichlet(np.ones(s), size=c),
        "termination": rng.uniform(size=(c, s, a)) * (rng.random() < 0.5),
        "leader_dim": 1,
        "discount": float(rng.choice([0.0, 0.3, 0.8, 0.9])),
        "leader_discount": float(rng.choice([0.0, 0.5, 0.9])),
        "context_probabilities": rng.dirichlet(np.ones(c)),
        "solver": str(rng.choice(["auto", "dense", "banded", "sparse-lu"])),
    }
    return arguments, unit * 10.0 ** rng.uniform(-1.5, 1.0)


def disguised(rng: np.random.Generator, arguments: Model) -> Model:
    """The same model in another form."""
    changed = dict(arguments)
    form = rng.integers(6)
    if form == 0:
        changed |= {name: torch.from_numpy(changed[name]) for name in ("reward", "leader_reward", "termination", "initial")}
    elif form == 1:
        array = torch.from_numpy(arguments["reward"])
        changed["reward"] = lambda x: array + 0 * x.sum()
    elif form == 2:
        p = arguments["transition"]
        successors = np.broadcast_to(np.arange(p.shape[1]), p.shape[1:])
        changed["transition"] = SuccessorTransitions(successors, torch.from_numpy(p))
    elif form == 3 and len(arguments["reward"]) == 1:
        p = arguments["transition"][0]
        changed["transition"] = sparse.csr_array(p.reshape(-1, p.shape[-1]))
        changed["leader_reward"] = sparse.csr_array(arguments["leader_reward"][0])
    elif form == 4:
        changed |= {name: changed[name].tolist() for name in ("reward", "initial", "context_probabilities")}
    return changed


def spoilt(rng: np.random.Generator, arguments: Model) -> Model:
    """A model with one fault that nobody means."""
    changed = dict(arguments)
    name = str(rng.choice([n for n, value in arguments.items() if isinstance(value, np.ndarray)]))
    array = changed[name].copy()
    fault = rng.integers(7)
    if fault == 0:
        array.flat[rng.integers(array.size)] = rng.choice([np.nan, np.inf, -np.inf])
    elif fault == 1 and name in ("transition", "initial", "context_probabilities"):
        array.flat[rng.integers(array.size)] += float(rng.choice([-2.0, 1e-6, 1.0]))
    elif fault == 1 and name == "termination":
        array.flat[rng.integers(array.size)] = float(rng.choice([-0.1, 1.1]))
    elif fault == 2:
        array = array[None]
    elif fault == 3:
        array = np.concatenate([array, array, array, array], axis=int(rng.integers(array.ndim)))
    elif fault == 4:
        array = array + 1j
    elif fault == 5:
        name, array = str(rng.choice(sorted(arguments))), WRONG[rng.integers(len(WRONG))]
    else:
        name, array = str(rng.choice(["discount", "leader_discount"])), number(rng)
    changed[name] = array
    return changed


def solve(rng: np.random.Generator) -> str:
    """A model, solved and compared."""
    arguments, lam = model(rng)
    if rng.random() < 0.4:
        arguments = spoilt(rng, arguments)
    elif rng.random() < 0.7:
        arguments = disguised(rng, arguments)
    one = TabularBOCMDP(**arguments)
    x = np.zeros(one.leader_dim)
    solution, value = one.solve(x, lam), float(one.leader_return(x, lam))
    if not all(map(np.isfinite, numbers(solution))) or not np.isfinite(value):
        return "nonsense: not finite"
    own = one.configure(x)
    expected = worst = 0.0
    for context in range(one.n_contexts):
        p = own.transition.expectation(torch.eye(one.n_states, dtype=torch.float64)[:, None, :].expand(-1, one.n_contexts, -1))
        parts = [getattr(own, name)[context].detach().numpy() for name in ("reward", "leader_reward")]
        truth = brute_force.solve(
            *parts,
            np.moveaxis(p[:, context].detach().numpy(), 0, -1),
            own.initial[context].detach().numpy(),
            own.termination[context].detach().numpy(),
            (one.discount, one.leader_discount),
            lam,
        )
        error = float(np.abs(solution.policy[context].detach().numpy() - truth.policy).max())
        if not error <= 1e-6:
            return f"nonsense: a policy off by {error:.3g}"
        worst = max(worst, error)
        expected += float(one.context_probabilities[context]) * truth.leader_return
        given = arguments.get("reward")
        whole = isinstance(given, np.ndarray) and given.shape == (one.n_contexts, one.n_states, one.n_actions)
        if whole and not np.array_equal(parts[0], given[context]):
            return "nonsense: another reward than the one given"
    scale = float(own.leader_reward.detach().abs().max()) / max(1.0 - one.leader_discount, 1e-6)
    # a policy that is off by e changes the return by at most e A max|rbar| / (1 - gamma_L)^2
    allowed = (1e-9 + worst * one.n_actions / max(1.0 - one.leader_discount, 1e-6)) * max(scale, 1e-300)
    return "right" if abs(value - expected) <= allowed else f"nonsense: F {value} is {expected}"


def call(rng: np.random.Generator) -> str:
    """A public callable with up to three arguments changed."""
    name = _NAMES[rng.integers(len(_NAMES))]
    case = CASES[name]
    keywords = dict(case.valid())
    known = list(case.only if case.only is not None else {**dict.fromkeys(parameters(case)), **keywords})
    for changed in rng.choice(known, size=min(len(known), int(rng.integers(1, 4))), replace=False):
        keywords[str(changed)] = _value(rng, str(changed), keywords.get(str(changed)))
    found = outcome(case, keywords)
    return {"fine": "right", "named": "named"}.get(found, f"other: {name}({keywords}): {found}"[:400])


#: Numbers of steps and sizes, which take their time and memory: in their place only what nobody means.
_WORK = {
    "iterations",
    "starts",
    "rounds",
    "repeats",
    "steps",
    "env_steps",
    "contexts",
    "leader_dim",
    "leader_space",
    "sweeps",
    "check_samples",
    "num_envs",
    "samples",
}
_WORK |= {"n_states", "n_actions", "directions", "max_iterations", "scale", "horizon", "total_timesteps", "workers"}


def _value(rng: np.random.Generator, name: str, old: Any) -> Any:
    if name in _WORK or rng.random() < 0.5:
        return WRONG[rng.integers(len(WRONG))]
    return number(rng) if rng.random() < 0.8 or old is None else type(old)


def environment(rng: np.random.Generator) -> str:
    """An environment of the registry with one argument changed."""
    entry = ENVIRONMENTS[rng.integers(len(ENVIRONMENTS))]
    module, name = entry.entry_point.split(":")
    kind = getattr(importlib.import_module(module), name)
    known = [p for p in inspect.signature(kind.__init__).parameters if p != "self"]
    argument = known[rng.integers(len(known))]
    kind(**{argument: WRONG[rng.integers(len(WRONG))]})
    return "right"


def run(rng: np.random.Generator) -> str:
    """A short run of a leader with random settings against a random follower."""
    arguments, lam = model(rng)
    reward = torch.from_numpy(arguments["reward"])
    arguments["reward"] = lambda x: reward * (1 + x.sum())
    one = TabularBOCMDP(**arguments)
    kinds: list[Callable[..., leaders.Leader]] = [
        lambda rate: leaders.ExactGradient(rate),
        lambda rate: leaders.HPGD(rate, env_steps=20),
        lambda rate: leaders.HPGD(rate, samples=5, estimator="geometric"),
        lambda rate: leaders.AMD(rate, sweeps=3),
        lambda rate: leaders.ZeroOrder(rate),
    ]
    rate = abs(float(rng.standard_normal())) if rng.random() < 0.7 else number(rng)
    who = planner() if rng.random() < 0.2 else followers.SoftPolicyIteration(lam)
    result = leaders.optimize(one, kinds[rng.integers(len(kinds))](rate), who, 2, seed=0, evaluate_every=1)
    return "right" if all(map(np.isfinite, numbers(result))) else "nonsense: a result that is not finite"


KINDS: list[tuple[Callable[[np.random.Generator], str], float]] = [(solve, 0.45), (call, 0.4), (environment, 0.05), (run, 0.1)]


def try_one(seed: int) -> str:
    """What becomes of input number ``seed``: "right", "named", "other: ..." or "nonsense: ..."."""
    rng = np.random.default_rng([17, seed])
    kind = KINDS[rng.choice(len(KINDS), p=[share for _, share in KINDS])][0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind(rng)
    except errors.BOCMDPError:
        return "named"
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return f"other: {kind.__name__}: {type(error).__name__}: {error}"[:400]


def try_all(seeds: Iterable[int]) -> tuple[Counter[str], list[str]]:
    """How many inputs ended in each way ("right", "named", "other", "nonsense"), and the faults among them, by number."""
    found: Counter[str] = Counter()
    faults = []
    for seed in seeds:
        outcome = try_one(seed)
        found[outcome.partition(":")[0]] += 1
        if outcome not in ("right", "named"):
            faults.append(f"{seed}: {outcome}")
    return found, faults
