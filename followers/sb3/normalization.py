"""Normalisation of what learners see and are paid: running statistics of their own, kept, saved, and frozen in each answer.

`VecNormalize` of Stable-Baselines3 divides observations by their standard deviation, and rewards by that of the discounted
returns. All learners share one such layer, and each puts its own statistics into it while it trains. When x changes they run
on: networks were trained on that scale, which may not jump. A policy takes a copy of the observations' (`View.frozen`); rewards
are normalised in training alone.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, get_args

import gymnasium as gym
import numpy as np
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    unwrap_vec_normalize,
)

from bocmdp_gym.errors import OptionError, UnsupportedError
from bocmdp_gym.options import check_choice
from followers.policies import Array
from followers.sb3.envs import DiscountedReturns
from followers.sb3.normalized import Normalized

#: Wrappers of copies that leave observations, actions and rewards alone, or whose work networks repeat when they act.
_TRANSPARENT = (DiscountedReturns, VecMonitor, VecCheckNan, VecTransposeImage)


def check_normalize(normalize: str | None, regularization: float | None, ranks: bool) -> str | None:
    """The choice, if it is one.

    Args:
        normalize: one of `Normalized`, or None.
        regularization: lambda, None if the follower has none.
        ranks: whether the learner compares returns, whatever their size.

    Raises:
        OptionError: another word.
        UnsupportedError: rewards would be rescaled where lambda weighs them against entropy, or in vain.
    """
    if normalize is None:
        return None
    check_choice("normalize", normalize, get_args(Normalized))
    if normalize != "observation" and regularization is not None:
        raise UnsupportedError(
            f"normalize={normalize!r} rescales rewards, so the follower would solve its problem for another lambda than "
            f"{regularization}; expected normalize='observation', or none."
        )
    if normalize != "observation" and ranks:
        raise UnsupportedError(
            f"normalize={normalize!r} rescales rewards, and ARS divides by the deviation of returns itself; expected "
            "normalize='observation', or none."
        )
    return normalize


def normalizing(normalize: str | None, space: gym.Space[Any], discount: float, replays: bool) -> Callable[[VecEnv], VecEnv]:
    """The layer that normalises training environments.

    Args:
        normalize: one of `Normalized`; None for no layer.
        space: the observations as the learner sees them; of a Dict its Box parts are normalised, images apart, which
            networks scale themselves.
        discount: of the returns whose size rewards are divided by.
        replays: whether the learner keeps a replay buffer.

    Raises:
        UnsupportedError: observations to be normalised have no scale, or cannot be stored.
    """
    if normalize is None:
        return lambda envs: envs
    if replays and isinstance(space, gym.spaces.Discrete):  # it indexes the last observation of an episode as an array
        raise UnsupportedError(
            f"the replay buffers of Stable-Baselines3 cannot store observations from {space} where anything is normalised; wrap "
            "the environment in gymnasium.wrappers.FlattenObservation, use PPO or A2C, or leave normalize out."
        )
    keys: list[str] | None = None
    if normalize != "reward":
        parts = space.spaces if isinstance(space, gym.spaces.Dict) else {"": space}
        scaled = [n for n, part in parts.items() if isinstance(part, gym.spaces.Box) and not is_image_space(part)]
        if not scaled:
            raise UnsupportedError(
                f"normalize={normalize!r} divides observations by their standard deviation, and those from {space} are no "
                "numbers of some size, or are images; expected a Box, or a Dict with one, or normalize='reward', or none."
            )
        keys = scaled if isinstance(space, gym.spaces.Dict) else None
    return lambda envs: VecNormalize(
        envs,
        norm_obs=normalize != "reward",
        norm_reward=normalize != "observation",
        gamma=discount,
        norm_obs_keys=keys,
    )


def normalizer_of(envs: VecEnvWrapper, regularization: float | None) -> VecNormalize | None:
    """The layer that normalises what learners see, None if there is none.

    Args:
        envs: training environments, in a layer of our own.
        regularization: lambda, None if the follower has none.

    Raises:
        UnsupportedError: another layer changes what learners see or do, which their policies would not know; or rewards are
            rescaled where lambda weighs them against entropy.
    """
    layer: Any = envs.venv
    found: list[VecNormalize] = []
    while isinstance(layer, VecEnvWrapper):
        if type(layer) is VecNormalize:  # a subclass may normalise otherwise
            found.append(layer)
        elif not isinstance(layer, _TRANSPARENT):
            raise UnsupportedError(
                f"vec_env_class wraps the copies in {type(layer).__name__}, so the learner would train on other observations "
                "than it acts on; wrap the environment itself, with a wrapper of gymnasium.wrappers. VecNormalize alone is known."
            )
        layer = layer.venv
    if len(found) > 1:
        raise UnsupportedError(f"vec_env_class normalises {len(found)} times over; expected one VecNormalize.")
    if found and found[0].norm_reward and regularization is not None:
        raise UnsupportedError(
            f"VecNormalize rescales rewards, so the follower would solve its problem for another lambda than {regularization}; "
            "pass norm_reward=False to it."
        )
    return unwrap_vec_normalize(envs)


_PARTS = ("mean", "var", "count")


class Statistics:
    """Running statistics of one learner, which take turns in the one `VecNormalize` that all learners share.

    Args:
        normalizer: as it was before anything was learnt.
    """

    def __init__(self, normalizer: VecNormalize):
        self._observations = deepcopy(normalizer.obs_rms) if normalizer.norm_obs else None
        self._returns = deepcopy(normalizer.ret_rms)

    def put_into(self, normalizer: VecNormalize) -> None:
        """From now on they are the ones that are used, and updated."""
        if self._observations is not None:
            normalizer.obs_rms = self._observations
        normalizer.ret_rms = self._returns

    def _named(self) -> dict[str, RunningMeanStd]:
        kept = self._observations
        parts = {f"observations.{k}": v for k, v in kept.items()} if isinstance(kept, dict) else {"observations": kept}
        return {name: part for name, part in parts.items() if part is not None} | {"returns": self._returns}

    def state(self) -> dict[str, Array]:
        """What a checkpoint keeps."""
        return {f"{name}.{p}": np.array(getattr(part, p)) for name, part in self._named().items() for p in _PARTS}

    def load_state(self, state: dict[str, Array]) -> None:
        """Continue from `state`.

        Raises:
            OptionError: it is another observation's.
        """
        for name, part in self._named().items():
            for p in _PARTS:
                saved, own = state.get(f"{name}.{p}"), np.shape(getattr(part, p))
                if saved is None or np.shape(saved) != own:
                    raise OptionError(
                        f"the saved learner has no normalisation statistics {name}.{p} of shape {own}; load it with the "
                        "normalize or vec_env_class it was saved with."
                    )
                setattr(part, p, float(saved) if p == "count" else np.array(saved))
