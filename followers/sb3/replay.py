"""Replay buffers when x changes: their rewards belong to the x they were earned under, so they are dropped or relabelled."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from bocmdp_gym import BOCMDP, TabularBOCMDP
from bocmdp_gym.errors import UnsupportedError
from bocmdp_gym.tensor_model import TensorModel
from followers.base import Task
from followers.environments import model_of
from followers.policies import Array
from followers.sb3.views import View, from_zero


def empty_buffer(model: OffPolicyAlgorithm) -> ReplayBuffer:
    """A new buffer like the model's own.

    `ReplayBuffer.reset` will not do: it only forgets where it was, and some kinds of buffers look further.
    """
    kind = model.replay_buffer_class
    assert kind is not None
    return kind(
        model.buffer_size,
        model.observation_space,
        model.action_space,
        device=model.device,
        n_envs=model.n_envs,
        optimize_memory_usage=model.optimize_memory_usage,
        **model.replay_buffer_kwargs,
    )


def end_last_episode(model: OffPolicyAlgorithm) -> None:
    """Let the last stored step end its episode, where a memory-saving buffer would join it to the one that begins now.

    Such a buffer takes the observation after step t for that before step t + 1, and each response starts a new episode.
    """
    buffer = model.replay_buffer
    if model.optimize_memory_usage and buffer is not None and buffer.size():
        buffer.dones[(buffer.pos - 1) % buffer.buffer_size] = 1.0


def check_relabelling(core: Any) -> None:
    """Refuse to relabel what a change of x does more to than pay differently.

    Raises:
        UnsupportedError: no model to read rewards from, or transitions that depend on x.
    """
    model = model_of(core)
    if model is None:
        raise UnsupportedError(
            f"{type(core).__name__} has no model to read rewards from, so replay='relabel' cannot fix a buffer when x changes; "
            "use replay='drop'."
        )
    if model.outcomes or model.frozen or model.pays_on_arrival or model.pathwise_only:
        taken = f"take {', '.join(model.outcomes)}, which buffers do not hold"
        why = taken if model.outcomes else "belong to transitions that depend on x"
        raise UnsupportedError(f"the model's rewards {why}, so old ones cannot be relabelled; use replay='drop'.")
    if isinstance(model, TabularBOCMDP):
        moving = sorted({"transition", "termination"} & set(model.moving))
        if moving:
            raise UnsupportedError(
                f"the model's {' and '.join(moving)} depend on x, so old transitions cannot be relabelled; use replay='drop'."
            )


def relabel(model: OffPolicyAlgorithm, task: Task, old_leader: Array, view: View) -> None:
    """Give every stored transition the reward it would earn at the task's x.

    Tables are read; elsewhere the change r_new(s, a) - r_old(s, a) of the model's reward is added, so that what the environment
    pays besides (noise, rewards that do not depend on x) stays.

    Raises:
        UnsupportedError: the transitions turn out to depend on x.
    """
    buffer = model.replay_buffer
    assert buffer is not None
    size = buffer.size()
    if not size:
        return
    problem: BOCMDP = task.core.model
    seen = view.observation_space
    observations = _as_shown(seen, _flat(buffer.observations, size))
    actions = buffer.actions[:size].reshape(-1, buffer.actions.shape[-1])
    if isinstance(problem, TabularBOCMDP):
        states = np.asarray(task.core.states_of(observations))
        rewards = task.arrays.reward[states, actions[:, 0]]
        buffer.rewards[:size] = rewards.reshape(size, -1)
        return
    if isinstance(model.action_space, gym.spaces.Box):
        actions = model.policy.unscale_action(actions)
    elif isinstance(model.action_space, gym.spaces.Discrete):
        actions = actions[:, 0]
    actions = view.act(actions)
    new, old, problem = torch.tensor(task.leader), torch.tensor(old_leader), TensorModel(problem)
    with torch.no_grad():
        first, second = (_as_shown(seen, _row(*place)) for place in _first_step(buffer))
        if problem.log_transitions(new, first, actions[:1], second, task.context) is not None:
            raise UnsupportedError("the transitions depend on x, so old ones cannot be relabelled; use replay='drop'.")
        change = problem.rewards(new, observations, actions, task.context)
        change = change - problem.rewards(old, observations, actions, task.context)
        if task.leader_share:
            earned = problem.leader_rewards(new, observations, actions, task.context)
            change = change + task.leader_share * (earned - problem.leader_rewards(old, observations, actions, task.context))
    buffer.rewards[:size] += change.numpy().astype(np.float32).reshape(size, -1)


def _as_shown(space: gym.Space[Any], stored: Any) -> Any:
    """Stored observations as the environment shows them: indices without an axis of their own, counted from its start."""
    return from_zero(space, stored[:, 0] if isinstance(space, gym.spaces.Discrete) else stored)


def _first_step(buffer: Any) -> tuple[tuple[Any, int], tuple[Any, int]]:
    """Where the first step's observation is stored, and the one after it: arrays, and rows in them."""
    if buffer.optimize_memory_usage:
        return (buffer.observations, 0), (buffer.observations, 1 % buffer.buffer_size)
    return (buffer.observations, 0), (buffer.next_observations, 0)


def _row(part: Any, index: int) -> Any:
    """One stored observation of the first copy, as a batch of one."""
    if isinstance(part, dict):
        return {name: _row(value, index) for name, value in part.items()}
    return part[index, :1]


def _flat(part: Any, size: int) -> Any:
    """Stored observations of all copies, one after the other."""
    if isinstance(part, dict):
        return {name: _flat(value, size) for name, value in part.items()}
    return part[:size].reshape(-1, *part.shape[2:])
