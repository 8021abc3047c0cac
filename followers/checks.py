"""`check_follower`: does a follower keep the contract that leaders rely on, and does it solve what it must?"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch

from bocmdp_gym import TabularBOCMDP, TabularEnv
from bocmdp_gym.arguments import known_options
from bocmdp_gym.checks import _require
from bocmdp_gym.errors import ActionError, OptionError
from bocmdp_gym.memory import owned
from bocmdp_gym.optimum import WarmSolver
from bocmdp_gym.options import check_count, check_number
from followers.adapters import as_policy, can_act
from followers.base import Follower, check_follower_type
from followers.environments import check_action, configure
from followers.evaluation import policy_values
from followers.iterative import IterativeFollower
from followers.oracle import TrajectoryOracle
from followers.policies import Array, Policy, TabularPolicy

#: Max-norm policy gap asked of followers that promise nothing themselves.
DELTA = 0.05
#: The same of exact followers.
EXACT_DELTA = 1e-6
#: A follower without a regularization is compared with the optimum at this one, which is hard on the problems below.
_HARD = 1e-3
_HORIZON = 50
_DRAWS = 400
#: Episodes by which a follower is compared with acting at random, and first observations to look at, in other environments.
_EPISODES, _STARTS = 20, 3


@dataclass(frozen=True)
class Problem:
    """A problem to solve in every context, at each of several leader parameters.

    Attributes:
        name: for messages.
        model: the problem; or a configurable environment, of any kind, whose optimum nobody knows.
        leaders: the x ``(d,)`` to solve it at.
    """

    name: str
    model: TabularBOCMDP | gym.Env[Any, Any]
    leaders: tuple[Array, ...]

    def oracle(self, follower: Follower) -> TrajectoryOracle:
        """An oracle of the problem, which forgets what the follower had learnt."""
        model = self.model
        return TrajectoryOracle(TabularEnv(model, horizon=_HORIZON) if isinstance(model, TabularBOCMDP) else model, follower)


def small_problems() -> list[Problem]:
    """Problems any follower must solve.

    "signs": the better of two actions depends on the sign of x, on the context and on the state, so ignoring one of them
    earns nothing. "corridor": a small reward at hand, a large one four steps away. "noise": random rewards and transitions.
    """
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64)
    signs = TabularBOCMDP(
        reward=lambda x: x[0] * torch.einsum("c,s,a->csa", sign, sign, sign),
        leader_reward=np.zeros((1, 2, 2)),
        transition=np.full((1, 2, 2, 2), 0.5),
        initial=np.full(2, 0.5),
        termination=np.full((1, 2), 0.5),
        leader_dim=1,
        discount=0.9,
        context_probabilities=[0.5, 0.5],
    )
    length = 5
    moves = np.zeros((1, length, 2, length))
    for s in range(length):
        moves[0, s, 0, max(s - 1, 0)] = moves[0, s, 1, min(s + 1, length - 1)] = 1.0
    ends = np.zeros((1, length))
    ends[0, [0, -1]] = 1.0
    near, far = np.zeros((1, length, 1)), np.zeros((1, length, 1))
    near[0, 0], far[0, -1] = 0.3, 1.0
    corridor = TabularBOCMDP(
        reward=lambda x: torch.from_numpy(near) + x[0] * torch.from_numpy(far),
        leader_reward=np.zeros((1, length, 2)),
        transition=moves,
        initial=np.array([0.0, 0.4, 0.3, 0.3, 0.0]),
        termination=ends,
        leader_dim=1,
        discount=0.9,
    )
    rng = np.random.default_rng(0)
    fixed, moving = torch.from_numpy(rng.uniform(-1, 1, (1, 4, 3))), torch.from_numpy(rng.uniform(-1, 1, (1, 4, 3)))
    noise = TabularBOCMDP(
        reward=lambda x: fixed + x[0] * moving,
        leader_reward=np.zeros((1, 4, 3)),
        transition=rng.dirichlet(np.ones(4), (1, 4, 3)),
        initial=np.full(4, 0.25),
        leader_dim=1,
        discount=0.8,
    )
    one = np.ones(1)
    return [
        Problem("signs", signs, (one, -one)),
        Problem("corridor", corridor, (one,)),
        Problem("noise", noise, (one, -one)),
    ]


@known_options()
def check_follower(
    follower: Follower,
    *,
    delta: float | None = None,
    shortfall: float = 0.1,
    problems: Sequence[Problem] | None = None,
    seed: int = 0,
) -> None:
    """Check that ``follower`` solves small problems, respects x and context, is reproducible, and leaves global state alone.

    It answers about ten tasks, each as it would in a run; a follower that trains on ``task.env`` trains that often. Its
    warm starts are forgotten. On an environment of your own,

        check_follower(follower, problems=[Problem("pendulum", env, (x, y))])

    a follower must earn no less than one that acts at random, as nobody knows the optimum there, and keep all other rules.

    Args:
        follower: any follower.
        delta: the max-norm distance allowed from the optimal policy, of followers with a regularization that expose their
            probabilities. None: what its tolerance promises (`IterativeFollower.policy_gap`), 1e-6 of exact followers, and
            0.05 of others.
        shortfall: of all other followers, the share of the optimum's return above a uniform policy's that may be missing.
        problems: what to solve; `small_problems` if None, which are for followers with Discrete observations and actions. The
            first must have at least two leader parameters, in which optimal policies differ.
        seed: for the follower's generators and the sampled actions.

    Raises:
        CheckError: naming the broken rule.
        OptionError: no follower, a bound out of range, no problems, or a first one with a single leader parameter.
        UnsupportedError: the follower cannot answer in a problem.
    """
    check_follower_type(follower)
    if delta is not None:
        delta = check_number("delta", delta, above=0.0)
    shortfall = check_number("shortfall", shortfall, 0.0, 1.0)
    seed = check_count("seed", seed, 0)
    problems = small_problems() if problems is None else problems
    if not problems or len(problems[0].leaders) < 2:
        raise OptionError(
            f"problems is {problems!r}; expected at least one Problem, the first with two leader parameters: the follower "
            "answers the second in between, to show that reset() forgets it."
        )
    before = _global_state()
    for problem in problems:
        _check_solves(follower, problem, delta, shortfall, seed)
    _check_reproducible(follower, problems[0], seed)
    _check_policy(follower, problems[0], seed)
    _require(
        _global_state() == before,
        "a follower must leave the global random states of random, numpy and torch alone: draw from the generator it is "
        "given, and put back what a library seeds",
    )


def _check_solves(follower: Follower, problem: Problem, delta: float | None, shortfall: float, seed: int) -> None:
    oracle = problem.oracle(follower)
    rng = np.random.default_rng(seed)
    for x in (np.asarray(one, dtype=np.float64) for one in problem.leaders):
        for context in _contexts(oracle):
            oracle.core.set_leader(_elsewhere(oracle, x))  # whatever the environment was left at must not matter
            oracle.core.set_context(None)
            where = f"on {problem.name!r} at x = {x.tolist()}, context {context}"
            answer = follower.respond(oracle.task(x, context), rng)
            _require(can_act(answer), f"respond must return a Policy, or an object that has act or predict, not {type(answer)}")
            policy = as_policy(answer, x, context, _space(oracle))
            declared = follower.exposes_probabilities
            _require(
                declared in (None, policy.exposes_probabilities),
                f"a follower must declare what it offers: its exposes_probabilities is {declared}; {where} its policy's is "
                f"{policy.exposes_probabilities}",
            )
            _require(
                np.array_equal(policy.leader, x) and np.array_equal(policy.context, context),
                f"a policy must carry the x and context it answers; {where} it carries {policy.leader} and {policy.context}",
            )
            table = oracle.tabulate(policy)
            if table is not None:
                _check_distribution(table.table, where)
            if not isinstance(oracle.model, TabularBOCMDP) or (table is None and oracle.core.interpolates):
                _check_better(oracle, policy, where, rng)
            elif table is not None and follower.regularization is not None:
                _check_delta(oracle, follower, table, delta, where)
            else:
                _check_return(oracle, follower, policy, table, shortfall, where, rng)


def _check_delta(oracle: TrajectoryOracle, follower: Follower, policy: TabularPolicy, delta: float | None, where: str) -> None:
    assert follower.regularization is not None
    optimum = WarmSolver().solve(oracle.configure(policy.leader), policy.context, follower.regularization)
    allowed = delta
    if allowed is None and isinstance(follower, IterativeFollower) and follower.tolerance is not None:
        allowed = follower.policy_gap(follower.tolerance * follower.regularization, oracle.core.discount) + EXACT_DELTA
    if allowed is None:
        allowed = EXACT_DELTA if follower.exact else DELTA
    gap = float(np.abs(policy.table - optimum.policy).max())
    _require(
        gap <= allowed,
        f"a follower must come within {allowed:.3g} of the optimal policy (max norm); {where} it is off by {gap:.3g}. Does "
        "it respect x and context, and is its budget large enough? A larger distance can be allowed by delta=",
    )


def _check_return(
    oracle: TrajectoryOracle,
    follower: Follower,
    policy: Policy,
    table: TabularPolicy | None,
    shortfall: float,
    where: str,
    rng: np.random.Generator,
) -> None:
    """Compare plain returns, exact where the policy is a table, else sampled (three standard errors allowed)."""
    arrays = oracle.configure(policy.leader).arrays(policy.context)

    def plain(pi: Array) -> float:
        return float(arrays.initial @ policy_values(arrays, pi, 0.0).value)

    lam = _HARD if follower.regularization is None else follower.regularization
    best = plain(WarmSolver().solve(oracle.configure(policy.leader), policy.context, lam).policy)
    uniform = plain(arrays.available / arrays.available.sum(-1, keepdims=True))
    if table is not None:
        reached, error = plain(table.table), 0.0
    else:
        returns = oracle.sample(policy, 100 * _HORIZON, rng).discounted_returns(oracle.core.discount)
        reached, error = float(returns.mean()), 3.0 * float(returns.std()) / len(returns) ** 0.5
    _require(
        reached + error >= best - shortfall * (best - uniform),
        f"a follower must earn {100 * (1 - shortfall):.0f}% of what the optimum earns above a uniform policy; {where} it earns "
        f"{reached:.4g} where the optimum earns {best:.4g} and a uniform policy {uniform:.4g}. Does it respect x and context, "
        "and is its budget large enough? More can be allowed by shortfall=",
    )


def _check_better(oracle: TrajectoryOracle, policy: Policy, where: str, rng: np.random.Generator) -> None:
    """Compare sampled returns with those of actions at random (three standard errors allowed)."""
    at_random = _AtRandom(oracle, policy)
    means, errors = [], []
    for one in (policy, at_random):
        returns = oracle.sample(one, _EPISODES * (oracle.horizon or _HORIZON), rng).discounted_returns(oracle.core.discount)
        means.append(float(returns.mean()))
        errors.append(float(returns.std()) / len(returns) ** 0.5)
    _require(
        means[0] + 3.0 * float(np.hypot(*errors)) >= means[1],
        f"a follower must earn no less than one that acts at random; {where} it earns {means[0]:.4g}, where acting at random "
        f"earns {means[1]:.4g} (standard errors {errors[0]:.2g} and {errors[1]:.2g}). Does it respect x and context, and is its "
        "budget large enough?",
    )


class _AtRandom(Policy):
    """Acts uniformly, in the task of another policy."""

    def __init__(self, oracle: TrajectoryOracle, policy: Policy):
        self.leader, self.context, self._space = policy.leader, policy.context, deepcopy(_space(oracle))

    def act(self, observation: Any, rng: np.random.Generator) -> Any:
        self._space.seed(int(rng.integers(2**31)))
        return self._space.sample()


def _check_reproducible(follower: Follower, problem: Problem, seed: int) -> None:
    first, other = problem.leaders[:2]

    def answer(detour: bool) -> list[Any]:
        oracle = problem.oracle(follower)
        context = _contexts(oracle)[0]
        if detour:
            oracle.respond(other, context, np.random.default_rng(seed + 1))
            follower.reset()
        return _fingerprint(oracle, oracle.respond(first, context, np.random.default_rng(seed)))

    fresh = answer(detour=False)
    _require(_same(fresh, answer(detour=False)), "equal seeds must give equal policies, bit for bit")
    _require(_same(fresh, answer(detour=True)), "reset() must forget everything learnt from earlier tasks")


def _check_policy(follower: Follower, problem: Problem, seed: int) -> None:
    oracle = problem.oracle(follower)
    policy = oracle.respond(problem.leaders[0], _contexts(oracle)[0], np.random.default_rng(seed))
    before = _fingerprint(oracle, policy)
    space = _space(oracle)
    rng = np.random.default_rng(seed)
    for observation in _observations(oracle)[:3]:
        actions = [policy.act(observation, rng) for _ in range(_DRAWS)]
        illegal = [action for action in actions if not _is_legal(action, space)]
        _require(not illegal, f"act must return actions in {space}; got {illegal[:1]}")
        if policy.exposes_probabilities and isinstance(space, gym.spaces.Discrete) and policy.estimate is None:
            p = np.asarray(policy.probabilities(observation), dtype=np.float64)
            _check_distribution(p, f"at {observation!r}")
            drawn = np.bincount(np.asarray(actions, dtype=np.int64).reshape(-1) - int(space.start), minlength=len(p)) / _DRAWS
            error = 5.0 * np.sqrt(p * (1.0 - p) / _DRAWS) + 1.0 / _DRAWS
            _require(
                bool((np.abs(drawn - p) <= error).all()),
                f"act must draw from probabilities(observation); at {observation!r} {_DRAWS} draws gave {drawn}, not {p}",
            )
    oracle.sample(policy, 2 * _HORIZON, rng)
    _require(_same(before, _fingerprint(oracle, policy)), "a policy must be frozen: acting must not change it")


def _check_distribution(table: npt.NDArray[np.float64], where: str) -> None:
    _require(
        bool(np.isfinite(table).all() and (table >= 0.0).all() and (np.abs(table.sum(-1) - 1.0) <= 1e-5).all()),
        f"probabilities(observation) must be a distribution; {where} they are {table}",
    )


def _space(oracle: TrajectoryOracle) -> gym.Space[Any]:
    space: gym.Space[Any] = oracle.env.action_space
    return space


def _is_legal(action: Any, space: gym.Space[Any]) -> bool:
    try:
        check_action(action, space)
    except ActionError:
        return False
    return True


def _contexts(oracle: TrajectoryOracle) -> list[Any]:
    """All contexts, or two of a continuum."""
    space = oracle.core.context_space
    if isinstance(space, gym.spaces.Discrete):
        return list(range(int(space.start), int(space.start + space.n)))
    return [oracle.sample_context(np.random.default_rng(seed)) for seed in range(2)]


def _elsewhere(oracle: TrajectoryOracle, x: Array) -> Array:
    """Another leader parameter."""
    space = oracle.core.leader_space
    for other in (-x, x + 1.0, oracle.core.initial_leader(np.random.default_rng(0))):
        if space.contains(other):
            break
    return np.clip(other, space.low, space.high)


def _observations(oracle: TrajectoryOracle) -> Any:
    """All of a table's, else some of the first that are seen."""
    if isinstance(oracle.model, TabularBOCMDP) and oracle.exposes_states:
        return oracle.core.observe(np.arange(oracle.core.model.n_states))
    x = oracle.core.initial_leader(np.random.default_rng(0))  # the same whatever the oracle did before: starts may depend on it
    configure(oracle.env, oracle.core, x, _contexts(oracle)[0])
    return [owned(oracle.env.reset(seed=seed)[0]) for seed in range(_STARTS)]


def _fingerprint(oracle: TrajectoryOracle, policy: Policy) -> list[Any]:
    """What sets policies apart: actions drawn with a fixed seed, and the probabilities where they are exposed."""
    rng = np.random.default_rng(0)
    prints: list[Any] = [np.asarray(policy.act(o, rng)) for _ in range(20) for o in _observations(oracle)]
    if policy.exposes_probabilities and policy.estimate is None:
        return [*prints, *(np.array(policy.probabilities(o)) for o in _observations(oracle))]
    table = oracle.tabulate(policy)
    return prints if table is None else [*prints, table.table.copy()]


def _same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(np.array_equal(u, v) for u, v in zip(a, b, strict=True))


def _global_state() -> tuple[Any, ...]:
    numpy_state: Callable[[], Any] = np.random.get_state
    name, keys, *rest = numpy_state()
    return random.getstate(), (name, keys.tobytes(), *rest), torch.get_rng_state().numpy().tobytes()


__all__ = ["Problem", "check_follower", "small_problems"]
