"""The Monte-Carlo estimates of many runs at once on a CUDA device (`leaders.gradients.batch`): a block of threads for each run.

Threads share the states of a sweep, the entries of an elimination, and the episodes. What is summed over steps is summed for each
pair (s, a) by the one thread that owns it, in the order of the steps: no sum depends on which thread came first, and equal seeds
give equal numbers. Episodes have generators of their own (seeded from the run's), so that numbers differ from those of the
CPU, which draws all episodes of an iteration from one; their distribution does not.
"""
# mypy: allow-untyped-defs, no-check-untyped-defs

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import cuda

from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.errors import UnsupportedError
from bocmdp_gym.kernels import alias, newton, random
from bocmdp_gym.kernels.random import ONE, unit
from followers import SoftPolicyIteration
from leaders.gradients._sampled_batch import SampledBatch

#: Of a block: episodes played at a time, and pairs (s, a) summed at a time.
THREADS = 512
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _on_device(function: Any) -> Any:
    """A compiled function of the CPU, for the device."""
    return cuda.jit(device=True)(function.py_func)


_alias_row, _drawn, _low_bits = _on_device(alias.alias_row), _on_device(alias.drawn), _on_device(alias.low_bits)
_next_bits = _on_device(random.next_bits)
_settled, _policy_error = _on_device(newton.settled), _on_device(newton.policy_error)


class CudaMonteCarloBatch(SampledBatch):
    """`MonteCarloEstimator` of many runs on a CUDA device, with `SoftPolicyIteration` as their followers.

    Args:
        model: the problem.
        follower: of each run.
        n_runs: B.
        horizon: steps after which an episode is cut.
        env_steps: the estimator's.
        device: "cuda", or "cuda:N".

    Raises:
        UnsupportedError: there is no such device here, or numba cannot use it.
    """

    def __init__(
        self, model: TabularBOCMDP, follower: SoftPolicyIteration, n_runs: int, horizon: int, env_steps: int, device: str
    ):
        super().__init__(model, follower, n_runs, horizon, env_steps)
        try:
            cuda.select_device(_number(device))
            self._allocate()
        except Exception as error:  # of numba, ctypes or the driver
            lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
            raise UnsupportedError(
                f"numba cannot use device {device!r} here: {' '.join(lines[:2])} See docs/many_runs.md for what to install."
            ) from error

    def _allocate(self) -> None:
        """Put on the device what does not depend on x, and make room for the rest."""
        model, n_runs = self.model, self.n_runs
        contexts = [self._constant.arrays(c) for c in range(model.n_contexts)]
        solvers: list[Any] = [arrays.solver for arrays in contexts]
        constant = (
            np.stack([arrays.continuation for arrays in contexts]),
            np.stack([arrays.termination for arrays in contexts]),
            np.stack([arrays.successors for arrays in contexts]),
            np.stack([arrays.probabilities for arrays in contexts]),
            np.stack([solver.position for solver in solvers]),
            np.array([solver.band for solver in solvers]),
            np.stack([arrays.starts[0] for arrays in contexts]),
        )
        self._model_arrays = [cuda.to_device(array) for array in constant]
        self._amplification = cuda.to_device(np.array([newton.amplification_of(arrays.continuation) for arrays in contexts]))
        n_s, n_a, n_k = contexts[0].probabilities.shape
        band, capacity = max(solver.band for solver in solvers), self._env_steps + self._horizon
        pairs, draws = (n_s, n_a), n_a * n_k

        def room(shape: tuple[int, ...], dtype: Any = np.float64) -> Any:
            return cuda.device_array((n_runs, *shape), dtype)

        self._device_values = cuda.to_device(np.zeros((n_runs, model.n_contexts, n_s)))
        self._space = [
            room((2, *pairs)),  # q, pi
            room((n_s, 2 * band + 1)),  # an LU
            room((3, n_s)),  # vectors
            room((n_s, draws, 2), np.uint64),  # alias tables
            room((n_s, draws)),  # and what making them takes
            room((n_s, draws), np.uint64),
            room((n_s, 2, draws), np.int64),
            room((self._horizon, THREADS), np.int32),  # the pairs of a round of episodes
            room((capacity,), np.int32),  # of all episodes kept, the first of them after the other
            room((2, capacity)),  # the return from each step (then the trace at it), and its discount
            room((self._env_steps + 1,), np.int64),  # where episodes begin, and the last one ends
            room((3, *pairs)),  # sums by pair
        ]
        self._device_in = [room(pairs), room(pairs), room((), np.int64), room((4,), np.uint64)]
        self._device_out = [room(()), room(()), room((), np.int64), room((), np.int64), room(pairs), room(pairs)]
        self._contexts, self._generators = np.zeros(n_runs, np.int64), np.zeros((n_runs, 4), np.uint64)

    def _prepare(self, runs: slice, rngs: Sequence[np.random.Generator]) -> None:
        for b, rng in enumerate(rngs, start=runs.start):
            self._generators[b] = rng.bit_generator.random_raw(4)

    def _begin_calls(self, start: int, contexts: npt.NDArray[np.int64]) -> list[Callable[[], Any]]:
        runs, stream = slice(start, start + len(contexts)), cuda.stream()
        self._contexts[runs] = contexts
        given = (self._reward, self._leader_reward, self._contexts, self._generators)
        for there, here in zip(self._device_in, given, strict=True):
            there[runs].copy_to_device(here[runs], stream)
        model = self.model
        discounts = (model.discount, model.leader_discount)
        solve = (self._amplification, self.tolerance, self.max_iterations)
        monte_carlo_blocks[len(contexts), THREADS, stream](
            *(array[runs] for array in self._device_in),
            *self._model_arrays,
            self.regularization,
            *discounts,
            *solve,
            self._horizon,
            self._env_steps,
            self._device_values[runs],
            *(array[runs] for array in self._space),
            *(array[runs] for array in self._device_out),
        )
        found = (self._residuals, self._errors, self._iterations, self._n_steps, self._w_reward, self._w_leader)
        for there, here in zip(self._device_out, found, strict=True):
            there[runs].copy_to_host(here[runs], stream)
        return [stream.synchronize]

    def _compiled(self, rows: npt.NDArray[np.int64], context: int) -> None:
        raise NotImplementedError("runs of all contexts share a launch")


