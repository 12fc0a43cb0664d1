import json
import sys
import types
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastweights.data.babi import EOS, PAD, VOCABULARY, EncodedStory, Statement, Story, encode, read_split
from fastweights.data.sources import GeneratedStories, OrderedStories, ShuffledStories, shuffled
from fastweights.data.streams import Streams
from fastweights.errors import UserError

WORDS = [word for word in VOCABULARY if word.isalpha()]


def story_of(task: int, *words: str) -> Story:
    return Story(task, (Statement(" ".join(words) + "."),))


some_stories = st.lists(
    st.builds(
        lambda task, words: story_of(task, *words),
        st.integers(1, 20),
        st.lists(st.sampled_from(WORDS), max_size=12),
    ),
    min_size=1,
    max_size=12,
)
some_batch_sizes = st.integers(1, 5)
some_lengths = st.integers(1, 20)
NINE_STORIES = [story_of(task, *WORDS[task : 2 * task]) for task in range(1, 10)]


def key(story: EncodedStory) -> tuple:
    return (story.babi_task, tuple(story.inputs.tolist()), tuple(story.targets.tolist()))


def stories_in(inputs: np.ndarray, targets: np.ndarray, tasks: np.ndarray) -> list[tuple]:
    """Cut one stream without padding at its end-of-story tokens."""
    starts = [*np.flatnonzero(inputs == EOS), len(inputs)]
    assert starts[0] == 0
    found = []
    for start, end in pairwise(starts):
        assert len(set(tasks[start:end])) == 1
        found.append((tasks[start], tuple(inputs[start:end].tolist()), tuple(targets[start:end].tolist())))
    return found


def stories_by_row(segments: list) -> list[list[tuple]]:
    inputs, targets, tasks = (np.concatenate(arrays, axis=1) for arrays in zip(*segments, strict=True))
    result = []
    for row in range(len(inputs)):
        used = int((inputs[row] != PAD).sum())
        assert (inputs[row, used:] == PAD).all(), "padding is only at the end of a stream"
        assert (targets[row, used:] == PAD).all()
        assert (tasks[row, used:] == 0).all()
        result.append(stories_in(inputs[row, :used], targets[row, :used], tasks[row, :used]) if used else [])
    return result


def read_epoch(streams: Streams, epoch_length: int) -> list:
    """Read segments until the end of an epoch, with all streams empty."""
    segments = []
    while True:
        segments.append(streams.next_segment())
        state = streams.state_dict()
        if not any(state["stories"]) and state["next"] % epoch_length == 0:
            return segments


def assert_equal(first, second) -> None:
    for one, other in zip(first, second, strict=True):
        for array, expected in zip(one, other, strict=True):
            np.testing.assert_array_equal(array, expected)


# Sources


def test_in_order_gives_each_story_once():
    source = OrderedStories(NINE_STORIES)
    assert source.epoch_length == 9
    assert [key(story) for story in source] == [key(encode(story)) for story in NINE_STORIES]


def test_shuffled_stories_give_each_story_once_an_epoch():
    source = ShuffledStories(NINE_STORIES, seed=3)
    expected = Counter(key(encode(story)) for story in NINE_STORIES)
    orders = [[key(source[9 * epoch + place]) for place in range(9)] for epoch in range(4)]
    assert all(Counter(order) == expected for order in orders)
    assert len({tuple(order) for order in orders}) == 4, "epochs differ"


def test_the_order_of_shuffled_stories_depends_on_seed_and_index_only():
    source = ShuffledStories(NINE_STORIES, seed=3)
    forwards = [key(source[index]) for index in range(27)]
    again = ShuffledStories(NINE_STORIES, seed=3)
    assert [key(again[index]) for index in reversed(range(27))] == forwards[::-1]
    other = ShuffledStories(NINE_STORIES, seed=4)
    assert [key(other[index]) for index in range(27)] != forwards


@pytest.mark.parametrize("source", [OrderedStories, lambda stories: ShuffledStories(stories, seed=0)])
def test_no_stories_are_no_source(source):
    with pytest.raises(UserError, match="no stories"):
        source([])


def test_shuffled_depends_on_the_seed_only():
    assert shuffled(NINE_STORIES) == shuffled(NINE_STORIES) != NINE_STORIES
    assert shuffled(NINE_STORIES, seed=1) != shuffled(NINE_STORIES, seed=2)
    assert sorted(shuffled(range(50))) == list(range(50))


