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

from bocmdp_gym import BOCMDP, ConfiguredMDPs, TabularBOCMDP, TabularEnv, Trajectories
from bocmdp_gym.autodiff import with_gradients
from bocmdp_gym.errors import UnsupportedError
from bocmdp_gym.options import check_count
from bocmdp_gym.sampling import simulate
from bocmdp_gym.validation import check_context, check_leader
from followers.adapters import as_policy
from followers.base import Follower, Task, check_follower_type
from followers.environments import (
    AnyEnv,
    action_space,
    check_unchanged,
    inspect_layers,
    make_single,
    model_of,
    observations_of_states,
)
from followers.policies import Array, Policy, TabularPolicy
from followers.rollout import play, play_copies


class TrajectoryOracle:
    """Best responses of a follower, and trajectories of them.

    Args:
        env: a configurable environment, wrapped or not; a vector environment of copies of one, in any autoreset mode; or a
            `TabularBOCMDP` (played with a horizon of 200 steps).
        follower: who responds. Its warm starts are forgotten here.
        compiled: use the compiled sampler; None for wherever possible: a tabular environment under wrappers that change
            nothing but how a state is shown, and a policy with a table.

    Attributes:
        env, core, follower: the environment, its configurable layer (of one copy), the follower.
        model: the core's `BOCMDP`, None if it has none.
        layers: what the wrappers around the core do.
        idle_steps: steps that copies of a vector environment made while others finished their last episode.
        last_response: the policy `respond` returned last, None before.

    Raises:
        NotConfigurableError: no layer of ``env`` has a leader parameter.
        OptionError: ``follower`` is no `Follower`.
        UnsupportedError: the follower plans with a tabular model and there is none, or wrappers around it change the problem; or
            the follower cannot answer in this environment.
        DiscountError: the follower was given another discount than the environment's.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any] | TabularBOCMDP,
        follower: Follower,
        *,
        compiled: bool | None = None,
    ):
        self.env: AnyEnv = TabularEnv(env) if isinstance(env, TabularBOCMDP) else env
        self.follower = check_follower_type(follower)
        one, self.core = make_single(self.env)
        self.model: BOCMDP | None = model_of(self.core)
        follower.bind(self.env, self.core)
        self.layers = inspect_layers(self.env, self.core, one)
        if follower.plans:
            check_unchanged(type(follower).__name__, self.layers, self.core, plain=self.core.interpolates)
        self._env_steps = self.idle_steps = 0
        self.last_response: Policy | None = None
        unwrapped = not isinstance(self.env, VectorEnv) or self.env is self.env.unwrapped
        self._plain = self.layers.plain and unwrapped
        simulable = isinstance(self.core, TabularEnv) and self.layers.showing is not None and unwrapped
        if compiled and not simulable:
            raise UnsupportedError(
                "the compiled sampler plays the tabular model itself, so it cannot see what outer wrappers do; "
                "unwrap the environment or pass compiled=False."
            )
        self.compiled = simulable if compiled is None else compiled
        self._mdps: ConfiguredMDPs | None = None
        self._mdps_leader: Array | None = None
        self._key: bytes | None = None
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

    @with_gradients
    def configure(self, x: Any) -> ConfiguredMDPs:
        """The model's arrays at x, differentiable in x; kept until another x is asked for.

        Raises:
            UnsupportedError: the environment has no tabular model.
        """
        if not isinstance(self.model, TabularBOCMDP):
            raise UnsupportedError(f"{type(self.core).__name__} has no tabular model.")
        leader = self._checked(x)
        if self._mdps is None or self._mdps_leader is not leader:
            x = torch.tensor(leader).requires_grad_()
            self._mdps, self._mdps_leader = self.model.configure_checked(x), leader
        return self._mdps

    def _checked(self, x: Any) -> Array:
        """x as a checked read-only array; the same object as long as x keeps its value."""
        array = np.asarray(x.detach().numpy() if isinstance(x, Tensor) else x, dtype=np.float64)
        key = array.tobytes()
        if key != self._key or array.shape != self.core.leader_space.shape:
            self._leader, self._key = check_leader(array, self.core.leader_space), key
        return self._leader

    def sample_context(self, rng: np.random.Generator) -> Any:
        """One draw of xi ~ P_xi."""
        return self.core.sample_context(rng)

    def task(self, x: Any, context: Any) -> Task:
        """The problem M_{x, xi}.

        Raises:
            LeaderParameterError, ContextError: outside their spaces.
        """
        array = self._checked(x)
        context = check_context(context, self.core.context_space)
        tabular = isinstance(self.model, TabularBOCMDP)
        configure = (lambda: self.configure(array)) if tabular else None
        return Task(self.env, self.core, array, context, configure, self.layers)

    @with_gradients
    def respond(self, x: Any, context: Any, rng: np.random.Generator) -> Policy:
        """The follower's policy at (x, context).

        Raises:
            OptionError: it answered with something that cannot act.
        """
        task = self.task(x, context)
        self.last_response = as_policy(self.follower.respond(task, rng), task.leader, task.context, action_space(self.env))
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
    ) -> Trajectories:
        """Trajectories of a policy at its own (x, context).

        Episodes are played to their end: the one running when the budget is reached is finished, and its steps count.

        Args:
            policy: from `respond`.
            env_steps: steps to play, at least 1.
            rng: source of randomness.
            start: start states and first actions ``(F, 2)`` (-1: the policy's), one episode each, while the budget lasts; where
                states are no indices, a list of pairs (None: the policy's action).

        Raises:
            OptionError: a budget below 1.
            StateError: a start that does not exist.
            UnsupportedError: starts asked of an environment that cannot be put into a state.
            ActionError: the policy did something that is no action.
            ObservationError: an observation or a reward that is not finite.
        """
        check_count("env_steps", env_steps)
        policy = as_policy(policy, space=action_space(self.env))
        if self.compiled and policy.table is not None:
            batch = self._simulate(policy, policy.table, env_steps, rng, start)
        elif not isinstance(self.env, VectorEnv):
            batch, _ = play(self.env, self.core, policy, env_steps, rng, start, plain=self._plain)
        elif start is not None:
            raise UnsupportedError(
                "the copies of a vector environment reset by themselves, so they cannot each be put into a state; give the "
                "oracle a single environment where starts are needed."
            )
        else:
            batch, idle = play_copies(self.env, self.core, policy, env_steps, rng, plain=self._plain)
            self.idle_steps += idle
        self.count_steps(batch.n_steps)
        return batch

    def _simulate(
        self, policy: Policy, table: Array, env_steps: int, rng: np.random.Generator, start: npt.ArrayLike | None
    ) -> Trajectories:
        """The compiled path."""
        arrays = self.configure(policy.leader).arrays(policy.context)
        run = simulate(arrays, table, env_steps, rng, horizon=self.layers.horizon, starts=start)
        if self._plain:
            observe = self.core.observe
        else:
            shown = observations_of_states(self.core, self.layers, policy.context)
            assert shown is not None
            observe = shown.__getitem__
        return Trajectories(
            observations=observe(run.states),
            actions=run.actions,
            rewards=run.rewards,
            leader_rewards=run.leader_rewards,
            ends=run.ends,
            terminated=run.terminated,
            final_observations=observe(run.final_states),
            leader=policy.leader,
            context=policy.context,
            states=run.states,
            final_states=run.final_states,
        )