def _number(device: str) -> int:
    """Which CUDA device is meant."""
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number.isdecimal() or number == ""):
        raise ValueError("HPGD samples on CUDA devices: expected 'cuda', or 'cuda:N'.")
    return int(number or 0)


@cuda.jit(device=True)
def _largest(value, shared, thread):
    """The largest of all threads' values; infinite where one is not finite."""
    shared[thread] = value if value < np.inf else np.inf
    cuda.syncthreads()
    half = cuda.blockDim.x // 2
    while half > 0:
        if thread < half:
            shared[thread] = max(shared[thread], shared[thread + half])
        cuda.syncthreads()
        half //= 2
    found = shared[0]
    cuda.syncthreads()
    return found


@cuda.jit(device=True)
def _backup(r, g, succ, prob, lam, v, q, pi, rhs, v_new, thread):
    """`bocmdp_gym.kernels.bellman.soft_backup`, of this thread's states. Returns max |v_new - v| and max |v_new| of these."""
    n_s, n_a, n_k = prob.shape
    residual, scale = 0.0, 0.0
    for s in range(thread, n_s, cuda.blockDim.x):
        top = -np.inf
        for a in range(n_a):
            total = 0.0
            for k in range(n_k):
                total += prob[s, a, k] * v[succ[s, a, k]]
            total *= g[s, a]
            pi[s, a] = total
            value = r[s, a] + total
            q[s, a] = value
            top = max(top, value)
        z, future = 0.0, 0.0
        for a in range(n_a):
            e = math.exp((q[s, a] - top) / lam)
            future += e * pi[s, a]
            pi[s, a] = e
            z += e
        for a in range(n_a):
            pi[s, a] /= z
        v_new[s] = top + lam * math.log(z)
        rhs[s] = v_new[s] - future / z
        gap = abs(v_new[s] - v[s])
        residual = max(residual, gap) if gap < np.inf else np.inf
        scale = max(scale, abs(v_new[s]))
    return residual, scale


@cuda.jit(device=True)
def _policy_values(pi, g, succ, prob, position, band, rhs, lu, y, v, thread):
    """Solve (I - K) v = rhs by banded elimination, K(s, s') = sum_a pi(s, a) g(s, a) P(s'|s, a)."""
    n_s, n_a, n_k = prob.shape
    threads = cuda.blockDim.x
    for s in range(thread, n_s, threads):
        i = position[s]
        for j in range(2 * band + 1):
            lu[i, j] = 0.0
        for a in range(n_a):
            weight = pi[s, a] * g[s, a]
            for k in range(n_k):
                lu[i, position[succ[s, a, k]] - i + band] -= weight * prob[s, a, k]
        lu[i, band] += 1.0
        y[i] = rhs[s]
    cuda.syncthreads()
    for p in range(n_s):
        below = min(band, n_s - 1 - p)
        inverse = 1.0 / lu[p, band]
        for entry in range(thread, below * (below + 1), threads):
            i = p + 1 + entry // (below + 1)
            j = p + 1 + entry % (below + 1)
            factor = lu[i, p - i + band] * inverse
            if j == p + 1 + below:
                y[i] -= factor * y[p]
            else:
                lu[i, j - i + band] -= factor * lu[p, j - p + band]
        cuda.syncthreads()
    for i in range(n_s - 1, -1, -1):
        value = y[i] / lu[i, band]
        for above in range(thread + 1, min(band, i) + 1, threads):
            y[i - above] -= lu[i - above, above + band] * value
        cuda.syncthreads()
        if thread == 0:
            y[i] = value
    cuda.syncthreads()
    for s in range(thread, n_s, threads):
        v[s] = y[position[s]]
    cuda.syncthreads()


