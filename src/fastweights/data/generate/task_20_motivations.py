"""bAbI task 20, agents' motivations."""

from random import Random

from fastweights.data.babi import Question, Statement, Story
from fastweights.data.generate.sampling import choose
from fastweights.data.generate.storyteller import move_sentence, take_sentence

PEOPLE = ("Jason", "Antoine", "Yann", "Sumit")
# The place and the object that a mood leads to.
REMEDIES = {
    "hungry": ("kitchen", "apple"),
    "thirsty": ("kitchen", "milk"),
    "bored": ("garden", "football"),
    "tired": ("bedroom", "pajamas"),
}


def agents_motivations(rng: Random) -> Story:
    """Task 20: each person has a mood, goes to its place and takes its object, if nobody has taken it before."""
    lines: list[Statement | Question] = []
    mood_of: dict[str, tuple[str, int]] = {}  # of a person: mood and line
    moved: list[str] = []
    taken: list[str] = []
    active = list(PEOPLE)  # people with something left to do
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
            if person not in moved:
                moved.append(person)
                text = move_sentence(rng, person, place)
                question = f"Why did {person.lower()} go to the {place}?"
            else:
                taken.append(thing)
                text = take_sentence(rng, person, thing)
                question = f"Why did {person.lower()} get the {thing}?"
        lines += (Statement(text), Question(question, answer, (mood_of[person][1],)))
        active = [one for one in active if one not in moved or REMEDIES[mood_of[one][0]][1] not in taken]
    return Story(20, tuple(lines))
