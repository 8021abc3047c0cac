r"""`PopulationBOCMDP`: classes of followers who meet through the loads that all of them produce.

The mathematics. Class xi of mass m_xi solves an MDP whose rewards (and transitions, starts, ends) depend on x and on loads rho in
R^K, and rho is what the classes' visits add up to, rho = Phi(x, rho): a mean-field equilibrium of entropy-regularised followers
(in traffic the Markovian equilibrium of Baillon and Cominetti 2008). The leader maximises F(x) = L(x, rho*, V*).

`bocmdp_gym.crowd` has Phi and its derivatives, `bocmdp_gym.equilibrium` the fixed point and the adjoint through it.

*One follower among them.* At a given lambda, `PopulationBOCMDP.at` is a `TabularBOCMDP`: the problem of one follower, too small
to change the loads, in which x acts through z(x) = (x, rho*(x), V*(x)). Its contexts are the classes, with probabilities
m_xi / sum m, and its leader is paid

    rbar(s, a) = L(x, rho*, V*) (1 - gamma_L (1 - q(s, a))),

which adds up to L along every episode, whatever the follower does. So F_xi = L in every context, and all leaders, samplers and
checks for tabular models serve populations as they are: their reverse passes run through rho*(x) and V*(x), one adjoint solve
each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from bocmdp_gym.arguments import Constructed, known_options
from bocmdp_gym.crowd import PARTS, Crowd, Structure
from bocmdp_gym.equilibrium import MAX_ITERATIONS, TOLERANCE, Equilibrium, EquilibriumAt, Found, Search, find
from bocmdp_gym.errors import ConvergenceError, LeaderParameterError, ModelError, OptionError
from bocmdp_gym.leaks import check_leaks
from bocmdp_gym.mdps import ConfiguredMDPs
from bocmdp_gym.options import (
    as_array,
    check_count,
    check_function,
    check_generator,
    check_instance,
    check_number,
    check_regularization,
)
from bocmdp_gym.parts import check_part
from bocmdp_gym.tabular import TabularBOCMDP
from bocmdp_gym.validation import check_discount

Array = npt.NDArray[np.float64]
#: An array, or a differentiable function of (x, loads) that returns one.
Function = Callable[[Tensor, Tensor], Any] | Any
#: L(x, loads (K,), values (C, S)), a torch scalar.
PopulationObjective = Callable[[Tensor, Tensor, Tensor], Tensor]
#: Base points kept, one per lambda.
_KEPT = 16
#: Relative difference from which two equilibria are different ones.
_DIFFERENT = 1e-5


class PopulationBOCMDP(Constructed):
    """Classes of followers whose rewards, and transitions if need be, depend on what all of them do.

    Args:
        reward: the followers' reward ``(C, S, A)``, or a shape that broadcasts to it: an array, or a function of x ``(d,)`` and
            loads ``(K,)`` (float64 tensors) that returns a tensor. So for the parts of the model below.
        load: b, what one visit to (s, a) adds to each load: ``(K, S, A)``, the same for all classes, or ``(K, C, S, A)``; or a
            scipy.sparse matrix of these with all dimensions but the first flattened.
        mass: how large each class is, ``(C,)``, >= 0.
        objective: the leader's F = L(x, loads ``(K,)``, values ``(C, S)``), a differentiable function that returns a scalar.
        transition, initial, termination: as for `TabularBOCMDP`.
        discount: the followers' gamma; 1 as for `TabularBOCMDP`.
        load_discount: of visits in the loads; 1.0: total visits, where episodes end. None: gamma.
        leader_dim: dimension d of x.
        leader_space: space of x; all of R^d if None.
        example: a valid x, at which shapes are found and searches start; the point of ``leader_space`` nearest to 0 if None.

    Raises:
        ModelError: a negative mass, a load that no class produces, shapes that do not fit, a function that leaves torch.
        DiscountError: as for `TabularBOCMDP`.

    Attributes:
        n_contexts, n_states, n_actions, n_loads: C, S, A, K.
        mass: ``(C,)``.
        problem: the classes' MDPs as a `TabularBOCMDP` of the parameter (x, loads) ``(d + K,)``, without the leader.
    """

    _instead: ClassVar[Mapping[str, str]] = {
        "action_mask": "In a population all actions exist: let those that should not lead nowhere, and pay so little that nobody "
        "takes them, as bocmdp_gym.envs.RoadTolls does where a node has no further road."
    }

    def __init__(
        self,
        *,
        reward: Function,
        load: Any,
        mass: npt.ArrayLike,
        objective: PopulationObjective,
        transition: Function,
        initial: Function,
        leader_dim: int,
        discount: float,
        load_discount: float | None = None,
        termination: Function | None = None,
        leader_space: gym.spaces.Box | None = None,
        example: npt.ArrayLike | None = None,
    ):
        self.leader_dim = d = check_count("leader_dim", leader_dim)
        if leader_space is not None:
            check_instance("leader_space", leader_space, gym.spaces.Box)
        self.leader_space = gym.spaces.Box(-np.inf, np.inf, (d,), np.float64) if leader_space is None else leader_space
        self.mass = _check_mass(mass)
        self.objective: PopulationObjective = check_function("objective", objective, "x, loads, values")
        self.discount = check_discount(discount)
        visits, n_loads = _as_load(load)
        self.n_loads = n_loads
        self._parts = {"reward": reward, "transition": transition, "initial": initial, "termination": termination}
        low, high = self.leader_space.low, self.leader_space.high
        start = np.clip(np.zeros(d), low, high) if example is None else as_array(example)
        if start is None or start.shape != (d,):
            raise ModelError(f"example is {example!r}; expected a valid x, ({d},) numbers.")
        self.example: Array = start
        nothing, unbounded = np.zeros(n_loads), np.full(n_loads, np.inf)
        least = np.where(visits.minimum(0.0).sum(axis=1) < 0.0, -np.inf, nothing)  # what visits never lower stays >= 0
        self.problem = TabularBOCMDP(
            **{name: self._of_pair(name, part) for name, part in self._parts.items()},
            leader_reward=0.0 * np.ones((1, 1, 1)),
            leader_dim=d + n_loads,
            parametrization=lambda z: (z[:d], z[d:]),
            leader_space=gym.spaces.Box(np.concatenate([low, least]), np.concatenate([high, unbounded]), dtype=np.float64),
            example=np.concatenate([start, nothing]),
            context_probabilities=self.mass / self.mass.sum(),
            discount=discount,
            leader_discount=load_discount,
        )
        self.n_contexts, self.n_states, self.n_actions = c, s, a = (len(self.mass), self.problem.n_states, self.problem.n_actions)
        if visits.shape[1] not in (s * a, c * s * a):
            raise ModelError(
                f"load has shape {np.shape(load)}, that is {n_loads} loads of {visits.shape[1]} state-action pairs; expected "
                f"({n_loads}, {s}, {a}), or ({n_loads}, {c}, {s}, {a}) where classes differ."
            )
        self._structure = Structure(self.problem, self.problem.configure(self.problem.example).transition, self.mass, visits)
        self._check_produced()
        self._check_objective()
        self._bases: dict[float, tuple[Array, Array]] = {}  # loads and values, by lambda
        self._last: tuple[Any, Found] | None = None  # the last equilibrium found from there, with what it was asked by

    def __repr__(self) -> str:
        sizes = f"{self.n_contexts} classes, {self.n_states} states, {self.n_actions} actions, {self.n_loads} loads"
        return f"<{type(self).__name__}: {sizes}, x of dimension {self.leader_dim}>"

    def __getstate__(self) -> dict[str, Any]:
        """All but the last equilibrium, whose graph cannot be copied."""
        return self.__dict__ | {"_last": None}

    @staticmethod
    def _of_pair(name: str, part: Function) -> Any:
        """A function of (x, loads) as one of the pair."""
        if not callable(part) or isinstance(part, Tensor):
            return part
        function = check_function(name, part, "x, loads")
        return lambda pair: function(*pair)

    def _check_produced(self) -> None:
        """Refuse loads that nobody can produce.

        Raises:
            ModelError: naming the first.
        """
        structure, (c, s, a) = self._structure, self._structure.sizes
        here, moving = self.problem.configure(self.problem.example), self.problem.moving  # what moves may be anything elsewhere
        starts = np.ones(c * s) if "initial" in moving else structure.flat(here.initial)
        possible = structure.flat(here.transition.values, *structure.succ.shape[1:])
        possible = np.ones_like(possible) if "transition" in moving else possible
        continues = np.ones((c * s, a)) if "termination" in moving else 1.0 - structure.flat(here.termination, a)
        reached = (starts > 0.0) & np.repeat(self.mass > 0.0, s)
        while True:
            larger = reached | (structure.adjoint(possible, continues * reached[:, None]) > 0.0)
            if (larger == reached).all():
                break
            reached = larger
        produced = structure.producible(reached)
        if not produced.all():
            raise ModelError(
                f"no class produces load {int(np.flatnonzero(~produced)[0])}: its b is 0 wherever followers of positive mass can "
                "come; drop it, or mend load=, mass= or initial=."
            )

    def _check_objective(self) -> None:
        """Refuse an objective that returns no scalar, or leaves torch.

        Raises:
            ModelError: saying which.
        """
        d, k, shape = self.leader_dim, self.n_loads, (self.n_contexts, self.n_states)

        def values(z: Tensor) -> dict[str, Any]:
            return {"objective": self._objective(z[:d], z[d : d + k], z[d + k :].reshape(shape))}

        point = np.concatenate([self.example, np.ones(k), np.zeros(shape[0] * shape[1])])
        values(torch.from_numpy(point))
        check_leaks(values, point)

    def _objective(self, x: Tensor, loads: Tensor, values: Tensor) -> Tensor:
        value: Any = self.objective(x, loads, values)
        if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
            got = f"a tensor of shape {tuple(value.shape)} and type {value.dtype}" if isinstance(value, Tensor) else repr(value)
            raise ModelError(f"objective(x, loads, values) returned {got}; expected a torch scalar.")
        return value.to(torch.float64).reshape(())

    # ------------------------------------------------------------------------------------------------------ equilibria

    def _crowd(self, x: Array, loads: Array, regularization: float, value: Array | None) -> Crowd:
        return Crowd(self._structure, x, loads, regularization, value)

    def _base(self, regularization: float) -> tuple[Array, Array]:
        """The equilibrium at ``example``: where all searches at this lambda start, so that results depend on x alone."""
        if regularization not in self._bases:
            crowd = find(self._crowd, self.example, regularization, np.zeros(self.n_loads), near=False).crowd
            while len(self._bases) >= _KEPT:
                del self._bases[next(iter(self._bases))]
            self._bases[regularization] = crowd.loads, crowd.value
        return self._bases[regularization]

    def _search(
        self,
        regularization: float,
        start: Any = None,
        tolerance: float = TOLERANCE,
        max_iterations: int = MAX_ITERATIONS,
    ) -> Search:
        """How equilibria are found at one lambda."""
        regularization = check_regularization(regularization)
        tolerance, limit = check_number("tolerance", tolerance, above=0.0), check_count("max_iterations", max_iterations)
        given = None if start is None else self._check_loads("start", start)

        def find_from(x: Array, loads: Array, value: Array | None) -> Found:
            return find(self._crowd, x, regularization, loads, value, near=True, tolerance=tolerance, max_iterations=limit)

        def find_at(x: Array) -> Found:
            if given is not None:
                return find_from(x, given, None)
            asked = (x.tobytes(), regularization, tolerance, limit)
            last = self._last  # another thread may put its own there meanwhile
            if last is None or last[0] != asked:
                last = self._last = asked, find_from(x, *self._base(regularization))
            return last[1]

        return Search(find_at)

    def _check_loads(self, name: str, start: Any) -> Array:
        """Loads, or those of an equilibrium.

        Raises:
            OptionError: something else.
        """
        array = as_array(start.loads.detach() if isinstance(start, Equilibrium) else start)
        if array is None or array.shape != (self.n_loads,) or not np.isfinite(array).all():
            raise OptionError(f"{name} is {start!r}; expected finite loads of shape ({self.n_loads},), or one Equilibrium.")
        return array

    @known_options()
    def equilibrium(
        self,
        x: Any,
        regularization: float,
        *,
        start: Any = None,
        tolerance: float = TOLERANCE,
        max_iterations: int = MAX_ITERATIONS,
    ) -> Equilibrium:
        """Loads that produce themselves at x, and what the classes do there.

        There may be several. Without ``start``, the search starts at the equilibrium of ``example``, so that results depend on x
        alone; `equilibria` looks for others.

        Args:
            x: ``(..., d)``.
            regularization: lambda > 0.
            start: loads to start from ``(K,)``, or another `Equilibrium` (a warm start).
            tolerance: accepted residual, max |Phi - rho| over the largest load.
            max_iterations: Newton steps allowed.

        Raises:
            LeaderParameterError, RegularizationError, ModelError: input that cannot be used.
            ConvergenceError: no equilibrium was found; the message has the last residual.
        """
        point = self._check_leader(x)
        search = self._search(regularization, start, tolerance, max_iterations)
        loads, values = EquilibriumAt.apply(point, search)
        lead, sizes = point.shape[:-1], self._structure.sizes
        policies = np.array([found.crowd.policy for found in search.found])
        return Equilibrium(
            loads=loads,
            value=values.unflatten(-1, sizes[:2]),
            policy=torch.from_numpy(policies).reshape(*lead, *sizes),
            residual=max(found.residual for found in search.found),
            iterations=max(found.iterations for found in search.found),
            regularization=float(regularization),
        )

    def equilibria(
        self, x: Any, regularization: float, *, starts: int = 10, rng: np.random.Generator | None = None
    ) -> list[Equilibrium]:
        """The different equilibria that searches from random starts find at one x: a single one where starts agree.

        Starts are the loads of random policies. That all of them agree proves nothing; that two differ shows that the equilibrium
        is not unique.

        Args:
            x: ``(d,)``.
            regularization: lambda.
            starts: how many, besides that of `equilibrium`, which comes first.
            rng: source of randomness; seeded with 0 if None.

        Raises:
            As `equilibrium`.
        """
        rng = np.random.default_rng(0) if rng is None else check_generator(rng)
        found = [self.equilibrium(x, regularization)]
        for _ in range(check_count("starts", starts)):
            one = self.equilibrium(x, regularization, start=self._random_loads(self._check_leader(x), rng))
            scale = max(float(one.loads.abs().max()), 1e-300)
            if all(float((one.loads - other.loads).abs().max()) > _DIFFERENT * scale for other in found):
                found.append(one)
        return found

    def _random_loads(self, x: Tensor, rng: np.random.Generator) -> Array:
        """The loads of random policies."""
        policy = rng.dirichlet(np.ones(self.n_actions), self.n_contexts * self.n_states).reshape(self._structure.sizes)
        return self.loads_of(self.visits(x, np.zeros(self.n_loads), policy))

    # ------------------------------------------------------------------------------------------------- given policies

    def point(self, x: Any, loads: Any) -> Tensor:
        """x ``(d,)`` and loads ``(K,)`` as the parameter of ``problem``, ``(d + K,)``.

        Raises:
            LeaderParameterError: x of another shape, or not finite.
            OptionError: loads of another shape, or not finite.
        """
        leader = self._check_leader(x).detach()
        if leader.ndim != 1:
            raise LeaderParameterError(f"leader parameter has shape {tuple(leader.shape)}; expected one x, ({self.leader_dim},).")
        return torch.cat([leader, torch.from_numpy(self._check_loads("loads", loads))])

    def visits(self, x: Any, loads: npt.ArrayLike, policy: npt.ArrayLike, horizon: int | None = None) -> Array:
        """How often all followers of each class take each action in each state, by policies of their own ``(C, S, A)``.

        They are discounted as loads are (``load_discount``); the dynamics are those at x and the loads given.

        Args:
            x: ``(d,)``.
            loads: ``(K,)``.
            policy: the classes' action probabilities ``(C, S, A)``.
            horizon: steps after which episodes are cut; None: they go on to their end.

        Raises:
            LeaderParameterError: x of another shape, or not finite.
            OptionError: loads or a policy of another shape, or a horizon below 1.
            ConvergenceError: a class never ends its episodes under its policy, so that its visits are not finite.
        """
        structure, table = self._structure, as_array(policy)
        if table is None or table.shape != structure.sizes:
            raise OptionError(f"policy has shape {np.shape(policy)}; expected probabilities {structure.sizes}, (C, S, A).")
        met = self.problem.configure(self.point(x, loads))
        values = met.transition.values
        prob = structure.flat(values[0] if values.ndim > 4 else values, *structure.succ.shape[1:])
        going = self.problem.leader_discount * (1.0 - structure.flat(met.termination, self.n_actions))
        flat = table.reshape(-1, self.n_actions)
        starts = structure.flat(met.initial) * np.repeat(self.mass, self.n_states)
        if horizon is None:
            visitation = structure.solver.factor(flat * going, prob).solve_transposed(starts)
        else:
            visitation, left = starts.copy(), starts
            for _ in range(check_count("horizon", horizon) - 1):
                left = structure.adjoint(prob, left[:, None] * flat * going)
                visitation += left
                if left.sum() < 1e-16 * starts.sum():
                    break
        if not (np.isfinite(visitation).all() and visitation.min() >= -1e-9 * max(1.0, float(visitation.max()))):
            raise ConvergenceError(
                "a class of the population never ends its episodes under its policy, so that its loads are not finite; expected "
                "policies that end from wherever they come. Let followers learn longer, or choose at random among good actions "
                "(a softmax of their values)."
            )
        visits: Array = (np.maximum(visitation, 0.0)[:, None] * flat).reshape(structure.sizes)
        return visits

    def loads_of(self, visits: npt.ArrayLike) -> Array:
        """What visits ``(C, S, A)`` of all classes add up to, ``(K,)``.

        Raises:
            OptionError: visits of another shape.
        """
        array = as_array(visits)
        if array is None or array.shape != self._structure.sizes:
            raise OptionError(f"visits have shape {np.shape(visits)}; expected {self._structure.sizes}, (C, S, A).")
        return self._structure.loads(array.reshape(-1, self.n_actions))

    def _check_leader(self, x: Any) -> Tensor:
        """x as a float64 tensor ``(..., d)``, checked as any tabular model's."""
        checked: Tensor = TabularBOCMDP.check_leader(cast(Any, self), x)
        return checked

    # ------------------------------------------------------------------------------------------------------ the leader

    @known_options(onto=equilibrium)
    def leader_return(self, x: Any, regularization: float, **options: Any) -> Tensor:
        """F(x) = L(x, rho*, V*): a scalar, or ``(...,)`` for batched x; options go to `equilibrium`.

        Differentiable in x once, by `backward` or torch.func, through the equilibrium.
        """
        point = self._check_leader(x)
        rows = self._meet(point, self._search(regularization, **options))
        lead = point.shape[:-1]
        if not lead:
            return self._objective(*rows)
        flat = [part.flatten(0, len(lead) - 1) for part in rows]
        return torch.stack([self._objective(*row) for row in zip(*flat, strict=True)]).unflatten(0, lead)

    def _meet(self, x: Tensor, search: Search) -> tuple[Tensor, Tensor, Tensor]:
        """(x, rho*, V*), with their graph."""
        loads, values = EquilibriumAt.apply(x, search)
        return x, loads, values.unflatten(-1, self._structure.sizes[:2])

    def at(self, regularization: float) -> AmongOthers:
        """The problem of one follower among the others, who play by ``regularization`` (module docstring)."""
        return AmongOthers(self, regularization)


