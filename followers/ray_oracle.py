"""`RayOracle`: best responses in several contexts at once, by followers in worker processes (the extra ``distributed``).

Worth it where a response takes long: neural followers, trained for seconds or minutes in each of several contexts per outer
iteration. A context always goes to the same worker, where its warm starts stay; each response is made with the generator it was
asked for with, which comes back advanced. So answers are those of `TrajectoryOracle`, whatever finishes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.errors import OptionError, UnsupportedError, WorkerError
from bocmdp_gym.options import check_count
from followers.base import Follower, Task, check_follower_type
from followers.environments import AnyEnv
from followers.oracle import TrajectoryOracle
from followers.policies import Policy
from followers.ray_cluster import ONE_THREAD, RayCluster

#: The metric in which followers report the training steps of all contexts together, which a worker cannot know.
_TRAINING = "follower_training_steps"


class RayOracle(TrajectoryOracle):
    """A `TrajectoryOracle` whose follower answers in worker processes, several contexts at a time.

    ``leaders.optimize(..., oracle=functools.partial(RayOracle, workers=4), contexts="all")`` asks it for the responses of an
    iteration all at once. Close it (or use it as a context manager) to stop the workers; a run that raises closes it itself.

    Args:
        env, follower: as for `TrajectoryOracle`; both are copied into every worker, so they must survive pickling.
        workers: worker processes, of one thread each; as many as there are contexts or cores, whichever is less, if None.
        address: see `followers.ray_cluster.RayCluster`.
        compiled: as for `TrajectoryOracle`.

    Raises:
        UnsupportedError: Ray is not installed, or one learner is shared by all contexts.
        OptionError: no cluster answers at that address, or ``workers`` is no positive integer.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any] | TabularBOCMDP,
        follower: Follower,
        *,
        workers: int | None = None,
        address: str | None = None,
        compiled: bool | None = None,
    ):
        if check_follower_type(follower).shared:
            raise UnsupportedError(
                f"this {type(follower).__name__} has one learner for all contexts, so it cannot answer in several at once; use "
                "TrajectoryOracle, or shared=False."
            )
        workers = None if workers is None else check_count("workers", workers)
        remote = _RemoteFollower(follower)
        super().__init__(env, remote, compiled=compiled)  # refuses what cannot work before any worker starts
        self._remote = remote
        self._cluster = RayCluster(workers, address)
        known = self.core.context_probabilities
        size = workers or min(self._cluster.size, self._cluster.size if known is None else len(known))
        try:
            remote.start_workers(self._cluster, self.env, size)
        except BaseException:  # something that cannot be pickled, say
            self._cluster.close()
            raise
        self._ahead: dict[Any, list[_Asked]] = {}

    def respond_ahead(self, x: Any, contexts: Sequence[Any], rngs: Sequence[np.random.Generator]) -> None:
        """Ask for the responses that `respond` will be called for next, with these generators, without waiting for them."""
        for context, rng in zip(contexts, rngs, strict=True):
            task = self.task(x, context)
            asked = _Asked(task.leader.tobytes(), _state(rng), self._remote.ask(task, rng))
            self._ahead.setdefault(_name(task.context), []).append(asked)

    def respond(self, x: Any, context: Any, rng: np.random.Generator) -> Policy:
        """The follower's policy at (x, context).

        Raises:
            OptionError: the response that was asked for ahead in this context was another.
            WorkerError: the worker died.
        """
        task = self.task(x, context)
        waiting = self._ahead.get(_name(task.context))
        if waiting:
            asked = waiting.pop(0)
            if (asked.leader, asked.state) != (task.leader.tobytes(), _state(rng)):
                raise OptionError(
                    f"the response in context {context} that was asked for ahead is one to another x, or with another generator; "
                    "ask with those of respond_ahead, in the same order."
                )
            self.last_response = self._remote.take(asked.answer, task.context, rng)
        else:
            self.last_response = self.follower.respond(task, rng)
        return self.last_response

    def close(self) -> None:
        """Stop the workers; a cluster that was started for them stops too."""
        self._remote.stop()
        self._cluster.close()

    def __enter__(self) -> RayOracle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Asked:
    """A response that is on its way: to which x, with which generator."""

    def __init__(self, leader: bytes, state: Any, answer: Any):
        self.leader, self.state, self.answer = leader, state, answer


