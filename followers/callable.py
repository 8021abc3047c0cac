"""`CallableFollower`: anyone's agent as a follower, whatever it was made with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from bocmdp_gym import TabularEnv
from bocmdp_gym.autodiff import with_gradients
from bocmdp_gym.errors import OptionError, UnsupportedError
from bocmdp_gym.memory import owned
from bocmdp_gym.options import check_count, check_flag, check_regularization
from followers.adapters import Agent
from followers.base import Follower, Task
from followers.empirical import EmpiricalPolicy, empirical_policy
from followers.environments import AnyEnv, action_space
from followers.generators import isolated_generators
from followers.policies import Array, Policy
from followers.rollout import play, play_copies

#: Visits of a state after which one action alone is telling.
_OFTEN = 20


class AgentPolicy(Policy):
    """An agent's behaviour at one (x, context): actions only.

    Attributes:
        leader, context: the x and xi it answers.
        metrics: numbers about the response, by name; ``agent_calls`` is counted on as it is asked.
        batched: whether the agent takes batches.
        greedy: whether it was seen to take one action alone wherever it was.
    """

    metrics: dict[str, float]

    def __init__(self, agent: Agent, task: Task, metrics: dict[str, float]):
        self.leader, self.context, self.metrics = task.leader, task.context, metrics
        self.batched = agent.batched
        self._agent, self._version = agent, agent.version

    def act(self, observation: Any, rng: np.random.Generator) -> Any:
        """An action for one observation.

        Raises:
            ActionError: what the agent returns is no action.
            UnsupportedError: the agent was trained for another response since, so it no longer behaves as it did in this one.
        """
        with self._asked():
            return self._agent.act(observation, rng)

    def act_batch(self, observations: Any, rng: np.random.Generator) -> Any:
        """Actions for several observations: by one call where the agent is batched.

        Raises:
            ActionError, UnsupportedError: as `act`.
        """
        with self._asked():
            return self._agent.act_batch(observations, rng)

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Check that the agent may be asked, and count how often it is."""
        if self._agent.version != self._version:
            raise UnsupportedError(
                "this policy's agent was trained in place for a later response; sample a policy before asking for the next, or "
                "let train return a new agent each time."
            )
        before = self._agent.calls
        try:
            yield
        finally:
            self.metrics["agent_calls"] = self.metrics.get("agent_calls", 0.0) + self._agent.calls - before


class ExposedPolicy(AgentPolicy):
    """An agent that exposes its probabilities; ``table`` ``(S, A)`` where the problem is tabular."""

    exposes_probabilities = True

    def __init__(self, agent: Agent, task: Task, metrics: dict[str, float]):
        super().__init__(agent, task, metrics)
        observations = task.observations
        if observations is not None:
            self.table = self.probabilities_batch(observations)
            self.greedy = self.table.shape[1] > 1 and bool((self.table.max(-1) == 1.0).all())

    def probabilities(self, observation: Any) -> Array:
        """Action probabilities ``(A,)`` for one observation.

        Raises:
            ActionError: what the agent returns is no distribution over its actions.
        """
        with self._asked():
            return self._agent.probabilities(observation)

    def probabilities_batch(self, observations: Any) -> Array:
        """Those of several observations, one row each: by one call where the agent is batched.

        Raises:
            ActionError, UnsupportedError: as `probabilities`.
        """
        with self._asked():
            return self._agent.probabilities_batch(observations)


