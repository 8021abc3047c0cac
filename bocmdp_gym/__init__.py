"""Configurable contextual MDPs: environments, models and exact solutions.

Importing this package registers the environments with Gymnasium (``gym.make("bocmdp/FourRooms-v0")``).
"""

import os

import torch

from bocmdp_gym import errors
from bocmdp_gym.benchmark import Benchmark
from bocmdp_gym.checks import check_configurable_env
from bocmdp_gym.env import Configurable, ConfigurableEnv, ConfigurableWrapper, configurable
from bocmdp_gym.gymnasium_tables import gymnasium_tables
from bocmdp_gym.mdps import ConfiguredMDPs, Solution, Weights
from bocmdp_gym.model import BOCMDP
from bocmdp_gym.registration import register_all
from bocmdp_gym.tabular import TabularBOCMDP
from bocmdp_gym.tabular_env import TabularEnv, TabularVectorEnv
from bocmdp_gym.trajectories import Trajectories
from bocmdp_gym.transitions import DenseTransitions, FactoredTransitions, SuccessorTransitions, TransitionOperator

register_all()

if hasattr(os, "register_at_fork"):
    # A forked worker (gymnasium's AsyncVectorEnv) inherits torch's thread pool without its threads, and the first parallel
    # operation in it would wait for them for ever.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

__all__ = [
    "BOCMDP",
    "Benchmark",
    "Configurable",
    "ConfigurableEnv",
    "ConfigurableWrapper",
    "ConfiguredMDPs",
    "DenseTransitions",
    "FactoredTransitions",
    "Solution",
    "SuccessorTransitions",
    "TabularBOCMDP",
    "TabularEnv",
    "TabularVectorEnv",
    "Trajectories",
    "TransitionOperator",
    "Weights",
    "check_configurable_env",
    "configurable",
    "errors",
    "gymnasium_tables",
]