class AmongOthers(TabularBOCMDP):
    """One follower of a population at equilibrium, as a problem of x alone; made by `PopulationBOCMDP.at`.

    Args:
        population: the others.
        regularization: the lambda they play by, which must be this follower's.
        leader_discount: gamma_L, which spreads the objective over an episode; gamma if None.

    Attributes:
        population, regularization: as given.
    """

    def __init__(self, population: PopulationBOCMDP, regularization: float, leader_discount: float | None = None):
        self.population, self.regularization = population, check_regularization(regularization)
        parts = {name: self._of_triple(part) for name, part in population._parts.items()}
        given = population.discount if leader_discount is None else check_discount(leader_discount, "leader_")

        def leader_reward(z: tuple[Tensor, Tensor, Tensor]) -> Tensor:
            x, loads, values = z
            ends = population.problem.part("termination", (x, loads))
            return population._objective(x, loads, values) * (1.0 - given * (1.0 - ends))

        super().__init__(
            **parts,
            leader_reward=leader_reward,
            leader_dim=population.leader_dim,
            parametrization=lambda x: population._meet(x, population._search(self.regularization)),
            leader_space=population.leader_space,
            example=population.example,
            context_probabilities=population.mass / population.mass.sum(),
            discount=population.discount,
            leader_discount=given,
        )

    def met_at(self, x: Any, loads: npt.ArrayLike, values: npt.ArrayLike) -> ConfiguredMDPs:
        """The problem at x where the others are at these loads ``(K,)`` and values ``(C, S)``, at equilibrium or not.

        Raises:
            LeaderParameterError: x of another shape, or not finite.
            OptionError: loads or values of another shape.
        """
        given, point = as_array(values), self._check_one(x).detach()
        if given is None or given.shape != (self.n_contexts, self.n_states):
            raise OptionError(f"values have shape {np.shape(values)}; expected {(self.n_contexts, self.n_states)}, (C, S).")
        z = (point, torch.from_numpy(self.population._check_loads("loads", loads)), torch.from_numpy(given))
        parts = {name: self.part(name, z) for name in (*PARTS, "leader_reward")}
        return ConfiguredMDPs(self, point, parts, {name: check_part(name, parts[name]) for name in self.moving})

    @staticmethod
    def _of_triple(part: Function) -> Any:
        """A function of (x, loads) as one of (x, loads, values)."""
        return (lambda z: part(z[0], z[1])) if callable(part) and not isinstance(part, Tensor) else part

    def _named_values(self, x: Tensor) -> dict[str, Any]:
        """Nothing to look for leaks in: the population has looked at its functions, and equilibria are our own."""
        del x
        return {}


