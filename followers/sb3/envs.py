"""Training environments in Stable-Baselines3's form, watched for numbers that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from math import isfinite
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor

from bocmdp_gym import TabularEnv, TabularVectorEnv
from bocmdp_gym.errors import ObservationError, OptionError, UnsupportedError
from bocmdp_gym.memory import owned
from followers.environments import AnyEnv, check_observation, inspect_layers
from followers.sb3.monitor import Monitor


class GymnasiumVecEnv(VecEnv):
    """A Gymnasium vector environment as a `VecEnv`: every row is a step, and an ended copy starts again within it.

    Args:
        envs: in autoreset mode "SameStep" or "Disabled".

    Raises:
        UnsupportedError: mode "NextStep", whose autoreset rows a learner would take for steps.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]):
        self.envs = envs
        self._copies: Any = envs.unwrapped
        self._mode = AutoresetMode(envs.metadata["autoreset_mode"])
        if self._mode == AutoresetMode.NEXT_STEP:
            raise UnsupportedError(
                "a vector environment in autoreset mode 'NextStep' plays a row after each episode that is no step, and "
                "Stable-Baselines3 would learn from it; make it with autoreset_mode='SameStep' (among the vector_kwargs of "
                "gym.make_vec, unless the vector environment is native)."
            )
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> Any:
        seed: Any = None if all(s is None for s in self._seeds) else list(self._seeds)
        self._reset_seeds()
        observations, _ = owned(self.envs.reset(seed=seed))
        return observations

    def step_async(self, actions: Any) -> None:
        self._actions = actions

    def step_wait(self) -> Any:
        observations, rewards, terminations, truncations, infos = owned(self.envs.step(self._actions))
        ended = terminations | truncations
        rows: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        for i in np.flatnonzero(ended):
            final = observations if self._mode == AutoresetMode.DISABLED else infos["final_obs"]
            rows[i] = {"TimeLimit.truncated": bool(truncations[i] and not terminations[i]), "terminal_observation": final[i]}
        if self._mode == AutoresetMode.DISABLED and ended.any():
            observations, _ = owned(self.envs.reset(options={"reset_mask": ended}))
        return observations, np.asarray(rewards, dtype=np.float32), ended, rows

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


class Watched(VecEnvWrapper):
    """Refuses observations and rewards that are not finite, at the step that brings them.

    Raises:
        ObservationError: naming the step and the copy.
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


_sum: Any = np.add.reduce


def training_envs(
    env: AnyEnv,
    core: Any,
    n_envs: int | None,
    make_env: Callable[[], gym.Env[Any, Any]] | None,
    vec_env_class: type[VecEnv],
) -> tuple[VecEnv, bool]:
    """``n_envs`` copies of an environment for a learner; the environment itself where one is enough.

    A plain tabular environment is copied into the compiled `TabularVectorEnv`.

    Args:
        env, core: the oracle's environment and its configurable layer.
        n_envs: how many; as many as a vector environment has, else 1, if None.
        make_env: makes a copy; ``copy.deepcopy`` of the environment if None.
        vec_env_class: how copies are run (`DummyVecEnv`, `SubprocVecEnv`).

    Returns:
        The environments, and whether they are copies (which are then the caller's to close).

    Raises:
        OptionError: a vector environment has another number of copies.
        UnsupportedError: a vector environment in autoreset mode "NextStep".
    """
    if isinstance(env, VectorEnv):
        if n_envs not in (None, env.num_envs):
            raise OptionError(f"n_envs is {n_envs}, and the vector environment has {env.num_envs}; leave n_envs out.")
        return Watched(VecMonitor(GymnasiumVecEnv(env))), False
    if n_envs in (None, 1) and make_env is None and vec_env_class is DummyVecEnv:
        return Watched(DummyVecEnv([lambda: Monitor(env)])), False
    n = n_envs or 1
    if make_env is None and isinstance(core, TabularEnv) and vec_env_class is DummyVecEnv:
        layers = inspect_layers(env, core)
        if layers.plain and layers.horizon == core.horizon:
            return Watched(VecMonitor(GymnasiumVecEnv(TabularVectorEnv(core, n, AutoresetMode.SAME_STEP)))), True

    def copy() -> gym.Env[Any, Any]:
        return Monitor(deepcopy(env) if make_env is None else make_env())

    return Watched(vec_env_class([copy] * n)), True  # type: ignore[call-arg, arg-type]
