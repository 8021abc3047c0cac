r"""Fictitious play: followers who learn alone, round by round, become a population that meets on its own loads.

The mathematics. In round k = 0, 1, ... every class of the population (`bocmdp_gym.PopulationBOCMDP`) has the loads rho_k before
it, and its follower answers the ordinary problem M_{x, xi}(rho_k) with a policy pi_k. Its visits y_k (of all followers of the
class, from the model) are averaged,

    ybar_{k+1} = ybar_k + alpha_k (y_k - ybar_k),      rho_{k+1} = B ybar_{k+1},      alpha_k = 1 / (k + 1) unless given,

so that the loads are those of the mixture of all policies so far (Brown 1951; with soft answers, successive averages). What acts
like the mixture is pibar(a|s) = ybar(s, a) / sum_b ybar(s, b), the policy it answers with. An equilibrium is a fixed point; its
exploitability (`followers.exploitability`) says how far the population is from one.

Where loads move transitions, starts or ends, the average of visits made under other loads is exact in the limit alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from bocmdp_gym import ConfiguredMDPs, PopulationBOCMDP, TabularEnv
from bocmdp_gym.arguments import Constructed
from bocmdp_gym.errors import OptionError, UnsupportedError
from bocmdp_gym.options import check_count, check_number
from bocmdp_gym.population import AmongOthers
from bocmdp_gym.saved_state import array_entry, count_entry, entry, number_entry
from followers.base import Follower, Task, check_follower_type
from followers.empirical import empirical_policy
from followers.environments import AnyEnv, inspect_layers, model_of
from followers.evaluation import policy_values
from followers.oracle import TrajectoryOracle
from followers.policies import Array, TabularPolicy
from followers.policy_distance import exploitability


@dataclass(frozen=True, eq=False)
class PopulationResponse(Constructed):
    """What a population of learning followers does at one x.

    Attributes:
        leader: x ``(d,)``.
        loads: the averaged loads ``(K,)``, which the followers answered last.
        policies: of the classes, ``(C, S, A)``: what acts like the average of all rounds.
        values: the classes' values of these at the loads ``(C, S)``, regularised where followers are.
        visits: that the loads are made of ``(C, S, A)``.
        exploitability: `followers.exploitability` of all this.
        rounds: played for this response.
    """

    leader: Array
    loads: Array
    policies: Array
    values: Array
    visits: Array
    exploitability: float
    rounds: int


class FictitiousPlay(Follower):
    """A follower of each class of a population, who learns alone, and answers the loads that all of them produce.

    One response plays ``rounds`` rounds (module docstring) and serves all classes: it is asked for in one context after another,
    and plays again when x changes or a context comes up again. Its policies are played at the loads they made
    (`Policy.problem`), so that the leader is paid by them, not by the exact equilibrium.

    Warm starts are kept between rounds and between responses: the follower's own in each class, and the average of visits, which
    counts as one round of the next response.

    Policies that tell no probabilities are counted in sampled episodes. Where loads count total visits, they are
    counted up to the horizon at which the environment cuts episodes: who has not learnt yet may go round in circles.

    Args:
        follower: who learns; any that can answer a tabular environment: `SoftQLearning`, `SB3Follower`, ...
        rounds: of a response, at most.
        tolerance: exploitability at which a response ends sooner; None: it plays all rounds.
        step: alpha_k, a number in (0, 1] or a function of k = 0, 1, ...; None: 1 / (k + 1). The first round of all has 1.
        sample_steps: environment steps by which a policy without probabilities is told.

    Attributes:
        response: the last `PopulationResponse`; None before.

    Raises:
        OptionError: no follower, or a value out of range. UnsupportedError: when an oracle is made, an environment that is no
            population, or pays followers a share of the leader's reward; and as the follower's own.
        ConvergenceError: on `respond`, a class whose average policy never ends its episodes, so that it has no values.
    """

    plans = populates = exposes_probabilities = True

    def __init__(
        self,
        follower: Follower,
        rounds: int = 10,
        *,
        tolerance: float | None = None,
        step: float | Callable[[int], float] | None = None,
        sample_steps: int = 10_000,
    ):
        self.follower = check_follower_type(follower)
        if follower.populates:
            raise OptionError(f"follower is {follower!r}, which plays already; expected one that learns alone.")
        self.rounds = check_count("rounds", rounds)
        self.tolerance = None if tolerance is None else check_number("tolerance", tolerance, above=0.0)
        self._step = step if step is None or callable(step) else _check_step(step)
        self.sample_steps = check_count("sample_steps", sample_steps)
        self.regularization, self.discount, self.resumes = follower.regularization, follower.discount, follower.resumes
        self.response: PopulationResponse | None = None
        self._answered: set[int] = set()  # contexts that the last response has served
        self._problem: ConfiguredMDPs | None = None  # of one follower at its loads

    def bind(self, env: AnyEnv, core: Any) -> None:
        """Refuse what cannot work, before anything runs (see the class)."""
        super().bind(env, core)
        model = model_of(core)
        if not isinstance(model, AmongOthers):
            raise UnsupportedError(
                f"FictitiousPlay is for followers who meet (a PopulationBOCMDP, RoadTolls), and {type(core).__name__} has no "
                f"population; use {type(self.follower).__name__} by itself."
            )
        layers = inspect_layers(env, core)
        if layers.share:
            raise UnsupportedError(
                "a wrapper pays followers a share of the leader's reward, which in a population is the same whatever they do; "
                "leave it out."
            )
        self._model, self._population = model, model.population
        self._oracle = TrajectoryOracle(TabularEnv(self._population.problem, layers.horizon), self.follower)
        self._cut = layers.horizon if self._population.problem.leader_discount == 1.0 else None

    @property
    def population(self) -> PopulationBOCMDP:
        """Who meets; known when an oracle is made."""
        return self._population

    def respond(self, task: Task, rng: np.random.Generator) -> TabularPolicy:
        """The policy of one class; ``metrics``: exploitability and rounds.

        Raises:
            ConvergenceError: a class's average policy never ends its episodes; and as the follower's own.
        """
        response = self.response
        if response is None or task.context in self._answered or not np.array_equal(response.leader, task.leader):
            response = self.play(task.leader, rng)
        self._answered.add(task.context)
        policy = task.tabular_policy(
            response.policies[task.context],
            response.values[task.context],
            exploitability=response.exploitability,
            population_rounds=float(response.rounds),
        )
        policy.problem = self._met(response)
        return policy

    def play(self, leader: Array, rng: np.random.Generator) -> PopulationResponse:
        """The rounds of one response to x ``(d,)``, from where the last one ended.

        Raises:
            As `respond`.
        """
        population, last = self._population, self.response
        visits, loads = (None, np.zeros(population.n_loads)) if last is None else (last.visits, last.loads)
        before, played = int(last is not None), 0
        while True:
            tables = self._tables(population.point(leader, loads), rng)
            produced = population.visits(leader, loads, tables, self._cut)
            visits = produced if visits is None else visits + self._step_at(before + played) * (produced - visits)
            loads, played = population.loads_of(visits), played + 1
            if played < self.rounds and self.tolerance is None:
                continue
            policies = _behaviour(visits, tables)
            gap = exploitability(population, policies, leader, loads, self.regularization)
            if played == self.rounds or gap <= (self.tolerance or 0.0):
                break
        mdps, lam = population.problem.configure(population.point(leader, loads)), self.regularization or 0.0
        values = np.array([policy_values(mdps.arrays(c), table, lam).value for c, table in enumerate(policies)])
        response = PopulationResponse(leader.copy(), loads, policies, values, visits, gap, played)
        self._take(response)
        return response

    def _tables(self, point: Tensor, rng: np.random.Generator) -> Array:
        """The classes' answers at (x, loads), ``(C, S, A)``."""
        before, tables = self.follower.training_steps, []
        for context in range(self._population.n_contexts):
            policy = self._oracle.respond(point, context, rng)
            told = self._oracle.tabulate(policy)
            if told is not None:
                tables.append(told.table)
                continue
            batch = self._oracle.sample(policy, self.sample_steps, rng)
            counted = empirical_policy(batch, self._population.n_states, self._population.n_actions).table
            tables.append(np.where(np.isnan(counted), 1.0 / self._population.n_actions, counted))
        self.training_steps += self.follower.training_steps - before
        return np.array(tables)

    def _step_at(self, k: int) -> float:
        if callable(self._step):
            return _check_step(self._step(k), f" (step({k}))")
        return 1.0 / (k + 1.0) if self._step is None else self._step

    def _met(self, response: PopulationResponse) -> ConfiguredMDPs:
        """The problem of one follower at the loads of a response."""
        if self._problem is None:
            self._problem = self._model.met_at(response.leader, response.loads, response.values)
        return self._problem

    def _forget(self) -> None:
        self._take(None)
        self.training_steps = 0

    def _take(self, response: PopulationResponse | None) -> None:
        self.response, self._answered, self._problem = response, set(), None

    def reset(self) -> None:
        self._forget()
        self.follower.reset()

    def copy(self, name: str | None = None) -> FictitiousPlay:
        self.reset()
        return type(self)(**{**self._given_arguments, "follower": self.follower.copy(name)})

    def state(self) -> dict[Any, Any]:
        state: dict[Any, Any] = {"follower": self.follower.state(), "training_steps": self.training_steps}
        if self.response is not None:
            state["answered"] = sorted(self._answered)
            state["response"] = {name: np.array(v) if isinstance(v, np.ndarray) else v for name, v in vars(self.response).items()}
        return state

    def load_state(self, state: dict[Any, Any]) -> None:
        """Continue from `state`.

        Raises:
            DamagedError: it is that of another population, or of none.
        """
        self._forget()
        self.follower.load_state(entry(state, "follower", dict))
        self.training_steps = count_entry(state, "training_steps")
        if "response" not in state:
            return
        c, s, a = self._population.n_contexts, self._population.n_states, self._population.n_actions
        shapes = {"leader": (self._population.leader_dim,), "loads": (self._population.n_loads,), "policies": (c, s, a)}
        shapes |= {"values": (c, s), "visits": (c, s, a)}
        saved = entry(state, "response", dict)
        self.response = PopulationResponse(
            **{name: array_entry(saved, name, shape) for name, shape in shapes.items()},
            exploitability=number_entry(saved, "exploitability"),
            rounds=count_entry(saved, "rounds"),
        )
        self._answered = set(entry(state, "answered", list))


def _behaviour(visits: Array, tables: Array) -> Array:
    """What acts like visits ``(C, S, A)``; where there are none, as the last answers do."""
    total = visits.sum(-1, keepdims=True)
    behaviour: Array = np.divide(visits, total, out=tables.copy(), where=total > 0.0)
    return behaviour


def _check_step(step: Any, note: str = "") -> float:
    """A step of an average.

    Raises:
        OptionError: outside (0, 1].
    """
    return check_number(f"step{note}", step, maximum=1.0, above=0.0)
