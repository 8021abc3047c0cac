"""Settings of a run: typed, made from the constructors of what they configure, and read from a command line or a file."""

from typing import TYPE_CHECKING

from bocmdp_gym.lazy import on_first_use

if TYPE_CHECKING:
    from leaders.settings.environments import CustomSettings, commands
    from leaders.settings.modules import import_module
    from leaders.settings.run import RunSettings
    from leaders.settings.values import settings_from_summary, settings_from_values
else:
    __getattr__, __dir__ = on_first_use(__name__)

__all__ = [
    "CustomSettings",
    "RunSettings",
    "commands",
    "import_module",
    "settings_from_summary",
    "settings_from_values",
]
