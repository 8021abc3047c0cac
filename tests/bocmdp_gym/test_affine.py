"""Parts that are affine: the same numbers as by torch, found where they are and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor

import bocmdp_gym
import followers
import leaders
from bocmdp_gym import Affine, TabularBOCMDP, Weights
from bocmdp_gym.errors import ModelError
from bocmdp_gym.parametrizations import Identity, Parametrization, Sigmoid, Softmax
from bocmdp_gym.recognition import recognised

C, S, A, D = 2, 5, 3, 4
RNG = np.random.default_rng(0)
BASE, SLOPE = torch.from_numpy(RNG.normal(size=(C, S, A))), torch.from_numpy(RNG.normal(size=(C, S, A, D)))
BY_STATE = torch.from_numpy(RNG.normal(size=(C, S, 1, D)))
MASK = torch.from_numpy(RNG.random((C, S, A)) < 0.5)
P = RNG.dirichlet(np.ones(S), (C, S, A))


def written_into(z: Tensor) -> Tensor:
    out = BASE.clone()
    out[0, :, 1] += 2.0 * z[0] - z[1:].sum()
    out[1, 2] = z[:3]
    return out


AFFINE: dict[str, Callable[[Tensor], Tensor]] = {
    "products": lambda z: BASE + SLOPE @ z,
    "by state": lambda z: (BY_STATE @ z) * 0.5 - 1.0,
    "written into": written_into,
    "chosen": lambda z: torch.where(MASK, z[1], BASE - z[2] / 3.0),
    "stacked": lambda z: torch.stack([z.sum() * torch.ones(S, A, dtype=z.dtype), BASE[0] - z.mean()]),
    "added up": lambda z: torch.addcmul(BASE, SLOPE[..., 0], z[3], value=-0.2),
    "by einsum": lambda z: torch.einsum("csad,d->csa", SLOPE, z),
    "scattered": lambda z: torch.zeros(C * S * A, dtype=z.dtype).index_add(0, torch.tensor([3, 3, 8, 29]), z).reshape(C, S, A),
}
OTHER: dict[str, Callable[[Tensor], Any]] = {
    "squares": lambda z: BASE + z[0] * z[1],
    "softmax": lambda z: SLOPE @ torch.softmax(z, 0),
    "a kink": lambda z: BASE + torch.clamp(z[0], min=-100.0),
    "a kink by comparison": lambda z: BASE + torch.where(z[0] > -100.0, z[0], 2.0 * z[0]),
    "a branch": lambda z: BASE + (z[0] if z[0] > -100.0 else 2.0 * z[0]),
    "a number taken out": lambda z: BASE * float(z[0]) + z[1],
    "a quotient": lambda z: BASE / (100.0 + z[0]),
    "rounding": lambda z: BASE + torch.div(z[0], 2.0, rounding_mode="floor"),
    "float32": lambda z: (BASE + z[0].to(torch.float32)).to(torch.float64),
    "squares by writing": lambda z: BASE.clone().mul_(z[0]).mul_(z[1]),
}


def model_of(reward: Any, parametrization: Any = None, leader_reward: Any = None) -> TabularBOCMDP:
    return TabularBOCMDP(
        reward=reward,
        leader_reward=BASE if leader_reward is None else leader_reward,
        transition=P,
        initial=np.full(S, 1.0 / S),
        discount=0.9,
        leader_dim=D,
        parametrization=parametrization,
    )


def check_equal(model: TabularBOCMDP, rng: np.random.Generator) -> None:
    """Values and reverse passes of `configure_with_graph` are those of torch, for one x and for a batch."""
    x = rng.normal(size=(3, D))
    weights = [Weights(reward=rng.normal(size=(3, S, A)), leader_reward=rng.normal(size=(3, S, A)))]
    (batch,), contexts = weights, np.array([1, 0, 1])
    together = model.configure_with_graph(x)
    pulled = together.vjp(batch, contexts)
    rows = [together.batch_rows(name, contexts, np.empty((3, S, A))) for name in ("reward", "leader_reward")]
    for b, context in enumerate(contexts.tolist()):
        by_torch = model.configure(torch.from_numpy(x[b]).requires_grad_())
        alone = model.configure_with_graph(x[b])
        one = Weights(reward=batch.reward[b], leader_reward=batch.leader_reward[b])  # type: ignore[index]
        expected = by_torch.vjp(one, context)
        np.testing.assert_allclose(alone.vjp(one, context), expected, rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(pulled[b], expected, rtol=1e-13, atol=1e-14)
        for name, batched in zip(("reward", "leader_reward"), rows, strict=True):
            wanted = getattr(by_torch.arrays(context), name)
            np.testing.assert_allclose(getattr(alone.arrays(context), name), wanted, rtol=1e-14, atol=1e-14)
            np.testing.assert_allclose(batched[b], wanted, rtol=1e-14, atol=1e-14)
            torch.testing.assert_close(getattr(alone, name), getattr(by_torch, name), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("name", AFFINE)
def test_affine_functions_are_recognised(name: str) -> None:
    function = AFFINE[name]
    shape = tuple(function(torch.zeros(D, dtype=torch.float64)).shape)
    assert recognised(function, torch.from_numpy(RNG.normal(size=D)), shape) is not None
    check_equal(model_of(function), np.random.default_rng(1))


@pytest.mark.parametrize("name", OTHER)
def test_others_are_not(name: str) -> None:
    assert recognised(OTHER[name], torch.from_numpy(RNG.normal(size=D)), (C, S, A)) is None


def test_a_parametrization_of_any_kind() -> None:
    reward, leader_reward = AFFINE["products"], AFFINE["written into"]
    known: list[Parametrization] = [Identity(), Softmax(), Sigmoid(), Sigmoid([-1.0] * D, [1.0, 2.0, 3.0, 4.0])]
    for parametrization in (*known, lambda x: torch.tanh(x), lambda x: (x**2).reshape(2, 2).reshape(-1)):
        check_equal(model_of(reward, parametrization, leader_reward), np.random.default_rng(2))
    assert not model_of(lambda z: BASE + z[0][1], lambda x: (x, x)).configure_with_graph(np.ones(D)).reward.isnan().any()


@pytest.mark.parametrize("name", ["products", "by state"])
def test_actions_that_do_not_exist(name: str) -> None:
    """What stands at a missing action is another action's number, in the matrix too."""
    mask = np.random.default_rng(5).random((C, S, A)) < 0.6
    mask[..., 1] = True
    model = model_of(AFFINE[name]).replace(action_mask=mask)
    assert set(model._affine.parts) == {"reward"}
    check_equal(model, np.random.default_rng(6))


