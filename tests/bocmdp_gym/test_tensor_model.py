"""What the functions of a model are given."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bocmdp_gym import BOCMDP
from bocmdp_gym.tensor_model import TensorModel


class _Records(BOCMDP):
    leader_dim, discount, leader_discount, noise_dim = 1, 0.9, 0.8, 2

    def __init__(self) -> None:
        self.given: list[Any] = []

    def rewards(self, x: Tensor, *given: Any) -> Tensor:
        self.given += given
        return x

    leader_rewards = log_transitions = draw_transitions = log_initials = rewards


def test_points_arrive_as_tensors() -> None:
    own = _Records()
    model, x = TensorModel(own), torch.zeros(1)
    seen, actions, context = np.zeros((3, 2), dtype=np.float32), np.arange(3), np.zeros(2)
    model.rewards(x, seen, actions, context)
    model.leader_rewards(x, seen, actions, context)
    model.log_transitions(x, seen, actions, seen, context)
    model.draw_transitions(x, seen, actions, torch.zeros(3, 2, dtype=torch.float64), context)
    model.log_initials(x, seen, context)
    assert all(isinstance(one, Tensor) for one in own.given)
    assert [one.dtype for one in own.given[:3]] == [torch.float64, torch.int64, torch.float64]
    assert (model.leader_dim, model.discount, model.leader_discount, model.noise_dim) == (1, 0.9, 0.8, 2)


def test_dictionaries_come_entry_by_entry_and_finite_contexts_stay_numbers() -> None:
    own = _Records()
    TensorModel(own).rewards(torch.zeros(1), {"a": np.zeros((3, 1))}, (np.arange(3), np.arange(3)), 2)
    seen, actions, context = own.given
    assert isinstance(seen["a"], Tensor)
    assert all(isinstance(one, Tensor) for one in actions)
    assert context == 2
