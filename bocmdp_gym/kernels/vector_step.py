"""Many copies of a tabular environment, one step of each at a time."""

from __future__ import annotations

import numpy as np
from numba import njit

from bocmdp_gym.kernels.alias import drawn
from bocmdp_gym.kernels.random import next_bits, unit


@njit(cache=True)
def vector_step(
    states,  # (N,) and ages, contexts, needs_reset: the copies, changed in place
    ages,
    contexts,
    needs_reset,
    actions,
    mode,  # 0: reset in the next step, 1: in the same step, 2: never
    reward,  # (C, S, A)
    leader_reward,
    termination,
    index,  # (A,): the row of each action in its state
    successors,  # (C S M, K, 2): alias tables of the transition rows
    starts,  # (C, S, 2): of the initial distributions
    context_table,  # (1, C, 2): of the context distribution
    fixed_context,  # -1: drawn from that
    horizon,
    rng,
    rewards,
    leader_rewards,
    terminated,
    truncated,
    final_states,
    final_contexts,
):
    """One step of N copies of a tabular environment, in place (see `TabularVectorEnv`)."""
    s0, s1, s2, s3 = rng[0], rng[1], rng[2], rng[3]
    n_s = np.uint64(reward.shape[1])
    n_a = np.uint64(reward.shape[2])
    n_k = np.uint64(successors.shape[1])
    n_m = np.uint64(successors.shape[0] // (reward.shape[0] * reward.shape[1]))
    n_c = np.uint64(context_table.shape[1])
    flat_reward = reward.reshape(-1)
    flat_leader = leader_reward.reshape(-1)
    flat_stop = termination.reshape(-1)
    flat_successors = successors.reshape(-1)
    flat_starts = starts.reshape(-1)
    flat_contexts = context_table.reshape(-1)
    for i in range(states.shape[0]):
        s = np.uint64(states[i])
        restart = False
        if needs_reset[i] and mode == 0:
            rewards[i] = 0.0
            leader_rewards[i] = 0.0
            terminated[i] = False
            truncated[i] = False
            restart = True
        else:
            cs = np.uint64(contexts[i]) * n_s + s
            sa = cs * n_a + np.uint64(actions[i])
            rewards[i] = flat_reward[sa]
            leader_rewards[i] = flat_leader[sa]
            ages[i] += 1
            stop = flat_stop[sa]
            ended = False
            if stop > 0.0:
                ended = stop >= 1.0
                if not ended:
                    bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                    ended = unit(bits) < stop
            if not ended:
                bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                s = drawn(flat_successors, cs * n_m + np.uint64(index[actions[i]]), n_k, bits)
            cut = not ended and ages[i] == horizon
            terminated[i] = ended
            truncated[i] = cut
            final_states[i] = s
            final_contexts[i] = contexts[i]
            needs_reset[i] = ended or cut
            restart = needs_reset[i] and mode == 1
        if restart:
            if fixed_context >= 0:
                contexts[i] = fixed_context
            else:
                bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                contexts[i] = drawn(flat_contexts, np.uint64(0), n_c, bits)
            c = np.uint64(contexts[i])
            bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
            s = drawn(flat_starts, c, n_s, bits)
            ages[i] = 0
            needs_reset[i] = False
        states[i] = s
    rng[0], rng[1], rng[2], rng[3] = s0, s1, s2, s3
