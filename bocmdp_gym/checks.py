"""`check_configurable_env`: does an environment keep the contract the rest of the library relies on?"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import data_equivalence

from bocmdp_gym.arguments import known_options
from bocmdp_gym.env import Configurable, configurable
from bocmdp_gym.errors import CheckError, ContextError, LeaderParameterError, OptionError
from bocmdp_gym.hooks import Hooks
from bocmdp_gym.layers import layers_of
from bocmdp_gym.memory import owned
from bocmdp_gym.options import check_count


@known_options()
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
        OptionError: a value out of range.
    """
    seed, steps = check_count("seed", seed, 0), check_count("steps", steps)
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

    outlines = core.leader_outlines()
    if outlines is not None:
        drawn = [np.asarray(one) for one in outlines]
        fit = [one.ndim == 2 and one.shape[1] == 2 and len(one) > 2 and np.isfinite(one).all() for one in drawn]
        _require(len(drawn) == len(x) and all(fit), "leader_outlines must have finite corners (n, 2), n > 2, for each entry of x")

    if isinstance(core.context_space, gym.spaces.Discrete):
        beyond = int(core.context_space.start + core.context_space.n)
        _raises(ContextError, lambda: core.set_context(beyond), "set_context must refuse a context out of range")

    core.set_leader(x)
    core.set_context(contexts[0])
    _check_reproducible(env, seed, steps, [_play(env, seed, steps, contexts[0]) for _ in range(2)])
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


def _check_reproducible(env: gym.Env[Any, Any], seed: int, steps: int, records: list[list[dict[str, Any]]]) -> None:
    """Refuse records of equal seeds that differ, in the name of the innermost layer at which they do."""
    where = _difference(*records)
    if where is None:
        return
    layers = list(layers_of(env))
    for depth in reversed(range(1, len(layers))):
        inside = _difference(*(_watch(layers[depth], seed, steps) for _ in range(2)))
        if inside is not None:
            raise CheckError(
                f"equal seeds must give equal episodes, and {type(layers[depth]).__name__} itself, inside {type(env).__name__}, "
                f"plays others: {inside}. The layers around it are not at fault: mend it there, by drawing from self.np_random "
                "alone, which reset(seed=...) seeds, and forgetting at a reset what earlier episodes left."
            )
    raise CheckError(f"equal seeds must give equal episodes, and {type(env).__name__} plays others: {where}.")


def _watch(layer: Any, seed: int, steps: int) -> list[dict[str, Any]]:
    """Steps of a layer inside with random actions: as `_play`, of an environment that need not be configurable."""
    layer.action_space.seed(seed)
    observation, info = layer.reset(seed=seed)
    record: list[dict[str, Any]] = [{"observation": owned(observation)}]
    for _ in range(steps):
        observation, reward, terminated, truncated, info = layer.step(_sampled(layer.action_space, info))
        ends = {"terminated": bool(terminated), "truncated": bool(truncated)}
        record.append({"observation": owned(observation), "reward": reward, **ends})
        if terminated or truncated:
            observation, info = layer.reset()
            record.append({"observation": owned(observation)})
    return record


def _sampled(space: gym.Space[Any], info: dict[str, Any]) -> Any:
    """A random action; among those that ``info["action_mask"]`` allows, where it tells Gymnasium's mask of a Discrete space."""
    mask = info.get("action_mask")
    masked = isinstance(space, gym.spaces.Discrete) and isinstance(mask, np.ndarray) and mask.dtype == np.int8 and mask.any()
    return space.sample(mask) if masked else space.sample()


def _difference(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> str | None:
    """Where two records differ first, in words; None where they do not."""
    step = 0
    for a, b in zip(first, second, strict=False):
        is_step = "reward" in a
        step += is_step
        for name in a:
            if name not in b or not data_equivalence(a[name], b[name]):
                when = f"at step {step}" if is_step else f"at the reset after step {step}" if step else "at the first reset"
                entry, one, other = _entry(name, a[name], b.get(name))
                return f"{when}, {entry} is {one} and then {other}"
    return None if len(first) == len(second) else f"after step {step}"


def _entry(name: str, one: Any, other: Any) -> tuple[str, Any, Any]:
    """The first entry that differs, within arrays, dicts and tuples, and its two values."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        key = next(k for k in one if not data_equivalence(one[k], other[k]))
        return _entry(f"{name}[{key!r}]", one[key], other[key])
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        index = next(i for i in range(len(one)) if not data_equivalence(one[i], other[i]))
        return _entry(f"{name}[{index}]", one[index], other[index])
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and one.shape == other.shape and one.ndim:
        differ = np.argwhere(one != other)
        if len(differ):
            at = tuple(differ[0].tolist())
            return f"{name}[{', '.join(map(str, at))}]", one[at], other[at]
    return name, one, other


def _overrides(core: Any, hook: str) -> bool:
    return getattr(type(core.layer), hook, None) not in (None, getattr(Hooks, hook))


def _play(env: gym.Env[Any, Any], seed: int, steps: int, context: Any) -> list[dict[str, Any]]:
    env.action_space.seed(seed)
    observation, info = env.reset(seed=seed)
    _require("context" in info, 'reset must put the context into info["context"]')
    _require(_equal(info["context"], context), "set_context must persist through resets")
    record: list[dict[str, Any]] = [{"observation": owned(observation)}]
    for _ in range(steps):
        action = _sampled(env.action_space, info)
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
        paid = {"reward": float(reward), "leader_reward": float(leader_reward)}
        record.append({"observation": owned(observation), **paid, "terminated": terminated, "truncated": truncated})
        if terminated or truncated:
            before, kept = observation, owned(observation)
            observation, info = env.reset()
            _require(
                data_equivalence(before, kept),
                "reset must return a new observation: it overwrote the last one of the episode before; return a copy",
            )
            _require(_equal(info["context"], context), "set_context must persist through resets")
            record.append({"observation": owned(observation)})
    return record


def _equal(a: Any, b: Any) -> bool:
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))


def _require(condition: bool, rule: str) -> None:
    if not condition:
        raise CheckError(f"{rule}.")


def _raises(error: type[Exception], call: Any, rule: str) -> None:
    try:
        call()
    except error:
        return
    raise CheckError(f"{rule}, with {error.__name__}.")
