"""Stable-Baselines3's `Monitor`, around environments that may return one array again and again."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common import monitor

from bocmdp_gym.memory import owned


class Monitor(monitor.Monitor):
    """Observations of their own: an episode's last one is kept, and the next reset may overwrite what was returned."""

    transparent = True

    def reset(self, **kwargs: Any) -> Any:
        return owned(super().reset(**kwargs))

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return (owned(observation), *rest)
