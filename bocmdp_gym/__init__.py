"""Configurable contextual MDPs: environments, models and exact solutions.

Importing this package registers the environments with Gymnasium (``gym.make("bocmdp/FourRooms-v0")``).
"""

from typing import TYPE_CHECKING

from bocmdp_gym.lazy import on_first_use
from bocmdp_gym.registration import register_all
from bocmdp_gym.version import __version__

if TYPE_CHECKING:
    from bocmdp_gym import errors
    from bocmdp_gym.affine import Affine
    from bocmdp_gym.benchmark import Benchmark
    from bocmdp_gym.checks import check_configurable_env
    from bocmdp_gym.env import Configurable, ConfigurableEnv, configurable
    from bocmdp_gym.equilibrium import Equilibrium
    from bocmdp_gym.hooks import Hooks
    from bocmdp_gym.linear_quadratic import LinearQuadraticBOCMDP, LinearQuadraticSolution
    from bocmdp_gym.linear_quadratic_env import LinearQuadraticEnv, LinearQuadraticVectorEnv
    from bocmdp_gym.mdps import ConfiguredMDPs, Solution, Weights
    from bocmdp_gym.model import BOCMDP
    from bocmdp_gym.parametrizations import Identity, Parametrization, Sigmoid, Softmax
    from bocmdp_gym.population import PopulationBOCMDP
    from bocmdp_gym.published_tables import gymnasium_tables
    from bocmdp_gym.tabular import TabularBOCMDP
    from bocmdp_gym.tabular_env import TabularEnv, TabularVectorEnv
    from bocmdp_gym.trajectories import Trajectories
    from bocmdp_gym.transitions import DenseTransitions, FactoredTransitions, SuccessorTransitions, TransitionOperator
    from bocmdp_gym.wrappers import ConfigurableWrapper
else:
    __getattr__, __dir__ = on_first_use(__name__)

register_all()

__all__ = [
    "BOCMDP",
    "Affine",
    "Benchmark",
    "Configurable",
    "ConfigurableEnv",
    "ConfigurableWrapper",
    "ConfiguredMDPs",
    "DenseTransitions",
    "Equilibrium",
    "FactoredTransitions",
    "Hooks",
    "Identity",
    "LinearQuadraticBOCMDP",
    "LinearQuadraticEnv",
    "LinearQuadraticSolution",
    "LinearQuadraticVectorEnv",
    "Parametrization",
    "PopulationBOCMDP",
    "Sigmoid",
    "Softmax",
    "Solution",
    "SuccessorTransitions",
    "TabularBOCMDP",
    "TabularEnv",
    "TabularVectorEnv",
    "Trajectories",
    "TransitionOperator",
    "Weights",
    "__version__",
    "check_configurable_env",
    "configurable",
    "errors",
    "gymnasium_tables",
]
