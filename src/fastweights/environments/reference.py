"""One agent's walk as the paper and the authors' code tell it: the definition of what `walks` does with arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastweights.environments.graphs import GOAL_REWARD, PENALTY, Rules


class Walk:
    """An episode on one graph.

    Args:
        moves: where each action leads from each place, S lists of A places.
        rules: of the episode.
        choose: gives one of the places that it is given, all as likely; for the goal first, then for the agent.
    """

    def __init__(self, moves: Sequence[Sequence[int]], rules: Rules, choose: Callable[[Sequence[int]], int]):
        self.moves, self.rules, self.choose = moves, rules, choose
        self.published = rules.variant == "as-published"

    def reset(self) -> list[float]:
        """Begin, and return the first observation `[2·S + A + 4]`."""
        self.time = self.timer = 0
        self.sum = 0.0
        self.previous = self.rules.actions  # none
        self.goal = self.choose(range(self.rules.places))
        self.place = self.choose(self.others(self.goal))
        return self.observation()

    def place_anew(self) -> None:
        """Place goal and agent at random, apart; by the published code the goal never where it was."""
        self.goal = self.choose(self.others(self.goal) if self.published else range(self.rules.places))
        self.place = self.choose(self.others(self.goal))

    def others(self, place: int) -> list[int]:
        """All places but one, in a circle from it on."""
        return [(place + i) % self.rules.places for i in range(1, self.rules.places)]

    def step(self, action: int) -> tuple[list[float], float, bool]:
        """Move, and return the observation, the reward, and whether the episode is over."""
        self.time += 1
        self.previous = action
        to = self.moves[self.place][action]
        reward = -PENALTY if to == self.place else 0.0
        self.place = to
        if to == self.goal:
            reward += GOAL_REWARD
            self.place_anew()
            if not self.published:
                self.timer = 0
        else:
            self.timer += 1
            if self.timer == self.rules.patience:
                self.place_anew()
                self.timer = 0
                if self.published:
                    self.previous = self.rules.actions
        self.sum += reward
        return self.observation(), reward, self.time == self.rules.steps

    def observation(self) -> list[float]:
        """Goal, place, previous action, a fixed bit, progress, reward so far."""
        places, actions = self.rules.places, self.rules.actions
        seen = [0.0] * self.rules.observation_size
        seen[self.goal] = 1.0
        seen[places + self.place] = 1.0
        seen[2 * places + self.previous + self.published] = 1.0
        seen[2 * places + actions + 1] = 1.0
        seen[2 * places + actions + 2] = self.time / self.rules.steps
        seen[2 * places + actions + 3] = 0.0 if self.published else self.sum
        return seen
