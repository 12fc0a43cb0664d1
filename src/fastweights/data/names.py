"""The names in bAbI's stories, by kind, and the pronouns."""

NAMES: dict[str, tuple[str, ...]] = {
    kind: tuple(names.split())
    for kind, names in {
        "person": "mary john daniel sandra fred bill jeff julie gertrude winona jessica emily lily bernhard greg julius"
        " brian jason antoine yann sumit",
        "place": "bathroom bedroom garden hallway kitchen office cinema park school",
        "object": "apple football milk pajamas",
        "animal": "mouse mice sheep wolf wolves cat cats swan lion frog rhino",
        "colour": "gray white yellow green red blue pink",
        "shape": "square sphere triangle rectangle",
        "thing": "box chest container suitcase chocolate chocolates",
        "mood": "hungry thirsty bored tired",
    }.items()
}
PRONOUNS = ("he", "she", "they")
