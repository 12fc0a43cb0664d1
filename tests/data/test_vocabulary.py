"""Free text becomes tokens and back; an unknown word is named with its place."""

import pytest

from fastweights.data import babi
from fastweights.data.vocabulary import Vocabulary
from fastweights.errors import UserError


def test_words():
    vocabulary = Vocabulary(babi.vocabulary())
    text = "Mary moved to the kitchen.\nWhere is Mary?"
    tokens = vocabulary.encode(text)
    assert vocabulary.decode(tokens) == [*["mary", "moved", "to", "the", "kitchen", "."], *["where", "is", "mary", "?"]]
    assert tokens.dtype == "int64" and len(vocabulary) == 180
    assert len(vocabulary.encode("")) == len(vocabulary.encode(" \n ")) == 0


def test_a_story_encodes_as_its_source_does():
    lines = (babi.Statement("Mary moved to the kitchen."), babi.Question("Where is Mary?", "kitchen", (1,)))
    story = babi.encode(babi.Story(1, lines))
    tokens = Vocabulary(babi.vocabulary()).encode("Mary moved to the kitchen. Where is Mary? kitchen")
    assert tokens.tolist() == story.inputs[1:].tolist()


def test_characters():
    vocabulary = Vocabulary(tuple("abc123?"), "characters")
    assert vocabulary.encode("c1 a2??c").tolist() == [2, 3, 0, 4, 6, 6, 2]


def test_tokens_keep_their_case_and_unknown_ones_are_unk():
    vocabulary = Vocabulary(("<eos>", "<unk>", "the", "The", "N", "n't"), "tokens")
    tokens = vocabulary.encode("The\tn't the  N\r\nrose, <unk>\n")
    assert tokens.tolist() == [3, 5, 2, 4, 0, 1, 1, 0] and tokens.dtype == "int64"
    assert Vocabulary.from_dict(vocabulary.to_dict()) == vocabulary
    assert len(vocabulary.encode("")) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mary is here", r'The word "here" \(line 1, column 9\) is not in the vocabulary of 4 words'),
        ("mary\n  is\nMarry.", r'The word "Marry" \(line 3, column 1\).*did you mean "mary"'),
        ("?", r'The word "\?" \(line 1, column 1\)'),
    ],
)
def test_an_unknown_word_is_named_with_its_place(text, message):
    with pytest.raises(UserError, match=message):
        Vocabulary(("<pad>", "mary", "is", ".")).encode(text)


def test_saved_and_restored():
    vocabulary = Vocabulary(babi.vocabulary(as_published=True))
    assert Vocabulary.from_dict(vocabulary.to_dict()) == vocabulary