@cuda.jit(device=True)
def _policy_iteration(
    r, g, succ, prob, lam, position, band, amplification, tolerance, max_iterations, v, q, pi, lu, vectors, shared, thread
):
    """Soft policy iteration from ``v``, overwritten with the solution; by the rule of `bocmdp_gym.kernels.newton`."""
    n_s, n_a, _ = prob.shape
    threads = cuda.blockDim.x
    rhs, v_new, y = vectors[0], vectors[1], vectors[2]
    top = 0.0
    for pair in range(thread, n_s * n_a, threads):
        value = r[pair // n_a, pair % n_a]
        if value > -np.inf:
            top = max(top, abs(value))
    top = _largest(top, shared, thread)
    goal = newton.ZEAL * tolerance * lam / amplification
    before = np.inf
    iteration = 0
    while True:
        residual, scale = _backup(r, g, succ, prob, lam, v, q, pi, rhs, v_new, thread)
        residual = _largest(residual, shared, thread)
        scale = _largest(scale, shared, thread) + top
        if not residual < np.inf:
            return np.nan, np.inf, iteration
        if _settled(residual, before, scale, goal) or iteration == max_iterations:
            break
        before = residual
        _policy_values(pi, g, succ, prob, position, band, rhs, lu, y, v, thread)
        iteration += 1
    for s in range(thread, n_s, threads):
        v[s] = v_new[s]
    return residual, _policy_error(residual, scale, amplification, lam), iteration


@cuda.jit(device=True)
def _mixed(word, episode):
    """64 random bits from those of a generator and the number of an episode (the finaliser of SplitMix64)."""
    z = word + np.uint64(episode + 1) * _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@cuda.jit(device=True)
def _play(episode, generator, starts, tables, width, shift, termination, horizon, path, thread):
    """Play an episode, and write its pairs s A + a into this thread's column of ``path``. Returns how many there are."""
    s0, s1, s2, s3 = (
        _mixed(generator[0], episode),
        _mixed(generator[1], episode),
        _mixed(generator[2], episode),
        _mixed(generator[3], episode),
    )
    n_s, n_a = termination.shape
    low_mask = (ONE << shift) - ONE
    bits, s0, s1, s2, s3 = _next_bits(s0, s1, s2, s3)
    s = _drawn(starts, np.uint64(0), np.uint64(n_s), bits)
    for t in range(horizon):
        bits, s0, s1, s2, s3 = _next_bits(s0, s1, s2, s3)
        outcome = _drawn(tables, s, width, bits)
        action = np.int64(outcome >> shift)
        path[t, thread] = np.int64(s) * n_a + action
        stop = termination[np.int64(s), action]
        if stop > 0.0:
            ended = stop >= 1.0
            if not ended:
                bits, s0, s1, s2, s3 = _next_bits(s0, s1, s2, s3)
                ended = unit(bits) < stop
            if ended:
                return t + 1
        s = outcome & low_mask
    return horizon


@cuda.jit
def monte_carlo_blocks(
    reward,  # (R, S, A) and leader_reward: at each run's x
    leader_reward,
    contexts,  # (R,)
    generators,  # (R, 4) uint64
    continuation,  # (C, S, A) gamma (1 - q), and so on: the same in all runs
    termination,
    succ,  # (C, S, A, K)
    prob,
    position,  # (C, S): the order of `BandedSolver`, and (C,) its bandwidth
    band,
    starts,  # (C, S, 2): alias tables
    lam,
    gamma,
    gamma_leader,
    amplification,  # (C,)
    tolerance,
    max_iterations,
    horizon,
    budget,
    values,  # (R, C, S): V* of each run's last solve, overwritten with the new one
    policies,  # (R, ...) each, from here on: working space
    lu,
    vectors,
    tables,
    mass,
    outcomes,
    stacks,
    paths,
    pairs,
    traces,
    begins,
    sums,
    residuals,  # (R,), errors, iterations and steps (R,), w_reward (R, S, A), w_leader (R, S, A): results
    errors,
    iterations,
    steps,
    w_reward,
    w_leader,
):
    """An iteration of `leaders.gradients._monte_carlo_batch.monte_carlo_runs`, each run by a block."""
    run, thread, threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(THREADS, dtype=np.float64)
    lengths = cuda.shared.array(THREADS, dtype=np.int64)
    counted = cuda.shared.array(2, dtype=np.int64)  # steps and episodes so far
    c = contexts[run]
    _, n_s, n_a, n_k = prob.shape
    q, pi = policies[run, 0], policies[run, 1]
    residual, error, iteration = _policy_iteration(
        reward[run],
        continuation[c],
        succ[c],
        prob[c],
        lam,
        position[c],
        band[c],
        amplification[c],
        tolerance,
        max_iterations,
        values[run, c],
        q,
        pi,
        lu[run],
        vectors[run],
        shared,
        thread,
    )
    if thread == 0:
        residuals[run] = residual
        errors[run] = error
        iterations[run] = iteration
    if not error <= tolerance:
        return

    # the policy's joint draws of action and next state
    shift = _low_bits(n_s)
    for s in range(thread, n_s, threads):
        m = 0
        for a in range(n_a):
            for k in range(n_k):
                mass[run, s, m] = pi[s, a] * prob[c, s, a, k]
                outcomes[run, s, m] = (np.uint64(a) << shift) | np.uint64(succ[c, s, a, k])
                m += 1
        _alias_row(mass[run, s], outcomes[run, s], tables[run, s], stacks[run, s, 0], stacks[run, s, 1])
    if thread == 0:
        counted[0] = 0
        counted[1] = 0
    cuda.syncthreads()

    # rounds of episodes; those that begin within the budget are kept, end to end, with the return from each of their steps
    n_steps, n_episodes = np.int64(0), np.int64(0)
    while n_steps < budget:
        lengths[thread] = _play(
            n_episodes + thread,
            generators[run],
            starts[c].reshape(2 * n_s),
            tables[run].reshape(2 * n_s * n_a * n_k),
            np.uint64(n_a * n_k),
            shift,
            termination[c],
            horizon,
            paths[run],
            thread,
        )
        cuda.syncthreads()
        if thread == 0:
            for e in range(threads):
                if counted[0] >= budget:
                    break
                begins[run, counted[1]] = counted[0]
                counted[0] += lengths[e]
                counted[1] += 1
            begins[run, counted[1]] = counted[0]
        cuda.syncthreads()
        if n_episodes + thread < counted[1]:
            begin, returned = begins[run, n_episodes + thread], 0.0
            for t in range(lengths[thread] - 1, -1, -1):
                pair = paths[run, t, thread]
                returned = leader_reward[run, pair // n_a, pair % n_a] + gamma_leader * returned
                pairs[run, begin + t] = pair
                traces[run, 0, begin + t] = returned
            discount = 1.0
            for t in range(lengths[thread]):
                traces[run, 1, begin + t] = discount
                discount *= gamma_leader
        n_steps, n_episodes = counted[0], counted[1]
        cuda.syncthreads()
    if thread == 0:
        steps[run] = n_steps

    # leader's returns, visits, and discounted visitation of each pair
    total, count, occupancy = sums[run, 0], sums[run, 1], sums[run, 2]
    for pair in range(thread, n_s * n_a, threads):
        returned, visits, discounted = 0.0, 0.0, 0.0
        for i in range(n_steps):
            if pairs[run, i] == pair:
                returned += traces[run, 0, i]
                visits += 1.0
                discounted += traces[run, 1, i]
        s, a = pair // n_a, pair % n_a
        total[s, a] = returned
        count[s, a] = visits
        occupancy[s, a] = discounted / n_episodes
        w_leader[run, s, a] = occupancy[s, a]
    cuda.syncthreads()
    # what a visit adds to the trace: in place of the returns
    for s in range(thread, n_s, threads):
        mean, visits, added = 0.0, 0.0, 0.0
        for a in range(n_a):
            mean += total[s, a]
            visits += count[s, a]
        if visits > 0.0:
            mean /= visits
        for a in range(n_a):
            if count[s, a] > 0.0:
                weight = occupancy[s, a] * (total[s, a] / count[s, a] - mean) / lam
                total[s, a] = weight / count[s, a]
                added += weight
            else:
                total[s, a] = 0.0
        for a in range(n_a):
            total[s, a] -= added / visits if visits > 0.0 else 0.0
    cuda.syncthreads()
    for e in range(thread, n_episodes, threads):
        trace = 0.0
        for i in range(begins[run, e], begins[run, e + 1]):
            pair = pairs[run, i]
            trace = gamma * trace + total[pair // n_a, pair % n_a]
            traces[run, 0, i] = trace
    cuda.syncthreads()
    for pair in range(thread, n_s * n_a, threads):
        weight = 0.0
        for i in range(n_steps):
            if pairs[run, i] == pair:
                weight += traces[run, 0, i]
        w_reward[run, pair // n_a, pair % n_a] = weight