def test_beside_parts_that_are_not_affine() -> None:
    """Weights on both: one reverse pass by the matrix, one by the graph."""
    rng = np.random.default_rng(3)
    logits = torch.from_numpy(rng.normal(size=(C, S, A, S)))
    for parametrization in (None, Softmax(), lambda x: torch.tanh(x)):
        model = TabularBOCMDP(
            reward=AFFINE["products"],
            leader_reward=OTHER["squares"],
            transition=lambda z: torch.softmax(logits + z[0], -1) * 0.5 + torch.softmax(logits * z[1], -1) * 0.5,
            initial=np.full(S, 1.0 / S),
            discount=0.9,
            leader_dim=D,
            parametrization=parametrization,
        )
        x = rng.normal(size=D)
        weights = Weights(*(rng.normal(size=(S, A)) for _ in range(2)), transition=rng.normal(size=(S, A, S)))
        expected = model.configure(torch.from_numpy(x).requires_grad_()).vjp(weights, 1)
        np.testing.assert_allclose(model.configure_with_graph(x).vjp(weights, 1), expected, rtol=1e-12)


def test_a_run_finds_the_same_x() -> None:
    """With a matrix, with a function that is recognised, and with one that torch differentiates (it adds 0 z^2)."""
    matrix = SLOPE.reshape(-1, D).numpy()
    rewards = [Affine(BASE, sparse.csr_array(matrix)), AFFINE["products"], lambda z: BASE + SLOPE @ z + 0.0 * z[0] ** 2]
    found = [
        leaders.optimize(model_of(reward, Softmax()), leaders.ExactGradient(1.0), followers.SoftPolicyIteration(0.3), 20).x
        for reward in rewards
    ]
    np.testing.assert_allclose(found[0], found[2], rtol=1e-12)
    np.testing.assert_allclose(found[1], found[2], rtol=1e-12)


def test_four_rooms_is_affine_at_any_size() -> None:
    model = bocmdp_gym.configurable(gym.make("bocmdp/FourRooms-v0", scale=3)).model
    assert isinstance(model, TabularBOCMDP)
    x = np.random.default_rng(4).normal(size=model.leader_dim)
    fast, slow = model.configure_with_graph(x), model.configure(torch.from_numpy(x).requires_grad_())
    assert fast._affine is not None
    assert set(fast._affine.parts) == set(model.moving)
    shares = np.exp(x) / np.exp(x).sum()
    for context in range(2):
        at_goal = fast.termination[context, :, 0].numpy() == 1.0
        wanted = np.where(at_goal, 1.0, -0.2 * shares[:-1])
        np.testing.assert_allclose(fast.arrays(context).reward[:, 0], wanted, rtol=1e-12)
        np.testing.assert_allclose(slow.arrays(context).reward[:, 3], wanted, rtol=1e-12)


def test_numbers_that_would_overflow_are_refused() -> None:
    model = model_of(AFFINE["products"])
    with pytest.raises(ModelError, match="reward is"):
        model.configure_with_graph(np.full(D, 1e308))


@pytest.mark.parametrize(
    ("base", "matrix", "said"),
    [
        (np.zeros((S, A)), np.zeros((S * A, D)), "three|broadcast"),
        (np.full((1, S, A), np.nan), np.zeros((S * A, D)), "finite"),
        (np.zeros((1, S, A)), np.zeros((S, D)), r"expected real numbers \(15, n\)"),
        (np.zeros((1, S, 1)), np.full((S, D), np.inf), "not finite"),
    ],
)
def test_matrices_that_do_not_fit(base: Any, matrix: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        Affine(base, matrix)


def test_a_matrix_for_another_x() -> None:
    with pytest.raises(ModelError, match="4 parameters was given"):
        TabularBOCMDP(
            reward=Affine(BASE, SLOPE.reshape(-1, D).numpy()),
            leader_reward=BASE,
            transition=P,
            initial=np.full(S, 1.0 / S),
            discount=0.9,
            leader_dim=D + 1,
        )
