"""bAbI stories made anew: a world is simulated and told, and no story is copied.

The rules and frequencies follow what can be measured on the real files.

>>> story = generate_story(babi_task=1, seed=0, index=0)
>>> len(story.lines)
15
"""

from collections.abc import Callable
from functools import lru_cache
from random import Random

from fastweights.data.babi import Question, Story, format_babi_tasks
from fastweights.data.generate import concluding, giving, handling, hinting, moving, placing, sizes, timing, wanting
from fastweights.data.generate.setting import AS_IN_BABI, Setting
from fastweights.data.generate.telling import BlockStoryteller
from fastweights.errors import UserError

GENERATORS: dict[int, type[BlockStoryteller] | Callable[[Random], Story]] = {
    1: moving.WhereIsThePerson,
    2: handling.WhereIsTheObject,
    3: handling.WhereWasTheObject,
    4: placing.what_is_north,
    5: giving.WhoGaveWhat,
    6: handling.IsThePersonThere,
    7: handling.HowManyAreCarried,
    8: handling.WhatIsCarried,
    9: hinting.IsThePersonStillThere,
    10: hinting.IsThePersonPerhapsThere,
    11: moving.WhereIsHe,
    12: moving.WhereAreTheTwo,
    13: moving.WhereAreThey,
    14: timing.WhereWasThePersonBefore,
    15: concluding.what_is_feared,
    16: concluding.what_color,
    17: placing.is_it_above,
    18: sizes.does_it_fit,
    19: placing.how_to_go,
    20: wanting.why,
}


def generate_story(babi_task: int, seed: int, index: int, setting: Setting = AS_IN_BABI) -> Story:
    """Return story `index` of the endless stream of a task, a seed and a setting, always the same one.

    >>> generate_story(babi_task=1, seed=0, index=7) == generate_story(babi_task=1, seed=0, index=7)
    True
    >>> len(generate_story(babi_task=1, seed=0, index=7, setting=Setting(questions=2)).lines)
    6

    Raises:
        UserError: where there is no such task, or it cannot be of this setting.
    """
    check_babi_task(babi_task, setting)
    teller, rng = GENERATORS[babi_task], Random(f"{seed}/{babi_task}/{index}")
    return teller.story(rng, setting) if isinstance(teller, type) else teller(rng)


def check_babi_task(babi_task: int, setting: Setting = AS_IN_BABI) -> None:
    """Refuse a task that cannot be generated.

    Raises:
        UserError: naming those that can, or what is impossible in the setting.
    """
    if babi_task not in GENERATORS:
        raise UserError(
            f"stories of task {babi_task} cannot be generated, only those of tasks {format_babi_tasks(GENERATORS)}"
        )
    teller = GENERATORS[babi_task]
    if isinstance(teller, type):
        teller.cast(setting)
    elif setting != AS_IN_BABI:
        sizable = format_babi_tasks(babi_task for babi_task, teller in GENERATORS.items() if isinstance(teller, type))
        raise UserError(f"Stories of task {babi_task} are of one size only; change the sizes of tasks {sizable} alone.")


@lru_cache
def questions_a_story(babi_task: int, setting: Setting = AS_IN_BABI) -> float:
    """How many questions a story of the task has on average, counted in some.

    >>> questions_a_story(1), questions_a_story(4)
    (5.0, 1.0)
    """
    stories = [generate_story(babi_task, 0, index, setting) for index in range(50)]
    return sum(isinstance(line, Question) for story in stories for line in story.lines) / len(stories)
