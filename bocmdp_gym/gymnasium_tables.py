"""Gymnasium's own tables (FrozenLake, Taxi, CliffWalking) as the arrays of a model."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bocmdp_gym.arguments import known_options
from bocmdp_gym.errors import UnsupportedError
from bocmdp_gym.options import check_instance
from bocmdp_gym.transitions import SuccessorTransitions
from bocmdp_gym.validation import refuse_multi_agent


class GymnasiumTables(NamedTuple):
    """Arrays read from an environment's published tables; see `gymnasium_tables`."""

    reward: Tensor  # (1, S, A)
    transition: SuccessorTransitions
    initial: Tensor  # (S,)
    termination: Tensor  # (1, S, A)


@known_options()
def gymnasium_tables(env: gym.Env[Any, Any]) -> GymnasiumTables:
    """Reward, transitions, initial distribution and termination from ``env.unwrapped.P`` (FrozenLake, Taxi, CliffWalking).

    There an episode ends *on arrival* in a done state. Here q(s, a) is the probability of a done successor and P the
    distribution over the others, so no value or entropy is earned after the end.

    Raises:
        UnsupportedError: the environment publishes no tables, or is a multi-agent one.
    """
    refuse_multi_agent(env)
    check_instance("env", env, gym.Env)
    base = env.unwrapped
    table, initial = getattr(base, "P", None), getattr(base, "initial_state_distrib", None)
    if not isinstance(table, dict) or initial is None:
        raise UnsupportedError(
            f"{type(base).__name__} publishes no tables (env.unwrapped.P and env.unwrapped.initial_state_distrib); expected an "
            "environment such as FrozenLake-v1, Taxi-v4 or CliffWalking-v1. Write the arrays yourself and pass them to "
            "TabularBOCMDP, or use a leader wrapper."
        )
    n_states, n_actions = len(table), len(table[0])
    width = max(len(table[s][a]) for s in table for a in table[s])
    succ = np.zeros((n_states, n_actions, width), dtype=np.int32)
    prob = np.zeros((n_states, n_actions, width))
    reward, termination = np.zeros((1, n_states, n_actions)), np.zeros((1, n_states, n_actions))
    for s in range(n_states):
        for a in range(n_actions):
            for k, (p, successor, r, done) in enumerate(table[s][a]):
                reward[0, s, a] += p * r
                succ[s, a, k] = successor
                if done:
                    termination[0, s, a] += p
                else:
                    prob[s, a, k] = p
            going_on = prob[s, a].sum()
            if going_on > 0.0:
                prob[s, a] /= going_on
            else:  # certain end: where it would go does not matter
                succ[s, a], prob[s, a, 0] = s, 1.0
                termination[0, s, a] = 1.0
    return GymnasiumTables(
        torch.from_numpy(reward),
        SuccessorTransitions(succ, torch.from_numpy(prob)),
        torch.as_tensor(np.asarray(initial, dtype=np.float64)),
        torch.from_numpy(termination.clip(0.0, 1.0)),
    )