@pytest.fixture
def counted_generator(monkeypatch) -> list:
    """Put a generator of one-word stories in the place of the real one; return the list of its calls."""
    calls = []

    def generate_story(task: int, seed: int, index: int, sizes: None) -> Story:
        calls.append((task, seed, index))
        return story_of(task, WORDS[(seed + index) % len(WORDS)])

    module = types.ModuleType("fastweights.data.generate")
    module.generate_story = generate_story
    module.check_babi_task = lambda task, sizes: None
    module.BABI_SIZES = None
    monkeypatch.setitem(sys.modules, "fastweights.data.generate", module)
    return calls


def test_generated_stories_depend_on_seed_and_index_only(counted_generator):
    source, again = (GeneratedStories((1, 4, 7), seed=5) for _ in range(2))
    assert source.epoch_length is None
    forwards = [key(source[index]) for index in range(30)]
    assert [key(again[index]) for index in reversed(range(30))] == forwards[::-1]
    assert counted_generator[:30] == [(source.babi_task(index), 5, index) for index in range(30)]
    other = GeneratedStories((1, 4, 7), seed=6)
    assert [other.babi_task(index) for index in range(30)] != [source.babi_task(index) for index in range(30)]


def test_reading_a_generated_story_again_does_not_make_it_again(counted_generator):
    source = GeneratedStories((1,), seed=5)
    assert source[3] is source[3]
    assert len(counted_generator) == 1


def drawn_shares(source: GeneratedStories) -> dict[int, float]:
    counts = Counter(source.babi_task(index) for index in range(4000))
    return {task: count / 4000 for task, count in counts.items()}


def test_tasks_are_drawn_equally_often(counted_generator):
    shares = drawn_shares(GeneratedStories((2, 5, 6, 9), seed=0))
    assert shares == {task: pytest.approx(0.25, abs=0.03) for task in (2, 5, 6, 9)}


def test_tasks_are_drawn_in_proportion_to_their_weights(counted_generator):
    shares = drawn_shares(GeneratedStories((4, 1, 3), seed=0, weights={1: 1, 3: 0, 4: 4}))
    assert shares == {1: pytest.approx(0.2, abs=0.03), 4: pytest.approx(0.8, abs=0.03)}


@pytest.mark.parametrize(
    ("tasks", "weights", "sentence"),
    [
        ((), None, "no bAbI task is named"),
        ((1, 2), {1: 1}, "task 2 stands in only one of babi_tasks and weights"),
        ((1, 2), {1: 1, 2: 1, 3: 1}, "task 3 stands in only one"),
        ((1, 2), {1: 0, 2: 0}, "no proportions"),
        ((1, 2), {1: 1, 2: -1}, "no proportions"),
        ((1, 2), {1: 1, 2: float("nan")}, "no proportions"),
    ],
)
def test_faulty_tasks_and_weights(counted_generator, tasks, weights, sentence):
    with pytest.raises(UserError, match=sentence):
        GeneratedStories(tasks, seed=0, weights=weights)


# Streams


@given(some_stories, some_batch_sizes, some_lengths)
def test_every_story_is_read_once_and_whole(stories, batch_size, length):
    segments = list(Streams(OrderedStories(stories), batch_size, length))
    read = [story for row in stories_by_row(segments) for story in row]
    assert Counter(read) == Counter(key(encode(story)) for story in stories)
    for segment in segments:
        assert all(array.shape == (batch_size, length) and array.dtype == np.int64 for array in segment)
        assert segment.inputs.any(), "no segment is padding only"


@given(some_stories, some_batch_sizes, some_lengths)
def test_every_epoch_reads_every_story_once(stories, batch_size, length):
    streams = Streams(ShuffledStories(stories, seed=1), batch_size, length)
    for _ in range(3):
        read = [story for row in stories_by_row(read_epoch(streams, len(stories))) for story in row]
        assert Counter(read) == Counter(key(encode(story)) for story in stories)


@given(some_stories, some_batch_sizes, some_lengths)
def test_the_shortest_and_lowest_row_is_fed_next(stories, batch_size, length):
    expected = [[] for _ in range(batch_size)]
    for story in stories:
        # All streams are read in step: the order by total length is the order by unread length.
        shortest = min(range(batch_size), key=lambda row: sum(len(given[1]) for given in expected[row]))
        expected[shortest].append(key(encode(story)))
    assert stories_by_row(list(Streams(OrderedStories(stories), batch_size, length))) == expected


