"""Reference implementation of one episode on one graph, the definition for the array code in `graph_env`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastweights.environments.graphs import GOAL_REWARD, PENALTY, Rules


class Episode:
    """An episode on one graph, by the paper or by the published code (`rules.variant`).

    Args:
        transitions: next state by state and action, S lists of A states.
        rules: rules of the episode.
        choose: draws one of the given states uniformly; called for the goal first, then for the agent.
    """

    def __init__(self, transitions: Sequence[Sequence[int]], rules: Rules, choose: Callable[[Sequence[int]], int]):
        self.transitions, self.rules, self.choose = transitions, rules, choose
        self.published = rules.variant == "as-published"

    def reset(self) -> list[float]:
        """Start the episode, and return the first observation `[2·S + A + 4]`."""
        self.time = self.timer = 0
        self.episode_return = 0.0
        self.previous_action = self.rules.actions  # none
        self.goal = self.choose(range(self.rules.states))
        self.state = self.choose(self.other_states(self.goal))
        return self.observation()

    def reset_positions(self) -> None:
        """Reset goal and agent to two random states; in the published code the goal changes for certain."""
        self.goal = self.choose(self.other_states(self.goal) if self.published else range(self.rules.states))
        self.state = self.choose(self.other_states(self.goal))

    def other_states(self, state: int) -> list[int]:
        """Return all other states, in cyclic order."""
        return [(state + i) % self.rules.states for i in range(1, self.rules.states)]

    def step(self, action: int) -> tuple[list[float], float, bool]:
        """Take an action; return observation, reward and whether the episode has ended."""
        self.time += 1
        self.previous_action = action
        next_state = self.transitions[self.state][action]
        reward = -PENALTY if next_state == self.state else 0.0
        self.state = next_state
        if next_state == self.goal:
            reward += GOAL_REWARD
            self.reset_positions()
            if not self.published:
                self.timer = 0
        else:
            self.timer += 1
            if self.timer == self.rules.patience:
                self.reset_positions()
                self.timer = 0
                if self.published:
                    self.previous_action = self.rules.actions
        self.episode_return += reward
        return self.observation(), reward, self.time == self.rules.steps

    def observation(self) -> list[float]:
        """Return goal, state, previous action, a constant 1, progress and return so far."""
        states, actions = self.rules.states, self.rules.actions
        observation = [0.0] * self.rules.observation_size
        observation[self.goal] = 1.0
        observation[states + self.state] = 1.0
        observation[2 * states + self.previous_action + self.published] = 1.0
        observation[2 * states + actions + 1] = 1.0
        observation[2 * states + actions + 2] = self.time / self.rules.steps
        observation[2 * states + actions + 3] = 0.0 if self.published else self.episode_return * self.rules.return_scale
        return observation
