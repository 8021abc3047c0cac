"""Compile the kernels before the first run waits for them: ``python -m leaders.warm_up``. ``make install`` ends with it.

Numba compiles a kernel for the types it is first called with, and keeps the result on disk: in ``__pycache__`` beside the source,
in a cache folder of the user's where that cannot be written, or in the folder that the variable NUMBA_CACHE_DIR names. Here small
runs call every kernel as training does; what is on disk already is only read. It is compiled for this processor.
"""

from __future__ import annotations

import os.path
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import gymnasium as gym
from numba.core.dispatcher import Dispatcher
from tqdm import tqdm

from bocmdp_gym.errors import BOCMDPError
from followers import SoftPolicyIteration
from leaders.leaders import HPGD, ExactGradient, Leader
from leaders.loop import optimize
from leaders.many import optimize_many
from leaders.settings import settings_from_values
from leaders.settings.command_line import read

#: Runs of single leaders: environments, with settings that keep a run short.
RUNS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("four-rooms", {"env_steps": 100}),
    ("four-rooms", {"env_steps": 100, "estimator": "td"}),
    ("four-rooms", {"env_steps": 100, "estimator": "pooled"}),
    ("four-rooms", {"samples": 20, "estimator": "geometric"}),
    ("four-rooms", {"leader": "exact"}),
    ("four-rooms", {"leader": "amd", "sweeps": 2}),
    ("four-rooms", {"leader": "first-order", "env_steps": 100}),
    ("four-rooms", {"leader": "zero-order", "env_steps": 100}),
    ("principal-agent", {"env_steps": 100}),
    ("random-mdp", {"env_steps": 100}),
    ("random-mdp", {"leader": "exact"}),
    ("random-mdp", {"leader": "exact", "n_states": 250, "branching": 3}),  # large and sparse: solved by iteration
    ("random-mdp", {"env_steps": 100, "n_states": 60}),  # and by a dense method
    ("random-mdp", {"env_steps": 100, "n_states": 250, "branching": 3}),
    ("random-mdp", {"env_steps": 100, "follower": "soft-value-iteration"}),
    ("random-mdp", {"env_steps": 100, "follower": "soft-q-learning", "follower_steps": 10}),
    (
        "random-mdp",
        {"estimator": "multilevel", "samples": 20, "levels": 4, "runs": 2, "follower": "soft-q-learning", "follower_steps": 99},
    ),
    ("random-mdp", {"env_steps": 100, "follower": "natural-policy-gradient", "follower_steps": 2}),
    ("random-mdp", {"env_steps": 100, "follower": "natural-policy-gradient", "follower_options": {"rollouts": 2}}),
    ("random-mdp", {"env_steps": 100, "follower": "vanilla-policy-gradient", "follower_steps": 10}),
    ("random-mdp", {"env_steps": 100, "leader": "zero-order", "follower": "linear-programming"}),
    ("tax-design", {"env_steps": 200, "leader": "hpgd", "estimator": "critic"}),
    ("dynamic-mechanism", {}),
    ("income-tax", {}),
    ("inventory", {}),
    ("leader-acts", {}),
    ("meta-rl", {}),
    ("road-tolls", {}),
)
#: Leaders that make many runs at once.
MANY: tuple[Callable[[], Leader], ...] = (
    partial(HPGD, learning_rate=0.1, env_steps=100),
    partial(HPGD, learning_rate=0.1, env_steps=100, estimator="td"),
    partial(ExactGradient, learning_rate=0.1),
)


@dataclass(frozen=True)
class Compiled:
    """What a warm-up did.

    Attributes:
        kernels: functions compiled just now; those that were on disk are not among them.
        seconds: it took.
        folder: where they are kept, in this or in folders below it.
    """

    kernels: int
    seconds: float
    folder: str


def warm_up(progress: bool = True) -> Compiled:
    """Have every kernel that training uses compiled and kept on disk.

    Args:
        progress: show a progress bar.
    """
    calls: list[Callable[[], None]] = [
        *(partial(_run, *run) for run in RUNS),
        *(partial(_runs_at_once, make) for make in MANY),
        _run_on_a_loss,
        _step_copies,
    ]
    began = perf_counter()
    for call in tqdm(calls, desc="compiling", unit="run", disable=not progress):
        call()
    known = [kernel.stats for kernel in kernels().values()]
    return Compiled(
        kernels=sum(sum(one.cache_misses.values()) for one in known),
        seconds=perf_counter() - began,
        folder=os.path.commonpath([one.cache_path for one in known if one.cache_path is not None]),
    )


def kernels() -> dict[str, Dispatcher]:
    """The compiled functions in the modules that are imported, by module and name."""
    packages = ("bocmdp_gym", "followers", "leaders")
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] in packages]
    found = [one for module in modules for one in vars(module).values() if isinstance(one, Dispatcher)]
    return {f"{one.py_func.__module__}.{one.py_func.__name__}": one for one in found}


def _run(environment: str, values: Mapping[str, Any]) -> None:
    settings = settings_from_values(environment, values)
    with closing(settings.make_env()) as env:
        leader, follower = settings.make_leader(), settings.make_follower()
        optimize(env, leader, follower, 2, contexts=settings.contexts, evaluate_every=1, progress=False)


def _runs_at_once(make: Callable[[], Leader]) -> None:
    with closing(gym.make("bocmdp/FourRooms-v0")) as env:
        optimize_many(env, make(), SoftPolicyIteration(0.001), 2, seeds=range(4), evaluate_every=1, progress=False)


def _run_on_a_loss() -> None:
    """A leader who minimises a function of the policy."""
    leader = HPGD(learning_rate=0.1, estimator="geometric", samples=20)
    with closing(gym.make("bocmdp/RandomMDP-v0")) as env:
        optimize(env, leader, SoftPolicyIteration(0.1), 2, loss=lambda x, policy, context: policy[0, 0], progress=False)


def _step_copies() -> None:
    with closing(gym.make_vec("bocmdp/FourRooms-v0", num_envs=2)) as copies:
        copies.reset(seed=0)
        copies.step(copies.action_space.sample())


@dataclass(frozen=True, kw_only=True)
class WarmUpSettings:
    """Compile the kernels before the first run waits for them."""

    progress: bool = True
    """Show a progress bar."""


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 2 if the kernels cannot be kept."""
    chosen = read(WarmUpSettings, "leaders.warm_up", __doc__, arguments)
    try:
        done = warm_up(chosen.progress)
    except (BOCMDPError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(f"{done.kernels} kernels compiled in {done.seconds:.0f} s; kept below {done.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