class EstimatedPolicy(AgentPolicy):
    """An agent whose probabilities were counted in trajectories. It is still the agent who acts, so there is no ``table``.

    Attributes:
        estimate: the shares and the visits behind them.
    """

    exposes_probabilities = True
    estimate: EmpiricalPolicy

    def __init__(self, agent: Agent, task: Task, metrics: dict[str, float], estimate: EmpiricalPolicy):
        super().__init__(agent, task, metrics)
        self.estimate = estimate
        visits, most = estimate.counts.sum(-1), estimate.counts.max(-1)
        self.greedy = estimate.counts.shape[1] > 1 and bool(visits.max() >= _OFTEN and (most == visits).all())
        self._states_of = task.states_of

    def counts(self, observation: Any) -> npt.NDArray[np.int64]:
        """How often each action was seen at an observation, ``(A,)``."""
        return self.estimate.counts[self._state(observation)]

    def probabilities(self, observation: Any) -> Array:
        """Estimated action probabilities ``(A,)``.

        Raises:
            UnsupportedError: no visit backs them.
        """
        state = self._state(observation)
        if not self.estimate.counts[state].any():
            raise UnsupportedError(
                f"state {state} was never visited in the trajectories that probabilities are estimated from; raise "
                "estimate_steps."
            )
        probabilities: Array = self.estimate.table[state]
        return probabilities

    def _state(self, observation: Any) -> int:
        assert self._states_of is not None  # they were counted by state
        return int(self._states_of(observation))


