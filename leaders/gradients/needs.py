"""What estimators need of environment, follower and objective: declared as attributes, checked before anything runs."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from bocmdp_gym import BOCMDP, TabularBOCMDP, Trajectories
from bocmdp_gym.errors import DiscountError, FrozenLeaderWarning, OptionError, RegularizationError, UnsupportedError
from bocmdp_gym.leaks import check_leaks
from bocmdp_gym.losses import Loss
from followers import Follower, Policy, TrajectoryOracle
from followers.environments import check_unchanged

#: Parts of a model whose dependence on x enters through scores: d log P, d log mu, d log(1 - q).
SCORED = frozenset({"transition", "initial", "termination"})

#: Steps at which one sees whether a policy that tells no probabilities repeats itself, once a run.
LOOKED_AT = 32


class Needs:
    """The declarations of an estimator; a subclass sets those that differ, and `check_needs` reads them all.

    Attributes:
        needs_regularization: lambda enters the estimate, and the follower must choose at random among good actions; otherwise a
            follower without one, or a greedy one, or one that does not choose by the observation alone, will do.
        needs_equilibrium: a response is taken for one to the model at x, where in a population the others are at equilibrium: not
            for followers who make the loads themselves (`followers.FictitiousPlay`).
        needs_model: a tabular model is read: its arrays, and their derivatives in x.
        needs_exact_returns: the model's own exact leader return is read, and its derivative (`bocmdp_gym.BOCMDP.exact_returns`).
        needs_rewards: a model of any kind is read: rewards as differentiable functions of x.
        needs_successors: every action of the tabular model has a list of successors of its own: no factored transitions.
        needs_fixed: parts of a tabular model ("transition", "initial", "termination") that must not depend on x.
        needs_discounting: discounts below 1; the leader's may be 1 where a loss is minimised.
        needs_equal_discounts: the leader discounts as the follower does.
        needs_states: trajectories carry the indices of the states visited.
        needs_starts: trajectories start in states and with actions of the estimator's choice (``oracle.sample(start=...)``).
        needs_probabilities: the action probabilities of the follower's policy are read.
        needs_probabilities_for: parts of a tabular model; where one of them depends on x, the probabilities are read too.
        takes_draws: next states that the model draws (`bocmdp_gym.BOCMDP.draw_transitions`) are differentiated where it has them.
        needs_iterative: the follower can be stopped after some iterations and continued.
        replays: it asks the oracle for responses and trajectories, and no environment: asked again of the same ones, with another
            leader's reward, it estimates that outcome's gradient (`leaders.SampledConstraint`).
        replays_steps: even where that reward is only known for the steps that were made.
        accepts_loss: a general loss f(x, policy, context) can be minimised instead of maximising the leader's return.
    """

    needs_regularization: bool = True
    needs_equilibrium: bool = True
    needs_model: bool = False
    needs_exact_returns: bool = False
    needs_rewards: bool = False
    needs_successors: bool = False
    needs_fixed: frozenset[str] = frozenset()
    needs_discounting: bool = False
    needs_equal_discounts: bool = False
    needs_states: bool = False
    needs_starts: bool = False
    needs_probabilities: bool = False
    needs_probabilities_for: frozenset[str] = frozenset()
    takes_draws: bool = False
    needs_iterative: bool = False
    replays: bool = False
    replays_steps: bool = False
    accepts_loss: bool = False


def settle_regularization(needs: Needs, oracle: TrajectoryOracle, loss: Loss | None, requested: float | None) -> float | None:
    """The lambda of follower and estimator.

    Args:
        needs: of the estimator.
        oracle: has the follower.
        loss: as for `check_needs`.
        requested: what the estimator was given.

    Raises:
        UnsupportedError: one is needed, and the follower is greedy, or chooses by more than the observation.
        RegularizationError: one is needed, and neither has it; the message says what else `check_needs` would miss.
        OptionError: they differ.
    """
    follower = oracle.follower
    if needs.needs_regularization and follower.greedy:
        raise UnsupportedError(
            f"{type(follower).__name__} answers with the best action alone, and {type(needs).__name__} weighs what it does by "
            "how much better that is than its other actions: it would find that this follower never reacts to x. Use FirstOrder "
            "or ZeroOrder; or let it choose at random among good actions, as SB3Follower(softmax_temperature=...) makes DQN do "
            "(--softmax-temperature)."
        )
    if needs.needs_regularization and not follower.markov:
        raise UnsupportedError(
            f"{type(follower).__name__} does not choose by the observation alone (it remembers the episode, or asks the "
            f"environment what it may do), and {type(needs).__name__} reads its behaviour as that of a Markov policy. Use "
            "FirstOrder or ZeroOrder, which compare returns alone."
        )
    if requested is None and follower.regularization is None and needs.needs_regularization:
        discounts = {oracle.core.discount, oracle.core.leader_discount}
        other = (
            "FirstOrder, which needs none" if oracle.model is not None and len(discounts) == 1 else "ZeroOrder, which needs none"
        )
        lacking = (
            f"{type(follower).__name__} has no regularization (lambda), and the hypergradient needs one; pass it to the "
            f"leader, e.g. HPGD(regularization=1e-3), or use {other}."
        )
        try:
            check_needs(needs, oracle, loss)
        except (DiscountError, UnsupportedError) as error:
            raise RegularizationError(f"{lacking} Besides, {error}") from error
        raise RegularizationError(lacking)
    if requested is not None and follower.regularization is not None and requested != follower.regularization:
        raise OptionError(
            f"the leader was given regularization {requested} and the follower {follower.regularization}; expected the "
            "same lambda, or none for the leader (it then takes the follower's)."
        )
    return follower.regularization if requested is None else requested


def look_for_rules(estimator: str, oracle: TrajectoryOracle, policy: Policy, batch: Trajectories) -> None:
    """`warn_greedy`, where a policy whose probabilities are not known repeats itself in what it did."""
    if not (policy.exposes_probabilities or policy.greedy or policy.table is not None) and repeats_itself(policy, batch):
        warn_greedy(oracle.follower, estimator)


def warn_greedy(follower: Follower, estimator: str) -> None:
    """Say that a follower which did not declare itself greedy was seen to be.

    Warns:
        UserWarning: naming what to use instead.
    """
    warnings.warn(
        f"{type(follower).__name__} was seen to take one action alone in every state, and {estimator} weighs what it does by how "
        "much better that is than its other actions: it finds that this follower never reacts to x. Use FirstOrder or ZeroOrder; "
        "or let it choose at random among good actions, as by a softmax of its values at some temperature. A rule that is meant "
        "to be one says so by CallableFollower(greedy=True).",
        UserWarning,
        stacklevel=4,
    )


def repeats_itself(policy: Policy, batch: Trajectories) -> bool:
    """Whether a policy that tells no probabilities does in the same places what it did before: a rule then, most likely.

    One that varies its actions with probability 1/5 is taken for one in 1 of 1,000 cases. Where states are known, steps tell by
    themselves; elsewhere the policy is asked again what it would do at some of them.
    """
    if batch.states is not None:
        visited = np.unique(batch.states)
        pairs = np.unique(np.stack([batch.states, np.asarray(batch.actions, dtype=np.int64)]), axis=1)
        return batch.n_steps >= len(visited) + LOOKED_AT and pairs.shape[1] == len(visited)
    some = np.unique(np.linspace(0, batch.n_steps - 1, LOOKED_AT).astype(np.int64))
    answers = policy.act_batch(batch.observations[some], np.random.default_rng(0))
    return np.array_equal(np.asarray(answers), np.asarray(batch.actions[some]))


def check_needs(needs: Needs, oracle: TrajectoryOracle, loss: Loss | None) -> None:
    """Refuse an environment, a follower or an objective that lacks something the estimator declares to need.

    Raises:
        UnsupportedError: the message says what is missing, or which wrapper changes the problem, and names the alternative.
        DiscountError: a discount of 1 where it must be below 1, or two discounts where they must be equal.

    Warns:
        FrozenLeaderWarning: the gradient leaves some entries of x where they are.
    """
    name, core, model = type(needs).__name__, type(oracle.core).__name__, oracle.model
    if loss is not None and not needs.accepts_loss:
        raise UnsupportedError(
            f"{name} estimates gradients of the leader's return only, not of a general loss f(x, policy, context); use "
            "ExactGradient for losses."
        )
    if oracle.core.agents and (needs.needs_model or needs.needs_exact_returns or needs.needs_rewards):
        raise UnsupportedError(
            f"{name} rests on how one follower who solves a problem of its own reacts to x, and the {len(oracle.core.agents)} "
            f"agents of {core} answer each other: there is no such problem. Use ZeroOrder or LeaderEnv(value='sampled'), which "
            "compare returns."
        )
    gamma, gamma_leader = oracle.core.discount, oracle.core.leader_discount
    if needs.needs_equal_discounts and gamma != gamma_leader:
        raise DiscountError(
            f"{name} pays the follower in units of the leader's reward, which the follower discounts by {gamma} and the leader "
            f"by {gamma_leader}: the gradient would be that of another return than the leader's. Use HPGD, ExactGradient or "
            "ZeroOrder, or an environment whose leader_discount is its discount."
        )
    if needs.needs_rewards and model is None:
        raise UnsupportedError(
            f"{name} needs {core}.model, the rewards as differentiable functions of x; give the environment one (a BOCMDP), or "
            "use ZeroOrder."
        )
    if needs.needs_model and not isinstance(model, TabularBOCMDP):
        raise UnsupportedError(
            f"{name} needs a tabular model, and {core} has none; use an environment whose .model is a TabularBOCMDP, "
            'HPGD(estimator="critic") where .model is another BOCMDP, or ZeroOrder.'
        )
    if needs.needs_exact_returns and (model is None or not model.exact_returns):
        raise UnsupportedError(
            f"{name} needs a tabular model or another with exact solutions, and {core} has none; use an environment whose "
            '.model is a TabularBOCMDP or a LinearQuadraticBOCMDP, HPGD(estimator="critic") for others, or ZeroOrder.'
        )
    if needs.needs_model or needs.needs_exact_returns or needs.needs_rewards:
        assert model is not None
        _check_frozen(name, model)
        if model.pathwise_only and not needs.takes_draws:
            raise UnsupportedError(
                f"{name} takes derivatives of transitions from their densities, and this model only draws next states; give the "
                'wrapper log_transitions=, or use HPGD(estimator="critic") or ZeroOrder.'
            )
        by_state = isinstance(model, TabularBOCMDP) and model.takes_states
        check_unchanged(name, oracle.layers, oracle.core, plain=not by_state)
    if isinstance(model, TabularBOCMDP):
        _check_model(needs, model, loss)
    _check_follower(needs, oracle)
    if needs.needs_states and not oracle.exposes_states:
        raise UnsupportedError(
            f"{name} averages by state, and trajectories of {core}, as seen here, carry no states; use "
            'HPGD(estimator="critic"), or play the model itself, bocmdp_gym.TabularEnv(env.model).'
        )
    if needs.needs_starts and isinstance(oracle.env, VectorEnv) and not oracle.compiled:
        raise UnsupportedError(
            f"{name} starts trajectories in states of its choice, and the copies of a vector environment reset by themselves; "
            "give it a single environment."
        )


def _check_frozen(name: str, model: BOCMDP) -> None:
    """Say which entries of x the gradient leaves where they are.

    Raises:
        UnsupportedError: all of them.

    Warns:
        FrozenLeaderWarning: some of them.
    """
    if not model.frozen:
        return
    which, one = ", ".join(model.frozen), len(model.frozen) == 1
    lack = (
        f"{which} also move{'s' * one} the dynamics, which the model cannot differentiate: give the wrapper log_transitions=, or "
        "use ZeroOrder or another leader that compares returns."
    )
    if len(model.frozen) == model.leader_dim:
        raise UnsupportedError(f"{name} has no derivative to follow. {lack}")
    warnings.warn(
        f"{name} leaves {'this entry' if one else 'these entries'} of x where the run starts. {lack}",
        FrozenLeaderWarning,
        stacklevel=2,
    )


def _check_model(needs: Needs, model: TabularBOCMDP, loss: Loss | None) -> None:
    name = type(needs).__name__
    if needs.needs_successors and model.factored:
        raise UnsupportedError(
            f"{name} reads a list of successors for every action, and this model's transitions are factored "
            '(FactoredTransitions); use ExactGradient, HPGD(estimator="monte_carlo") or ZeroOrder.'
        )
    moving = sorted(needs.needs_fixed & set(model.moving))
    if moving:
        raise UnsupportedError(
            f"{name} is for models whose {' or '.join(sorted(needs.needs_fixed))} x does not move, and here "
            f"{' and '.join(moving)} is a function of x. "
            'Use HPGD(estimator="monte_carlo") or ExactGradient.'
        )
    largest = max(model.discount, model.leader_discount) if loss is None else model.discount
    if needs.needs_discounting and largest == 1.0:
        raise DiscountError(
            f"{name} needs discounts below 1; this model has discount {model.discount} and leader_discount "
            f'{model.leader_discount}. Use HPGD(estimator="monte_carlo") or ExactGradient.'
        )


def _check_follower(needs: Needs, oracle: TrajectoryOracle) -> None:
    name, follower = type(needs).__name__, oracle.follower
    if needs.needs_equilibrium and follower.populates:
        raise UnsupportedError(
            f"{name} takes responses for those of a single follower among others at their exact equilibrium, and those of "
            f"{type(follower).__name__} move the loads as they learn, by a way that has no derivative here. Use ZeroOrder or "
            "LeaderEnv, which compare returns; or ExactGradient, whose hypergradient runs through the equilibrium of the model."
        )
    if needs.needs_iterative and not follower.iterative:
        raise UnsupportedError(
            f"{name} stops its follower after 2, 4, 8, ... iterations and lets it continue, which {type(follower).__name__} "
            'cannot; use SoftQLearning (or another IterativeFollower), or HPGD(estimator="monte_carlo").'
        )
    model = oracle.model
    moving = needs.needs_probabilities_for & set(model.moving) if isinstance(model, TabularBOCMDP) else None
    if (needs.needs_probabilities or moving) and follower.exposes_probabilities is False:
        where = f", where {' and '.join(sorted(moving))} depends on x" if moving else ""
        raise UnsupportedError(
            f"{name} needs action probabilities{where}, and {type(follower).__name__} exposes none; use "
            'HPGD(estimator="monte_carlo") where rewards alone depend on x, or ZeroOrder.'
        )


def check_loss_leaks(loss: Loss, oracle: TrajectoryOracle) -> None:
    """Refuse a loss that leaves torch on its way from x or the policy, in the first context.

    Raises:
        ModelError: its graph does not have all of its derivatives.
    """
    model, context = oracle.model, 0
    if not isinstance(model, TabularBOCMDP):
        return
    shape, d = (model.n_states, model.n_actions), model.leader_dim
    size = model.n_states * model.n_actions

    def values(point: Tensor) -> dict[str, Any]:
        """The loss at x and the softmax of the rest of the point."""
        policy = torch.softmax(point[d:].reshape(shape), -1)
        return {"the loss f(x, policy, context)": loss(point[:d], policy, context)}

    space = oracle.core.leader_space
    wide = np.full(size, np.inf)
    bounds = gym.spaces.Box(np.append(space.low, -wide), np.append(space.high, wide), dtype=np.float64)
    check_leaks(values, np.append(model.example, np.zeros(size)), bounds)
