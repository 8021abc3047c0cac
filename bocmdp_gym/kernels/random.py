"""The kernels' generator of random numbers, xoshiro256++.

Its state is an array (4,) uint64; ``rng.bit_generator.random_raw(4)`` draws a fresh one from a generator of NumPy's.
"""

from __future__ import annotations

import numpy as np
from numba import njit

ONE = np.uint64(1)
LOW = np.uint64(0xFFFFFFFF)
UNIT = 1.0 / 9007199254740992.0  # 2^-53


@njit(cache=True, inline="always")
def _rotate_left(x, k):
    return (x << np.uint64(k)) | (x >> np.uint64(64 - k))


@njit(cache=True, inline="always")
def next_bits(s0, s1, s2, s3):
    """xoshiro256++ (Blackman and Vigna 2021): 64 random bits and the next state, kept in registers."""
    result = _rotate_left(s0 + s3, 23) + s0
    t = s1 << np.uint64(17)
    s2 ^= s0
    s3 ^= s1
    s1 ^= s2
    s0 ^= s3
    s2 ^= t
    s3 = _rotate_left(s3, 45)
    return result, s0, s1, s2, s3


@njit(cache=True, inline="always")
def unit(bits):
    """A float64 uniform on [0, 1) from 64 random bits."""
    return (bits >> np.uint64(11)) * UNIT


@njit(cache=True, inline="always")
def uniform(rng):
    """A float64 uniform on [0, 1) from the generator state ``rng`` (4,) uint64, which moves on."""
    bits, rng[0], rng[1], rng[2], rng[3] = next_bits(rng[0], rng[1], rng[2], rng[3])
    return unit(bits)


@njit(cache=True)
def fork(rng, out):
    """Make ``out`` (4,) the state of a generator of its own; ``rng`` moves on by the same amount every time."""
    for i in range(4):
        out[i], rng[0], rng[1], rng[2], rng[3] = next_bits(rng[0], rng[1], rng[2], rng[3])