class _Worker:
    """What runs in a worker: a follower with the warm starts of its contexts, and an environment."""

    def __init__(self, env: AnyEnv, follower: Follower):
        self._oracle = TrajectoryOracle(env, follower)

    def respond(self, x: Any, context: Any, rng: np.random.Generator) -> tuple[Policy, np.random.Generator, int]:
        """The policy, the generator after it, and the training steps it took."""
        before = self._oracle.training_steps
        policy = self._oracle.respond(x, context, rng)
        return policy, rng, self._oracle.training_steps - before

    def reset(self) -> None:
        """Forget everything learnt."""
        self._oracle.follower.reset()

    def state(self) -> dict[Any, Any]:
        """The follower's."""
        return self._oracle.follower.state()

    def load_state(self, state: dict[Any, Any]) -> None:
        """Continue from `state`."""
        self._oracle.follower.load_state(state)


class _RemoteFollower(Follower):
    """A follower whose responses are made by workers. It looks like the one they have copies of."""

    def __init__(self, inner: Follower):
        self._inner = inner
        self.regularization, self.discount = inner.regularization, inner.discount
        self.plans, self.exact = inner.plans, inner.exact
        self.exposes_probabilities = inner.exposes_probabilities
        self._workers: list[Any] = []
        self._home: dict[Any, int] = {}  # the worker of each context
        self.training_steps = 0

    def __repr__(self) -> str:
        return repr(self._inner)

    def bind(self, env: AnyEnv, core: Any) -> None:
        self._inner.bind(env, core)
        self.exposes_probabilities = self._inner.exposes_probabilities
        self._returns = core.context_probabilities is not None

    def copy(self, name: str | None = None) -> Follower:
        """A copy of the follower itself, which answers in this process."""
        return self._inner.copy(name)

    def start_workers(self, cluster: RayCluster, env: AnyEnv, size: int) -> None:
        """Start ``size`` workers."""
        self._ray = cluster.ray
        parts = self._ray.put(env), self._ray.put(self._inner)
        worker = self._ray.remote(num_cpus=1, max_restarts=0, runtime_env={"env_vars": ONE_THREAD})(_Worker)
        self._workers = [worker.remote(*parts) for _ in range(size)]
        self._next = 0

    def stop(self) -> None:
        """Stop them."""
        for worker in self._workers:
            self._ray.kill(worker)
        self._workers = []

    def ask(self, task: Task, rng: np.random.Generator) -> Any:
        """Ask the context's worker, without waiting."""
        if self._returns and (name := _name(task.context)) in self._home:
            number = self._home[name]
        else:
            number = self._next % len(self._workers)
            self._next += 1
            if self._returns:
                self._home[name] = number
        return self._workers[number].respond.remote(task.leader, task.context, rng)

    def take(self, answer: Any, context: Any, rng: np.random.Generator) -> Policy:
        """Wait for an answer; ``rng`` moves to where it left its own."""
        policy, after, steps = self._get(answer, f"in context {context}")
        rng.bit_generator.state = after.bit_generator.state
        self.training_steps += steps
        if _TRAINING in policy.metrics:
            policy.metrics = {**policy.metrics, _TRAINING: float(self.training_steps)}
        answered: Policy = policy
        return answered

    def respond(self, task: Task, rng: np.random.Generator) -> Policy:
        return self.take(self.ask(task, rng), task.context, rng)

    def reset(self) -> None:
        self.training_steps = 0
        self._home = {}
        self._get([worker.reset.remote() for worker in self._workers], "on a reset")

    def state(self) -> dict[Any, Any]:
        states = self._get([worker.state.remote() for worker in self._workers], "on a checkpoint")
        homes = [[name, number] for name, number in self._home.items()]
        return {"training_steps": self.training_steps, "homes": homes, "next": self._next, "workers": dict(enumerate(states))}

    def load_state(self, state: dict[Any, Any]) -> None:
        saved = state.get("workers", {})
        if len(saved) != len(self._workers):
            raise OptionError(
                f"the state is of a RayOracle with {len(saved)} workers, and this one has {len(self._workers)}; resume it with "
                "as many."
            )
        self.training_steps, self._next = state["training_steps"], state["next"]
        self._home = dict(state["homes"])
        loaded = [worker.load_state.remote(saved[number]) for number, worker in enumerate(self._workers)]
        self._get(loaded, "on a resume")

    def _get(self, answers: Any, where: str) -> Any:
        if not self._workers:
            return None
        errors = self._ray.exceptions
        try:
            return self._ray.get(answers)
        except errors.RayTaskError as error:
            raise error.cause from None
        except errors.RayError as error:
            raise WorkerError(
                f"a worker of the RayOracle died {where} ({type(error).__name__}), and what its followers had learnt with it; "
                "resume the run from its last checkpoint."
            ) from None


def _name(context: Any) -> Any:
    """A context as a key, and as JSON."""
    return context if isinstance(context, int) else np.asarray(context).tolist().__repr__()


def _state(rng: np.random.Generator) -> Any:
    return rng.bit_generator.state
