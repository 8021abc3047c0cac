from __future__ import annotations

import os
from pathlib import Path

import pytest

from bocmdp_gym.files import write_atomically


@pytest.mark.parametrize("content", ["λ = 1\r\n", b"\x00\x01"])
def test_a_file_is_written_into_a_new_folder(content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_atomically(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    write_atomically(path, "again")
    assert path.read_text() == "again"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_cannot_be_written_keeps_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    write_atomically(path, "before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
