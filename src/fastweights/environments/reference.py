"""One agent's walk as the paper and the authors' code tell it: the definition of what `walks` does with arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastweights.environments.graphs import GOAL_REWARD, PENALTY, Rules


class Walk:
    """An episode on one graph.

    Args:
        moves: where each action leads from each place, S lists of A places.
        rules: of the episode.
        draw: gives goal and agent's place, apart, where they are placed at a given step.
    """

    def __init__(self, moves: Sequence[Sequence[int]], rules: Rules, draw: Callable[[int], tuple[int, int]]):
        self.moves, self.rules, self.draw = moves, rules, draw
        self.published = rules.variant == "as-published"

    def reset(self) -> list[float]:
        """Begin, and return the first observation `[2·S + A + 4]`."""
        self.time = self.timer = 0
        self.sum = 0.0
        self.previous = self.rules.actions  # none
        self.goal, self.place = self.draw(0)
        return self.observation()

    def step(self, action: int) -> tuple[list[float], float, bool]:
        """Move, and return the observation, the reward, and whether the episode is over."""
        self.time += 1
        self.previous = action
        to = self.moves[self.place][action]
        reward = -PENALTY if to == self.place else 0.0
        self.place = to
        if to == self.goal:
            reward += GOAL_REWARD
            self.goal, self.place = self.draw(self.time)
            if not self.published:
                self.timer = 0
        else:
            self.timer += 1
            if self.timer == self.rules.patience:
                self.goal, self.place = self.draw(self.time)
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