class CallableFollower(Follower):
    """Any agent as a follower: a function of the observation, an object with ``predict``, trained elsewhere or here.

    Args:
        agent: ``observation -> action``, or an object with ``predict(observation)``; either may return (action, state), as
            Stable-Baselines3 does, of which the state is dropped. With an argument ``rng`` it is given the generator; without,
            it may draw from the global generators, which are seeded for each action and put back after it. None where ``train``
            makes the agent.
        train: ``train(env, context, rng)``, called for each response, with the environment (or the copies) at x and the context;
            it trains the agent in place and returns None, or returns the agent that answers. Its steps are counted.
        probabilities: ``observation -> (A,)``; the agent's own method of that name if None.
        estimate_steps: where the agent exposes no probabilities: estimate them from this many steps after each response.
        regularization: lambda, if the agent maximises the regularised return; leaders ask for their own otherwise.
        batched: whether agent and probabilities take N observations at once (an array ``(N, ...)``; dicts and tuples of them),
            and answer with N actions or ``(N, A)``; they are then called once for many observations. Models of
            Stable-Baselines3 do. None: as the agent declares by an attribute ``batched``, else False.
        greedy: whether it takes the best action alone, as a rule does; leaders whose gradient weighs reactions then refuse it
            (see `Follower.greedy`). Left False, it is found out where probabilities are known.
        reset: called once when a run starts, to forget what was learnt.

    Attributes:
        training_steps: environment steps used by ``train`` and by the estimates.
        resumes: False once ``train`` was seen to train an agent in place, which nobody can put back.

    Raises:
        OptionError: neither agent nor train, something that is no agent, a budget of no steps, or flags that are none.
        ActionError: when it is asked: answers that are no actions, or not one for each observation of a batch.
        RegularizationError: lambda is not positive and finite.
        UnsupportedError: when an oracle is made: ``estimate_steps`` in a non-tabular environment.
    """

    def __init__(
        self,
        agent: Any = None,
        *,
        train: Callable[[Any, Any, np.random.Generator], Any] | None = None,
        probabilities: Callable[[Any], Any] | None = None,
        estimate_steps: int | None = None,
        regularization: float | None = None,
        batched: bool | None = None,
        greedy: bool = False,
        reset: Callable[[], None] | None = None,
    ):
        if agent is None and train is None:
            raise OptionError(
                "neither agent nor train was given; expected an agent, or a train(env, context, rng) that returns one."
            )
        for name, value in (("train", train), ("probabilities", probabilities), ("reset", reset)):
            if value is not None and not callable(value):
                raise OptionError(f"{name} is {value!r}; expected a function.")
        self._estimate_steps = None if estimate_steps is None else check_count("estimate_steps", estimate_steps)
        self.regularization = None if regularization is None else check_regularization(regularization)
        self._probabilities = probabilities
        self._batched = None if batched is None else check_flag("batched", batched)
        self.greedy = check_flag("greedy", greedy)
        self._agent = self._given = None if agent is None else Agent(agent, probabilities, batched)
        self._known: WeakSet[Agent] = WeakSet()
        self._train, self._reset = train, reset
        if probabilities is not None or estimate_steps is not None:
            self.exposes_probabilities = True
        elif train is None:
            self.exposes_probabilities = self._agent is not None and self._agent.exposes
        self.training_steps = 0

    def bind(self, env: AnyEnv, core: Any) -> None:
        super().bind(env, core)
        if self._estimate_steps is not None and not isinstance(core, TabularEnv):
            raise UnsupportedError(
                f"{type(core).__name__} is not tabular, so there are no states to count actions in; pass probabilities=, or "
                "leave estimate_steps out."
            )

    @with_gradients  # agents learn, also for callers that have no use for gradients
    def respond(self, task: Task, rng: np.random.Generator) -> Policy:
        """Train the agent, if there is something to train, and answer with it.

        ``metrics``: ``follower_training_steps`` so far, and ``agent_calls``, how often the agent was called for this response
        since ``train`` returned, for actions and for probabilities, by whoever asks the policy.

        Raises:
            OptionError: ``train`` returned something that is no agent.
        """
        env = task.env
        if self._train is not None:
            self._agent = self._trained(env, task.context, rng)
        agent = self._agent
        assert agent is not None
        agent.space = action_space(env)
        estimate, metrics = None, {"agent_calls": 0.0}
        if not agent.exposes and self._estimate_steps is not None:
            estimate = self._estimate(AgentPolicy(agent, task, metrics), task, rng)
        metrics["follower_training_steps"] = float(self.training_steps)
        if agent.exposes:
            return ExposedPolicy(agent, task, metrics)
        return AgentPolicy(agent, task, metrics) if estimate is None else EstimatedPolicy(agent, task, metrics, estimate)

    def reset(self) -> None:
        self.training_steps, self._agent = 0, self._given
        if self._reset is not None:
            self._reset()

    def _trained(self, env: AnyEnv, context: Any, rng: np.random.Generator) -> Agent:
        assert self._train is not None
        counted: Any = _CountedCopies(env) if isinstance(env, VectorEnv) else _Counted(env)
        with isolated_generators(int(rng.integers(2**31))):
            answer = self._train(counted, context, rng)
        self.training_steps += counted.steps
        if answer is None and self._agent is None:
            raise OptionError("train returned None and no agent was given; expected it to return the agent.")
        if answer is None:
            assert self._agent is not None
            answer, self.resumes = self._agent.agent, False
        for known in self._known:
            known.version += known.agent is answer  # trained in place: earlier policies of it no longer hold
            self.resumes = self.resumes and known.agent is not answer
        agent = Agent(answer, self._probabilities, self._batched)
        self._known.add(agent)
        return agent

    def _estimate(self, policy: AgentPolicy, task: Task, rng: np.random.Generator) -> EmpiricalPolicy:
        """Play the agent on the follower's own account, and count."""
        assert self._estimate_steps is not None
        env = task.env
        if isinstance(env, VectorEnv):
            batch, idle = play_copies(env, task.core, policy, self._estimate_steps, rng, plain=env is env.unwrapped)
        else:
            batch, idle = play(env, task.core, policy, self._estimate_steps, rng)
        self.training_steps += batch.n_steps + idle
        return empirical_policy(batch, task.core.model.n_states, task.core.model.n_actions)


class _Counted(gym.Wrapper[Any, Any, Any, Any]):
    """Counts the steps of an agent's training, and hands out observations of its own: agents may keep them."""

    transparent = True

    def __init__(self, env: gym.Env[Any, Any]):
        super().__init__(env)
        self.steps = 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        return owned(super().step(action))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return owned(super().reset(seed=seed, options=options))


class _CountedCopies(VectorWrapper):
    """The same for copies, whose autoreset rows are no steps."""

    transparent = True

    def __init__(self, env: VectorEnv[Any, Any, Any]):
        super().__init__(env)
        self.steps = 0
        self._resetting = np.zeros(env.num_envs, dtype=np.bool_)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self._resetting[:] = False
        return owned(super().reset(seed=seed, options=options))

    def step(self, actions: Any) -> Any:
        observations, rewards, terminations, truncations, infos = super().step(actions)
        self.steps += int((~self._resetting).sum())
        if AutoresetMode(self.metadata["autoreset_mode"]) == AutoresetMode.NEXT_STEP:
            self._resetting = (terminations | truncations) & ~self._resetting
        return owned((observations, rewards, terminations, truncations, infos))
