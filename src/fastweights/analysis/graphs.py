"""Graphs and agents on them: a map (the paper's figure 4), returns against episodes (figure 5), a walk as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastweights.analysis.figures import COLORS, new_figure, write
from fastweights.environments.graphs import distances
from fastweights.errors import UserError, reason
from fastweights.training.runs import RunFolder
from fastweights.training.trained import refuse_outside_code

if TYPE_CHECKING:
    from fastweights.environments.graph_env import GraphVectorEnv
    from fastweights.models import ActorCritic
    from fastweights.tasks import GraphRL

AGENT, GOAL, OTHER = "#7bc67b", "#f2d14b", "#e4e4e4"
BANDS = 40  # points of a curve, evenly spread over the logarithm of the episodes


def draw_maps(task: GraphRL, split: str, numbers: Sequence[int], path: str | Path) -> None:
    """Draw graphs of a split with an agent and its goal; labels are the actions that lead along an edge.

    Args:
        task: the task of the graphs.
        split: "train", "valid" or "test".
        numbers: which graphs of the split.
        path: a PNG, SVG or PDF file.

    Raises:
        UserError: where there is no such graph, or the figure cannot be written.
    """
    environments = task.environments(split, len(numbers))
    _check_numbers(numbers, environments)
    environments.reset(seed=numbers[0], options={"graphs": list(numbers)})
    figure = new_figure(3.6 * len(numbers), 3.9)
    for panel, number, place, goal in zip(
        figure.subplots(1, len(numbers), squeeze=False)[0], numbers, environments.state, environments.goal, strict=True
    ):
        _draw_map(panel, environments.transitions[number], int(place), int(goal))
        panel.set_title(f"graph {number}, {split}", fontsize=9)
    figure.suptitle("agent green, goal yellow; actions that are not drawn are not valid", fontsize=9)
    write(figure, path)


def _draw_map(panel: Any, moves: np.ndarray, agent: int, goal: int) -> None:
    places = len(moves)
    angles = math.pi / 2 - 2 * math.pi * np.arange(places) / places
    at = np.stack([np.cos(angles), np.sin(angles)], 1)
    bend = math.tan(math.pi / (4 * places)) / 2  # ways out and in leave a place at even angles
    edges: dict[tuple[int, int], list[str]] = {}
    for place, to in np.ndindex(places, moves.shape[1]):
        if moves[place, to] != place:
            edges.setdefault((place, int(moves[place, to])), []).append(str(to))
    for (place, to), actions in edges.items():
        way = at[to] - at[place]
        length = np.hypot(*way)
        side = np.array([way[1], -way[0]]) / length  # arcs bend to their right, so that two ways stay apart
        panel.annotate(
            "", at[to], at[place],
            arrowprops={"arrowstyle": "-|>", "color": "#555555", "shrinkA": 15, "shrinkB": 15, "lw": 1.1,
                        "mutation_scale": 12, "connectionstyle": f"arc3,rad={bend}"},
        )  # fmt: skip
        x, y = at[place] + 0.3 * way + 0.42 * bend * length * side
        panel.text(
            x, y, ", ".join(actions), fontsize=9, ha="center", va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
        )  # fmt: skip
    for place, (x, y) in enumerate(at):
        color = AGENT if place == agent else GOAL if place == goal else OTHER
        panel.plot(x, y, "o", markersize=25, color=color, markeredgecolor="#555555")
        panel.text(x, y, str(place), fontsize=11, ha="center", va="center")
    panel.set(xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), aspect="equal")
    panel.axis("off")


def draw_returns(paths: Sequence[str | Path], path: str | Path) -> None:
    """Draw the mean return of an episode against episodes, on the training graphs and on unseen ones, from run folders.

    The bounds are exact: a random policy, and an agent that knows the map. Points are means over even bands of the
    logarithm of the episodes.

    Raises:
        UserError: where a folder holds no run of an agent on graphs, or the figure cannot be written.
    """
    from fastweights import recipes, tasks

    runs = []
    for name in paths:
        run = RunFolder.open(name)
        recipe = run.read_config().get("recipe", {})
        refuse_outside_code(run.config, recipe, trust=False)
        task = tasks.build(recipes.load(recipe).task)
        if not isinstance(task, tasks.GraphRL):
            raise UserError(f"{name} is no run of an agent on graphs; choose another run.")
        runs.append((Path(name).name, run.records(), task))
    figure = new_figure(10, 4)
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"train": "training graphs", "test": "test graphs, never trained on"}
    for panel, (split, title) in zip(panels, titles.items(), strict=True):
        rules, steps = [], [100.0]  # an axis, even where nothing is recorded yet
        for color, (name, records, task) in zip(_cycle(len(runs)), runs, strict=True):
            try:
                episodes, returns = curve(records, split)
            except (ArithmeticError, LookupError, TypeError, ValueError) as error:
                raise UserError(
                    f"{name} has records that are none of an agent ({reason(error)[:200]}); mend its metrics.jsonl or "
                    "leave the run out."
                ) from error
            panel.plot(episodes, returns, color=color, marker=".", markersize=4, label=name)
            steps += episodes
            if (task.rules, task.graphs, task.graph_seed) not in rules:
                rules.append((task.rules, task.graphs, task.graph_seed))
                bounds = task.bounds(split)
                style = ("--", ":", "-.")[(len(rules) - 1) % 3]
                at, side = ((0.02, "left"), (0.98, "right"))[(len(rules) - 1) % 2]  # two variants' words stay apart
                for agent, words, up in (("optimal", "known map", 3), ("random", "random policy", -10)):
                    panel.axhline(bounds[agent], color="#888888", linestyle=style, lw=1)
                    words = f"{words} ({task.rules.variant}): {bounds[agent]:.1f}"
                    panel.annotate(
                        words, (at, bounds[agent]), (0, up), xycoords=("axes fraction", "data"), ha=side,
                        textcoords="offset points", fontsize=8, color="#666666",
                        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
                    )  # fmt: skip
        panel.set(xscale="log", xlim=(min(steps) / 1.2, 1.2 * max(steps)), xlabel="episodes", title=title)
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.xaxis.set_minor_formatter("")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("mean return of an episode")
    panels[0].set_ylim(bottom=0, top=1.08 * panels[0].dataLim.y1)
    panels[1].legend(frameon=False, loc="center left")
    write(figure, path)


def _cycle(count: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(count)]


def curve(records: Sequence[dict[str, Any]], split: str) -> tuple[list[float], list[float]]:
    """Episodes and mean returns of a run on "train" or "test", averaged in bands of the episodes' logarithm."""
    if split == "train":
        points = [(record["step"], record["train"]["return"]) for record in records if "train" in record]
    else:
        points = [(record["step"], record["valid"]["test_return"]) for record in records if "valid" in record]
    bands: dict[int, list[tuple[float, float]]] = {}
    last = math.log(max((step for step, _ in points), default=1) + 1)
    for step, reward in points:
        bands.setdefault(int(BANDS * math.log(step) / last), []).append((step, reward))
    middles = [math.exp(sum(math.log(step) for step, _ in band) / len(band)) for band in bands.values()]
    means = [sum(reward for _, reward in band) / len(band) for band in bands.values()]
    if not all(map(math.isfinite, means)):
        raise ValueError("a return is not finite")
    return middles, means


