"""The trajectory oracle (paper, Assumption 2.4): all a leader is told about its follower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from bocmdp_gym import BOCMDP, ConfiguredMDPs, PopulationBOCMDP, TabularBOCMDP, TabularEnv, Trajectories
from bocmdp_gym.arguments import WithArguments
from bocmdp_gym.errors import LeaderParameterError, OptionError, UnsupportedError
from bocmdp_gym.options import as_array, check_count, check_flag, check_generator
from bocmdp_gym.sampling import simulate, simulate_paired
from bocmdp_gym.validation import check_context, check_leader
from bocmdp_gym.wrappers.leader_share import LeaderShareCopies
from followers.adapters import as_policy
from followers.base import Follower, Task, check_follower_type
from followers.copies import COPIES
from followers.environments import (
    AnyEnv,
    action_space,
    as_environment,
    check_leader_paid,
    check_unchanged,
    inspect_layers,
    make_single,
    model_of,
    observations_of_states,
)
from followers.policies import Array, Policy, TabularPolicy
from followers.rollout import play, play_copies


class TrajectoryOracle(WithArguments):
    """Best responses of a follower, and trajectories of them.

    Args:
        env: a configurable environment, wrapped or not; a vector environment of copies of one, in any autoreset mode; or a
            `TabularBOCMDP` or a `PopulationBOCMDP` (played with a horizon of 200 steps).
        follower: who responds. Its warm starts are forgotten here.
        compiled: use the compiled sampler; None for wherever possible: a tabular environment under wrappers that change
            nothing but how a state is shown, and a policy with a table.
        copies: episodes played at once, in copies of a single environment, where the policy answers batches (networks do) and
            copies play as the environment does; where they do not, or somebody watches (``render_mode``), it is played alone.
            1: always alone, for wrappers that keep a record of every step.

    Attributes:
        env, core, follower: the environment, its configurable layer (of one copy), the follower.
        model: the core's `BOCMDP`, None if it has none.
        layers: what the wrappers around the core do.
        idle_steps: steps that copies made while others finished their last episode, and in episodes begun in vain.
        last_response: the policy `respond` returned last, None before.

    Raises:
        NotConfigurableError: no layer of ``env`` has a leader parameter.
        OptionError: ``follower`` is no `Follower`.
        UnsupportedError: the follower plans with a tabular model and there is none, or wrappers around it change the problem; a
            wrapper around the configurable layer skips or repeats its steps, or changes what the leader is paid; or the follower
            cannot answer in this environment.
        DiscountError: the follower was given another discount than the environment's.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any] | TabularBOCMDP | PopulationBOCMDP,
        follower: Follower,
        *,
        compiled: bool | None = None,
        copies: int = COPIES,
    ):
        self._copies = check_count("copies", copies)
        if compiled is not None:
            compiled = check_flag("compiled", compiled)
        self.follower = check_follower_type(follower)
        self.env: AnyEnv = as_environment(env, follower.regularization)
        one, self.core = make_single(self.env)
        self.model: BOCMDP | None = model_of(self.core)
        follower.bind(self.env, self.core)
        self.layers = inspect_layers(self.env, self.core, one)
        if follower.plans:
            check_unchanged(type(follower).__name__, self.layers, self.core, plain=self.core.interpolates)
        check_leader_paid(self.env, self.layers, one)
        self._env_steps = self.idle_steps = 0
        self.last_response: Policy | None = None
        inner = self.env.env if isinstance(self.env, LeaderShareCopies) else self.env
        unwrapped = not isinstance(inner, VectorEnv) or inner is inner.unwrapped
        self._plain = self.layers.plain and unwrapped
        simulable = isinstance(self.core, TabularEnv) and self.layers.showing is not None and unwrapped
        if compiled and not simulable:
            raise UnsupportedError(
                "the compiled sampler plays the tabular model itself, so it cannot see what outer wrappers do; "
                "unwrap the environment or pass compiled=False."
            )
        self.compiled = simulable if compiled is None else compiled
        if follower.populates and not self.compiled:
            raise UnsupportedError(
                f"{type(follower).__name__} has its policies played at the loads they make, by the compiled sampler, which "
                "cannot play here; take off the wrappers that change the environment, and leave compiled out."
            )
        self._leader: Array | None = None
        self._key: bytes | None = None
        self._mdps: ConfiguredMDPs | None = None  # at that x
        self._action_space = action_space(self.env)
        self._shown: dict[Any, Any] = {}  # what is seen in each state, by context
        follower.reset()

    def close(self) -> None:
        """End what runs elsewhere on the oracle's behalf: nothing here, the workers of an oracle that has some."""

    @property
    def env_steps(self) -> int:
        """Environment steps sampled so far: those of the trajectories handed out, no more and no fewer."""
        return self._env_steps

    def count_steps(self, env_steps: int) -> None:
        """Add steps that were sampled elsewhere on this oracle's account.

        Raises:
            OptionError: a negative number.
        """
        self._env_steps += check_count("env_steps", env_steps, 0)

    def restore(self, env_steps: int) -> None:
        """Continue the count of a checkpoint.

        Raises:
            OptionError: a negative number.
        """
        self._env_steps = check_count("env_steps", env_steps, 0)

    @property
    def training_steps(self) -> int:
        """Environment steps the follower has used for itself."""
        return self.follower.training_steps

    @property
    def horizon(self) -> int | None:
        """Steps after which an episode is cut; None: never."""
        return self.layers.horizon

    @property
    def exposes_states(self) -> bool:
        """Whether trajectories carry the indices of the states visited."""
        readable = self._plain or self.compiled or not isinstance(self.env, VectorEnv)
        return isinstance(self.core, TabularEnv) and readable

    @property
    def seen_model(self) -> BOCMDP | None:
        """The model as functions of what trajectories hold: of what the follower sees, or of states; None if there is none."""
        return None if self.model is None else self.layers.seen(self.model)

    def configure(self, x: Any) -> ConfiguredMDPs:
        """The model's arrays at x, differentiable in x whatever mode torch is in; kept until another x is asked for.

        Raises:
            UnsupportedError: the environment has no tabular model.
        """
        if not isinstance(self.model, TabularBOCMDP):
            raise UnsupportedError(f"{type(self.core).__name__} has no tabular model.")
        leader = self._checked(x)
        if self._mdps is None:
            self._mdps = self._configured(self.model, leader)
        return self._mdps

    def configure_for(self, policy: Policy) -> ConfiguredMDPs:
        """The arrays that a response is played in: the model's at its x, unless it brings its own (`Policy.problem`).

        Raises:
            UnsupportedError: as `configure`.
        """
        return self.configure(policy.leader) if policy.problem is None else policy.problem

    def _configured(self, model: TabularBOCMDP, leader: Array) -> ConfiguredMDPs:
        """The model's arrays at a checked x, with the follower's share of the leader's reward where a layer pays one."""
        mdps = model.configure_with_graph(leader)
        return mdps.with_leader_share(self.layers.share) if self.layers.share else mdps

    def _checked(self, x: Any) -> Array:
        """x as a checked read-only array, the same object as long as x keeps its value; a new x ends what was configured."""
        if self._leader is not None and x is self._leader:
            return self._leader
        if type(x) is np.ndarray and x.dtype == np.float64:
            array: Array | None = x
        elif isinstance(x, Tensor) and x.dtype == torch.float64 and x.device.type == "cpu":
            array = x.detach().numpy() if x.requires_grad else x.numpy()
        else:
            array = as_array(x)
        if array is None:
            raise LeaderParameterError(f"leader parameter {x!r} is not an array of real numbers.")
        key = array.tobytes()
        if self._leader is None or key != self._key or array.shape != self._leader.shape:
            self._leader, self._key, self._mdps = check_leader(array, self.core.leader_space), key, None
        return self._leader

    def sample_context(self, rng: np.random.Generator) -> Any:
        """One draw of xi ~ P_xi."""
        return self.core.sample_context(rng)

    def task(self, x: Any, context: Any) -> Task:
        """The problem M_{x, xi}.

        Raises:
            LeaderParameterError, ContextError: outside their spaces.
        """
        leader = self._checked(x)
        context = check_context(context, self.core.context_space)
        task = Task(leader, context, self.core, self.env, self.layers, self.configure)
        plans = self.follower.plans and not self.follower.populates
        if plans and isinstance(self.model, TabularBOCMDP):  # it will ask for these, so they are made on the way
            if self._mdps is None:
                self._mdps = self._configured(self.model, leader)
            task.mdps, task.arrays = self._mdps, self._mdps.arrays(context)
        return task

    def respond(self, x: Any, context: Any, rng: np.random.Generator) -> Policy:
        """The follower's policy at (x, context).

        Raises:
            OptionError: it answered with something that cannot act.
        """
        check_generator(rng)
        task = self.task(x, context)
        answer: Any = self.follower.respond(task, rng)
        if not isinstance(answer, Policy):
            answer = as_policy(answer, task.leader, task.context, self._action_space)
        self.last_response = answer
        return self.last_response

    def respond_ahead(self, x: Any, contexts: Sequence[Any], rngs: Sequence[np.random.Generator]) -> None:
        """Say which responses `respond` will be called for next: an oracle with workers starts on them all at once."""

    def tabulate(self, policy: Policy) -> TabularPolicy | None:
        """A policy as a table of probabilities; None where the problem is not tabular or some probabilities are not exposed."""
        if isinstance(policy, TabularPolicy):
            return policy
        task, table, estimate = self.task(policy.leader, policy.context), policy.table, policy.estimate
        if estimate is not None:
            table = estimate.table if estimate.counts.any(-1).all() else None
        elif table is None and policy.exposes_probabilities and task.observations is not None:
            table = np.array([policy.probabilities(observation) for observation in task.observations], dtype=np.float64)
        return None if table is None else task.tabular_policy(np.asarray(table))

    def sample(
        self,
        policy: Policy,
        env_steps: int,
        rng: np.random.Generator,
        start: npt.ArrayLike | None = None,
        horizon: int | None = None,
        paired: bool = False,
    ) -> Trajectories:
        """Trajectories of a policy at its own (x, context).

        Episodes are played to their end: the one running when the budget is reached is finished, and its steps count. With a
        ``horizon`` the oracle stops them earlier, as a time limit would, and resets the environment. Several are played at once
        where that is faster (``copies``), and the batch is the same draw as of one after the other: the first so many begun that
        they have ``env_steps`` steps, whichever ended first (`followers.schedule`).

        Args:
            policy: from `respond`.
            env_steps: steps to play, at least 1.
            rng: source of randomness.
            start: start states and first actions ``(F, 2)`` (-1: the policy's), one episode each, while the budget lasts; where
                states are no indices, a list of pairs (None: the policy's action).
            horizon: steps after which an episode is stopped, at least 1; None: where it ends by itself.
            paired: give every episode random numbers of its own, so that two samples from equal generators draw the same in
                episodes of equal number; copies of a vector environment only begin alike.

        Raises:
            OptionError: a budget or a horizon below 1, or starts for paired episodes.
            StateError: a start that does not exist.
            UnsupportedError: starts asked of an environment that cannot be put into a state.
            ActionError: the policy did something that is no action.
            ObservationError: an observation or a reward that is not finite.
        """
        if type(env_steps) is not int or not 1 <= env_steps < 2**31:
            env_steps = check_count("env_steps", env_steps)
        horizon = None if horizon is None else check_count("horizon", horizon)
        check_generator(rng)
        if check_flag("paired", paired) and start is not None:
            raise OptionError("paired episodes start where the environment has them start; leave start out.")
        if not isinstance(policy, Policy):
            policy = as_policy(policy, space=self._action_space)
        if self.compiled and policy.table is not None:
            batch = self._simulate(policy, policy.table, env_steps, rng, start, horizon, paired)
        elif not isinstance(self.env, VectorEnv):
            options: Any = {"plain": self._plain, "horizon": horizon, "paired": paired, "copies": self._copies}
            batch, idle = play(self.env, self.core, policy, env_steps, rng, start, **options)
            self.idle_steps += idle
        elif start is not None:
            raise UnsupportedError(
                "the copies of a vector environment reset by themselves, so they cannot each be put into a state; give the "
                "oracle a single environment where starts are needed."
            )
        else:
            batch, idle = play_copies(self.env, self.core, policy, env_steps, rng, plain=self._plain, horizon=horizon)
            self.idle_steps += idle
        self._env_steps += len(batch.rewards)
        return batch

    def _simulate(
        self,
        policy: Policy,
        table: Array,
        env_steps: int,
        rng: np.random.Generator,
        start: npt.ArrayLike | None,
        horizon: int | None,
        paired: bool,
    ) -> Trajectories:
        """The compiled path."""
        arrays = self.configure_for(policy).arrays(policy.context)
        shown = self._observations(policy.context)
        limits = [limit for limit in (self.layers.horizon, horizon) if limit is not None]
        limit = min(limits, default=None)
        if paired:
            run = simulate_paired(arrays, table, env_steps, rng, horizon=limit)
        else:
            run = simulate(arrays, table, env_steps, rng, horizon=limit, starts=start)
        return Trajectories(
            observations=run.states if shown is None else shown[run.states],
            actions=run.actions,
            rewards=run.rewards,
            leader_rewards=run.leader_rewards,
            ends=run.ends,
            terminated=run.terminated,
            final_observations=run.final_states if shown is None else shown[run.final_states],
            leader=policy.leader,
            context=policy.context,
            states=run.states,
            final_states=run.final_states,
        )

    def _observations(self, context: Any) -> npt.NDArray[Any] | None:
        """What is seen in each state ``(S, ...)``; None where that is the state."""
        key = None if self._plain else context
        if key not in self._shown:
            states = np.arange(self.core.model.n_states)
            shown = self.core.observe(states) if self._plain else observations_of_states(self.core, self.layers, context)
            self._shown[key] = None if shown is states else shown
        kept: npt.NDArray[Any] | None = self._shown[key]
        return kept
