"""Settings of a run: typed, made from the constructors of what they configure, and read from a command line or a file."""

from leaders.settings.environments import CustomSettings, commands
from leaders.settings.run import RunSettings
from leaders.settings.values import import_module, settings_from_summary, settings_from_values

__all__ = [
    "CustomSettings",
    "RunSettings",
    "commands",
    "import_module",
    "settings_from_summary",
    "settings_from_values",
]
