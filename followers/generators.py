"""Keeping other people's global random generators out of ours, and ours out of theirs."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import numpy as np
import torch


class _Turn:
    """Global generators serve one thread at a time; a forked child starts without the parent's other threads."""

    def __init__(self) -> None:
        self.renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        self.lock = RLock()


_turn = _Turn()


@contextmanager
def isolated_generators(seed: int | None = None) -> Iterator[None]:
    """Within, the global generators of Python, NumPy and torch may be seeded and drawn from; afterwards they are as before.

    One thread at a time is within. Stable-Baselines3 seeds all of them, and draws actions and minibatches from them; other
    people's agents may do the same.

    Args:
        seed: seeds them all inside; they start as they are if None.
    """
    with _turn.lock:
        python = random.getstate()
        legacy = np.random.get_state()  # noqa: NPY002 - saved, not used
        try:
            with isolated_torch(seed):
                if seed is not None:
                    random.seed(seed)
                    np.random.seed(seed)  # noqa: NPY002 - for those who draw from it
                yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002 - put back


@contextmanager
def isolated_torch(seed: int | None = None) -> Iterator[None]:
    """The same of torch alone, which is quicker."""
    with _turn.lock:
        cpu = torch.get_rng_state()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
        try:
            if seed is not None:
                # not torch.manual_seed, which asks after every kind of device: slow, where each action is seeded
                torch.default_generator.manual_seed(seed)
                if cuda is not None:
                    torch.cuda.manual_seed_all(seed)
            yield
        finally:
            torch.set_rng_state(cpu)
            if cuda is not None:
                torch.cuda.set_rng_state_all(cuda)
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
