from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

import followers
from bocmdp_gym.errors import CheckError
from followers import Follower, SoftPolicyIteration, Task, check_follower
from followers.checks import small_problems

LAM = 0.2


class Agent:
    """A frozen learner's policy: it acts on observations."""

    def __init__(self, task: Task, q: Any):
        self.leader, self.context, self._q = task.leader, task.context, q

    def act(self, observation: Any, rng: np.random.Generator) -> int:
        return int(self._q[observation].argmax())


class Learner(Follower):
    """Q-learning on ``task.env``, step by step through Gymnasium: what a user's own agent looks like."""

    def __init__(self, steps: int = 3000):
        self.steps = steps

    def respond(self, task: Task, rng: np.random.Generator) -> Agent:
        env, discount = task.env, task.discount
        q = np.zeros((env.observation_space.n, env.action_space.n))  # type: ignore[attr-defined]
        observation, _ = env.reset(seed=int(rng.integers(2**31)))
        for _ in range(self.steps):
            action = int(rng.integers(q.shape[1])) if rng.random() < 0.5 else int(q[observation].argmax())
            following, reward, terminated, truncated, _ = env.step(action)
            target = float(reward) + (0.0 if terminated else discount * q[following].max())
            q[observation, action] += 0.1 * (target - q[observation, action])
            observation = env.reset()[0] if terminated or truncated else following
        return Agent(task, q)


def test_the_exact_follower_passes() -> None:
    check_follower(SoftPolicyIteration(LAM))


def test_a_learner_on_the_environment_passes() -> None:
    check_follower(Learner())


def test_a_learner_that_learns_nothing_fails() -> None:
    with pytest.raises(CheckError, match=r"must earn 90% of what the optimum earns .* on 'signs'"):
        check_follower(Learner(steps=1))


def test_global_random_states_are_watched() -> None:
    def with_numpy() -> None:
        np.random.rand()  # noqa: NPY002 - the fault to be found

    for touch in (random.random, with_numpy, lambda: torch.rand(1)):

        class Careless(SoftPolicyIteration):
            def respond(self, task: Task, rng: np.random.Generator, touch: Any = touch) -> Any:
                touch()
                return super().respond(task, rng)

        with pytest.raises(CheckError, match="global random states"):
            check_follower(Careless(LAM))


class Faulty(SoftPolicyIteration):
    """Base of followers with one fault each: `spoil` is given the exact policy."""

    def respond(self, task: Task, rng: np.random.Generator) -> Any:
        return self.spoil(super().respond(task, rng), task, rng)

    def spoil(self, policy: Any, task: Task, rng: np.random.Generator) -> Any:
        return policy


class Imprecise(Faulty):
    def spoil(self, policy: Any, task: Task, rng: np.random.Generator) -> Any:
        policy.table = 0.99 * policy.table + 0.01 / policy.table.shape[1]
        return policy


class IgnoresContext(Faulty):
    def respond(self, task: Task, rng: np.random.Generator) -> Any:
        task.context, context = 0, task.context
        policy = super().respond(task, rng)
        policy.context = context
        return policy


class IgnoresLeader(Faulty):
    def __init__(self, regularization: float):
        super().__init__(regularization)
        self.first: Any = None

    def respond(self, task: Task, rng: np.random.Generator) -> Any:
        self.first = self.first or super().respond(task, rng)
        return task.tabular_policy(self.first.table)

    def reset(self) -> None:
        self.first = None


class AnswersAnotherContext(Faulty):
    def spoil(self, policy: Any, task: Task, rng: np.random.Generator) -> Any:
        policy.context = 1 - policy.context
        return policy


class NoPolicy(Faulty):
    def spoil(self, policy: Any, task: Task, rng: np.random.Generator) -> Any:
        return policy.table


class NotNormalised(Faulty):
    def spoil(self, policy: Any, task: Task, rng: np.random.Generator) -> Any:
        policy.table = 2 * policy.table
        return policy


class OwnGenerator(Faulty):
    def spoil(self, policy: Any, task: Task, rng: np.random.Generator) -> Any:
        noise = np.random.default_rng().standard_normal(policy.table.shape)
        policy.table = policy.table * np.exp(1e-9 * noise)
        policy.table /= policy.table.sum(-1, keepdims=True)
        return policy


class NeverForgets(Faulty):
    count = 0

    def spoil(self, policy: Any, task: Task, rng: np.random.Generator) -> Any:
        if task.context == 0 and task.leader[0] < 0:
            self.count += 1
        policy.table = policy.table * np.array([1.0, *(1 + 1e-9 * self.count,) * (policy.table.shape[1] - 1)])
        policy.table /= policy.table.sum(-1, keepdims=True)
        return policy

    def reset(self) -> None:
        super().reset()  # but not the count


class Illegal(Faulty):
    def spoil(self, policy: Any, task: Task, rng: np.random.Generator) -> Any:
        policy.act = lambda observation, rng: policy.table.shape[1]
        return policy


class ActsOtherwise(Faulty):
    def spoil(self, policy: Any, task: Task, rng: np.random.Generator) -> Any:
        policy.act = lambda observation, rng: int(rng.integers(policy.table.shape[1]))
        return policy


class Melts(Faulty):
    def spoil(self, policy: Any, task: Task, rng: np.random.Generator) -> Any:
        act = policy.act

        def act_and_learn(observation: Any, rng: np.random.Generator) -> Any:
            action = act(observation, rng)
            policy.table = policy.table + 1e-7 * np.array([1.0, *(-1.0,), *(0.0,) * (policy.table.shape[1] - 2)])
            return action

        policy.act = act_and_learn
        return policy


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        (Imprecise, r"within 1e-06 of the optimal policy .* on 'signs' at x = \[1.0\], context 0"),
        (IgnoresContext, r"optimal policy .* on 'signs' at x = \[1.0\], context 1"),
        (IgnoresLeader, "optimal policy .* on 'signs'"),
        (AnswersAnotherContext, "must carry the x and context it answers"),
        (NoPolicy, "must return a Policy"),
        (NotNormalised, "must be a distribution"),
        (OwnGenerator, "equal seeds must give equal policies"),
        (NeverForgets, r"reset\(\) must forget"),
        (Illegal, "must return actions in Discrete"),
        (ActsOtherwise, "must draw from probabilities"),
        (Melts, "acting must not change it"),
    ],
)
def test_each_fault_is_named(fault: type[Faulty], rule: str) -> None:
    with pytest.raises(CheckError, match=rule):
        check_follower(fault(LAM))


def test_tolerances_are_the_callers() -> None:
    check_follower(Imprecise(LAM), delta=0.02)
    weak = Learner(steps=300)
    with pytest.raises(CheckError, match="must earn 99%"):
        check_follower(weak, shortfall=0.01)


def test_the_problems_are_what_they_say() -> None:
    signs, corridor, _ = small_problems()
    best = signs.model.solve(np.ones(1), 1e-3).policy.argmax(-1)
    assert best.tolist() == [[0, 1], [1, 0]]
    assert signs.model.solve(-np.ones(1), 1e-3).policy.argmax(-1).tolist() == [[1, 0], [0, 1]]
    greedy = corridor.model.solve(np.ones(1), 1e-3).policy.argmax(-1)
    assert greedy[0, 1:4].tolist() == [1, 1, 1]
    assert isinstance(SoftPolicyIteration(LAM), followers.Follower)
