"""What every registered environment must keep: registering one tests it."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from scipy.stats import chi2, chisquare
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

import bocmdp_gym
from bocmdp_gym.mdps import ContextArrays
from bocmdp_gym.registration import ENVIRONMENTS
from bocmdp_gym.sampling import simulate

IDS = [entry.id for entry in ENVIRONMENTS]
MODES = list(AutoresetMode)


def _make(env_id: str, **options: Any) -> gym.Env[Any, Any]:
    return gym.make(env_id, **options)


def _is_tabular(env_id: str) -> bool:
    return isinstance(bocmdp_gym.configurable(_make(env_id)), bocmdp_gym.TabularEnv)


@pytest.fixture(autouse=True)
def _no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Render mode "human" without a screen: matplotlib's windowless backend would warn that it shows nothing."""
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "pause", lambda seconds: None)


# ----------------------------------------------------------------------------------------------------- the checkers

#: Continuous actions may be in the units of their problem: exact solutions and publications are.
_IN_OWN_UNITS = pytest.mark.filterwarnings("ignore:.*symmetric and normalized:UserWarning")


@_IN_OWN_UNITS
@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_checker(env_id: str) -> None:
    check_env(_make(env_id).unwrapped)


@_IN_OWN_UNITS
@pytest.mark.parametrize("env_id", IDS)
def test_stable_baselines3_checker(env_id: str) -> None:
    sb3_check_env(_make(env_id, render_mode="rgb_array"), warn=True)


@pytest.mark.parametrize("env_id", IDS)
def test_configurable_checker(env_id: str) -> None:
    env = _make(env_id)
    bocmdp_gym.check_configurable_env(env)
    bocmdp_gym.check_configurable_env(env.unwrapped)


@pytest.mark.parametrize("env_id", IDS)
def test_spec_survives_json(env_id: str) -> None:
    env = _make(env_id)
    assert env.spec is not None
    text = env.spec.to_json()
    json.loads(text)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(text))
    x = bocmdp_gym.configurable(env).initial_leader(np.random.default_rng(0))
    for first, second in zip(_episode(env, x), _episode(again, x), strict=True):
        np.testing.assert_equal(first, second)


def _episode(env: gym.Env[Any, Any], x: Any) -> list[Any]:
    env.action_space.seed(0)
    rows: list[Any] = [env.reset(seed=0, options={"leader": x})]
    for _ in range(20):
        rows.append(env.step(env.action_space.sample()))
        if rows[-1][2] or rows[-1][3]:
            break
    return rows


@pytest.mark.parametrize("env_id", IDS)
def test_picture(env_id: str) -> None:
    env = _make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    frame: Any = env.render()
    assert frame.dtype == np.uint8
    assert frame.ndim == 3
    assert frame.shape[-1] == 3
    assert len(np.unique(frame.reshape(-1, 3), axis=0)) > 4  # it shows something
    env.close()


@pytest.mark.parametrize("env_id", IDS)
def test_docstring_is_a_page(env_id: str) -> None:
    page = type(_make(env_id).unwrapped).__doc__ or ""
    for heading in (
        "Description", "Leader parameter", "Context", "Action space", "Observation space", "Rewards", "Episode start and end",
        "Arguments", "Version history",
    ):  # fmt: skip
        assert f"## {heading}\n" in page, heading


@pytest.mark.parametrize("env_id", IDS)
def test_benchmark_is_stated_in_full(env_id: str) -> None:
    benchmark = bocmdp_gym.configurable(_make(env_id)).benchmark()
    if benchmark is not None:
        assert np.isfinite(benchmark.value)
        assert benchmark.objective
        assert benchmark.source


# --------------------------------------------------------------------------------------------------- vector environments


def _x_and_context(env_id: str) -> tuple[Any, Any]:
    core = bocmdp_gym.configurable(_make(env_id))
    rng = np.random.default_rng(1)
    x = core.initial_leader(rng) + 0.01 * rng.standard_normal(core.leader_space.shape)
    return np.clip(x, core.leader_space.low, core.leader_space.high), core.sample_context(rng)


