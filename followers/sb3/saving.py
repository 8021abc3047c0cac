"""Followers whose state is kept in a folder of the user's."""

from __future__ import annotations

from pathlib import Path

from bocmdp_gym.files import remove_scratch
from bocmdp_gym.saved_state import loading, read_state, write_state
from followers.base import Follower

#: What `SavedInFolder.save` writes into its folder.
_FILE = "follower.safetensors"


class SavedInFolder(Follower):
    """A follower with `save` and `load`."""

    def save(self, path: str | Path) -> None:
        """Write `state` into the folder ``path``, whole or not at all, with a checksum; nothing is pickled.

        Raises:
            FolderError: it cannot be written.
        """
        remove_scratch(Path(path), _FILE)
        write_state(Path(path) / _FILE, self.state())

    def load(self, path: str | Path) -> None:
        """Continue from what `save` wrote (see `load_state`). Call it after the oracle is made, which forgets everything.

        Raises:
            CheckpointError: there is nothing; as `DamagedError`, it is damaged, or not what `save` writes.
            OptionError: as `load_state`.
        """
        file = Path(path) / _FILE
        state = read_state(file)
        with loading(str(file)):
            self.load_state(state)
