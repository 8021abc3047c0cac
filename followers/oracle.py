"""The trajectory oracle (paper, Assumption 2.4): all a leader is told about its follower."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from torch import Tensor

from bocmdp_gym import BOCMDP, ConfiguredMDPs, TabularBOCMDP, TabularEnv, Trajectories, configurable
from bocmdp_gym.env import check_context, check_leader
from bocmdp_gym.errors import DiscountError, OptionError, UnsupportedError
from bocmdp_gym.sampling import simulate
from followers.base import Array, Follower, Policy, TabularPolicy, Task

#: Wrappers that leave dynamics and observations alone: below them the compiled sampler may be used.
_TRANSPARENT = (PassiveEnvChecker, OrderEnforcing, TimeLimit)


class TrajectoryOracle:
    """Best responses of a follower, and trajectories of them.

    Args:
        env: a configurable environment, wrapped or not, or a `TabularBOCMDP` (played with a horizon of 200 steps).
        follower: who responds. Its warm starts are forgotten here.
        compiled: use the compiled sampler; None for wherever possible: a tabular environment under transparent wrappers, and
            a policy given as a table.

    Attributes:
        env, core, follower: the environment, its configurable layer, the follower.
        model: the core's `BOCMDP`, None if it has none.
        env_steps: environment steps sampled so far.
        last_response: the policy `respond` returned last, None before.

    Raises:
        NotConfigurableError: no layer of ``env`` has a leader parameter.
        UnsupportedError: the follower plans with a tabular model and there is none.
        DiscountError: the follower was given another discount than the environment's.
    """

    def __init__(self, env: gym.Env[Any, Any] | TabularBOCMDP, follower: Follower, *, compiled: bool | None = None):
        self.env: gym.Env[Any, Any] = TabularEnv(env) if isinstance(env, TabularBOCMDP) else env
        self.core = configurable(self.env)
        self.follower = follower
        self.model: BOCMDP | None = getattr(self.core, "model", None)
        if follower.needs_model and not isinstance(self.model, TabularBOCMDP):
            raise UnsupportedError(
                f"{type(follower).__name__} plans with a tabular model, and {type(self.core).__name__} has none; use a "
                "learning follower (SB3Follower, CallableFollower)."
            )
        if follower.discount is not None and follower.discount != self.core.discount:
            raise DiscountError(
                f"{type(follower).__name__} was given discount {follower.discount}, but {type(self.core).__name__} has "
                f"{self.core.discount}; leave it out: followers take theirs from the environment."
            )
        self.env_steps = 0
        self.last_response: Policy | None = None
        self._horizon, transparent = self._inspect_layers()
        if compiled and not transparent:
            raise UnsupportedError(
                "the compiled sampler plays the tabular model itself, so it cannot see what outer wrappers do; "
                "unwrap the environment or pass compiled=False."
            )
        self.compiled = transparent if compiled is None else compiled
        self._mdps: ConfiguredMDPs | None = None
        self._mdps_leader: Array | None = None
        self._key: bytes | None = None
        follower.reset()

    def _inspect_layers(self) -> tuple[int | None, bool]:
        """The horizon in force, and whether all layers around the tabular core are transparent."""
        horizon = getattr(self.core, "horizon", None)
        transparent = isinstance(self.core, TabularEnv)
        layer: Any = self.env
        while layer is not self.core:
            transparent = transparent and isinstance(layer, _TRANSPARENT)
            if isinstance(layer, TimeLimit):
                limit = layer._max_episode_steps
                horizon = limit if horizon is None else min(horizon, limit)
            layer = layer.env
        return horizon, transparent

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
        return Task(self.env, self.core, array, context, (lambda: self.configure(array)) if tabular else None)

    def respond(self, x: Any, context: Any, rng: np.random.Generator) -> Policy:
        """The follower's policy at (x, context)."""
        self.last_response = self.follower.respond(self.task(x, context), rng)
        return self.last_response

    def tabulate(self, policy: Policy) -> TabularPolicy | None:
        """A policy as a table of probabilities; None where states are not finite or it does not tell its probabilities."""
        if isinstance(policy, TabularPolicy):
            return policy
        probabilities = getattr(policy, "probabilities", None)
        if probabilities is None or not isinstance(self.core, TabularEnv):
            return None
        observations = self.core.observe(np.arange(self.core.model.n_states))
        table = np.array([probabilities(observation) for observation in observations], dtype=np.float64)
        return self.task(policy.leader, policy.context).tabular_policy(table)

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
            start: start states and first actions ``(F, 2)`` (-1: the policy's), one episode each, while the budget lasts.

        Raises:
            OptionError: a budget below 1.
            StateError: a start that does not exist.
            UnsupportedError: starts asked of an environment that cannot be put into a state.
        """
        if env_steps < 1:
            raise OptionError(f"env_steps is {env_steps}; expected at least 1.")
        if self.compiled and isinstance(policy, TabularPolicy):
            batch = self._simulate(policy, env_steps, rng, start)
        else:
            batch = self._play(policy, env_steps, rng, start)
        self.env_steps += batch.n_steps
        return batch

    def _simulate(
        self, policy: TabularPolicy, env_steps: int, rng: np.random.Generator, start: npt.ArrayLike | None
    ) -> Trajectories:
        """The compiled path."""
        arrays = self.configure(policy.leader).arrays(policy.context)
        run = simulate(arrays, policy.table, env_steps, rng, horizon=self._horizon, starts=start)
        return Trajectories(
            observations=self.core.observe(run.states),
            actions=run.actions,
            rewards=run.rewards,
            leader_rewards=run.leader_rewards,
            ends=run.ends,
            terminated=run.terminated,
            final_observations=self.core.observe(run.final_states),
            leader=policy.leader,
            context=policy.context,
            states=run.states,
            final_states=run.final_states,
        )

    def _play(self, policy: Policy, env_steps: int, rng: np.random.Generator, start: npt.ArrayLike | None) -> Trajectories:
        """The plain Gymnasium path."""
        env, core = self.env, self.core
        core.set_leader(policy.leader)
        core.set_context(policy.context)
        starts = None if start is None else np.atleast_2d(np.asarray(start, dtype=np.int64))
        observations: list[Any] = []
        actions: list[Any] = []
        rewards: list[float] = []
        leader_rewards: list[float] = []
        ends: list[int] = []
        terminations: list[bool] = []
        finals: list[Any] = []
        seed: int | None = int(rng.integers(2**31))
        while len(rewards) < env_steps and (starts is None or len(ends) < len(starts)):
            first, options = -1, None
            if starts is not None:
                state, first = (int(v) for v in starts[len(ends)])
                options = {"state": state}
            observation, _ = env.reset(seed=seed, options=options)
            seed = None
            while True:
                action = first if first >= 0 else policy.act(observation, rng)
                first = -1
                observations.append(observation)
                actions.append(action)
                observation, reward, terminated, truncated, info = env.step(action)
                rewards.append(float(reward))
                leader_rewards.append(float(info["leader_reward"]))
                if terminated or truncated:
                    break
            ends.append(len(rewards))
            terminations.append(bool(terminated))
            finals.append(observation)
        tabular = isinstance(core, TabularEnv)
        seen, final = np.asarray(observations), np.asarray(finals)
        return Trajectories(
            observations=seen,
            actions=np.asarray(actions),
            rewards=np.asarray(rewards, dtype=np.float64),
            leader_rewards=np.asarray(leader_rewards, dtype=np.float64),
            ends=np.asarray(ends, dtype=np.int64),
            terminated=np.asarray(terminations, dtype=np.bool_),
            final_observations=final,
            leader=policy.leader,
            context=policy.context,
            states=np.asarray(core.states_of(seen), dtype=np.int32) if tabular else None,
            final_states=np.asarray(core.states_of(final), dtype=np.int32) if tabular else None,
        )