def _drive(envs: gym.vector.VectorEnv[Any, Any, Any], mode: AutoresetMode, steps: int, context: Any) -> int:
    """Play; every info must carry the context that was set. Returns the number of episodes that ended."""
    envs.action_space.seed(0)
    envs.reset(seed=0)
    ended = 0
    for _ in range(steps):
        *_, terminations, truncations, infos = envs.step(envs.action_space.sample())
        np.testing.assert_array_equal(infos["context"], np.broadcast_to(context, np.shape(infos["context"])))
        over = terminations | truncations
        ended += int(over.sum())
        if mode == AutoresetMode.DISABLED and over.any():
            envs.reset(options={"reset_mask": over})
    return ended


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("vectorization", ["sync", "async", "vector_entry_point"])
@pytest.mark.parametrize("env_id", IDS)
def test_x_and_context_persist_through_autoreset(env_id: str, vectorization: str, mode: AutoresetMode) -> None:
    horizon = {"horizon": 5}
    if vectorization == "vector_entry_point":
        keywords: dict[str, Any] = {"autoreset_mode": mode, **horizon}
    else:
        keywords = {"vector_kwargs": {"autoreset_mode": mode}, **horizon}
    envs = gym.make_vec(env_id, num_envs=3, vectorization_mode=vectorization, **keywords)
    try:
        assert envs.metadata["autoreset_mode"] == mode
        x, context = _x_and_context(env_id)
        envs.call("set_leader", x)
        envs.call("set_context", context)
        assert _drive(envs, mode, 30, context) >= 3
        for held in envs.call("leader"):
            np.testing.assert_array_equal(held, x)
    finally:
        envs.close()


