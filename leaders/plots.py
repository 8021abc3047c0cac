"""Pictures of a run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocmdp_gym.files import write_atomically
from leaders.history import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def learning_curve(history: History, title: str = "") -> Figure:
    """Leader's exact return over iterations (the samples behind it, where there are any) and the gradient's norm below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    iterations = history["iteration"]
    sampled = history["sampled_return"]
    window = max(1, len(sampled) // 100)
    if len(sampled) >= 2 * window:
        smooth = np.convolve(sampled, np.full(window, 1 / window), mode="valid")
        label = "sampled, one context per iteration" + (f" (mean of {window})" if window > 1 else "")
        top.plot(iterations[window - 1 :], smooth, color="#b9c7dc", linewidth=1, label=label)
    if "leader_return" in history.columns:
        exact = history["leader_return"]
        known = np.isfinite(exact)
        top.plot(iterations[known], exact[known], color="#2668be", linewidth=2, label="exact, mean over contexts")
    top.set(ylabel="leader's return F(x)", title=title)
    top.legend(loc="best", framealpha=0.85, edgecolor="none")
    top.grid(alpha=0.25)
    bottom.semilogy(iterations, np.maximum(history["gradient_norm"], 1e-300), color="#8a8f99", linewidth=0.6)
    bottom.set(ylabel="gradient norm", xlabel="outer iteration")
    bottom.grid(alpha=0.25)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a figure to ``path``, in the format that its ending names, whole or not at all.

    Raises:
        FolderError: it cannot be written.
    """
    content = io.BytesIO()
    figure.savefig(content, dpi=130, format=path.suffix.removeprefix("."))
    write_atomically(path, content.getvalue())
