"""The Monte-Carlo estimates of many runs at once on a CUDA device (`leaders.gradients.batch`): a block of threads for each run.

Threads share the states of a sweep, the rows of an elimination, the episodes, and then the steps. Sums over steps are sums of
whole numbers, multiples of a small part of what is added up: they do not depend on which thread came first, and equal seeds give
equal numbers. Episodes have generators of their own (seeded from the run's), so that numbers differ from those of the CPU, which
draws all episodes of an iteration from one; their distribution does not.
"""
# mypy: allow-untyped-defs, no-check-untyped-defs

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import config, cuda

from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.errors import UnsupportedError
from bocmdp_gym.kernels import alias, newton, random
from bocmdp_gym.kernels.random import unit
from followers import SoftPolicyIteration
from leaders.gradients._sampled_batch import SampledBatch

#: Of a block: episodes played at a time, and pairs (s, a) summed at a time.
THREADS = 512
config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # type: ignore[attr-defined, unused-ignore]  # there are as many blocks as runs
_WARP = 32
#: So many registers each, and 512 threads fit; numba's simulator knows none.
_SIMULATED: bool = config.ENABLE_CUDASIM  # type: ignore[attr-defined, unused-ignore]
_FITTING: dict[str, Any] = {} if _SIMULATED else {"max_registers": 128}
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _on_device(function: Any) -> Any:
    """A compiled function of the CPU, for the device."""
    return cuda.jit(device=True)(function.py_func)


_drawn, _next_bits = _on_device(alias.drawn), _on_device(random.next_bits)
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
        shared = (
            np.stack([np.stack([arrays.continuation, arrays.termination]) for arrays in contexts]),
            np.stack([arrays.successors for arrays in contexts]),
            np.stack([arrays.probabilities for arrays in contexts]),
            np.stack([np.append(solver.position, solver.band) for solver in solvers]),
            np.stack([arrays.starts[0] for arrays in contexts]),
        )
        pairs, n_s, band = (model.n_states, model.n_actions), model.n_states, max(solver.band for solver in solvers)
        n_pairs, capacity = pairs[0] * pairs[1], self._env_steps + self._horizon
        floats = model.n_contexts * n_s + 4 * n_pairs + n_s * (2 * band + 1) + 3 * n_s + 2 * capacity
        int32s, int64s = self._horizon * THREADS + capacity, self._env_steps + 1 + 3 * n_pairs
        # what both read and write is in memory of ours that the device reaches: copies would take longer to ask for than to make
        exchanged: Any = cuda.mapped_array((4, n_runs, *pairs), np.float64)
        self._seeds: Any = cuda.mapped_array((n_runs, 5), np.uint64)
        self._numbers: Any = cuda.mapped_array((n_runs, 4), np.float64)
        self._arrays = [
            *(cuda.to_device(array) for array in shared),
            exchanged,
            self._seeds,
            self._numbers,
            cuda.to_device(np.zeros((n_runs, floats))),
            cuda.device_array((n_runs, int32s), np.int32),
            cuda.device_array((n_runs, int64s), np.int64),
        ]
        self._reward, self._leader_reward, self._w_reward, self._w_leader = np.asarray(exchanged)
        self._streams: dict[int, Any] = {}

    def _prepare(self, runs: slice, rngs: Sequence[np.random.Generator]) -> None:
        for b, rng in enumerate(rngs, start=runs.start):
            self._seeds[b, :4] = rng.bit_generator.random_raw(4)

    def _begin_calls(self, start: int, contexts: npt.NDArray[np.int64]) -> list[Callable[[], Any]]:
        if start not in self._streams:
            self._streams[start] = cuda.stream()
        stream, runs = self._streams[start], slice(start, start + len(contexts))
        self._seeds[runs, 4] = contexts
        monte_carlo_blocks[len(contexts), THREADS, stream](
            start,
            self.regularization,
            self.model.discount,
            self.model.leader_discount,
            self.tolerance,
            self.max_iterations,
            self._horizon,
            self._env_steps,
            *self._arrays,
        )

        def wait() -> None:
            stream.synchronize()
            found = np.asarray(self._numbers[runs])
            self._residuals[runs], self._errors[runs], self._iterations[runs], self._n_steps[runs] = found.T

        return [wait]

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
    row, column, rows = thread // _WARP, thread % _WARP, threads // _WARP
    for p in range(n_s):
        last = min(p + band, n_s - 1)
        inverse = 1.0 / lu[p, band]
        for i in range(p + 1 + row, last + 1, rows):
            factor = lu[i, p - i + band] * inverse
            for j in range(p + 1 + column, last + 1, _WARP):
                lu[i, j - i + band] -= factor * lu[p, j - p + band]
            if column == 0:
                y[i] -= factor * y[p]
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
def _policy_iteration(r, g, succ, prob, lam, position, band, tolerance, max_iterations, v, q, pi, lu, vectors, shared, thread):
    """Soft policy iteration from ``v``, overwritten with the solution; by the rule of `bocmdp_gym.kernels.newton`."""
    n_s, n_a, _ = prob.shape
    threads = cuda.blockDim.x
    rhs, v_new, y = vectors[0], vectors[1], vectors[2]
    top, discount = 0.0, 0.0
    for s in range(thread, n_s, threads):
        for a in range(n_a):
            if r[s, a] > -np.inf:
                top = max(top, abs(r[s, a]))
            discount = max(discount, g[s, a])
    top = _largest(top, shared, thread)
    amplification = 1.0 / (1.0 - _largest(discount, shared, thread))
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
def _chosen(weights, u):
    """The place at which the sum of the weights, those before it included, passes ``u``; the last one that may be chosen else."""
    place = 0
    for i in range(weights.shape[0]):
        if weights[i] > 0.0:
            place = i
            if u < weights[i]:
                break
            u -= weights[i]
    return place