def test_workers_do_not_wait_for_torch_threads() -> None:
    """A forked worker inherits torch's thread pool without its threads: a parallel operation in it must not hang."""
    script = (
        "import gymnasium as gym, torch, bocmdp_gym\n"
        "torch.randn(2000, 2000) @ torch.randn(2000, 2000)\n"
        "envs = gym.make_vec('bocmdp/RandomMDP-v0', 2, 'async')\n"
        "envs.reset(seed=0)\n"
        "envs.close()\n"
    )
    threads = {**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", script], env=threads, timeout=120, check=True)


@pytest.mark.parametrize(("env_id", "wrapper"), [*((env_id, DummyVecEnv) for env_id in IDS), (IDS[0], SubprocVecEnv)])
def test_x_and_context_persist_in_stable_baselines3(env_id: str, wrapper: Any) -> None:
    # the module before the colon is imported where the environment is made: worker processes begin without it
    envs = make_vec_env(f"bocmdp_gym:{env_id}", n_envs=2, seed=0, env_kwargs={"horizon": 5}, vec_env_cls=wrapper)
    try:
        x, context = _x_and_context(env_id)
        envs.env_method("set_leader", x)
        envs.env_method("set_context", context)
        envs.reset()
        ended = 0
        for _ in range(15):
            actions = np.stack([envs.action_space.sample() for _ in range(2)])
            _, _, dones, infos = envs.step(actions)
            ended += int(dones.sum())
            for info in infos:
                np.testing.assert_array_equal(info["context"], context)
        assert ended >= 2
        for held in envs.get_attr("leader"):
            np.testing.assert_array_equal(held, x)
    finally:
        envs.close()


@pytest.mark.parametrize("env_id", [e.id for e in ENVIRONMENTS if e.vector_entry_point])
def test_native_vector_spec_survives_json(env_id: str) -> None:
    spec = gym.make_vec(env_id, num_envs=2).unwrapped.spec
    assert spec is not None
    again = gym.make_vec(gym.envs.registration.EnvSpec.from_json(spec.to_json()))
    assert again.num_envs == 2


# ------------------------------------------------------------------------------------ the simulator against the model

SAMPLES = 1_000_000
#: Chance that a right simulator fails one of the two tests of an environment; the seed is fixed, so it fails never or always.
SIGNIFICANCE = 1e-3


def _check_agreement(rows: list[tuple[Any, Any]]) -> None:
    """Chi-square tests of (counts, probabilities): each row with Bonferroni's correction, and the sum of all statistics.

    Outcomes expected less than 10 times are pooled; an outcome of probability 0 must not occur at all.
    """
    p_values, statistic, degrees = [], 0.0, 0
    for counts, probabilities in rows:
        assert counts[probabilities == 0].sum() == 0, "an outcome of probability 0 was drawn"
        expected = probabilities * counts.sum()
        rare = expected < 10
        seen, wanted = np.append(counts[~rare], counts[rare].sum()), np.append(expected[~rare], expected[rare].sum())
        if wanted[-1] < 10:
            seen, wanted = seen[:-1], wanted[:-1]
        if len(seen) > 1:
            result = chisquare(seen, wanted * seen.sum() / wanted.sum())
            p_values.append(float(result.pvalue))
            statistic, degrees = statistic + float(result.statistic), degrees + len(seen) - 1
    if p_values:
        assert min(p_values) > SIGNIFICANCE / len(p_values)
        assert chi2.sf(statistic, degrees) > SIGNIFICANCE


def _transition_rows(states: Any, actions: Any, ended: Any, following: Any, arrays: ContextArrays) -> list[tuple[Any, Any]]:
    """Counts and probabilities of the next state of every pair, and of its ending."""
    n_states, n_actions = arrays.reward.shape
    pair = states.astype(np.int64) * n_actions + actions
    visits, ends = np.bincount(pair, minlength=n_states * n_actions), np.bincount(pair, ended, n_states * n_actions)
    going_on = ~ended
    order = np.argsort(pair[going_on], kind="stable")
    groups = np.split(following[going_on][order], np.searchsorted(pair[going_on][order], np.arange(1, n_states * n_actions)))
    rows = []
    for index, after in enumerate(groups):
        s, a = divmod(index, n_actions)
        q = arrays.termination[s, a]
        rows.append((np.array([ends[index], visits[index] - ends[index]]), np.array([q, 1.0 - q])))
        p = np.bincount(arrays.successors[s, a], arrays.probabilities[s, a], n_states)
        rows.append((np.bincount(after, minlength=n_states), p))
    return rows


def _tabular_arrays(env_id: str, context: int) -> tuple[Any, Any, ContextArrays]:
    core = bocmdp_gym.configurable(_make(env_id))
    x = core.initial_leader(np.random.default_rng(2))
    return core, x, core.model.configure(x).arrays(context)


@pytest.mark.parametrize("env_id", [i for i in IDS if _is_tabular(i)])
def test_a_million_compiled_transitions_agree_with_the_model(env_id: str) -> None:
    n_contexts = bocmdp_gym.configurable(_make(env_id)).model.n_contexts
    chosen = sorted({0, n_contexts // 2, n_contexts - 1})
    rng = np.random.default_rng(0)
    rows = []
    for context in chosen:
        core, _, arrays = _tabular_arrays(env_id, context)
        uniform = np.full(arrays.reward.shape, 1.0 / arrays.reward.shape[1])
        run = simulate(arrays, uniform, SAMPLES // len(chosen) + 1, rng, horizon=core.horizon)
        np.testing.assert_array_equal(run.rewards, arrays.reward[run.states, run.actions])
        np.testing.assert_array_equal(run.leader_rewards, arrays.leader_reward[run.states, run.actions])
        following = np.append(run.states[1:], -1)
        following[run.ends - 1] = run.final_states
        ended = np.zeros(len(run.states), dtype=bool)
        ended[run.ends[run.terminated] - 1] = True
        starts = run.states[np.append(0, run.ends[:-1])]
        rows += _transition_rows(run.states, run.actions, ended, following, arrays)
        rows.append((np.bincount(starts, minlength=len(arrays.initial)), arrays.initial))
    _check_agreement(rows)


@pytest.mark.parametrize("env_id", [e.id for e in ENVIRONMENTS if e.vector_entry_point and _is_tabular(e.id)])
def test_a_million_vector_transitions_agree_with_the_model(env_id: str) -> None:
    """The same through the native vector environment's own interface, starts and contexts included."""
    n, core = 1000, bocmdp_gym.configurable(_make(env_id))
    x = core.initial_leader(np.random.default_rng(2))
    mdps = core.model.configure(x)
    envs: Any = gym.make_vec(env_id, num_envs=n, vectorization_mode="vector_entry_point")
    envs.set_leader(x)
    rng = np.random.default_rng(0)
    observations, infos = envs.reset(seed=0)
    contexts, starting = infos["context"], np.ones(n, dtype=bool)
    columns: list[list[Any]] = [[] for _ in range(6)]
    start_states, start_contexts = [core.states_of(observations)], [contexts.copy()]
    for _ in range(SAMPLES // n):
        actions = rng.integers(0, core.model.n_actions, n)
        states = core.states_of(observations)
        observations, rewards, terminated, _, infos = envs.step(actions)
        acted = infos["_leader_reward"]
        following = core.states_of(observations)
        row = (contexts, states, actions, rewards, terminated, following)
        for column, value in zip(columns, row, strict=True):
            column.append(value[acted])
        contexts, starting = infos["context"].copy(), ~acted
        start_states.append(following[starting])
        start_contexts.append(contexts[starting])
    context, states, actions, rewards, terminated, following = (np.concatenate(c) for c in columns)
    assert len(states) > SAMPLES / 3  # the other rows are resets of short episodes
    first, first_context = np.concatenate(start_states), np.concatenate(start_contexts)
    rows = [(np.bincount(first_context, minlength=core.model.n_contexts), core.model.context_probabilities)]
    for c in sorted({0, core.model.n_contexts // 2, core.model.n_contexts - 1}):
        arrays, here = mdps.arrays(c), context == c
        np.testing.assert_array_equal(rewards[here], arrays.reward[states[here], actions[here]])
        rows += _transition_rows(states[here], actions[here], terminated[here], following[here], arrays)
        rows.append((np.bincount(first[first_context == c], minlength=len(arrays.initial)), arrays.initial))
    _check_agreement(rows)


@pytest.mark.parametrize("env_id", [i for i in IDS if _is_tabular(i)])
def test_single_steps_agree_with_the_model(env_id: str) -> None:
    """The same, 50,000 transitions, through `reset` and `step` of one environment."""
    core, x, arrays = _tabular_arrays(env_id, 0)
    core.set_leader(x)
    core.set_context(0)
    actions = np.random.default_rng(0).integers(0, core.model.n_actions, 50_000)
    observation, _ = core.reset(seed=0)
    seen, first = [], [core.states_of(observation)]
    for action in actions:
        state = core.states_of(observation)
        observation, reward, terminated, truncated, info = core.step(action)
        seen.append((state, terminated, core.states_of(observation)))
        assert (reward, info["leader_reward"]) == (arrays.reward[state, action], arrays.leader_reward[state, action])
        if terminated or truncated:
            observation, _ = core.reset()
            first.append(core.states_of(observation))
    states, ended, following = (np.array(column) for column in zip(*seen, strict=True))
    rows = _transition_rows(states, actions, ended, following, arrays)
    _check_agreement([*rows, (np.bincount(first, minlength=len(arrays.initial)), arrays.initial)])


@pytest.mark.parametrize("env_id", IDS)
def test_unknown_options_and_wrong_types_are_refused(env_id: str) -> None:
    for make in (gym.make, lambda i, **options: gym.make_vec(i, num_envs=2, **options)):
        with pytest.raises(bocmdp_gym.errors.UnknownOptionError, match="Did you mean 'leader_discount'"):
            make(env_id, leader_discout=0.9)
    with pytest.raises(bocmdp_gym.errors.DiscountError, match="'a'"):
        _make(env_id, discount="a")


@pytest.mark.parametrize("env_id", IDS)
def test_a_pickled_environment_goes_on_alike(env_id: str) -> None:
    env = _make(env_id, horizon=30)
    core = bocmdp_gym.configurable(env)
    core.set_leader(core.initial_leader(np.random.default_rng(0)))
    env.reset(seed=0)
    env.action_space.seed(0)
    action = env.action_space.sample()
    env.step(action)
    twin = pickle.loads(pickle.dumps(env))  # noqa: S301 - our own bytes
    assert twin.spec == env.spec
    np.testing.assert_array_equal(bocmdp_gym.configurable(twin).leader, core.leader)
    for _ in range(3):
        assert [repr(twin.step(action)) for _ in range(5)] == [repr(env.step(action)) for _ in range(5)]
        assert repr(twin.reset()) == repr(env.reset())
