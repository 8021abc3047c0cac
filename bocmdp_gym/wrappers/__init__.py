"""Wrappers that make an existing Gymnasium environment configurable; `ConfigurableWrapper` is their base class."""

from bocmdp_gym.env import ConfigurableWrapper

__all__ = ["ConfigurableWrapper"]
