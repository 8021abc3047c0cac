from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path

import pytest

from bocmdp_gym.docstrings import argument_groups, argument_help, source_summary, summary
from bocmdp_gym.registration import ENVIRONMENTS, Entry


class Google:
    """What it is,
    in a paragraph.

    More of it. Args: are not here.

    Args:
        one: the first,
            which goes on: here.
        two, three: the others.
        **rest: anything.

    Raises:
        ValueError: never.
    """


class Page:
    """A page.

    ## Arguments
    one: the first. two, three: the others,
    which go on. fourth: is none.

    Raises:
        ValueError: never.
    """

    def __init__(self, one: int, two: int, three: int):
        pass


def test_both_forms_are_read() -> None:
    assert summary(Google) == "What it is, in a paragraph."
    groups = [(("one",), "the first, which goes on: here."), (("two", "three"), "the others."), (("rest",), "anything.")]
    assert argument_groups(Google) == groups
    told = {"one": "the first.", "two": "the others, which go on. fourth: is none."}
    assert argument_help(Page) == told | {"three": told["two"]}


def test_nothing_said_is_no_help() -> None:
    assert summary(lambda: None) == ""
    assert argument_help(lambda one: None) == {}


@pytest.mark.parametrize("entry", ENVIRONMENTS, ids=lambda entry: entry.id)
def test_every_argument_of_every_environment_is_explained(entry: Entry) -> None:
    module, _, name = entry.entry_point.partition(":")
    kind = getattr(importlib.import_module(module), name)
    assert argument_help(kind).keys() == inspect.signature(kind).parameters.keys()


def test_a_summary_is_read_from_the_source_where_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unread.py").write_text(
        'class Told:\n    """What it is,\n    in a paragraph.\n\n    More.\n    """\n'
        "class Inherited(Told): pass\n"
        'def made():\n    "What it makes."\n'
        "Other = made\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert source_summary("unread:Told") == "What it is, in a paragraph."
    assert source_summary("unread:made") == "What it makes."
    assert "unread" not in sys.modules
    assert source_summary("unread:Inherited") == "What it is, in a paragraph."
    assert source_summary("unread:Other") == "What it makes."
    with pytest.raises(ModuleNotFoundError):
        source_summary("not_there:Told")
