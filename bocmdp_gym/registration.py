"""The environments' ids: one table. Importing `bocmdp_gym` registers them."""

from __future__ import annotations

from typing import NamedTuple

import gymnasium as gym


class Entry(NamedTuple):
    """One registered environment."""

    id: str
    entry_point: str
    vector_entry_point: str | None = None


ENVIRONMENTS = (
    Entry(
        "bocmdp/FourRooms-v0",
        "bocmdp_gym.envs.four_rooms:FourRooms",
        "bocmdp_gym.envs.four_rooms:four_rooms_vector",
    ),
    Entry(
        "bocmdp/DynamicMechanism-v0",
        "bocmdp_gym.envs.dynamic_mechanism:DynamicMechanism",
        "bocmdp_gym.envs.dynamic_mechanism:dynamic_mechanism_vector",
    ),
    Entry(
        "bocmdp/IncomeTax-v0",
        "bocmdp_gym.envs.income_tax:IncomeTax",
        "bocmdp_gym.envs.income_tax:income_tax_vector",
    ),
    Entry(
        "bocmdp/LeaderActs-v0",
        "bocmdp_gym.envs.leader_acts:LeaderActs",
        "bocmdp_gym.envs.leader_acts:leader_acts_vector",
    ),
    Entry(
        "bocmdp/MetaRL-v0",
        "bocmdp_gym.envs.meta_rl:MetaRL",
        "bocmdp_gym.envs.meta_rl:meta_rl_vector",
    ),
    Entry(
        "bocmdp/PrincipalAgent-v0",
        "bocmdp_gym.envs.principal_agent:PrincipalAgent",
        "bocmdp_gym.envs.principal_agent:principal_agent_vector",
    ),
    Entry(
        "bocmdp/RandomMDP-v0",
        "bocmdp_gym.envs.random_mdp:RandomMDP",
        "bocmdp_gym.envs.random_mdp:random_mdp_vector",
    ),
    Entry(
        "bocmdp/RoadTolls-v0",
        "bocmdp_gym.envs.road_tolls:RoadTolls",
        "bocmdp_gym.envs.road_tolls:road_tolls_vector",
    ),
    Entry(
        "bocmdp/TaxDesign-v0",
        "bocmdp_gym.envs.tax_design:TaxDesign",
        "bocmdp_gym.envs.tax_design_vector:tax_design_vector",
    ),
    Entry(
        "bocmdp/Inventory-v0",
        "bocmdp_gym.envs.inventory:Inventory",
        "bocmdp_gym.envs.storage_vector:inventory_vector",
    ),
    Entry(
        "bocmdp/Battery-v0",
        "bocmdp_gym.envs.battery:Battery",
        "bocmdp_gym.envs.storage_vector:battery_vector",
    ),
    Entry(
        "bocmdp/BuildingControl-v0",
        "bocmdp_gym.envs.building_control:BuildingControl",
        "bocmdp_gym.envs.building_control:building_control_vector",
    ),
)


def register_all() -> None:
    """Register every environment that is not registered yet."""
    for entry in ENVIRONMENTS:
        if entry.id not in gym.registry:
            gym.register(entry.id, entry_point=entry.entry_point, vector_entry_point=entry.vector_entry_point)
