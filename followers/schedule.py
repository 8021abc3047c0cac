"""Which episodes to begin, to keep and to drop while several are played at once, so that the sample has no bias.

Played one after another, episodes 1, 2, ... are a sequence of independent draws, and a budget of n steps ends it after the
first m episodes with n steps or more. Several copies that play until n steps are made, or that keep the first m episodes *to
end*, would prefer short ones. So episodes are numbered in the order in which they begin, each on random numbers that nothing
before it has used: what an episode becomes does not depend on when it was begun, and in that order they are the same sequence
of independent draws, whatever the copies. The sample is its first m episodes, as above, long ones awaited; the few that were
begun beyond the m-th are dropped unread, whether they ended or not.
"""

from __future__ import annotations


class Schedule:
    """Episodes by number, in the order they began; each running one takes a step whenever the others do.

    Args:
        env_steps: the budget.
        most: episodes at once.
        limit: steps after which an episode ends at the latest, if that is known.
        episodes: how many there are to play; None: as many as the budget asks for.

    Attributes:
        lengths: steps of each episode that is kept, so far.
        running: numbers of those that have not ended, in order.
        dropped_steps: steps of the others.
    """

    def __init__(self, env_steps: int, most: int = 1, limit: int | None = None, episodes: int | None = None):
        self.lengths: list[int] = []
        self.running: list[int] = []
        self.dropped_steps = 0
        self._budget, self._most, self._limit, self._episodes = env_steps, most, limit, episodes
        self._total = self._ended = 0  # steps of all that are kept; how many have ended

    @property
    def begins_another(self) -> bool:
        """Whether one more is begun now: the budget asks for more than those begun are likely to take.

        It may guess wrong, by what it has seen, but not change what an episode will be.
        """
        if len(self.running) == self._most or len(self.lengths) == self._episodes:
            return False
        longest = self._budget if self._limit is None else self._limit
        likely = min(longest, self._total / self._ended) if self._ended else longest
        missing = sum(max(likely - self.lengths[number], 1) for number in self.running)
        return self._total + missing < self._budget

    def begin(self) -> int:
        """The next episode's number."""
        self.lengths.append(0)
        self.running.append(len(self.lengths) - 1)
        return self.running[-1]

    def step(self, ended: list[int]) -> None:
        """Every running episode took a step, and some of them ended with it; drop what the budget no longer asks for."""
        for number in self.running:
            self.lengths[number] += 1
        self._total += len(self.running)
        self._ended += len(ended)
        while self._total - self.lengths[-1] >= self._budget:
            dropped = self.lengths.pop()
            self._total -= dropped
            self.dropped_steps += dropped
        self.running = [number for number in self.running if number < len(self.lengths) and number not in ended]
