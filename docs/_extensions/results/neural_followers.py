"""Followers of Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .common import stored, table


@stored("neural_followers_accuracy")
def _accuracy(r: dict[str, Any]) -> Iterable[str]:
    rows = [
        (
            i,
            f"{c['uniform']:.3f}",
            ", ".join(f"{s['untrained']:.3f}" for s in c["seeds"]),
            ", ".join(f"{s['trained']:.4f}" for s in c["seeds"]),
        )
        for i, c in enumerate(r["contexts"])
    ]
    yield from table(("context", "uniform policy", "untrained, per seed", "trained, per seed"), rows)
    yield ""
    yield f"λ = {r['regularization']}, {r['training_steps']:,} training steps."


@stored("neural_followers_hpgd")
def _hpgd(r: dict[str, Any]) -> Iterable[str]:
    rows = []
    for name, o in r["runs"].items():
        mean = [sum(s[key] for s in o["seeds"]) / len(o["seeds"]) for key in ("initial", "final", "training_steps", "seconds")]
        gain = f"{o['mean gain']:.3f} ± {o['standard error']:.3f}"
        rows.append((name, f"{mean[0]:.3f}", f"{mean[1]:.3f}", gain, f"{mean[2]:,.0f}", f"{mean[3]:.0f}"))
    yield from table(("follower", "leader's return before", "after", "gain", "training steps", "seconds"), rows)
    yield ""
    yield f"λ = {r['regularization']}, {r['iterations']} outer iterations, means over {len(o['seeds'])} seeds."


@stored("neural_followers_overhead", "sb3_training")
def _overhead(r: dict[str, Any]) -> Iterable[str]:
    rows = [
        (name, f"{o['bare, CPU seconds']:.3f}", f"{o['follower, CPU seconds']:.3f}", f"{o['median ratio']:.3f}")
        for name, o in r.items()
        if isinstance(o, dict)
    ]
    yield from table(("algorithm", "bare, CPU s", "as a follower, CPU s", "median ratio"), rows)


@stored("neural_followers_returns")
def _returns(r: dict[str, Any]) -> Iterable[str]:
    rows = []
    for where, o in r.items():
        if isinstance(o, dict):
            shares = [", ".join(f"{share:.4f}" for share in o[f"{name}, share of the optimum"]) for name in ("PPO", "DQN")]
            rows.append((where, f"{o['optimum']:.4f}", f"{o['uniform, share of the optimum']:.3f}", *shares))
    yield from table(("", "optimal return", "share reached by the uniform policy", "by PPO, per seed", "by DQN, per seed"), rows)
