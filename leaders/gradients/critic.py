r"""The hypergradient from trajectories and fitted values: for non-tabular problems.

The mathematics. Under the follower's policy E_a Abar(s, a) = 0, so dV drops out of the product of Abar with dA = dQ - dV, and

    dF = E sum_t gamma_L^t drbar(s_t, a_t) + e_t dr(s_t, a_t)
       + E sum_t (gamma e_t V_lambda(s_{t+1}) + gamma_L^{t+1} Vbar(s_{t+1})) dlogP(s_{t+1}|s_t, a_t) + E Vbar(s_0) dlog mu(s_0),
    e_t = gamma e_{t-1} + gamma_L^t Abar(s_t, a_t) / lambda.

The weights meet the env's model (a `BOCMDP`) in a surrogate, sum_t w_t r_x(s_t, a_t) + v_t log P_x(s_{t+1}|s_t, a_t) + ...,
and one backward pass gives the gradient. Qbar and V_lambda are regressions of discounted returns. Half of the episodes fits
the values that weigh the other half: the same returns never enter both factors of a product, which would bias it, and the
error on the half not fitted is the held-out error. Abar = Qbar - E_b Qbar(s, b), over the policy's probabilities where it
exposes them and over actions it draws elsewhere, has mean 0 whatever the regression's error.

An episode cut by a time limit continues, in returns, with the fitted value of where it was cut; visits after the cut are not
seen, a bias of order gamma^horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from scipy.special import entr
from torch import Tensor

from bocmdp_gym import Trajectories
from bocmdp_gym.autodiff import with_gradients
from bocmdp_gym.errors import DamagedError, OptionError, UnsupportedError
from bocmdp_gym.losses import Loss
from bocmdp_gym.options import as_list, check_count, check_number
from followers import Policy, TrajectoryOracle
from leaders.gradients._critic_values import Behaviour, Critic, Data, crossed_values, following_values, halves, relative_error
from leaders.gradients._returns import returns_to_go, traces
from leaders.gradients._surrogate import Surrogate, check_points
from leaders.gradients.base import Array, PolicyEstimator
from leaders.gradients.estimate import Estimate, check_groups
from leaders.gradients.value_functions import LinearValue, NetworkValue, ValueFunction, check_space, features


class CriticEstimator(PolicyEstimator):
    """dF_xi/dx from ``env_steps`` steps of any environment whose core has a model, with values fitted by regression.

    Args:
        env_steps: steps per estimate; the last episode is finished and its steps are counted too.
        hidden: widths of the networks' hidden layers; () for linear values, solved exactly. None: linear where observations
            and actions are Discrete (these are visit averages), two layers of 64 elsewhere.
        epochs: rounds of regression per estimate; networks continue from the context's last estimate.
        learning_rate: of Adam.
        batch_size: points per Adam step.
        action_samples: actions drawn per observation for E_b Qbar(s, b), where the policy exposes no probabilities.
        error_groups: split the episodes into this many groups and report a standard error from their spread, at one reverse
            pass each (it takes the fitted values as given); 0: none.
        regularization: lambda; the follower's if None.

    ``metrics``: ``critic_error``, the held-out squared error of the leader's values relative to the variance of the returns (it
    includes the returns' own noise), and ``follower_critic_error`` where transitions depend on x.

    Raises:
        OptionError: a value out of range.
    """

    needs_rewards = True
    needs_fixed = frozenset({"termination"})  # its scores are defined for tables alone
    needs_probabilities_for = frozenset({"transition"})  # the follower's values include the policy's entropy

    def __init__(
        self,
        env_steps: int = 10_000,
        hidden: Sequence[int] | None = None,
        epochs: int = 10,
        learning_rate: float = 3e-3,
        batch_size: int = 256,
        action_samples: int = 4,
        error_groups: int = 0,
        regularization: float | None = None,
    ):
        super().__init__(regularization)
        self.env_steps = check_count("env_steps", env_steps)
        widths = as_list(hidden)
        if hidden is not None and widths is None:
            raise OptionError(f"hidden is {hidden!r}; expected the widths of hidden layers, such as (64, 64), or None.")
        self.hidden = None if widths is None else tuple(check_count("hidden", width) for width in widths)
        self.epochs, self.batch_size = check_count("epochs", epochs), check_count("batch_size", batch_size)
        self.action_samples = check_count("action_samples", action_samples)
        self.error_groups = check_groups(error_groups, "env_steps", self.env_steps)
        self.learning_rate = check_number("learning_rate", learning_rate, above=0.0)
        self._widths: tuple[int, ...] = ()
        self._is_checked = False  # whether the model's functions were seen to stay in torch
        self._critics: dict[Any, list[Critic]] = {}  # per context, one for each half; None: contexts that do not recur

    def bind(self, oracle: TrajectoryOracle, loss: Loss | None = None) -> None:
        super().bind(oracle, loss)
        for space in _spaces(oracle):
            check_space(space)
        finite = all(isinstance(space, gym.spaces.Discrete) for space in _spaces(oracle))
        self._widths = self.hidden if self.hidden is not None else () if finite else (64, 64)
        self._critics, self._is_checked = {}, False

    @with_gradients
    def estimate_policy(
        self, oracle: TrajectoryOracle, policy: Policy, x: Tensor, context: Any, rng: np.random.Generator
    ) -> Estimate:
        model = oracle.model
        assert model is not None
        batch = oracle.sample(policy, self.env_steps, rng)
        if batch.n_episodes < 2:
            raise OptionError(
                f"env_steps={self.env_steps} is one episode of this environment; expected at least two, half to fit values and "
                "half to weigh with them. Raise env_steps."
            )
        if not self._is_checked:
            check_points(model, x, batch, oracle.core.leader_space)
            self._is_checked = True
        surrogate = Surrogate(model, x, batch)
        data = self._data(oracle, policy, batch, surrogate.needs_follower, rng)
        critics = self._fitted(oracle, data, context, rng)
        values = crossed_values(critics, data)
        trace, power = traces(values.advantage / self._lambda, batch.ends, model.discount, model.leader_discount)
        next_leader = following_values(values.leader, values.leader_final, batch)
        next_follower = following_values(values.follower, values.follower_final, batch)
        gradient, error = surrogate.gradient(
            trace,
            power,
            model.discount * trace * next_follower + model.leader_discount * power * next_leader,
            values.leader[batch.starts],
            min(self.error_groups, batch.n_episodes),
        )
        metrics = self._held_out_errors(oracle, data, critics)
        tails = np.where(batch.terminated, 0.0, values.leader_final)
        returns = returns_to_go(batch.leader_rewards, batch.ends, tails, model.leader_discount)
        return Estimate(gradient, float(returns[batch.starts].mean()), batch.n_steps, error, metrics)

    def state(self) -> dict[Any, Any]:
        return {
            -1 if context is None else context: {
                half: {
                    role: {"sizes": value.sizes, **value.state()}
                    for role, value in (("leader", critic.leader), ("follower", critic.follower))
                }
                for half, critic in enumerate(critics)
            }
            for context, critics in self._critics.items()
        }

    def load_state(self, state: dict[Any, Any]) -> None:
        self._critics = {}
        for context, saved_halves in state.items():
            critics = []
            for half in range(2):
                values = []
                for role in ("leader", "follower"):
                    saved = saved_halves[half][role]
                    n_inputs, n_outputs = (check_count("a size", size) for size in saved["sizes"])
                    values.append(self._new_value(n_inputs, n_outputs, 0))
                    values[-1].load_state(saved)
                critics.append(Critic(*values))
            self._critics[None if context == -1 else context] = critics

    # ---------------------------------------------------------------------------------------------------- regression

    def _data(
        self, oracle: TrajectoryOracle, policy: Policy, batch: Trajectories, needs_follower: bool, rng: np.random.Generator
    ) -> Data:
        """The batch as vectors, and what the policy would do at every observation of it."""
        seen, space = _spaces(oracle)
        inputs, finals = features(seen, batch.observations), features(seen, batch.final_observations)
        probabilities = _probabilities(policy, batch.observations, batch.states)
        final_probabilities = _probabilities(policy, batch.final_observations, batch.final_states)
        entropies = None
        if needs_follower:
            if probabilities is None:
                raise UnsupportedError(
                    "transitions depend on x, so the follower's values are needed, entropy included, and "
                    f"{type(policy).__name__} exposes no action probabilities; use ZeroOrder."
                )
            entropies = entr(probabilities).reshape(batch.n_steps, -1).sum(-1)
        steps = self._behaviour(policy, batch.observations, probabilities, space, rng)
        last = self._behaviour(policy, batch.final_observations, final_probabilities, space, rng)
        if isinstance(space, gym.spaces.Discrete):
            choices = torch.from_numpy(np.asarray(batch.actions, dtype=np.int64).reshape(-1) - int(space.start))
            return Data(batch, inputs, inputs, choices, finals, steps, last, entropies)
        pairs = torch.cat([inputs, features(space, batch.actions)], -1)
        return Data(batch, inputs, pairs, torch.zeros(len(pairs), dtype=torch.int64), finals, steps, last, entropies)

    def _behaviour(
        self, policy: Policy, observations: Any, probabilities: Array | None, space: gym.Space[Any], rng: np.random.Generator
    ) -> Behaviour:
        """What the policy does at N observations; where it exposes no probabilities, by drawing actions."""
        finite = isinstance(space, gym.spaces.Discrete)
        if finite and probabilities is not None:
            return Behaviour(torch.from_numpy(probabilities), None)
        drawn = torch.stack([features(space, _act(policy, observations, rng)) for _ in range(self.action_samples)])
        return Behaviour(drawn.mean(0), None) if finite else Behaviour(None, drawn)

    def _fitted(self, oracle: TrajectoryOracle, data: Data, context: Any, rng: np.random.Generator) -> list[Critic]:
        """The two halves' critics after this batch."""
        key = context if isinstance(context, int) else None  # contexts that do not recur share theirs
        if key not in self._critics:
            self._critics[key] = [self._new_critic(oracle, data, rng) for _ in range(2)]
        critics, batch = self._critics[key], data.batch
        sizes = _sizes(oracle, data)
        if any((critic.leader.sizes, critic.follower.sizes) != sizes for critic in critics):
            raise DamagedError(f"the saved critics of context {key} are of another environment; expected sizes {sizes}.")
        for critic, (episodes, _) in zip(critics, halves(batch), strict=True):
            steps = torch.from_numpy(np.repeat(episodes, batch.lengths))
            for _ in range(self.epochs if not isinstance(critic.leader, LinearValue) or not batch.terminated.all() else 1):
                leader, follower = self._targets(oracle, data, critic)
                critic.leader.fit(data.pairs[steps], data.choices[steps], leader[steps])
                if follower is not None:
                    critic.follower.fit(data.inputs[steps], torch.zeros_like(data.choices[steps]), follower[steps])
        return critics

    def _new_critic(self, oracle: TrajectoryOracle, data: Data, rng: np.random.Generator) -> Critic:
        return Critic(*(self._new_value(n, m, int(rng.integers(2**63))) for n, m in _sizes(oracle, data)))

    def _new_value(self, n_inputs: int, n_outputs: int, seed: int) -> ValueFunction:
        if not self._widths:
            return LinearValue(n_inputs, n_outputs)
        return NetworkValue(n_inputs, n_outputs, self._widths, self.learning_rate, self.batch_size, seed)

    def _targets(self, oracle: TrajectoryOracle, data: Data, critic: Critic) -> tuple[Tensor, Tensor | None]:
        """Returns to go of leader and follower (N,); cut episodes continue with the critic's values."""
        batch, model = data.batch, oracle.model
        assert model is not None
        tails = np.where(batch.terminated, 0.0, critic.expected(data.finals, data.finals_behaviour).numpy())
        leader = returns_to_go(batch.leader_rewards, batch.ends, tails, model.leader_discount)
        if data.entropies is None:
            return torch.from_numpy(leader), None
        tails = np.where(batch.terminated, 0.0, critic.follower.predict(data.finals).squeeze(-1).numpy())
        rewards = batch.rewards + self._lambda * data.entropies
        return torch.from_numpy(leader), torch.from_numpy(returns_to_go(rewards, batch.ends, tails, model.discount))

    def _held_out_errors(self, oracle: TrajectoryOracle, data: Data, critics: list[Critic]) -> dict[str, float]:
        """Squared errors on the halves not fitted, relative to the variance of the returns there."""
        squares, follower_squares = [], []
        for critic, (_, episodes) in zip(critics, halves(data.batch), strict=True):
            steps = torch.from_numpy(np.repeat(episodes, data.batch.lengths))
            leader, follower = self._targets(oracle, data, critic)
            squares.append(relative_error(torch.from_numpy(critic.taken(data))[steps], leader[steps]))
            if follower is not None:
                follower_squares.append(relative_error(critic.follower.predict(data.inputs[steps]).squeeze(-1), follower[steps]))
        errors = {"critic_error": float(np.mean(squares))}
        return errors | ({"follower_critic_error": float(np.mean(follower_squares))} if follower_squares else {})


def _sizes(oracle: TrajectoryOracle, data: Data) -> tuple[tuple[int, int], tuple[int, int]]:
    """Inputs and outputs of the leader's and the follower's critic."""
    _, actions = _spaces(oracle)
    choices = int(actions.n) if isinstance(actions, gym.spaces.Discrete) else 1
    return (data.pairs.shape[-1], choices), (data.inputs.shape[-1], 1)


def _spaces(oracle: TrajectoryOracle) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """Observation and action space, of one copy where there are many."""
    env: Any = oracle.env
    single = (getattr(env, f"single_{name}_space", None) or getattr(env, f"{name}_space") for name in ("observation", "action"))
    seen, done = single
    return seen, done


def _probabilities(policy: Policy, observations: Any, states: Any) -> Array | None:
    """Action probabilities at N observations, ``(N, ...)``, None if the policy tells none."""
    if policy.table is not None and states is not None:
        rows: Array = policy.table[states]
        return rows
    return np.asarray(policy.probabilities_batch(observations), dtype=np.float64) if policy.exposes_probabilities else None


def _act(policy: Policy, observations: Any, rng: np.random.Generator) -> Any:
    """One action per observation."""
    return np.asarray(policy.act_batch(observations, rng))
