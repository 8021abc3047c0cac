"""Typed settings per environment, for the command line; what they share is in `leaders.settings.RunSettings`."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import gymnasium as gym

from bocmdp_gym.envs.four_rooms import LAYOUT
from bocmdp_gym.errors import OptionError
from leaders.settings import LeaderName, RunSettings


@dataclass(frozen=True, kw_only=True)
class FourRoomsSettings(RunSettings):
    """Four-Rooms (paper, sections 3 and F.2): penalties lead a walker past a marked cell."""

    slip_probability: float = 1 / 3
    """Probability that a move goes another way than chosen; the paper's text says 1/3, its table was made with 0.44."""
    penalty_cost: float = 1.0
    """What the leader pays per unit of penalty placed (the paper's beta)."""
    penalty_budget: float = 0.2
    """Sum of all penalties."""
    start: tuple[int, int] = (4, 1)
    """Row and column of the start, counted from 0."""
    goals: tuple[tuple[int, int], ...] = ((1, 9), (11, 11))
    """Rows and columns of the goals, one per context."""
    waypoint: tuple[int, int] = (8, 4)
    """Row and column of the marked cell the leader wants visited."""
    layout: Path | None = None
    """A text file with another layout, x for walls; the paper's four rooms if not given."""
    horizon: int = 200
    """Steps after which an episode is cut."""

    name: ClassVar[str] = "four-rooms"

    @property
    def env_id(self) -> str:
        return "bocmdp/FourRooms-v0"

    def env_options(self) -> dict[str, Any]:
        options = super().env_options()
        if self.layout is not None and not self.layout.is_file():
            raise OptionError(f"layout {self.layout} is not a file; expected a text file of rows, walls written x.")
        options["layout"] = LAYOUT if self.layout is None else self.layout.read_text()
        return options


@dataclass(frozen=True, kw_only=True)
class RandomMDPSettings(RunSettings):
    """A random model in which x moves rewards, transitions, starts and the leader's reward."""

    model_seed: int = 0
    """Seed of the model; --seed is that of the run."""
    n_states: int = 20
    """Number of states."""
    n_actions: int = 4
    """Number of actions."""
    n_contexts: int = 2
    """Number of contexts."""
    branching: int | None = None
    """Successors per state and action; all states if not given."""
    discount: float = 0.95
    """The follower's and the leader's discount."""
    horizon: int = 200
    """Steps after which an episode is cut."""
    leader_dim: int = 10
    """Dimension of x."""

    name: ClassVar[str] = "random-mdp"

    @property
    def env_id(self) -> str:
        return "bocmdp/RandomMDP-v0"

    def env_options(self) -> dict[str, Any]:
        options = super().env_options()
        return {"seed": options.pop("model_seed"), **options}


@dataclass(frozen=True, kw_only=True)
class PrincipalAgentSettings(RunSettings):
    """Reward shaping for a population of agents: a budgeted bonus that makes them do what pays the principal."""

    instance_seed: int = 0
    """Seed of the instance; --seed is that of the run."""
    instance: Literal["layered", "grid"] = "layered"
    """A layered graph or a grid."""
    n_agents: int = 2
    """Size of the population: one context each."""
    bonus_on: Literal["state", "state_action"] = "state_action"
    """What a bonus is attached to."""
    budget: float = 1.0
    """Budget of the bonus."""
    budget_on: Literal["sum", "paid"] = "sum"
    """Whether the budget limits the sum of all bonuses, or what every agent is expected to be paid (a constraint)."""
    price: float = 0.0
    """What the principal pays per unit of bonus."""
    outside_option: float | None = None
    """What every agent must at least get, or it would stay away; no such constraint if not given."""
    slip_probability: float = 0.0
    """Probability that a move goes another way than chosen."""
    discount: float = 0.95
    """The agents' and the principal's discount."""
    horizon: int = 200
    """Steps after which an episode is cut."""

    name: ClassVar[str] = "principal-agent"

    @property
    def env_id(self) -> str:
        return "bocmdp/PrincipalAgent-v0"

    def env_options(self) -> dict[str, Any]:
        options = super().env_options()
        return {"seed": options.pop("instance_seed"), **options}


