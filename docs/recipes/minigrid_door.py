"""MiniGrid with a toll door: opening it costs x, and there is a long way round."""

from gymnasium.spaces import Box
from minigrid.core.world_object import Door
from minigrid.envs import EmptyEnv
from minigrid.wrappers import ImgObsWrapper

import followers
import leaders
from bocmdp_gym.wrappers import LeaderReward


class Room(EmptyEnv):
    """A room with a wall across it, and a door in the wall."""

    def _gen_grid(self, width, height):
        super()._gen_grid(width, height)
        self.grid.vert_wall(3, 2, 4)
        self.grid.set(3, 5, Door("yellow"))


def rule(buys, s):
    """Go on, and turn right at a wall; who buys turns to a door on the right, and opens it."""
    return 5 if s[3, 5, 2] == 1 else 1 if s[3, 5, 0] == 2 or buys * s[5, 6, 0] == 4 else 2


def toll(x, s, a, context):
    """What the door earns."""
    return x[0] * (a == 5)


world = ImgObsWrapper(Room(7, (1, 5), 3, render_mode="rgb_array"))  # from (1, 5), facing up
env = LeaderReward(world, lambda *step: -toll(*step), Box(0.0, 1.0, (1,), "float64"), toll, 0.95)
follower = followers.BestOf([lambda s, rng: rule(True, s), lambda s, rng: rule(False, s)])
leader, iterations = leaders.ZeroOrder(0.02, 0.05, decay=False, directions=4, env_steps=1), 25

if __name__ == "__main__":
    result = leaders.optimize(env, leader, follower, iterations, seed=0)
    for x in (result.x0, result.x):
        print(x, leaders.evaluate_policy(env, follower, x, env_steps=2_000).leader_return)
