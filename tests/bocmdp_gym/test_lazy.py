from __future__ import annotations

import importlib
import pickle
import pkgutil
import sys
from pathlib import Path

import pytest

import bocmdp_gym
import leaders

#: The packages that import on first use.
LAZY = (
    "bocmdp_gym",
    "bocmdp_gym.envs",
    "bocmdp_gym.games",
    "bocmdp_gym.solvers",
    "bocmdp_gym.wrappers",
    "followers",
    "leaders",
    "leaders.gradients",
    "leaders.report",
    "leaders.settings",
    "leaders.tasks",
)


@pytest.mark.parametrize("name", LAZY)
def test_every_public_name_is_found_and_listed(name: str) -> None:
    package = importlib.import_module(name)
    assert set(package.__all__) <= set(dir(package))
    for one in package.__all__:
        assert getattr(package, one) is vars(package)[one]


@pytest.mark.parametrize("name", LAZY)
def test_no_public_name_is_that_of_a_module(name: str) -> None:
    """Python sets a package's attribute to a module of that name when the module is imported, whatever the package says."""
    package = importlib.import_module(name)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert modules & set(package.__all__) <= {"errors", "objectives"}  # which are modules


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'leaders' has no attribute 'HPDG'"):
        _ = leaders.HPDG  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="cannot import name 'HPDG' from 'leaders'"):
        from leaders import HPDG  # type: ignore[attr-defined]  # noqa: F401


def test_objects_can_be_pickled() -> None:
    sigmoid = pickle.loads(pickle.dumps(bocmdp_gym.Sigmoid(0.0, 2.0)))  # noqa: S301 - our own
    assert type(sigmoid) is bocmdp_gym.Sigmoid


def test_names_come_from_where_the_block_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "a_shop"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "from bocmdp_gym.lazy import on_first_use\n"
        "if TYPE_CHECKING:\n"
        "    from a_shop.till import pay, refund\n"
        "else:\n"
        "    __getattr__, __dir__ = on_first_use(__name__)\n"
    )
    (package / "till.py").write_text("def pay(): return 3\n")
    (package / "broken.py").write_text("import not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    shop = importlib.import_module("a_shop")
    assert "a_shop.till" not in sys.modules
    assert {"pay", "refund"} <= set(dir(shop))
    assert shop.pay() == 3
    assert shop.till.pay is vars(shop)["pay"]
    with pytest.raises(AttributeError, match=r"module 'a_shop\.till' has no attribute 'refund'"):
        _ = shop.refund
    with pytest.raises(ModuleNotFoundError, match="No module named 'not_installed'"):
        _ = shop.broken
    for name in ("absent", "__wrapped__"):
        with pytest.raises(AttributeError, match=f"module 'a_shop' has no attribute '{name}'"):
            getattr(shop, name)
