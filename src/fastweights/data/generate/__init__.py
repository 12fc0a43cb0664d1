"""bAbI stories made anew: a world is simulated and told, and no story is copied.

The rules and frequencies follow what can be measured on the real files.

>>> story = generate_story(task=1, seed=0, index=0)
>>> len(story.lines)
15
"""

from collections.abc import Callable
from random import Random

from fastweights.data.babi import Story, format_tasks
from fastweights.data.generate import concluding, giving, handling, hinting, moving, placing, sizes, timing, wanting
from fastweights.errors import UserError

TASKS: dict[int, Callable[[Random], Story]] = {
    1: moving.WhereIsThePerson.story,
    2: handling.WhereIsTheObject.story,
    3: handling.WhereWasTheObject.story,
    4: placing.what_is_north,
    5: giving.WhoGaveWhat.story,
    6: handling.IsThePersonThere.story,
    7: handling.HowManyAreCarried.story,
    8: handling.WhatIsCarried.story,
    9: hinting.IsThePersonStillThere.story,
    10: hinting.IsThePersonPerhapsThere.story,
    11: moving.WhereIsHe.story,
    12: moving.WhereAreTheTwo.story,
    13: moving.WhereAreThey.story,
    14: timing.WhereWasThePersonBefore.story,
    15: concluding.what_is_feared,
    16: concluding.what_color,
    17: placing.is_it_above,
    18: sizes.does_it_fit,
    19: placing.how_to_go,
    20: wanting.why,
}


def generate_story(task: int, seed: int, index: int) -> Story:
    """Return story `index` of the endless stream of a task and a seed, always the same one.

    >>> generate_story(task=1, seed=0, index=7) == generate_story(task=1, seed=0, index=7)
    True
    """
    check_task(task)
    return TASKS[task](Random(f"{seed}/{task}/{index}"))


def check_task(task: int) -> None:
    """Refuse a task that cannot be generated.

    Raises:
        UserError: naming those that can.
    """
    if task not in TASKS:
        raise UserError(f"stories of task {task} cannot be generated, only those of tasks {format_tasks(TASKS)}")