@cuda.jit(device=True)
def _play(episode, seeds, starts, pi, succ, prob, termination, horizon, path, thread):
    """Play an episode, and write its pairs s A + a into this thread's column of ``path``. Returns how many there are."""
    s0, s1, s2, s3 = _mixed(seeds[0], episode), _mixed(seeds[1], episode), _mixed(seeds[2], episode), _mixed(seeds[3], episode)
    n_s, n_a = pi.shape
    bits, s0, s1, s2, s3 = _next_bits(s0, s1, s2, s3)
    s = np.int64(_drawn(starts, np.uint64(0), np.uint64(n_s), bits))
    for t in range(horizon):
        bits, s0, s1, s2, s3 = _next_bits(s0, s1, s2, s3)
        a = _chosen(pi[s], unit(bits))
        path[t, thread] = s * n_a + a
        stop = termination[s, a]
        if stop > 0.0:
            ended = stop >= 1.0
            if not ended:
                bits, s0, s1, s2, s3 = _next_bits(s0, s1, s2, s3)
                ended = unit(bits) < stop
            if ended:
                return t + 1
        bits, s0, s1, s2, s3 = _next_bits(s0, s1, s2, s3)
        s = np.int64(succ[s, a, _chosen(prob[s, a], unit(bits))])
    return horizon


@cuda.jit(device=True)
def _quantum(largest, n):
    """Of what ``n`` numbers up to ``largest`` are whole multiples, nearly: their sum then fits into 62 bits."""
    return largest * n * 2.0**-62 if largest > 0.0 else 1.0


@cuda.jit(device=True)
def _add(sums, place, value, quantum):
    """Add a number to a sum of whole multiples."""
    cuda.atomic.add(sums, place, np.int64(math.floor(value / quantum + 0.5)))


