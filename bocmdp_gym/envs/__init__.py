"""The environments, one per file; `bocmdp_gym.registration` gives them their ids."""

from bocmdp_gym.envs.four_rooms import FourRooms

__all__ = ["FourRooms"]
