"""Training environments in Stable-Baselines3's form, watched for numbers that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from math import isfinite
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers import Autoreset, NormalizeObservation
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor

from bocmdp_gym import TabularEnv, TabularVectorEnv, configurable
from bocmdp_gym.errors import BOCMDPError, ObservationError, OptionError, UnsupportedError
from bocmdp_gym.layers import is_transparent, layers_of
from bocmdp_gym.memory import owned
from bocmdp_gym.wrappers.leader_share import LeaderShare, LeaderShareCopies, share_of
from followers.environments import AnyEnv, check_observation, inspect_layers
from followers.sb3.masks import check_masks
from followers.sb3.monitor import Monitor
from followers.sb3.views import View


class GymnasiumVecEnv(VecEnv):
    """A Gymnasium vector environment as a `VecEnv`: every row is a step, and an ended copy starts again within it.

    Args:
        envs: in autoreset mode "SameStep" or "Disabled".
        view: how the learner sees them.

    Raises:
        UnsupportedError: mode "NextStep", whose autoreset rows a learner would take for steps.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], view: View):
        self.envs, self._view = envs, view
        self._copies: Any = envs.unwrapped
        self._mode = AutoresetMode(envs.metadata["autoreset_mode"])
        if self._mode == AutoresetMode.NEXT_STEP:
            raise UnsupportedError(
                "a vector environment in autoreset mode 'NextStep' plays a row after each episode that is no step, and "
                "Stable-Baselines3 would learn from it; make it with autoreset_mode='SameStep' (among the vector_kwargs of "
                "gym.make_vec, unless the vector environment is native)."
            )
        super().__init__(envs.num_envs, view.seen, view.done)

    def reset(self) -> Any:
        seed: Any = None if all(s is None for s in self._seeds) else list(self._seeds)
        self._reset_seeds()
        observations, _ = owned(self.envs.reset(seed=seed))
        return self._view.observe(observations)

    def step_async(self, actions: Any) -> None:
        self._actions = self._view.act(actions)

    def step_wait(self) -> Any:
        observations, rewards, terminations, truncations, infos = owned(self.envs.step(self._actions))
        ended = terminations | truncations
        rows: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        for i in np.flatnonzero(ended).tolist():
            final = _row(observations, i) if self._mode == AutoresetMode.DISABLED else infos["final_obs"][i]
            rows[i] = {
                "TimeLimit.truncated": bool(truncations[i] and not terminations[i]),
                "terminal_observation": self._view.observe(final),
            }
        if self._mode == AutoresetMode.DISABLED and ended.any():
            observations, _ = owned(self.envs.reset(options={"reset_mask": ended}))
        return self._view.observe(observations), np.asarray(rewards, dtype=np.float32), ended, rows

    def close(self) -> None:
        self.envs.close()

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        del indices  # copies are configured together
        return list(self._copies.call(method_name, *method_args, **method_kwargs))

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        del indices
        return list(self._copies.call(attr_name))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise UnsupportedError(f"the copies of a vector environment share their attributes; {attr_name} cannot be set.")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        del wrapper_class, indices
        return [False] * self.num_envs


class DiscountedReturns(VecEnvWrapper):
    """Pays gamma^t r_t at step t of an episode, for a learner that adds up what episodes pay; their logged sum is discounted too.

    Args:
        venv: the environments, each in a `Monitor`, or in a `VecMonitor` together.
        discount: gamma.
    """

    def __init__(self, venv: VecEnv, discount: float):
        super().__init__(venv)
        self._discount = discount

    def reset(self) -> Any:
        self._weights, self._returns = np.ones(self.num_envs), np.zeros(self.num_envs)
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        paid = self._weights * rewards
        self._returns += paid
        for i in np.flatnonzero(dones):
            infos[i]["episode"] = {**infos[i]["episode"], "r": float(self._returns[i])}
        self._weights = np.where(dones, 1.0, self._discount * self._weights)
        self._returns[dones] = 0.0
        return observations, paid, dones, infos