@cuda.jit(**_FITTING)
def monte_carlo_blocks(
    start,  # the number of the first run
    lam,
    gamma,
    gamma_leader,
    tolerance,
    max_iterations,
    horizon,
    budget,
    discounts,  # (C, 2, S, A): gamma (1 - q), and q
    succ,  # (C, S, A, K)
    prob,
    order,  # (C, S + 1): the order of `BandedSolver`, and its bandwidth
    starts,  # (C, S, 2): alias tables
    exchanged,  # (4, B, S, A): reward and leader_reward at each run's x; and the results w_reward and w_leader
    seeds,  # (B, 5) uint64: the state of a generator, and the context
    numbers,  # (B, 4): results residual, error, iterations and steps
    floats,  # (B, ...) and int32s, int64s: space for each run; the floats begin with V* of the last solve in each context
    int32s,
    int64s,
):
    """An iteration of `leaders.gradients._monte_carlo_batch.monte_carlo_runs`, each run by a block."""
    run, thread, threads = start + cuda.blockIdx.x, np.int64(cuda.threadIdx.x), np.int64(cuda.blockDim.x)
    shared = cuda.shared.array(THREADS, dtype=np.float64)
    lengths = cuda.shared.array(THREADS, dtype=np.int64)
    counted = cuda.shared.array(2, dtype=np.int64)  # steps and episodes so far
    own_seeds = cuda.shared.array(4, dtype=np.uint64)
    c = np.int64(seeds[run, 4])
    if thread == 0:
        for i in range(4):
            own_seeds[i] = seeds[run, i]
    n_contexts, n_s, n_a, _ = prob.shape
    n_pairs, band, capacity = n_s * n_a, order[c, n_s], budget + horizon
    value, space = floats[run, c * n_s : (c + 1) * n_s], floats[run, n_contexts * n_s :]
    reward, leader, at = space[:n_pairs], space[n_pairs : 2 * n_pairs], 4 * n_pairs
    q, pi = space[2 * n_pairs : 3 * n_pairs].reshape((n_s, n_a)), space[3 * n_pairs : at].reshape((n_s, n_a))
    vectors, at = space[at : at + 3 * n_s].reshape((3, n_s)), at + 3 * n_s
    returns, discounted, at = space[at : at + capacity], space[at + capacity : at + 2 * capacity], at + 2 * capacity
    lu = space[at : at + n_s * (2 * band + 1)].reshape((n_s, 2 * band + 1))
    path = int32s[run, : horizon * threads].reshape((horizon, threads))
    visited = int32s[run, horizon * threads :]
    begin, sums = int64s[run, : budget + 1], int64s[run, budget + 1 :]
    for pair in range(thread, n_pairs, threads):
        reward[pair] = exchanged[0, run, pair // n_a, pair % n_a]
        leader[pair] = exchanged[1, run, pair // n_a, pair % n_a]
    cuda.syncthreads()
    residual, error, iteration = _policy_iteration(
        reward.reshape((n_s, n_a)),
        discounts[c, 0],
        succ[c],
        prob[c],
        lam,
        order[c],
        band,
        tolerance,
        max_iterations,
        value,
        q,
        pi,
        lu,
        vectors,
        shared,
        thread,
    )
    if thread == 0:
        numbers[run, 0] = residual
        numbers[run, 1] = error
        numbers[run, 2] = iteration
    if not error <= tolerance:
        return
    for place in range(thread, 3 * n_pairs, threads):
        sums[place] = 0
    cuda.syncthreads()

    # rounds of episodes; those that begin within the budget are kept, end to end, with the return from each of their steps
    n_steps, n_episodes, largest = np.int64(0), np.int64(0), 0.0
    while n_steps < budget:
        lengths[thread] = _play(
            n_episodes + thread,
            own_seeds,
            starts[c].reshape(2 * n_s),
            pi,
            succ[c],
            prob[c],
            discounts[c, 1],
            horizon,
            path,
            thread,
        )
        cuda.syncthreads()
        if thread == 0:
            total, kept = n_steps, n_episodes
            for e in range(threads):
                if total >= budget:
                    break
                begin[kept] = total
                total += lengths[e]
                kept += 1
            begin[kept] = total
            counted[0] = total
            counted[1] = kept
        cuda.syncthreads()
        if n_episodes + thread < counted[1]:
            first, returned = begin[n_episodes + thread], 0.0
            for t in range(lengths[thread] - 1, -1, -1):
                pair = path[t, thread]
                returned = leader[pair] + gamma_leader * returned
                visited[first + t] = pair
                returns[first + t] = returned
                largest = max(largest, abs(returned))
            discount = 1.0
            for t in range(lengths[thread]):
                discounted[first + t] = discount
                discount *= gamma_leader
        n_steps, n_episodes = counted[0], counted[1]
        cuda.syncthreads()

    # leader's returns, visits, and discounted visitation of each pair
    quantum, share = _quantum(_largest(largest, shared, thread), n_steps), _quantum(1.0, n_steps)
    for i in range(thread, n_steps, threads):
        _add(sums, visited[i], returns[i], quantum)
        _add(sums, n_pairs + visited[i], discounted[i], share)
        cuda.atomic.add(sums, 2 * n_pairs + visited[i], 1)
    cuda.syncthreads()
    # what a visit adds to the trace
    kicks = q.reshape(n_pairs)
    share /= n_episodes
    for s in range(thread, n_s, threads):
        mean, visits, added = 0.0, np.int64(0), 0.0
        for pair in range(s * n_a, (s + 1) * n_a):
            mean += sums[pair] * quantum
            visits += sums[2 * n_pairs + pair]
        if visits > 0:
            mean /= visits
        for pair in range(s * n_a, (s + 1) * n_a):
            count, occupancy = sums[2 * n_pairs + pair], sums[n_pairs + pair] * share
            exchanged[3, run, s, pair - s * n_a] = occupancy
            kicks[pair] = 0.0
            if count > 0:
                weight = occupancy * (sums[pair] * quantum / count - mean) / lam
                kicks[pair] = weight / count
                added += weight
        for pair in range(s * n_a, (s + 1) * n_a):
            kicks[pair] -= added / visits if visits > 0 else 0.0
            sums[pair] = 0
    cuda.syncthreads()
    largest = 0.0
    for e in range(thread, n_episodes, threads):
        trace = 0.0
        for i in range(begin[e], begin[e + 1]):
            trace = gamma * trace + kicks[visited[i]]
            returns[i] = trace
            largest = max(largest, abs(trace))
    quantum = _quantum(_largest(largest, shared, thread), n_steps)
    for i in range(thread, n_steps, threads):
        _add(sums, visited[i], returns[i], quantum)
    cuda.syncthreads()
    for pair in range(thread, n_pairs, threads):
        exchanged[2, run, pair // n_a, pair % n_a] = sums[pair] * quantum
    if thread == 0:
        numbers[run, 3] = n_steps