def _check_mass(mass: Any) -> Array:
    """The classes' masses ``(C,)``.

    Raises:
        ModelError: no numbers, a negative one, or none that is positive.
    """
    array = as_array(mass)
    if array is None or array.ndim != 1 or not array.size:
        raise ModelError(f"mass is {mass!r}; expected the size of each class, (C,) numbers.")
    wrong = np.flatnonzero(~((array >= 0.0) & np.isfinite(array)))
    if wrong.size:
        raise ModelError(f"mass of class {int(wrong[0])} is {array[wrong[0]]}; expected finite numbers >= 0.")
    if not array.any():
        raise ModelError("all masses are 0; expected at least one class with followers.")
    return array


def _as_load(load: Any) -> tuple[sparse.csr_array, int]:
    """b as a sparse matrix ``(K, S A)`` or ``(K, C S A)``, and K.

    Raises:
        ModelError: no finite numbers of two, three or four dimensions.
    """
    if sparse.issparse(load):
        matrix = sparse.csr_array(load, dtype=np.float64)
    else:
        array = as_array(load)
        if array is None or array.ndim not in (3, 4) or not array.size:
            got = repr(load) if array is None else f"an array of shape {array.shape}"
            raise ModelError(f"load is {got}; expected numbers (K, S, A) or (K, C, S, A): what a visit adds to each load.")
        matrix = sparse.csr_array(array.reshape(len(array), -1))
    if not np.isfinite(matrix.data).all():
        raise ModelError("load has entries that are not finite; expected what a visit adds to each load.")
    return matrix, int(matrix.shape[0])
