from __future__ import annotations

import numpy as np

from bocmdp_gym.kernels.random import fork, uniform


def _reference(state: list[int]) -> int:
    """xoshiro256++ on Python's integers, after its authors' C code."""
    mask = 2**64 - 1

    def left(x: int, k: int) -> int:
        return (x << k | x >> 64 - k) & mask

    result = (left((state[0] + state[3]) & mask, 23) + state[0]) & mask
    t = state[1] << 17 & mask
    state[2] ^= state[0]
    state[3] ^= state[1]
    state[1] ^= state[2]
    state[0] ^= state[3]
    state[2] ^= t
    state[3] = left(state[3], 45)
    return result


def test_numbers_are_those_of_the_published_generator() -> None:
    rng = np.random.default_rng(0).bit_generator.random_raw(4)
    state = [int(word) for word in rng]
    for _ in range(100):
        assert uniform(rng) == (_reference(state) >> 11) * 2.0**-53
    assert [int(word) for word in rng] == state


def test_fork_fills_a_state_of_its_own() -> None:
    rng = np.random.default_rng(0).bit_generator.random_raw(4)
    state, out = [int(word) for word in rng], np.empty(4, np.uint64)
    fork(rng, out)
    assert out.tolist() == [_reference(state) for _ in range(4)]
    assert rng.tolist() == state


def test_states_are_drawn_from_the_generator_given() -> None:
    first, second = (np.random.default_rng(seed).bit_generator.random_raw(4) for seed in (0, 0))
    np.testing.assert_array_equal(first, second)
    assert (first != np.random.default_rng(1).bit_generator.random_raw(4)).any()
