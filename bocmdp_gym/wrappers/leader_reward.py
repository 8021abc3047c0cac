"""`LeaderReward`: any Gymnasium environment as a leader's problem, through a bonus on its reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym.errors import ModelError, OptionError
from bocmdp_gym.model import BOCMDP
from bocmdp_gym.options import check_count
from bocmdp_gym.trajectories import Trajectories
from bocmdp_gym.validation import check_wrappable
from bocmdp_gym.wrappers.attributes import Attributes, parameters_of
from bocmdp_gym.wrappers.draws import Draws
from bocmdp_gym.wrappers.functions import (
    Outcomes,
    PointFunction,
    StepFunction,
    as_batch,
    as_context,
    check_log_transitions,
    played,
    probe,
)
from bocmdp_gym.wrappers.leader_parameters import ParameterLayer
from bocmdp_gym.wrappers.step_rewards import StepRewards, StepRewardsFunction

LOG_ARGUMENTS = "x, observations, actions, next_observations, context"


class LeaderReward(ParameterLayer, gym.utils.RecordConstructorArgs):
    """Adds a leader's bonus to the reward of any Gymnasium environment.

    The follower's reward becomes r(s, a) + bonus(x, s, a, xi); ``info["leader_reward"]`` is the leader's, ``info["bonus"]``
    the bonus. `model` is a `BOCMDP` with differentiable rewards: leaders that learn from trajectories can use it.

    Both functions take batches: x ``(d,)`` float64, observations ``(N, ...)``, actions ``(N, ...)`` (dicts and tuples entry by
    entry), the context, and return ``(N,)``. An example: pay a cart-pole for standing at a marked spot.

        env = LeaderReward(
            gym.make("CartPole-v1"),
            bonus=lambda x, observations, actions, context: x[0] * torch.exp(-((observations[:, 0] - x[1]) ** 2)),
            leader_space=2,
            leader_reward=lambda x, observations, actions, context: -((observations[:, 0] - 1.0) ** 2),
            discount=0.99,
        )

    *Outcomes.* Both functions may also name, after these four parameters, ``next_observations`` ``(N, ...)``, ``rewards``
    ``(N,)`` (the environment's own) and ``infos`` (a dict of ``info_keys``, each ``(N, ...)``), as in ``bonus(x, observations,
    actions, context, next_observations)``: they then get what the step led to. Leaders that weigh actions not taken take such
    rewards at the steps alone.

    *Parameters.* With ``parameters`` the last entries of x are values of the environment's attributes, as in
    `LeaderParameters`, and the functions take the whole of x. Gradients in these entries need ``log_transitions``; without it the
    model holds them fixed: leaders that follow its gradient say so and move the rest of x, while those that compare returns
    (``leaders.ZeroOrder``) move all of it. The distribution of first observations counts as independent of x.

    Contexts are those of a `ContextWrapper` (or an environment of ours) inside; without one there is a single context, 0. Put
    this wrapper outside all that change observations, actions or the reward: it sees what the follower sees.

    Args:
        env: the environment, one follower, one reward per step.
        bonus: differentiable in x.
        leader_space: space of x, a float64 ``Box`` of shape ``(d,)``; or d, for all of R^d.
        leader_reward: the leader's reward; it may depend on x (a cost of paying the bonus).
        discount: the follower's gamma.
        leader_discount: the leader's; gamma if None.
        initial_leader: where leaders start ``(d,)``; the point of ``leader_space`` nearest to zero if None, and for
            ``parameters`` the environment's own values, clipped to it.
        info_keys: entries of the environment's info that ``infos`` holds: numbers or arrays, present in every step.
        parameters: names of the attributes that the last entries of x set; with ``apply`` how many entries these are.
        apply: ``apply(env.unwrapped, values)`` puts them into the environment, in place of names.
        update: called with ``env.unwrapped`` after each change, to recompute what is derived from the attributes.
        log_transitions: (x, observations, actions, next_observations, context) -> ``(N,)``: log densities (or probabilities)
            of the next observations, differentiable in x, for those who know the dynamics. They count at every step, for
            what it paid and whether it ended the episode, too.
        draw_transitions: (x, observations, actions, noise, context) -> next observations ``(N, ...)``, differentiable in x,
            from uniform numbers ``noise`` ``(N, noise_dim)``, for episodes that never terminate. Expectations over them then
            replace scores where a leader can take them (the critic). It needs ``reward``, and functions without outcomes.
        noise_dim: how many numbers one draw takes; 0 where the dynamics are deterministic.
        reward: the environment's own reward, (observations, actions, context) -> ``(N,)``, compared with what a few steps pay.
        step_rewards: a fast twin of both functions at one step: (x, observation, action, context), in NumPy, to the numbers
            (bonus, leader_reward); it may name outcomes in the same way, of one step. `step` then calls it in place of
            them. It is compared with them at a few steps on construction.

    Raises:
        UnsupportedError: a multi-agent or vector environment, or rewards that are not one number.
        ModelError: a function that returns a wrong type, a wrong shape or NaN, or a bonus without a gradient in x; a twin that
            differs from the functions.
        LeaderParameterError, DiscountError, OptionError: arguments out of range.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        bonus: PointFunction,
        leader_space: gym.spaces.Box | int,
        leader_reward: PointFunction,
        discount: float,
        leader_discount: float | None = None,
        initial_leader: npt.ArrayLike | None = None,
        *,
        info_keys: Sequence[str] = (),
        parameters: Sequence[str] | int | None = None,
        apply: Callable[[Any, Any], None] | None = None,
        update: Callable[[Any], None] | None = None,
        log_transitions: Callable[[Tensor, Any, Any, Any, Any], Tensor] | None = None,
        draw_transitions: Callable[[Tensor, Any, Any, Tensor, Any], Tensor] | None = None,
        noise_dim: int | None = None,
        reward: Callable[[Any, Any, Any], Tensor] | None = None,
        step_rewards: StepRewardsFunction | None = None,
    ):
        gym.utils.RecordConstructorArgs.__init__(
            self,
            bonus=bonus,
            leader_space=leader_space,
            leader_reward=leader_reward,
            discount=discount,
            leader_discount=leader_discount,
            initial_leader=initial_leader,
            info_keys=info_keys,
            parameters=parameters,
            apply=apply,
            update=update,
            log_transitions=log_transitions,
            draw_transitions=draw_transitions,
            noise_dim=noise_dim,
            reward=reward,
            step_rewards=step_rewards,
        )
        check_wrappable(env, "LeaderReward")
        self._bonus, self._leader_reward = StepFunction("bonus", bonus), StepFunction("leader_reward", leader_reward)
        named = set(self._bonus.outcomes) | set(self._leader_reward.outcomes)
        log = None if log_transitions is None else StepFunction("log_transitions", log_transitions, LOG_ARGUMENTS)
        draws = None
        if draw_transitions is not None or noise_dim is not None or reward is not None:
            draws = Draws(draw_transitions, noise_dim, reward, sorted(named))
        twin = None if step_rewards is None else StepRewards(step_rewards)
        outcomes = Outcomes(sorted(named | (set() if twin is None else set(twin.outcomes))), info_keys)
        space = check_leader_space(leader_space)
        names = self._set_up_parameters(env, space.shape[0], parameters, apply, update)
        start = self._first(space) if initial_leader is None else initial_leader
        super().__init__(env, space, discount, leader_discount, start)
        self._start, self._outcomes, self._twin = self._leader, outcomes, twin
        self.model = RewardModel(self, self._bonus, self._leader_reward, log, draws, names)
        self._probe(env, log, draws)

    def _set_up_parameters(
        self,
        env: gym.Env[Any, Any],
        d: int,
        parameters: Sequence[str] | int | None,
        apply: Callable[[Any, Any], None] | None,
        update: Callable[[Any], None] | None,
    ) -> list[str]:
        """Let the last entries of x act on the environment. Returns their names.

        Raises:
            OptionError: more parameters than x has entries, or ``apply`` or ``update`` without any.
        """
        if parameters is None:
            if apply is not None or update is not None:
                raise OptionError(
                    f"{'update' if apply is None else 'apply'} is given without parameters; expected parameters=[...] with the "
                    "names of attributes, or with apply= how many of the last entries of x it takes."
                )
            return []
        if apply is not None:
            n = check_count("parameters", parameters)
            self._attributes = parameters_of(env, None, apply, update)
            names = [f"parameter {i}" for i in range(n)]
        else:
            attributes = Attributes(env, parameters, update)  # type: ignore[arg-type]
            self._attributes, names = attributes, attributes.names
        if len(names) > d:
            raise OptionError(f"parameters are {len(names)}, and leader_space has {d} entries; expected at least as many.")
        self._n_parameters = len(names)
        return names

    def _first(self, space: gym.spaces.Box) -> npt.NDArray[np.float64]:
        """Where leaders start by default."""
        start = np.zeros(space.shape)
        if isinstance(self._attributes, Attributes):
            start[len(start) - self._n_parameters :] = self._attributes.values
        clipped: npt.NDArray[np.float64] = np.clip(start, space.low, space.high)
        return clipped

    def _probe(self, env: gym.Env[Any, Any], log: StepFunction | None, draws: Draws | None) -> None:
        """Let the mistakes of all functions show before anything runs.

        Raises:
            ModelError: naming the function.
        """
        context, space = self.sample_context(np.random.default_rng(0)), self.leader_space
        needs_steps = self._outcomes.names or log is not None or draws is not None or self._twin is not None
        steps = played(env, self._outcomes) if needs_steps else None
        at = steps if self._outcomes.names else None
        if not probe(self._bonus, env, self._start, context, space, at).requires_grad:
            raise ModelError(
                "bonus does not depend on x through torch operations, so its gradient would be zero everywhere; compute it from "
                "x without .item(), .numpy() or torch.tensor(x)."
            )
        probe(self._leader_reward, env, self._start, context, space, at)
        if steps is None:
            return
        if log is not None:
            check_log_transitions(log, steps, self._start, context, space)
        if draws is not None:
            draws.check(steps, self._start, context, space)
        if self._twin is not None:
            self._twin.check(self._bonus, self._leader_reward, steps, self._start, context, space)

    def initial_leader(self, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """The start given to the constructor."""
        del rng
        return self._start.copy()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act; the bonus and the leader's reward are those of the observation and action before the step.

        Raises:
            ModelError: the bonus or the leader's reward is not finite.
            UnsupportedError: the environment's reward is not one number.
        """
        if self.is_deferred:
            step, bonus, leader_reward = self._act(action), 0.0, 0.0
            self._keep(step)
        elif self._twin is None:
            step, (bonus, leader_reward) = self._values(action, self._bonus, self._leader_reward)
        else:
            before = self._observation
            step = self._act(action)
            self._keep(step)
            led_to = self._outcomes.single(self._observation, step[1], step[4])
            bonus, leader_reward = self._twin(self._episode_leader, before, action, self._episode_context, led_to)
        observation, reward, terminated, truncated, info = step
        info |= {"leader_reward": leader_reward, "bonus": bonus, "context": self._episode_context}
        return observation, reward + bonus, terminated, truncated, info

    @property
    def pays_later(self) -> bool:  # type: ignore[override]
        """Torch functions at all steps of trajectories cost little more than at one; a NumPy twin is as fast at each."""
        return self._twin is None and type(self).step is LeaderReward.step

    def pay(self, batch: Trajectories) -> Trajectories:
        """The bonus and the leader's reward of trajectories played while ``is_deferred`` was set.

        Raises:
            ModelError: one of them is not finite.
        """
        x, outcomes = torch.tensor(batch.leader), batch.outcomes_of(self._outcomes.names)
        points = as_batch(batch.observations), as_batch(batch.actions), as_context(batch.context)
        led_to = {name: as_batch(value) for name, value in outcomes.items()} or None
        with torch.no_grad():
            bonus, leader = (
                function(x, *points, n=batch.n_steps, outcomes=led_to).numpy() for function in (self._bonus, self._leader_reward)
            )
        return replace(batch, rewards=batch.rewards + bonus, leader_rewards=np.array(leader))


class RewardModel(BOCMDP):
    """What is known of an environment under `LeaderReward`: how the rewards depend on x.

    `rewards` is the bonus alone: the environment's own reward does not depend on x, and is in the trajectories (it is added only
    where next states are drawn). So a reward observed at x is one at y after adding ``rewards(y, ...) - rewards(x, ...)``, and
    gradients in x are complete, but for the `frozen` entries, in which they are 0.
    """

    def __init__(
        self,
        env: LeaderReward,
        bonus: StepFunction,
        leader_reward: StepFunction,
        log_transitions: StepFunction | None = None,
        draws: Draws | None = None,
        parameters: Sequence[str] = (),
    ):
        self.leader_dim = env.leader_space.shape[0]
        self.discount, self.leader_discount = env.discount, env.leader_discount
        self.outcomes = tuple(sorted(set(bonus.outcomes) | set(leader_reward.outcomes)))
        self.pays_on_arrival = log_transitions is not None
        self._bonus, self._leader_reward, self._log_transitions = bonus, leader_reward, log_transitions
        self._draws = draws
        self.noise_dim = None if draws is None else draws.noise_dim
        self.pathwise_only = draws is not None and log_transitions is None
        self._n_free = self.leader_dim
        if log_transitions is None and draws is None:
            self._n_free -= len(parameters)
            self.frozen = tuple(f"x[{self._n_free + i}] ({name})" for i, name in enumerate(parameters))

    def _free(self, x: Tensor) -> Tensor:
        """x, of which the frozen entries are constants."""
        return torch.cat([x[: self._n_free], x[self._n_free :].detach()]) if self.frozen else x

    def rewards(self, x: Tensor, observations: Any, actions: Any, context: Any, **outcomes: Any) -> Tensor:
        """The bonus at N points ``(N,)``, differentiable in x; ``outcomes`` are those that `outcomes` names.

        Where the model draws next states, the environment's own reward is in it too.
        """
        paid = self._at(self._bonus, x, observations, actions, context, outcomes)
        return paid if self._draws is None else paid + self._draws.rewards(observations, actions, context)

    def leader_rewards(self, x: Tensor, observations: Any, actions: Any, context: Any, **outcomes: Any) -> Tensor:
        """The leader's reward at N points ``(N,)``, differentiable in x; ``outcomes`` are those that `outcomes` names."""
        return self._at(self._leader_reward, x, observations, actions, context, outcomes)

    def _at(self, function: StepFunction, x: Tensor, observations: Any, actions: Any, context: Any, outcomes: Any) -> Tensor:
        missing = [name for name in function.outcomes if name not in outcomes]
        if missing:
            raise ModelError(
                f"{function} takes {missing[0]}, which only a step that was taken has; pass it by name, as "
                "Trajectories.outcomes_of(model.outcomes) gives it."
            )
        points = as_batch(observations), as_batch(actions), as_context(context)
        led_to = {name: as_batch(outcomes[name]) for name in function.outcomes}
        return function(self._free(x), *points, n=len(actions), outcomes=led_to)

    def log_transitions(self, x: Tensor, observations: Any, actions: Any, next_observations: Any, context: Any) -> Tensor | None:
        """Log densities of the next observations ``(N,)``; None where they are not known."""
        if self._log_transitions is None:
            return None
        points = [as_batch(part) for part in (observations, actions, next_observations)]
        return self._log_transitions(x, *points, as_context(context), n=len(actions))

    def draw_transitions(self, x: Tensor, observations: Any, actions: Any, noise: Tensor, context: Any) -> Tensor:
        """Next observations ``(N, ...)``."""
        if self._draws is None:
            return super().draw_transitions(x, observations, actions, noise, context)
        return self._draws(x, observations, actions, noise, context)


def check_leader_space(space: Any) -> gym.spaces.Box:
    """A space of x from a Box or a dimension.

    Raises:
        OptionError: anything else than a float64 Box ``(d,)`` or a positive integer.
    """
    if isinstance(space, gym.spaces.Box):
        if len(space.shape) == 1 and space.dtype == np.float64:
            return space
        raise OptionError(
            f"leader_space is a Box of shape {space.shape} and type {space.dtype}; expected shape (d,) and dtype=np.float64."
        )
    return gym.spaces.Box(-np.inf, np.inf, (check_count("leader_space", space),), np.float64)