class Watched(VecEnvWrapper):
    """Refuses observations and rewards that are not finite, at the step that brings them, and masks that allow nothing.

    Raises:
        ObservationError: naming the step and the copy.
        ActionError: what `action_masks` of the copies returned is no mask.
    """

    def __init__(self, venv: VecEnv):
        super().__init__(venv)
        self._steps = 0
        space = self.observation_space
        self._is_array = not isinstance(space, gym.spaces.Dict)
        parts = space.spaces.values() if isinstance(space, gym.spaces.Dict) else [space]
        self._may_be_nan = any(part.dtype is not None and part.dtype.kind == "f" for part in parts)

    def reset(self) -> Any:
        observations = self.venv.reset()
        check_observation(observations, "at a reset of the training environment")
        return observations

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        self._steps += 1
        if self._is_array and isfinite(_sum(observations, None)) and isfinite(_sum(rewards)):
            return observations, rewards, dones, infos  # a sum of finite numbers; the usual case, quickly
        if self._may_be_nan:
            check_observation(observations, f"at training step {self._steps}")
        if not np.isfinite(rewards).all():
            copy = int(np.flatnonzero(~np.isfinite(rewards))[0])
            raise ObservationError(
                f"the follower's reward at training step {self._steps} is {rewards[copy]} in copy {copy}; expected a finite "
                "number. Check the environment at this leader parameter."
            )
        return observations, rewards, dones, infos

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        found: list[Any] = super().env_method(method_name, *method_args, indices=indices, **method_kwargs)
        if method_name == "action_masks":
            for masks in found:
                check_masks(masks, self.action_space)
        return found


_sum: Any = np.add.reduce


def _row(observations: Any, index: int) -> Any:
    """One copy's observation."""
    if isinstance(observations, dict):
        return {name: part[index] for name, part in observations.items()}
    return observations[index]


def training_envs(
    env: AnyEnv,
    core: Any,
    view: View,
    n_envs: int | None,
    make_env: Callable[[], gym.Env[Any, Any]] | None,
    vec_env_class: Callable[[list[Callable[[], gym.Env[Any, Any]]]], VecEnv],
    layer: Callable[[VecEnv], VecEnv],
) -> tuple[Watched, bool]:
    """``n_envs`` copies of an environment for a learner; the environment itself where one is enough.

    A plain tabular environment is copied into the compiled `TabularVectorEnv`.

    Args:
        env, core: the oracle's environment and its configurable layer.
        view: how the learner sees it.
        n_envs: how many; as many as a vector environment has, else 1, if None.
        make_env: makes a copy; ``copy.deepcopy`` of the environment if None.
        vec_env_class: how copies are run (`DummyVecEnv`, `SubprocVecEnv`, or a function of the list of their makers).
        layer: put around them all.

    Returns:
        The environments, and whether they are copies (which are then the caller's to close).

    Raises:
        OptionError: a vector environment has another number of copies, or is to be copied; ``make_env`` makes something else.
        UnsupportedError: a vector environment in autoreset mode "NextStep", or an environment that cannot be copied.
    """
    made, copied = _copies(env, core, view, n_envs, make_env, vec_env_class)
    return Watched(layer(made)), copied


def _copies(
    env: AnyEnv,
    core: Any,
    view: View,
    n_envs: int | None,
    make_env: Callable[[], gym.Env[Any, Any]] | None,
    vec_env_class: Callable[[list[Callable[[], gym.Env[Any, Any]]]], VecEnv],
) -> tuple[VecEnv, bool]:
    """See `training_envs`."""
    if isinstance(env, VectorEnv):
        if n_envs not in (None, env.num_envs):
            raise OptionError(f"n_envs is {n_envs}, and the vector environment has {env.num_envs}; leave n_envs out.")
        if make_env is not None or vec_env_class is not DummyVecEnv:
            raise OptionError(
                "make_env and vec_env_class say how copies are made, and a vector environment is trained on as it is; leave them "
                "out, or give the oracle a single environment."
            )
        return VecMonitor(GymnasiumVecEnv(env, view)), False
    if n_envs in (None, 1) and make_env is None and vec_env_class is DummyVecEnv:
        return DummyVecEnv([lambda: Monitor(view.applied(env))]), False
    n = n_envs or 1
    masked = env.has_wrapper_attr("action_masks")  # which compiled copies would not say
    if make_env is None and isinstance(core, TabularEnv) and vec_env_class is DummyVecEnv and not masked:
        layers = inspect_layers(env, core)
        if layers.plain and layers.horizon == core.horizon:
            copies: Any = TabularVectorEnv(core, n, AutoresetMode.SAME_STEP)
            copies = LeaderShareCopies(copies, layers.share) if layers.share else copies
            return VecMonitor(GymnasiumVecEnv(copies, view)), True
    maker = _maker(env, core, view, make_env)
    try:
        made = vec_env_class([maker] * n)
        _check_share(env, made)
        return made, True
    except BOCMDPError:
        raise
    except Exception as error:  # anything may go wrong in pickling, in a process that starts, and in the user's functions
        how = "make_env" if make_env is not None else f"copies of {type(env.unwrapped).__name__}"
        raise UnsupportedError(
            f"{getattr(vec_env_class, '__name__', vec_env_class)} cannot run {n} of {how} ({type(error).__name__}: {error}). "
            "Pass make_env=, a function that builds a new environment at each call, like the oracle's, out of what can be "
            "pickled; or train on the environment itself, with n_envs=1 and no vec_env_class."
        ) from error