@dataclass(frozen=True, kw_only=True)
class DynamicMechanismSettings(RunSettings):
    """Dynamic mechanism design: weights and boosts of an auction that sells one item per period, for revenue or welfare."""

    leader: LeaderName = "exact"
    """Who leads; hpgd has to tell payments, differences of values in several contexts, from noise: give it many --env-steps."""
    contexts: int | Literal["all"] = "all"
    """Contexts drawn per iteration; payments are differences of values in several contexts, so a few of them mislead."""
    iterations: int = 200
    """Outer iterations: one gradient and one step of x each."""
    optimizer: str = "Adam"
    """Any class of torch.optim."""
    learning_rate: float | None = 0.05
    """Step size of x."""
    regularization: float = 0.03
    """The mechanism's entropy coefficient lambda > 0; the leader's return is the revenue up to an entropy in proportion to it."""
    n_bidders: int = 2
    """Number of bidders, who want one item each."""
    n_slots: int = 2
    """Number of periods, with one item each."""
    n_types: int = 5
    """Types per bidder, in the middles of equal parts of [0, 1]."""
    objective: Literal["revenue", "welfare"] = "revenue"
    """What the leader maximises."""
    boosts: Literal["state_action", "slot"] = "state_action"
    """Boosts for every state and action, or one for each unsold item."""
    weight_bound: float = 2.0
    """Weights lie between the inverse of this and this."""
    discount: float = 0.9
    """The bidders' and the leader's discount."""

    name: ClassVar[str] = "dynamic-mechanism"

    @property
    def env_id(self) -> str:
        return "bocmdp/DynamicMechanism-v0"


@dataclass(frozen=True, kw_only=True)
class MetaRLSettings(RunSettings):
    """Meta-RL: a prior policy from which every task's policy departs at a price (--regularization is that price)."""

    regularization: float = 0.1
    """The price lambda' > 0 of departing from the prior, per unit of KL divergence."""
    slip_probability: float = 0.0
    """Probability that a move goes another way than chosen."""
    goal_reward: float = 1.0
    """What reaching a task's goal pays."""
    step_reward: float = 0.0
    """What every other step pays."""
    discount: float = 0.95
    """The follower's and the leader's discount."""
    horizon: int = 200
    """Steps after which an episode is cut."""

    name: ClassVar[str] = "meta-rl"

    @property
    def env_id(self) -> str:
        return "bocmdp/MetaRL-v0"

    def env_options(self) -> dict[str, Any]:
        return {"kl_weight": self.regularization, **super().env_options()}


@dataclass(frozen=True, kw_only=True)
class TaxDesignSettings(RunSettings):
    """Tax design (paper, appendix A): income tax and VAT rates for households that work, consume and save."""

    leader: LeaderName = "exact"
    """Who leads; assets are no table, so hpgd needs --estimator critic here."""
    regularization: float = 0.1
    """The follower's entropy coefficient lambda > 0; 0.1, 0.2 or 0.3 in the published runs."""
    iterations: int = 1000
    """Outer iterations: one gradient and one step of x each."""
    prices: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Prices of the goods."""
    wage: float = 1.0
    """Wage per hour."""
    tax_upper: tuple[float, float, float, float] = (1.0, 2.0, 2.0, 2.0)
    """Upper bounds of the income tax and the VAT rates."""
    asset_range: tuple[float, float] = (-100.0, 100.0)
    """Smallest and largest assets."""
    noise_std: float = 5.0
    """Standard deviation of what happens to the assets by chance."""
    grid_size: int = 101
    """Grid points of the model that is solved."""
    horizon: int = 200
    """Steps after which an episode is cut."""

    name: ClassVar[str] = "tax-design"

    @property
    def env_id(self) -> str:
        return "bocmdp/TaxDesign-v0"


@dataclass(frozen=True, kw_only=True)
class CustomSettings(RunSettings):
    """Your own configurable environment, registered with Gymnasium."""

    id: str
    """Its id, such as mine/Roads-v0."""
    module: str | None = None
    """A module to import first, the one that registers it."""
    options: str = "{}"
    """Keywords of gym.make, as JSON."""

    name: ClassVar[str] = "custom"

    @property
    def env_id(self) -> str:
        return self.id

    def env_options(self) -> dict[str, Any]:
        try:
            options = json.loads(self.options)
        except json.JSONDecodeError as error:
            raise OptionError(f"--options is not JSON: {error}; expected an object such as '{{\"size\": 5}}'.") from error
        if not isinstance(options, dict):
            raise OptionError(f"--options is {self.options}; expected a JSON object such as '{{\"size\": 5}}'.")
        return options

    def make_env(self) -> gym.Env[Any, Any]:
        if self.module is not None:
            try:
                importlib.import_module(self.module)
            except ImportError as error:
                raise OptionError(f"cannot import --module {self.module}: {error}.") from error
        return super().make_env()


#: What the command line offers, by name.
ENVIRONMENTS: dict[str, type[RunSettings]] = {
    s.name: s
    for s in (
        FourRoomsSettings,
        TaxDesignSettings,
        PrincipalAgentSettings,
        DynamicMechanismSettings,
        MetaRLSettings,
        RandomMDPSettings,
        CustomSettings,
    )
}
