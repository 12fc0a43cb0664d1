"""Generated bAbI stories: a simulated world and its description in text; no story is copied from bAbI.

The rules and frequencies follow the statistics of the real files.

>>> story = generate_story(babi_task=1, seed=0, index=0)
>>> len(story.lines)
15
"""

from collections.abc import Callable
from functools import lru_cache
from random import Random

from fastweights.data.babi import Question, Story, format_babi_tasks
from fastweights.data.generate import (
    task_5_giving,
    task_14_time,
    task_18_size,
    task_20_motivations,
    tasks_1_11_12_13_coreference,
    tasks_2_3_6_7_8_objects,
    tasks_4_17_19_relations,
    tasks_9_10_negation,
    tasks_15_16_deduction_induction,
)
from fastweights.data.generate.story_sizes import BABI_SIZES, StorySizes
from fastweights.data.generate.storyteller import BlockStoryteller
from fastweights.errors import UserError

GENERATORS: dict[int, type[BlockStoryteller] | Callable[[Random], Story]] = {
    1: tasks_1_11_12_13_coreference.OneSupportingFact,
    2: tasks_2_3_6_7_8_objects.TwoSupportingFacts,
    3: tasks_2_3_6_7_8_objects.ThreeSupportingFacts,
    4: tasks_4_17_19_relations.two_argument_relations,
    5: task_5_giving.ThreeArgumentRelations,
    6: tasks_2_3_6_7_8_objects.YesNoQuestions,
    7: tasks_2_3_6_7_8_objects.Counting,
    8: tasks_2_3_6_7_8_objects.ListsAndSets,
    9: tasks_9_10_negation.SimpleNegation,
    10: tasks_9_10_negation.IndefiniteKnowledge,
    11: tasks_1_11_12_13_coreference.BasicCoreference,
    12: tasks_1_11_12_13_coreference.Conjunction,
    13: tasks_1_11_12_13_coreference.CompoundCoreference,
    14: task_14_time.TimeReasoning,
    15: tasks_15_16_deduction_induction.basic_deduction,
    16: tasks_15_16_deduction_induction.basic_induction,
    17: tasks_4_17_19_relations.positional_reasoning,
    18: task_18_size.size_reasoning,
    19: tasks_4_17_19_relations.path_finding,
    20: task_20_motivations.agents_motivations,
}


def generate_story(babi_task: int, seed: int, index: int, sizes: StorySizes = BABI_SIZES) -> Story:
    """Return story `index` of the endless stream of a bAbI task, a seed and sizes; equal arguments, equal story.

    >>> generate_story(babi_task=1, seed=0, index=7) == generate_story(babi_task=1, seed=0, index=7)
    True
    >>> len(generate_story(babi_task=1, seed=0, index=7, sizes=StorySizes(questions=2)).lines)
    6

    Raises:
        UserError: for an unknown bAbI task, or sizes that the task cannot have.
    """
    check_babi_task(babi_task, sizes)
    generator, rng = GENERATORS[babi_task], Random(f"{seed}/{babi_task}/{index}")
    return generator.story(rng, sizes) if hasattr(generator, "story") else generator(rng)


def check_babi_task(babi_task: int, sizes: StorySizes = BABI_SIZES) -> None:
    """Check that stories of a bAbI task can be generated in these sizes.

    Raises:
        UserError: for an unknown bAbI task, or sizes that the task cannot have.
    """
    if babi_task not in GENERATORS:
        raise UserError(
            f"stories of task {babi_task} cannot be generated, only those of tasks {format_babi_tasks(GENERATORS)}"
        )
    generator = GENERATORS[babi_task]
    if hasattr(generator, "select_entities"):
        generator.select_entities(sizes)
    elif sizes != BABI_SIZES:
        sizable = format_babi_tasks(number for number, one in GENERATORS.items() if isinstance(one, type))
        raise UserError(f"Stories of task {babi_task} are of one size only; change the sizes of tasks {sizable} alone.")


@lru_cache
def questions_per_story(babi_task: int, sizes: StorySizes = BABI_SIZES) -> float:
    """Return the mean number of questions per story of a bAbI task, over 50 stories.

    >>> questions_per_story(1), questions_per_story(4)
    (5.0, 1.0)
    """
    stories = [generate_story(babi_task, 0, index, sizes) for index in range(50)]
    return sum(isinstance(line, Question) for story in stories for line in story.lines) / len(stories)
