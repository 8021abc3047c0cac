"""The environments, one per file; `bocmdp_gym.registration` gives them their ids."""

from typing import TYPE_CHECKING

from bocmdp_gym.lazy import on_first_use

if TYPE_CHECKING:
    from bocmdp_gym.envs.battery import Battery
    from bocmdp_gym.envs.building_control import BuildingControl
    from bocmdp_gym.envs.dynamic_mechanism import DynamicMechanism
    from bocmdp_gym.envs.four_rooms import FourRooms
    from bocmdp_gym.envs.income_tax import IncomeTax
    from bocmdp_gym.envs.inventory import Inventory
    from bocmdp_gym.envs.leader_acts import LeaderActs
    from bocmdp_gym.envs.meta_rl import MetaRL
    from bocmdp_gym.envs.principal_agent import PrincipalAgent
    from bocmdp_gym.envs.random_mdp import RandomMDP
    from bocmdp_gym.envs.road_tolls import RoadTolls
    from bocmdp_gym.envs.tax_design import TaxDesign
else:
    __getattr__, __dir__ = on_first_use(__name__)

__all__ = [
    "Battery",
    "BuildingControl",
    "DynamicMechanism",
    "FourRooms",
    "IncomeTax",
    "Inventory",
    "LeaderActs",
    "MetaRL",
    "PrincipalAgent",
    "RandomMDP",
    "RoadTolls",
    "TaxDesign",
]