def _check_share(env: Any, made: VecEnv) -> None:
    """Refuse copies that do not pay the follower's share of the leader's reward.

    Raises:
        UnsupportedError: a ``vec_env_class`` made copies of its own.
    """
    if isinstance(env, LeaderShare) and not all(made.env_is_wrapped(LeaderShare)):
        made.close()
        raise UnsupportedError(
            f"{type(made).__name__} plays other copies than those it was given makers of, so the follower's share of the "
            "leader's reward, by which FirstOrder finds its gradient, is not paid in them; have vec_env_class call the makers."
        )


def _maker(env: gym.Env[Any, Any], core: Any, view: View, make_env: Callable[[], gym.Env[Any, Any]] | None) -> Callable[[], Any]:
    """What makes one copy: for another process too, so it holds nothing of the environment where ``make_env`` is given."""
    if make_env is None:
        if any(isinstance(layer, NormalizeObservation) and layer.update_running_mean for layer in layers_of(env)):
            raise UnsupportedError(
                "NormalizeObservation keeps statistics of its own in each copy of the environment, so a learner would train on "
                "other observations than it acts on; use normalize='observation', whose statistics become part of the policy."
            )
        try:
            deepcopy(env)
        except Exception as error:  # what cannot be copied says so in its own words
            raise UnsupportedError(
                f"{type(env.unwrapped).__name__} cannot be copied ({type(error).__name__}: {error}); pass make_env=, a function "
                "that builds a new environment at each call, or train on the environment itself, with n_envs=1."
            ) from error
        return lambda: Monitor(view.applied(deepcopy(env)))
    weight = share_of(env)
    wanted = _Likeness.of(env.env if isinstance(env, LeaderShare) else env, core)

    def make() -> gym.Env[Any, Any]:
        made = make_env()
        wanted.check(made)
        return Monitor(view.applied(made if weight is None else LeaderShare(made, weight)))

    return make


class _Likeness(NamedTuple):
    """What a copy must share with the oracle's environment."""

    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    leader_space: gym.spaces.Box
    discount: float
    layers: list[str]

    @classmethod
    def of(cls, env: gym.Env[Any, Any], core: Any) -> _Likeness:
        layers = []
        for layer in layers_of(env):
            if isinstance(layer, NormalizeObservation):
                frozen = None if layer.update_running_mean else [layer.obs_rms.mean.tolist(), layer.obs_rms.var.tolist()]
                layers.append(f"NormalizeObservation{'' if frozen is None else frozen}")
            elif not isinstance(layer, Autoreset) and not is_transparent(layer):
                layers.append(type(layer).__name__)
        return cls(env.observation_space, env.action_space, core.leader_space, core.discount, layers)

    def check(self, made: Any) -> None:
        """Refuse what make_env made, if a policy learnt there could not act in the oracle's environment.

        Raises:
            OptionError: it is another kind of environment.
            UnsupportedError: it shows observations of another scale.
        """
        if not isinstance(made, gym.Env):
            raise OptionError(f"make_env returned {made!r}; expected a Gymnasium environment like the oracle's.")
        own = _Likeness.of(made, configurable(made))
        for name, mine, theirs in zip(self._fields, self, own, strict=True):
            if mine != theirs:
                raise OptionError(
                    f"make_env makes an environment with {name} {theirs}, and the oracle's has {mine}: the learner would train "
                    "on another problem than it acts in. Wrap both in the same way."
                )
        if "NormalizeObservation" in own.layers:
            raise UnsupportedError(
                "NormalizeObservation keeps statistics of its own in each environment, so the learner would train on other "
                "observations than it acts on; use normalize='observation', whose statistics become part of the policy."
            )
