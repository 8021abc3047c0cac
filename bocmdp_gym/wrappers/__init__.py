"""Wrappers of configurable environments; `ConfigurableWrapper` is the base of those that make an environment configurable."""

from bocmdp_gym.env import ConfigurableWrapper
from bocmdp_gym.wrappers.observe_context import ObserveContext

__all__ = ["ConfigurableWrapper", "ObserveContext"]