def walk(model: ActorCritic, task: GraphRL, split: str, number: int, seed: int) -> dict[str, Any]:
    """Let an agent walk a graph for an episode, and describe its path to each goal.

    Args:
        model: the agent.
        task: the task of the graphs.
        split: "train", "valid" or "test".
        number: which graph of the split.
        seed: of the goals and the actions.

    Returns:
        The "graph", its "transitions", the "return", and "paths": each with its goal, its first step, its states and
        actions, the length of a shortest path, and whether it arrived; others ended at a timeout or with the episode.

    Raises:
        UserError: where there is no such graph or the agent does not fit.
    """
    import torch

    from fastweights.objectives.a2c import policy_noise

    environments = task.environments(split, 1)
    _check_numbers([number], environments)
    noise = policy_noise(seed, task.steps, 1, task.rules.actions)
    transitions = environments.transitions[number]
    fewest = distances(transitions[None])[0]
    seen, _ = environments.reset(seed=seed, options={"graphs": [number]})
    paths: list[dict[str, Any]] = []
    state, total, begins = None, 0.0, True
    for step in range(1, task.steps + 1):
        goal, place = int(environments.goal[0]), int(environments.state[0])
        if begins:
            paths.append({"goal": goal, "first_step": step, "states": [place], "actions": []})
            paths[-1] |= {"fewest": int(fewest[place, goal]), "arrived": False}
        action, state = model.act(torch.from_numpy(seen), noise[step - 1], state)
        to = int(transitions[place, action[0]])
        seen, reward, _, _, found = environments.step(action.numpy())
        total += float(reward[0])
        paths[-1]["states"].append(to)
        paths[-1]["actions"].append(int(action[0]))
        paths[-1]["arrived"] = to == goal
        begins = bool(found["reset"][0])
    return {"graph": number, "transitions": transitions.tolist(), "return": total, "paths": paths}


def walk_text(found: dict[str, Any]) -> str:
    """A walk for people: the map, and the agent's first, second, … way to each goal.

    >>> path = {"goal": 1, "first_step": 1, "states": [0, 0, 1], "actions": [1, 0], "fewest": 1, "arrived": True}
    >>> print(walk_text({"graph": 7, "transitions": [[1, 0], [0, 0]], "return": 9.95, "paths": [path]}))
    graph 7, return 9.95
    from 0:  action 0 to 1
    from 1:  action 0 to 0, action 1 to 0
    <BLANKLINE>
    path 1 to 1  from step  1  0 -1-x 0 -0-> 1  arrived in 2, fewest 1
    """
    lines = [f"graph {found['graph']}, return {found['return']:.2f}"]
    for place, row in enumerate(found["transitions"]):
        valid = [f"action {action} to {to}" for action, to in enumerate(row) if to != place]
        lines.append(f"from {place}:  {', '.join(valid)}")
    lines.append("")
    count: dict[int, int] = {}
    texts = []
    for path in found["paths"]:
        count[path["goal"]] = count.get(path["goal"], 0) + 1
        text = str(path["states"][0])
        for before, action, to in zip(path["states"][:-1], path["actions"], path["states"][1:], strict=True):
            text += f" -{action}-{'x' if to == before else '>'} {to}"
        end = f"arrived in {len(path['actions'])}" if path["arrived"] else f"not there in {len(path['actions'])}"
        texts.append((count[path["goal"]], path, text, f"{end}, fewest {path['fewest']}"))
    width = max(len(text) for _, _, text, _ in texts)
    for times, path, text, end in sorted(texts, key=lambda line: (line[1]["goal"], line[0])):
        lines.append(f"path {times} to {path['goal']}  from step {path['first_step']:>2}  {text:<{width}}  {end}")
    return "\n".join(lines)


def _check_numbers(numbers: Sequence[int], environments: GraphVectorEnv) -> None:
    count = len(environments.transitions)
    for number in numbers:
        if not 0 <= number < count:
            raise UserError(f"There is no graph {number}; they are numbered from 0 to {count - 1}.")
