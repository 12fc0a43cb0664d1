"""Why somebody does what he does: task 20."""

from random import Random

from fastweights.data.babi import Question, Statement, Story
from fastweights.data.generate.randomness import choose
from fastweights.data.generate.telling import moving, taking

PEOPLE = ("Jason", "Antoine", "Yann", "Sumit")
# Where a mood leads, and what it makes one take there.
REMEDIES = {
    "hungry": ("kitchen", "apple"),
    "thirsty": ("kitchen", "milk"),
    "bored": ("garden", "football"),
    "tired": ("bedroom", "pajamas"),
}


def why(rng: Random) -> Story:
    """Task 20: everybody has a mood, goes where it leads and takes what he wants, if nobody has taken it before."""
    lines: list[Statement | Question] = []
    mood_of: dict[str, tuple[str, int]] = {}  # of a person: his mood, and the line
    went: list[str] = []
    taken: list[str] = []
    active = list(PEOPLE)  # those who can still do something
    while active:
        person = choose(rng, active)
        if person not in mood_of:
            mood = choose(rng, tuple(REMEDIES))
            mood_of[person] = mood, len(lines) + 1
            text = f"{person} is {mood}."
            question, answer = f"Where will {person.lower()} go?", REMEDIES[mood][0]
        else:
            answer, _ = mood_of[person]
            place, thing = REMEDIES[answer]
            if person not in went:
                went.append(person)
                text = moving(rng, person, place)
                question = f"Why did {person.lower()} go to the {place}?"
            else:
                taken.append(thing)
                text = taking(rng, person, thing)
                question = f"Why did {person.lower()} get the {thing}?"
        lines += (Statement(text), Question(question, answer, (mood_of[person][1],)))
        active = [one for one in active if one not in went or REMEDIES[mood_of[one][0]][1] not in taken]
    return Story(20, tuple(lines))
