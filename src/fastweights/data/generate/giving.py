"""Who gave what to whom: task 5."""

from fastweights.data.babi import Question
from fastweights.data.generate.handling import HandlingStoryteller
from fastweights.data.generate.randomness import choose


class WhoGaveWhat(HandlingStoryteller):
    """Task 5: the latest giving of a thing decides."""

    number = 5
    people = ("Mary", "Fred", "Bill", "Jeff")
    fewest_people = 2
    kinds = ("move", "take", "drop", "give")

    def question(self) -> Question | None:
        """Ask about the latest giving of a thing that was given lately."""
        givings = [event for event in self.window if event.kind == "give"]
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
