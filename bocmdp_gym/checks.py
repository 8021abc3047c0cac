"""`check_configurable_env`: does an environment keep the contract the rest of the library relies on?"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import data_equivalence

from bocmdp_gym.env import Configurable, configurable
from bocmdp_gym.errors import CheckError, ContextError, LeaderParameterError, OptionError
from bocmdp_gym.hooks import Hooks
from bocmdp_gym.memory import owned


def check_configurable_env(env: gym.Env[Any, Any], *, seed: int = 0, steps: int = 50) -> None:
    """Check that ``env`` is configurable: spaces, persistence of x and context, reset options, infos, errors, reproducibility.

    Gymnasium's ``check_env`` checks the rest of the interface; run both.

    Args:
        env: an environment, wrapped or not. It is left at its last reset.
        seed: for the resets and sampled actions.
        steps: environment steps played per check.

    Raises:
        CheckError: naming the broken rule.
        NotConfigurableError: no layer has a leader parameter.
    """
    core = configurable(env)
    _require(isinstance(core, Configurable), "the layer with leader_space must have every member of bocmdp_gym.Configurable")
    space = core.leader_space
    _require(isinstance(space, gym.spaces.Box) and space.dtype == np.float64, "leader_space must be a float64 Box")
    _require(len(space.shape) == 1, f"leader_space must have shape (d,), not {space.shape}")
    _require(0.0 <= core.discount <= 1.0 and 0.0 <= core.leader_discount <= 1.0, "discounts must lie in [0, 1]")

    rng = np.random.default_rng(seed)
    x = np.asarray(core.initial_leader(rng))
    _require(space.contains(x), "initial_leader(rng) must lie in leader_space (float64)")
    other = np.clip(x + 0.01 * rng.standard_normal(x.shape), space.low, space.high)
    contexts = [core.sample_context(rng) for _ in range(8)]
    _require(all(core.context_space.contains(c) for c in contexts), "sample_context(rng) must lie in context_space")

    _raises(LeaderParameterError, lambda: core.set_leader(np.append(x, 0.0)), "set_leader must refuse a wrong shape")
    _raises(LeaderParameterError, lambda: core.set_leader(np.full_like(x, np.nan)), "set_leader must refuse NaN")
    missing = [name for name in ("neighbours", "joint_action") if _overrides(core, name) and not core.interpolates]
    missing += [name for name in ("observe", "states_of") if _overrides(core, name) and not core.exposes_states]
    missing += ["result_figure"] * (_overrides(core, "result_figure") and core.result_name is None)
    _require(not missing, f"{', '.join(missing)} must be declared: set interpolates, exposes_states or result_name (see Hooks)")

    if isinstance(core.context_space, gym.spaces.Discrete):
        beyond = int(core.context_space.start + core.context_space.n)
        _raises(ContextError, lambda: core.set_context(beyond), "set_context must refuse a context out of range")

    core.set_leader(x)
    core.set_context(contexts[0])
    first = _play(env, seed, steps, contexts[0])
    _require(_same(first, _play(env, seed, steps, contexts[0])), "equal seeds must give equal episodes")
    _require(np.array_equal(core.leader, x), "set_leader must persist through resets")
    _raises(OptionError, lambda: env.reset(options={"laeder": x}), "reset must refuse unknown options")

    env.reset(seed=seed, options={"leader": other, "context": contexts[-1]})
    _require(np.array_equal(core.leader, other), 'reset(options={"leader": x}) must hold for that episode')
    _require(_equal(core.context, contexts[-1]), 'reset(options={"context": c}) must hold for that episode')
    env.reset()
    _require(np.array_equal(core.leader, x), "x from reset options must not outlive its episode")
    _require(_equal(core.context, contexts[0]), "a context from reset options must not outlive its episode")

    core.set_context(None)
    env.reset(seed=seed)
    drawn = []
    for _ in range(16):
        _, info = env.reset()
        drawn.append(info["context"])
    _require(all(core.context_space.contains(c) for c in drawn), "set_context(None) must draw contexts from context_space")
    if isinstance(core.context_space, gym.spaces.Discrete) and len({int(c) for c in contexts}) > 1:
        _require(len({int(c) for c in drawn}) > 1, "set_context(None) must draw a new context at each reset")


def _overrides(core: Any, hook: str) -> bool:
    return getattr(type(core.layer), hook, None) not in (None, getattr(Hooks, hook))


def _play(env: gym.Env[Any, Any], seed: int, steps: int, context: Any) -> list[tuple[Any, ...]]:
    env.action_space.seed(seed)
    observation, info = env.reset(seed=seed)
    _require("context" in info, 'reset must put the context into info["context"]')
    _require(_equal(info["context"], context), "set_context must persist through resets")
    record: list[tuple[Any, ...]] = [(owned(observation),)]
    for _ in range(steps):
        action = env.action_space.sample()
        given, before, kept = owned(action), observation, owned(observation)
        observation, reward, terminated, truncated, info = env.step(action)
        _require(
            data_equivalence(before, kept),
            "step must return a new observation: it overwrote the one returned before, which others may keep; return a copy",
        )
        _require(data_equivalence(action, given), "step must leave the action it is given alone")
        leader_reward: Any = info.get("leader_reward")
        _require(leader_reward is not None, 'step must put the leader\'s reward into info["leader_reward"]')
        _require(isinstance(leader_reward, (float, int, np.floating)), 'info["leader_reward"] must be a number')
        _require(bool(np.isfinite(leader_reward) and np.isfinite(float(reward))), "rewards must be finite")
        _require("context" in info, 'step must put the context into info["context"]')
        _require(_equal(info["context"], context), "the context must not change within an episode")
        record.append((owned(observation), float(reward), terminated, truncated, float(leader_reward)))
        if terminated or truncated:
            before, kept = observation, owned(observation)
            observation, info = env.reset()
            _require(
                data_equivalence(before, kept),
                "reset must return a new observation: it overwrote the last one of the episode before; return a copy",
            )
            _require(_equal(info["context"], context), "set_context must persist through resets")
            record.append((owned(observation),))
    return record


def _equal(a: Any, b: Any) -> bool:
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))


def _same(first: list[tuple[Any, ...]], second: list[tuple[Any, ...]]) -> bool:
    return len(first) == len(second) and all(
        len(a) == len(b) and all(data_equivalence(u, v) for u, v in zip(a, b, strict=True))
        for a, b in zip(first, second, strict=True)
    )


def _require(condition: bool, rule: str) -> None:
    if not condition:
        raise CheckError(f"{rule}.")


def _raises(error: type[Exception], call: Any, rule: str) -> None:
    try:
        call()
    except error:
        return
    raise CheckError(f"{rule}, with {error.__name__}.")
