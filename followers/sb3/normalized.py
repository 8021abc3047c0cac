"""What a follower trained by Stable-Baselines3 may normalise: known without importing that."""

from __future__ import annotations

from typing import Literal

Normalized = Literal["observation", "reward", "both"]
