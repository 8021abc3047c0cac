"""What `test_monte_carlo_cuda` runs where numba simulates a CUDA device: with NUMBA_ENABLE_CUDASIM=1, which is read on import."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

import followers
from bocmdp_gym import configurable
from bocmdp_gym.errors import UnsupportedError
from leaders import HPGD, optimize_many
from leaders.gradients import _monte_carlo_cuda
from leaders.gradients._monte_carlo_cuda import CudaMonteCarloBatch
from leaders.gradients.monte_carlo import monte_carlo_weights_kernel
from tests.problems import random_model, small_rooms

REGULARIZATION, HORIZON, ENV_STEPS = 0.05, 12, 40


def space_of(batch: CudaMonteCarloBatch) -> tuple[Any, Any, Any]:
    """The space of each run's floats, the pairs it visited, and where its episodes begin."""
    floats, int32s, int64s = (array.copy_to_host() for array in batch._arrays[-3:])
    first = batch.model.n_contexts * batch.model.n_states
    return floats[:, first:], int32s[:, batch._horizon * _monte_carlo_cuda.THREADS :], int64s[:, : batch._env_steps + 1]


def check_an_iteration(model: Any) -> None:
    """The policy is the optimum, the steps are its, and the weights are those of the CPU's kernel for these very steps."""
    follower = followers.SoftPolicyIteration(REGULARIZATION)
    n_runs, rng = 3, np.random.default_rng(0)
    batch = CudaMonteCarloBatch(model, follower, n_runs, HORIZON, ENV_STEPS, "cuda")
    x = 0.3 * rng.normal(size=(n_runs, model.leader_dim))
    n_contexts, width = model.n_contexts, model.n_actions
    contexts = [run % n_contexts for run in range(n_runs)]
    rngs = [np.random.default_rng(run) for run in range(n_runs)]
    estimates = batch.begin(slice(0, n_runs), x, [[(context, 1.0)] for context in contexts], rngs)()
    floats, visited, begun = space_of(batch)
    for run, context in enumerate(contexts):
        mdps = model.configure(torch.from_numpy(x[run]).requires_grad_())
        arrays, n_steps = mdps.arrays(context), int(batch._n_steps[run])
        policy = mdps.solve(REGULARIZATION).policy[context].detach().numpy()
        n_pairs = policy.size
        np.testing.assert_allclose(floats[run, 3 * n_pairs : 4 * n_pairs].reshape(policy.shape), policy, atol=1e-10)
        pairs, begins = visited[run, :n_steps], begun[run]
        n_episodes = begins.tolist().index(n_steps)
        begins, ends = begins[:n_episodes], begins[1 : n_episodes + 1]
        assert begins[0] == 0
        assert (np.diff(begins) > 0).all()
        assert begins[-1] < ENV_STEPS <= n_steps
        assert (ends - begins).max() <= HORIZON
        states, actions = (pairs // width).astype(np.int32), (pairs % width).astype(np.int32)
        for begin, end in zip(begins, ends, strict=True):  # what follows is a successor, and what ends an episode may do so
            assert arrays.initial[states[begin]] > 0.0
            for i in range(begin, end - 1):
                possible = arrays.successors[states[i], actions[i]][arrays.probabilities[states[i], actions[i]] > 0.0]
                assert states[i + 1] in possible
                assert arrays.termination[states[i], actions[i]] < 1.0
            assert end - begin == HORIZON or arrays.termination[states[end - 1], actions[end - 1]] > 0.0
        tables, by_state = np.empty((3, model.n_states, width)), np.empty((3, model.n_states))
        monte_carlo_weights_kernel(
            states,
            actions,
            arrays.leader_reward[states, actions],
            ends,
            np.ones(n_episodes, dtype=np.bool_),
            np.zeros(n_episodes, dtype=np.int32),
            model.discount,
            model.leader_discount,
            REGULARIZATION,
            False,
            tables,
            by_state,
        )
        np.testing.assert_allclose(batch._w_reward[run], tables[0], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(batch._w_leader[run], tables[1], rtol=1e-12, atol=1e-14)
        assert estimates[run].env_steps == n_steps
        np.testing.assert_allclose(estimates[run].leader_return, (tables[1] * arrays.leader_reward).sum())


def check_the_draws(model: Any) -> None:
    """Shares of actions in states, and of what follows them, are those of the policy and of P, within 4.5 standard errors."""
    follower = followers.SoftPolicyIteration(REGULARIZATION)
    batch = CudaMonteCarloBatch(model, follower, 4, 30, 500, "cuda")
    drawn: Any = [[(0, 1.0)]] * 4
    batch.begin(slice(0, 4), np.zeros((4, model.leader_dim)), drawn, [np.random.default_rng(run) for run in range(4)])()
    _, visited, begun = space_of(batch)
    mdps = model.configure(np.zeros(model.leader_dim))
    arrays, policy = mdps.arrays(0), mdps.solve(REGULARIZATION).policy[0].numpy()
    taken, arrived = np.zeros(policy.shape), np.zeros((*policy.shape, model.n_states))
    for run in range(4):
        n_steps = int(batch._n_steps[run])
        pairs, begins = visited[run, :n_steps], begun[run].tolist()
        begins = set(begins[: begins.index(n_steps)])
        states, actions = np.divmod(pairs, model.n_actions)
        np.add.at(taken, (states, actions), 1.0)
        follows = [i for i in range(n_steps - 1) if i + 1 not in begins]
        np.add.at(arrived, (states[follows], actions[follows], states[[i + 1 for i in follows]]), 1.0)
    dense = np.zeros(arrived.shape)
    for s, a in np.ndindex(policy.shape):
        np.add.at(dense[s, a], arrays.successors[s, a], arrays.probabilities[s, a])
    for counts, shares in ((taken, policy), (arrived, dense)):
        n = counts.sum(-1, keepdims=True)
        error = np.sqrt(n * shares * (1.0 - shares)) + 1e-9
        assert n.sum() > 1000
        assert (np.abs(counts - n * shares) / (error + 0.5)).max() < 4.5


def check_runs(model: Any) -> None:
    """Runs on the device: equal seeds give equal runs, the steps are counted, and what it cannot do is refused."""
    follower = followers.SoftPolicyIteration(REGULARIZATION)
    options: dict[str, Any] = {"device": "cuda", "evaluate_every": 2, "progress": False}
    leader = HPGD(0.2, 20)
    runs, again = (optimize_many(model, leader, follower, 1, seeds=[3, 4, 3], contexts=2, **options) for _ in range(2))
    for run, other in zip(runs, again, strict=True):
        assert torch.equal(run.x, other.x)
        assert run.env_steps == other.env_steps >= 2 * 20
    assert torch.equal(runs[0].x, runs[2].x)
    assert not torch.equal(runs[0].x, runs[1].x)
    for given, message in (
        (HPGD(0.2, 40, bootstrap_truncated=True), "does not bootstrap"),
        (HPGD(0.2, 40, error_groups=2), "not for MonteCarloEstimator here"),
    ):
        with pytest.raises(UnsupportedError, match=message):
            optimize_many(model, given, follower, 2, seeds=[0], **options)


def main() -> None:
    warnings.filterwarnings("ignore", message="overflow encountered")  # of NumPy's whole numbers, which are to overflow
    _monte_carlo_cuda.THREADS, _monte_carlo_cuda._WARP = 2, 1
    rooms = configurable(small_rooms()).model
    check_an_iteration(rooms)
    print("iterations agree in Four-Rooms", flush=True)
    model = random_model(4, states=5, successors=2, moving=("reward", "leader_reward"))
    check_an_iteration(model)
    print("iterations agree in a random model", flush=True)
    check_the_draws(random_model(5, states=3, actions=2, contexts=1, successors=2, moving=("reward", "leader_reward")))
    print("draws agree", flush=True)
    check_runs(model)
    print("runs agree", flush=True)


if __name__ == "__main__":
    main()