def test_a_row_is_padded_only_when_the_stories_are_used_up():
    streams = Streams(
        OrderedStories([story_of(1, "mary"), story_of(2, "john", "went")]), batch_size=2, segment_length=3
    )
    first, second = list(streams)
    mary, john, went, stop = (VOCABULARY.index(word) for word in ("mary", "john", "went", "."))
    assert first.inputs.tolist() == [[EOS, mary, stop], [EOS, john, went]]
    assert first.targets.tolist() == [[mary, stop, EOS], [john, went, stop]]
    assert first.babi_tasks.tolist() == [[1, 1, 1], [2, 2, 2]]
    assert second.inputs.tolist() == [[PAD, PAD, PAD], [stop, PAD, PAD]]
    assert second.targets.tolist() == [[PAD, PAD, PAD], [EOS, PAD, PAD]]
    assert second.babi_tasks.tolist() == [[0, 0, 0], [2, 0, 0]]


def test_a_source_that_has_ended_stays_ended():
    streams = Streams(OrderedStories(NINE_STORIES), batch_size=2, segment_length=7)
    assert list(streams)
    assert list(streams) == []
    with pytest.raises(StopIteration):
        streams.next_segment()


def test_an_endless_source_is_never_padded(counted_generator):
    streams = Streams(GeneratedStories((1, 2), seed=0), batch_size=3, segment_length=11)
    assert all((streams.next_segment().inputs != PAD).all() for _ in range(50))


@given(some_stories, some_batch_sizes, some_lengths, st.integers(0, 30))
def test_a_resumed_cursor_gives_the_same_segments(stories, batch_size, length, steps):
    streams = Streams(ShuffledStories(stories, seed=2), batch_size, length)
    for _ in range(steps):
        streams.next_segment()
    saved = json.loads(json.dumps(streams.state_dict()))
    resumed = Streams(ShuffledStories(stories, seed=2), batch_size, length)
    resumed.next_segment()  # its earlier cursor is dropped
    resumed.load_state_dict(saved)
    assert resumed.state_dict() == saved
    assert_equal([resumed.next_segment() for _ in range(20)], [streams.next_segment() for _ in range(20)])


@given(some_stories, some_batch_sizes, some_lengths, st.data())
def test_a_resumed_evaluation_ends_as_it_would_have(stories, batch_size, length, data):
    segments = list(Streams(OrderedStories(stories), batch_size, length))
    steps = data.draw(st.integers(0, len(segments)))
    streams = Streams(OrderedStories(stories), batch_size, length)
    for _ in range(steps):
        streams.next_segment()
    resumed = Streams(OrderedStories(stories), batch_size, length)
    resumed.load_state_dict(streams.state_dict())
    assert_equal(list(resumed), segments[steps:])


def test_a_resumed_generator_goes_on(counted_generator):
    streams = Streams(GeneratedStories((1, 2), seed=0), batch_size=3, segment_length=11)
    for _ in range(10):
        streams.next_segment()
    resumed = Streams(GeneratedStories((1, 2), seed=0), batch_size=3, segment_length=11)
    resumed.load_state_dict(json.loads(json.dumps(streams.state_dict())))
    assert_equal([resumed.next_segment() for _ in range(20)], [streams.next_segment() for _ in range(20)])


def test_a_cursor_of_another_batch_size_or_data_is_refused():
    saved = Streams(ShuffledStories(NINE_STORIES, seed=0), batch_size=2, segment_length=7).state_dict()
    with pytest.raises(UserError, match="a batch size of 2 and this run one of 3"):
        Streams(ShuffledStories(NINE_STORIES, seed=0), batch_size=3, segment_length=7).load_state_dict(saved)
    with pytest.raises(UserError, match="epochs of 9 stories and this run's are of 8 stories"):
        Streams(ShuffledStories(NINE_STORIES[:8], seed=0), batch_size=2, segment_length=7).load_state_dict(saved)


@pytest.mark.parametrize(("batch_size", "length"), [(0, 5), (5, 0)])
def test_streams_need_a_batch_and_tokens(batch_size, length):
    with pytest.raises(UserError, match="both must be at least 1"):
        Streams(OrderedStories(NINE_STORIES), batch_size, length)


def test_one_epoch_of_the_real_files(real_data):
    stories = read_split(real_data / "babi" / "en-valid-10k", "valid")
    segments = read_epoch(Streams(ShuffledStories(stories, seed=0), batch_size=32, segment_length=200), len(stories))
    read = [story for row in stories_by_row(segments) for story in row]
    assert Counter(read) == Counter(key(encode(story)) for story in stories)
    assert sum(int((segment.inputs != PAD).sum()) for segment in segments) == 573_528 + 6_265
