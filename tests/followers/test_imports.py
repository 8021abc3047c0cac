from __future__ import annotations

import subprocess
import sys

import pytest

import followers

CHECK = """
import sys, followers, leaders
sys.exit(sorted({"stable_baselines3", "tensorboard", "sb3_contrib"} & set(sys.modules)) or 0)
"""


def test_stable_baselines3_is_imported_when_it_is_used() -> None:
    done = subprocess.run([sys.executable, "-c", CHECK], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there_and_listed() -> None:
    for name in followers.__all__:
        assert name == "__version__" or getattr(followers, name).__name__ == name
    assert set(followers.__all__) <= set(dir(followers))
    with pytest.raises(AttributeError, match="has no attribute 'SB4Follower'"):
        _ = followers.SB4Follower
