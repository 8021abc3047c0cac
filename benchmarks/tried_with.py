"""Tried with: environments x followers x leaders, each combination run on the real packages for a moment.

Every environment is one that its own package makes, under a leader who pays (`bocmdp_gym.wrappers.LeaderReward`) for what is
named in its line. Every combination is bound and makes `ITERATIONS` outer iterations on a budget that only shows that it runs,
and how long that takes: no one learns anything in so few steps. What it ends with is one of

- "runs": x is finite and the run has a record;
- "refused": a named error of the library, whose sentence is kept;
- "failed": any other exception, which is a mistake.

``python -m benchmarks.tried_with`` stores ``results/tried_with.json``; names of environments after it limit it to those, and what
is stored of others stays. Packages that are not installed (the extra ``tried-with`` has them) are left out, and said to be.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from time import process_time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

import followers
import leaders
from benchmarks.common import RESULTS, store
from bocmdp_gym.errors import BOCMDPError
from bocmdp_gym.wrappers import ActionMasks, LeaderReward

ITERATIONS, ENV_STEPS, LAMBDA, HORIZON = 2, 200, 0.1, 50


# ---------------------------------------------------------------------------------------------------------- environments


@dataclass(frozen=True)
class World:
    """An environment of a package.

    Attributes:
        what: the leader pays for.
        make: it, bare.
        bonus: of x ``(2,)``, observations and actions.
        leader_reward: of observations and actions, less what is paid.
        package: that it needs besides Gymnasium.
    """

    what: str
    make: Callable[[], gym.Env[Any, Any]]
    bonus: Callable[[Tensor, Any, Any], Tensor]
    leader_reward: Callable[[Any, Any], Tensor]
    package: str | None = None

    def lead(self) -> gym.Env[Any, Any]:
        """Under a leader who pays."""
        bonus, reward = self.bonus, self.leader_reward
        return LeaderReward(
            self.make(),
            bonus=lambda x, observations, actions, context: bonus(x, observations, actions),
            leader_space=gym.spaces.Box(-1.0, 1.0, (2,), np.float64),
            leader_reward=lambda x, observations, actions, context: (
                reward(observations, actions) - bonus(x, observations, actions)
            ),
            discount=0.9,
        )


def _made(name: str, **arguments: Any) -> Callable[[], gym.Env[Any, Any]]:
    return lambda: gym.make(name, max_episode_steps=HORIZON, **arguments)


def _minigrid() -> gym.Env[Any, Any]:
    from minigrid.wrappers import ImgObsWrapper

    return ImgObsWrapper(gym.make("MiniGrid-Empty-5x5-v0", max_episode_steps=HORIZON))


def _treasure() -> gym.Env[Any, Any]:
    from mo_gymnasium import make
    from mo_gymnasium.wrappers import LinearReward

    env: Any = LinearReward(make("deep-sea-treasure-v0"), weight=np.array([0.5, 0.5]))
    return gym.wrappers.TimeLimit(env, HORIZON)


def _highway() -> gym.Env[Any, Any]:
    import highway_env

    gym.register_envs(highway_env)
    settings = {"vehicles_count": 5, "duration": 10, "lanes_count": 2, "simulation_frequency": 5}
    return gym.make("highway-fast-v0", config=settings, max_episode_steps=HORIZON)


def _taken(actions: Any, action: int) -> Tensor:
    taken: Tensor = (actions == action).double()
    return taken


WORLDS: dict[str, World] = {
    "FrozenLake": World(
        "walking right",
        _made("FrozenLake-v1"),
        lambda x, s, a: x[0] * _taken(a, 2) + x[1] * (s == 8),
        lambda s, a: (s % 4 == 3).double(),
    ),
    "CliffWalking": World(
        "walking along the top",
        _made("CliffWalking-v1"),
        lambda x, s, a: x[0] * (s < 12) + x[1] * _taken(a, 0),
        lambda s, a: (s < 12).double(),
    ),
    "Taxi": World(
        "fares: picking up, driving",
        lambda: ActionMasks(gym.make("Taxi-v4", max_episode_steps=HORIZON)),
        lambda x, s, a: x[0] * _taken(a, 4) + x[1] * (a < 4),
        lambda s, a: (a < 4).double(),
    ),
    "Blackjack": World(
        "sticking at low sums",
        _made("Blackjack-v1"),
        lambda x, s, a: x[0] * _taken(a, 0) + x[1] * (s[0] < 12),
        lambda s, a: s[0] / 21.0,
    ),
    "CartPole": World(
        "standing at a spot",
        _made("CartPole-v1"),
        lambda x, s, a: x[0] * torch.exp(-((s[:, 0] - x[1]) ** 2)),
        lambda s, a: -((s[:, 0] - 0.5) ** 2),
    ),
    "MountainCar": World(
        "going left first",
        _made("MountainCar-v0"),
        lambda x, s, a: x[0] * _taken(a, 0) + x[1] * s[:, 0],
        lambda s, a: -s[:, 0],
    ),
    "MountainCarContinuous": World(
        "fuel", _made("MountainCarContinuous-v0"), lambda x, s, a: x[0] * a[:, 0] ** 2 + x[1] * s[:, 0], lambda s, a: s[:, 0]
    ),
    "Acrobot": World(
        "torque to one side",
        _made("Acrobot-v1"),
        lambda x, s, a: x[0] * _taken(a, 2) + x[1] * s[:, 0],
        lambda s, a: s[:, 0],
    ),
    "Pendulum": World(
        "a price of torque", _made("Pendulum-v1"), lambda x, s, a: x[0] * a[:, 0] ** 2 + x[1] * s[:, 0], lambda s, a: s[:, 0]
    ),
    "LunarLander": World(
        "a fuel price",
        _made("LunarLander-v3"),
        lambda x, s, a: x[0] * _taken(a, 2) + x[1] * s[:, 0],
        lambda s, a: -_taken(a, 2),
        "Box2D",
    ),
    "InvertedPendulum (MuJoCo)": World(
        "a price of force",
        _made("InvertedPendulum-v5"),
        lambda x, s, a: x[0] * a[:, 0] ** 2 + x[1] * s[:, 0],
        lambda s, a: -(a[:, 0] ** 2),
        "mujoco",
    ),
    "Hopper (MuJoCo)": World(
        "a price of torque",
        _made("Hopper-v5"),
        lambda x, s, a: x[0] * (a**2).sum(-1) + x[1] * s[:, 0],
        lambda s, a: s[:, 0],
        "mujoco",
    ),
    "MiniGrid": World(
        "going forward",
        _minigrid,
        lambda x, s, a: x[0] * _taken(a, 2) + x[1] * _taken(a, 0),
        lambda s, a: _taken(a, 2),
        "minigrid",
    ),
    "deep-sea-treasure (MO-Gymnasium)": World(
        "diving",
        _treasure,
        lambda x, s, a: x[0] * _taken(a, 1) + x[1] * s[:, 0],
        lambda s, a: s[:, 0] * 1.0,
        "mo_gymnasium",
    ),
    "highway-env": World(
        "driving fast",
        _highway,
        lambda x, s, a: x[0] * _taken(a, 3) + x[1] * s[:, 0, 3],
        lambda s, a: -s[:, 0, 3],
        "highway_env",
    ),
    "Four-Rooms (ours)": World(
        "the penalties of the paper",
        lambda: gym.make("bocmdp/FourRooms-v0", horizon=HORIZON),
        lambda x, s, a: x[0] * _taken(a, 0),
        lambda s, a: _taken(a, 0),
    ),
    "tax design (ours)": World(
        "the taxes of the paper",
        lambda: gym.make("bocmdp/TaxDesign-v0", horizon=HORIZON),
        lambda x, s, a: x[0] * s[:, 0],
        lambda s, a: s[:, 0],
    ),
}
#: Environments that have a leader already.
OURS = ("Four-Rooms (ours)", "tax design (ours)")


def lead(name: str) -> gym.Env[Any, Any]:
    """A world under its leader."""
    return WORLDS[name].make() if name in OURS else WORLDS[name].lead()


# ------------------------------------------------------------------------------------------------- followers and leaders


def _rule(env: gym.Env[Any, Any]) -> followers.Follower:
    """The same action everywhere."""
    space: Any = env.action_space
    action = space.start if isinstance(space, gym.spaces.Discrete) else np.zeros(space.shape, space.dtype)
    return followers.CallableFollower(lambda observation: action)


def _sb3(algorithm: str, **settings: Any) -> Callable[[gym.Env[Any, Any]], followers.Follower]:
    return lambda env: followers.SB3Follower(algorithm, 64, **settings)


_ON = {"n_steps": 64, "policy_kwargs": {"net_arch": [16]}}
_OFF = {"learning_starts": 32, "buffer_size": 500, "batch_size": 16, "policy_kwargs": {"net_arch": [16]}}


def _random(env: gym.Env[Any, Any]) -> followers.Follower:
    space = env.action_space
    low, high = getattr(space, "low", None), getattr(space, "high", None)

    def act(observation: Any, rng: np.random.Generator) -> Any:
        del observation
        if isinstance(space, gym.spaces.Discrete):
            return int(space.start + rng.integers(space.n))
        if isinstance(space, gym.spaces.Box):
            return rng.uniform(low, high).astype(space.dtype)
        return rng.integers(0, space.nvec)  # type: ignore[attr-defined]

    return followers.CallableFollower(act)


FOLLOWERS: dict[str, Callable[[gym.Env[Any, Any]], followers.Follower]] = {
    "random agent": _random,
    "a rule": _rule,
    "PPO": _sb3("PPO", **_ON),
    "A2C": _sb3("A2C", policy_kwargs={"net_arch": [16]}),
    "TRPO": _sb3("TRPO", **_ON),
    "MaskablePPO": _sb3("MaskablePPO", **_ON),
    "RecurrentPPO": _sb3("RecurrentPPO", n_steps=64, policy_kwargs={"net_arch": [16], "lstm_hidden_size": 16}),
    "DQN": _sb3("DQN", **_OFF),
    "DQN, softmax": _sb3("DQN", softmax_temperature=LAMBDA, **_OFF),
    "QRDQN, softmax": _sb3("QRDQN", softmax_temperature=LAMBDA, **_OFF),
    "SoftDQN": lambda env: followers.SoftDQNFollower(LAMBDA, 64, **_OFF),
    "SAC": lambda env: followers.SACFollower(LAMBDA, 64, **_OFF),
    "TD3": _sb3("TD3", **_OFF),
    "DDPG": _sb3("DDPG", **_OFF),
    "TQC": _sb3("TQC", **_OFF),
    "CrossQ": _sb3("CrossQ", **_OFF),
    "ARS": _sb3("ARS", n_delta=2),
    "soft policy iteration": lambda env: followers.SoftPolicyIteration(LAMBDA),
    "soft Q-learning": lambda env: followers.SoftQLearning(LAMBDA, iterations=500),
}


def _optimise(leader: leaders.Leader) -> Callable[[Any, followers.Follower], dict[str, Any]]:
    def run(env: Any, follower: followers.Follower) -> dict[str, Any]:
        result = leaders.optimize(env, leader, follower, ITERATIONS, seed=0, progress=False)
        if not bool(torch.isfinite(result.x).all()):
            raise RuntimeError(f"x is {result.x}")
        return {"env_steps": result.env_steps}

    return run


def _seat(env: Any, follower: followers.Follower) -> dict[str, Any]:
    seat = leaders.LeaderEnv(env, follower, bounds=(-1.0, 1.0), value="sampled", env_steps=ENV_STEPS)
    seat.reset(seed=0)
    for _ in range(ITERATIONS):
        _, value, *_ = seat.step(np.full(seat.action_space.shape, 0.1, dtype=np.float32))  # type: ignore[arg-type]
        if not np.isfinite(value):
            raise RuntimeError(f"the leader was paid {value}")
        seat.reset()
    return {"env_steps": seat.oracle.env_steps}


def _leader(name: str, follower: followers.Follower) -> Callable[[Any, followers.Follower], dict[str, Any]]:
    own = None if follower.regularization is not None else LAMBDA
    if name == "HPGD, critic":
        return _optimise(leaders.HPGD(0.01, ENV_STEPS, "critic", regularization=own, hidden=(16,)))
    if name == "FirstOrder":
        return _optimise(leaders.FirstOrder(0.01, weight=0.1, env_steps=ENV_STEPS))
    if name == "ZeroOrder":
        return _optimise(leaders.ZeroOrder(0.01, 0.1, exact=False, env_steps=ENV_STEPS))
    return _seat


LEADERS = ("HPGD, critic", "FirstOrder", "ZeroOrder", "LeaderEnv")


def attempt(world: str, follower: str, leader: str) -> dict[str, Any]:
    """What one combination ends with, and its seconds."""
    began = process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # values from so few steps are bad, and said to be
            env = lead(world)
            agent = FOLLOWERS[follower](env)
            found = {"outcome": "runs", **_leader(leader, agent)(env, agent)}
    except BOCMDPError as error:
        found = {"outcome": "refused", "sentence": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever comes is the result
        found = {"outcome": "failed", "sentence": f"{type(error).__name__}: {error}"}
    return {"world": world, "follower": follower, "leader": leader, **found, "seconds": round(process_time() - began, 2)}


def missing() -> list[str]:
    """Worlds whose package is not installed."""
    return [name for name, world in WORLDS.items() if world.package is not None and find_spec(world.package) is None]


def main() -> None:
    torch.set_num_threads(1)
    absent, path = missing(), RESULTS / "tried_with.json"
    chosen = sys.argv[1:] or [name for name in WORLDS if name not in absent]
    rows = json.loads(path.read_text())["results"]["rows"] if sys.argv[1:] and path.exists() else []
    rows = [row for row in rows if row["world"] not in chosen]
    for world in chosen:
        for follower in FOLLOWERS:
            for leader in LEADERS:
                rows.append(attempt(world, follower, leader))
                print(json.dumps(rows[-1]), flush=True)
    order = list(WORLDS)
    rows.sort(key=lambda row: order.index(row["world"]))
    pays_for = {name: world.what for name, world in WORLDS.items()}
    store("tried_with", {"iterations": ITERATIONS, "missing": absent, "pays_for": pays_for, "rows": rows})


if __name__ == "__main__":
    main()
