"""Random choices that are reproducible on every machine and with every version of Python.

Only `Random.random()` is used: its stream is guaranteed by Python, that of the other methods is not.
Weights are written as repetitions: `choose(rng, ("", "", "there"))` is "there" one time in three.
"""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

Item = TypeVar("Item")


def choose(rng: Random, items: Sequence[Item]) -> Item:
    """Return one of the items, each with the same probability."""
    return items[int(rng.random() * len(items))]


def choose_other(rng: Random, items: Sequence[Item], excluded: Item | None) -> Item:
    """Return one of the items that differ from `excluded`, each with the same probability."""
    return choose(rng, [item for item in items if item != excluded])


def shuffled(rng: Random, items: Sequence[Item]) -> list[Item]:
    """Return the items in a random order, each order with the same probability."""
    order = list(items)
    for last in range(len(order) - 1, 0, -1):
        other = int(rng.random() * (last + 1))
        order[last], order[other] = order[other], order[last]
    return order


def cyclic_shuffled(rng: Random, items: Sequence[Item]) -> list[Item]:
    """Return the items in a random cyclic permutation (Sattolo's algorithm): no item stays in its position."""
    order = list(items)
    for last in range(len(order) - 1, 0, -1):
        other = int(rng.random() * last)  # never `last` itself, unlike `shuffled`
        order[last], order[other] = order[other], order[last]
    return order
