"""bAbI task 5, three argument relations: the giver, the object and the receiver of a gift."""

from fastweights.data.babi import Question
from fastweights.data.generate.sampling import choose
from fastweights.data.generate.tasks_2_3_6_7_8_objects import ObjectStoryteller


class ThreeArgumentRelations(ObjectStoryteller):
    """Task 5: the latest gift of an object decides."""

    babi_task = 5
    people = ("Mary", "Fred", "Bill", "Jeff")
    min_people = 2
    kinds = ("move", "take", "drop", "give")

    def question(self) -> Question | None:
        """Ask about the latest gift of a recently given object."""
        givings = [event for event in self.recent_events if event.kind == "give"]
        if not givings:
            return None
        thing = choose(self.rng, givings).thing
        giving = next(event for event in reversed(givings) if event.thing == thing)
        giver, receiver = giving.person, giving.receiver
        what = (f"What did {giver} give to {receiver}?", thing)
        text, answer = choose(
            self.rng,
            (
                what,
                what,
                (f"Who gave the {thing}?", giver),
                (f"Who gave the {thing} to {receiver}?", giver),
                (f"Who received the {thing}?", receiver),
                (f"Who did {giver} give the {thing} to?", receiver),
            ),
        )
        return Question(text, answer, (giving.line,))
