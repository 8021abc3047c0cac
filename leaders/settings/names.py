"""The commands of `leaders.train` by name, and what is known of them without importing an environment, a leader or a follower."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from bocmdp_gym.docstrings import source_summary
from bocmdp_gym.registration import ENVIRONMENTS, Entry

#: The command for environments of one's own.
CUSTOM = "custom"


class Defaults(NamedTuple):
    """What a run in one environment has otherwise than others.

    Attributes:
        values: defaults of settings of the run.
        same: arguments of the environment that are settings of the run, and default to the argument's default.
        note: what its help says besides.
    """

    values: Mapping[str, Any] = {}
    same: Mapping[str, str] = {}
    note: str = ""


_STORAGE = Defaults(
    {"leader": "exact", "contexts": "all", "regularization": 0.1, "learning_rate": 0.1, "optimizer": "Adam", "iterations": 200},
    note="States are real numbers, so hpgd needs --estimator critic here.",
)
DEFAULTS: dict[str, Defaults] = {
    "bocmdp/Battery-v0": _STORAGE,
    "bocmdp/BuildingControl-v0": Defaults(
        {"leader": "exact", "regularization": 0.1, "learning_rate": 0.3, "optimizer": "Adam", "iterations": 200},
        note="Other leaders than exact need --follower linear-quadratic here (or ppo, sac, ...), and hpgd --estimator critic.",
    ),
    "bocmdp/DynamicMechanism-v0": Defaults(
        {
            "leader": "exact",
            "contexts": "all",
            "iterations": 200,
            "optimizer": "Adam",
            "learning_rate": 0.05,
            "regularization": 0.03,
        },
        note="Payments are differences of values in several contexts: a few contexts per iteration mislead, and hpgd, which has "
        "to tell them from noise, needs many --env-steps. The return is the revenue up to an entropy in proportion to "
        "--regularization.",
    ),
    "bocmdp/IncomeTax-v0": Defaults(
        {"leader": "exact", "iterations": 300, "optimizer": "Adam", "learning_rate": 0.02},
        same={"regularization": "regularization"},
        note="--regularization is the lambda of all people.",
    ),
    "bocmdp/Inventory-v0": _STORAGE,
    "bocmdp/LeaderActs-v0": Defaults(
        {"leader": "exact", "regularization": 0.05, "learning_rate": 0.1, "iterations": 1000},
        note="The best setting known of hpgd is --estimator td --td-rate 0.02 --schedule cosine.",
    ),
    "bocmdp/MetaRL-v0": Defaults(
        same={"kl_weight": "regularization"},
        note="--regularization is kl_weight, the price of departing from the prior.",
    ),
    "bocmdp/RoadTolls-v0": Defaults(
        {"leader": "exact", "iterations": 200, "optimizer": "Adam", "learning_rate": 0.2},
        same={"regularization": "regularization"},
        note="--regularization is the lambda of all drivers, in minutes.",
    ),
    "bocmdp/TaxDesign-v0": Defaults(
        {"leader": "exact", "regularization": 0.1, "iterations": 1000},
        note="States are real numbers, so hpgd needs --estimator critic here. The published runs have --regularization 0.1, 0.2 "
        "and 0.3.",
    ),
}


def environments() -> dict[str, Entry]:
    """The registered environments by the names of their commands."""
    return {command_name(entry.id): entry for entry in ENVIRONMENTS}


def command_name(env_id: str) -> str:
    """The name of an environment's command: ``bocmdp/FourRooms-v0`` has four-rooms."""
    name = re.sub(r"-v\d+$", "", env_id.rpartition("/")[2])
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


def command_text(entry: Entry) -> str:
    """What the command of an environment says of it."""
    return f"{source_summary(entry.entry_point)} {DEFAULTS.get(entry.id, Defaults()).note}".strip()


def command_texts() -> dict[str, str]:
    """What every command is for, by name."""
    return {name: command_text(entry) for name, entry in environments().items()} | {
        CUSTOM: source_summary("leaders.settings.environments:CustomSettings")
    }
