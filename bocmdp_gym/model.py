r"""What a leader may know of a problem: r, P, mu and the leader's reward as differentiable functions of x.

An estimator of dF/dx needs no more than derivatives of these four functions at visited points, with the weights of
`leaders.gradients`. `BOCMDP` states that interface; `bocmdp_gym.TabularBOCMDP` is its finite form, with exact solutions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from bocmdp_gym.arguments import Constructed
from bocmdp_gym.errors import UnsupportedError


class BOCMDP(Constructed, ABC):
    """Bilevel optimisation on contextual MDPs (paper, section 1).

    Batches: N visited points; observations ``(N, ...)``, actions ``(N, ...)``, x ``(d,)``, and each function returns ``(N,)``.
    All are tensors, as in the functions that wrappers take: float64 where they are real numbers, integers as the spaces have
    them, dicts and tuples entry by entry. The context is an int, or a float64 tensor where contexts are no finite number.

    A function that does not depend on x returns a tensor without a graph, or None: its weights are then never computed. Where
    `draw_transitions` is not given, `rewards` and `leader_rewards` need only hold the part that depends on x: the rest is in the
    trajectories, and estimators take derivatives alone.

    Attributes:
        leader_dim: dimension d of x.
        discount, leader_discount: gamma and gamma_L.
        noise_dim: how many uniform numbers one draw of the next state takes (`draw_transitions`); None: the model draws none.
        outcomes: what `rewards` and `leader_rewards` take besides, by keyword, of where each step led: "next_observations",
            "rewards" (the environment's own) and "infos" (entries of its info by name). Trajectories carry them
            (`Trajectories.outcomes_of`), and estimators then take rewards at steps alone, never of actions not taken.
        pays_on_arrival: whether the state that a step leads to decides what it pays and whether it ends the episode, as in
            simulators that are known from outside alone: log P then counts at every step, ends included, and for its reward too.
        pathwise_only: whether x moves next states that `draw_transitions` draws and `log_transitions` knows nothing of.
        exact_returns: whether `context_return` answers: the model solves the follower's problem exactly.
        frozen: entries of x, as messages call them, that also move what the model does not know how to differentiate. It holds
            them fixed, so that derivatives in them are 0, and leaders that use these say so when they are bound.
    """

    leader_dim: int
    discount: float
    leader_discount: float
    noise_dim: int | None = None
    outcomes: tuple[str, ...] = ()
    pays_on_arrival: bool = False
    pathwise_only: bool = False
    exact_returns: bool = False
    frozen: tuple[str, ...] = ()

    @abstractmethod
    def rewards(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        """r_{x, xi}(s, a)."""

    @abstractmethod
    def leader_rewards(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        """The leader's reward rbar_{x, xi}(s, a)."""

    def log_transitions(self, x: Tensor, observations: Any, actions: Any, next_observations: Any, context: Any) -> Tensor | None:
        """log P_{x, xi}(s'|s, a), or None if transitions do not depend on x."""
        del x, observations, actions, next_observations, context
        return None

    def draw_transitions(self, x: Tensor, observations: Any, actions: Any, noise: Tensor, context: Any) -> Tensor:
        """Next observations ``(N, ...)`` drawn with uniform numbers ``noise`` ``(N, noise_dim)``, differentiable in x.

        Where a model has this (``noise_dim`` is a number), estimators take expectations over the next state, and over actions,
        in place of the sampled ones and of scores. Such a model is complete: `rewards` are all that is paid, not only what of
        it depends on x, and episodes never terminate.

        Raises:
            UnsupportedError: the model draws no next states.
        """
        raise UnsupportedError(f"{type(self).__name__} draws no next states; give it noise_dim and draw_transitions.")

    def log_initials(self, x: Tensor, observations: Any, context: Any) -> Tensor | None:
        """log mu_{x, xi}(s), or None if the initial distribution does not depend on x."""
        del x, observations, context
        return None

    def value_features(self, vectors: Tensor) -> Tensor | None:
        """Features ``(N, K)`` that values are linear in, of observations as vectors ``(N, n)``, differentiable in them.

        None: none are known, and critics learn features of their own. A constant is among them.
        """
        del vectors
        return None

    def context_return(self, x: Any, regularization: float, context: int, *, leader_share: float = 0.0) -> Tensor:
        """F_xi(x) under the follower's regularised optimum: a scalar, or ``(...,)`` for batched x, differentiable in x once.

        Where a model has this (``exact_returns`` is True), it has finitely many contexts, and leaders and evaluators use it.

        Args:
            x: ``(..., d)``.
            regularization: lambda > 0.
            context: xi.
            leader_share: what the follower is paid per unit of the leader's reward, besides its own.

        Raises:
            UnsupportedError: the model has no exact solutions.
        """
        raise UnsupportedError(f"{type(self).__name__} has no exact solutions; give it exact_returns and context_return.")


#: What a model declares of itself, beside its functions.
_DECLARATIONS = (
    "leader_dim",
    "discount",
    "leader_discount",
    "noise_dim",
    "outcomes",
    "pays_on_arrival",
    "pathwise_only",
    "frozen",
)


class ModelLayer(BOCMDP):
    """A model around another: it declares what that declares and calls its functions; a subclass changes some of them.

    Args:
        model: the one inside.
    """

    def __init__(self, model: BOCMDP):
        self.model = model
        for name in _DECLARATIONS:
            setattr(self, name, getattr(model, name))

    def rewards(self, x: Tensor, observations: Any, actions: Any, context: Any, **outcomes: Any) -> Tensor:
        return self.model.rewards(x, observations, actions, context, **outcomes)

    def leader_rewards(self, x: Tensor, observations: Any, actions: Any, context: Any, **outcomes: Any) -> Tensor:
        return self.model.leader_rewards(x, observations, actions, context, **outcomes)

    def log_transitions(self, x: Tensor, observations: Any, actions: Any, next_observations: Any, context: Any) -> Tensor | None:
        return self.model.log_transitions(x, observations, actions, next_observations, context)

    def draw_transitions(self, x: Tensor, observations: Any, actions: Any, noise: Tensor, context: Any) -> Tensor:
        return self.model.draw_transitions(x, observations, actions, noise, context)

    def log_initials(self, x: Tensor, observations: Any, context: Any) -> Tensor | None:
        return self.model.log_initials(x, observations, context)

    def value_features(self, vectors: Tensor) -> Tensor | None:
        return self.model.value_features(vectors)
