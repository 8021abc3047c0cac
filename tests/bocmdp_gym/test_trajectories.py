"""What trajectories say of each step: what came next, and whether anything did."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bocmdp_gym import Trajectories

BATCH = Trajectories(  # 0 -> 1 -> (ends in) 2, and 3 -> (cut at) 4
    observations=np.array([0, 1, 3]),
    actions=np.zeros(3, dtype=np.int64),
    rewards=np.array([1.0, 2.0, 3.0]),
    leader_rewards=np.zeros(3),
    ends=np.array([2, 3]),
    terminated=np.array([True, False]),
    final_observations=np.array([2, 4]),
    leader=np.zeros(1),
    context=0,
    states=np.array([0, 1, 3], dtype=np.int32),
    final_states=np.array([2, 4], dtype=np.int32),
)


def test_what_follows_each_step() -> None:
    np.testing.assert_array_equal(BATCH.next_observations, [1, 2, 4])
    np.testing.assert_array_equal(BATCH.next_states, [1, 2, 4])
    np.testing.assert_array_equal(BATCH.continued, [True, False, True])
    np.testing.assert_array_equal(BATCH.times, [0, 1, 0])
    assert replace(BATCH, states=None).next_states is None
    assert replace(BATCH, final_states=None).next_states is None


def test_episodes_alone_say_the_same() -> None:
    second = BATCH.episodes(np.array([1]))
    np.testing.assert_array_equal(second.next_states, [4])
    np.testing.assert_array_equal(second.continued, [True])
    np.testing.assert_array_equal(second.discounted_returns(0.5), [3.0])
