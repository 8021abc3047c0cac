"""The paper's experiments on Four-Rooms, run again: ``python -m leaders.reproduce --help``."""
