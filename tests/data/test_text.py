"""Texts: words of files, vocabularies, rows and segments, counts of the real corpora."""

from itertools import islice

import numpy as np
import pytest

from fastweights.data import text
from fastweights.data.text import Shares, TextSegments, make_vocabulary, random_length, read_file, read_split
from fastweights.errors import UserError

SHARES = Shares(0.05, 0.05)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# Files


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("no it was n't\nBlack Monday\n", ["no", "it", "was", "n't", "<eos>", "Black", "Monday", "<eos>"]),
        ("no end of line", ["no", "end", "of", "line", "<eos>"]),
        ("of\r\nWindows\r\n", ["of", "<eos>", "Windows", "<eos>"]),
        (" \n\na b \n", ["<eos>", "<eos>", "a", "b", "<eos>"]),  # blank lines count, as in WikiText-2
        ("\ufeffGrüße\xa0<unk>\n", ["Grüße", "<unk>", "<eos>"]),
    ],
)
def test_the_words_of_a_file(content, words, tmp_path):
    assert read_file(write(tmp_path / "a.txt", content)) == words


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a\.txt is empty; give a directory with train\.txt"),
        (b" \n\n\t", "is empty"),
        (b"a b\nc \xff d\n", r"a\.txt:2 is not text \(it is no UTF-8\); save it"),
        (b"a\nb\nc\0\n", r"a\.txt:3 is not text"),
        (b"\x89PNG\r\n\x1a\n", r"a\.txt:1 is not text"),
    ],
)
def test_files_that_are_no_text(content, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_file(write(tmp_path / "a.txt", content))


def test_a_directory_has_a_file_for_each_split(tmp_path):
    for split in text.SPLITS:
        write(tmp_path / f"{split}.txt", f"{split} words\n")
    assert [read_split(tmp_path, split, SHARES)[0] for split in text.SPLITS] == ["train", "valid", "test"]
    assert [path.name for path in text.files(tmp_path)] == ["train.txt", "valid.txt"]


@pytest.mark.parametrize("separator", ["\n", " "], ids=["lines", "one line"])
def test_one_file_is_split_by_share_and_no_word_is_lost(separator, tmp_path):
    path = write(tmp_path / "a.txt", separator.join(map(str, range(997))))
    parts = [read_split(path, split, Shares(0.1, 0.05)) for split in text.SPLITS]
    whole = read_file(path)
    assert [word for part in parts for word in part] == whole
    assert len(parts[1]) == pytest.approx(len(whole) * 0.1, abs=1)
    assert len(parts[2]) == pytest.approx(len(whole) * 0.05, abs=1)
    assert text.files(path) == [path]


def test_what_is_missing_is_named(tmp_path):
    write(tmp_path / "valid.txt", "a b\n")
    for read in (text.files, lambda data: read_split(data, "train", SHARES)):
        with pytest.raises(UserError, match=r"does not hold train\.txt; give a directory with train\.txt, valid\.txt"):
            read(tmp_path)
        with pytest.raises(UserError, match=r"There is no nowhere; .*`fastweights data download ptb`"):
            read("nowhere")
    with pytest.raises(UserError, match=r"does not hold test\.txt"):
        read_split(tmp_path, "test", SHARES)
    with pytest.raises(UserError, match='there is no split "vald"; did you mean "valid"'):
        read_split(tmp_path, "vald", SHARES)


def test_a_text_that_is_too_short_for_its_split(tmp_path):
    path = write(tmp_path / "a.txt", "just five words, not more\n")
    assert len(read_split(path, "train", SHARES)) == 6
    with pytest.raises(UserError, match=r"the valid split has 0, and must have 2; .* or larger shares"):
        read_split(path, "valid", SHARES)


def test_a_million_words_on_one_line(tmp_path):
    path = write(tmp_path / "a.txt", "a b c d " * 250_000)
    assert len(read_file(path)) == 1_000_001
    assert len(read_split(path, "valid", SHARES)) == 50_000


# Vocabularies


def test_the_most_frequent_words_come_first_and_the_first_of_equals():
    words = ["c", "b", "a", "b", "<unk>", "a", "d", "<eos>", "d", "d"]
    assert make_vocabulary(words, 1, 50).words == ("<eos>", "<unk>", "d", "b", "a", "c")
    assert make_vocabulary(words, 2, 50).words == ("<eos>", "<unk>", "d", "b", "a")
    assert make_vocabulary(words, 1, 4).words == ("<eos>", "<unk>", "d", "b")


def test_limits_that_leave_nothing():
    with pytest.raises(UserError, match=r"no word of the training text occurs 3 times.*task\.min_count smaller"):
        make_vocabulary(["a", "a", "b", "<unk>", "<unk>", "<unk>"], 3, 50)


# Segments


def predictions(segments):
    """The pairs of an input and its target, in order of the rows, and the segments' lengths."""
    found, lengths = [], []
    for segment in segments:
        found.append(segment[:3])
        lengths.append(segment.inputs.shape[1])
    inputs, targets, mask = (np.concatenate(arrays, 1) for arrays in zip(*found, strict=True))
    return list(zip(inputs[mask].tolist(), targets[mask].tolist(), strict=True)), lengths


@pytest.mark.parametrize("count", [2, 3, 40, 101])
@pytest.mark.parametrize("batch_size", [1, 3, 10])
@pytest.mark.parametrize("seed", [None, 0])
def test_each_token_but_the_first_is_predicted_once(count, batch_size, seed):
    segments = TextSegments(np.arange(count), batch_size, 7, seed=seed, epochs=1)
    pairs, _ = predictions(segments)
    assert pairs == [(token, token + 1) for token in range(count - 1)]


def test_rows_are_contiguous_pieces_of_equal_length():
    (first, second, *_) = TextSegments(np.arange(21), 4, 3, epochs=1)
    assert first.inputs.tolist() == [[0, 1, 2], [5, 6, 7], [10, 11, 12], [15, 16, 17]]
    assert second.inputs.tolist() == [[3, 4], [8, 9], [13, 14], [18, 19]]
    assert first.mask.all() and first.starts and not second.starts
    assert first.inputs.dtype == first.targets.dtype == "int64" and first.mask.dtype == bool


def test_epochs_follow_each_other_and_begin_with_a_start():
    segments = TextSegments(np.arange(21), 4, 3)
    starts = [segment.starts for segment in islice(segments, 6)]
    assert starts == [True, False] * 3
    assert segments.state_dict() == {"epoch": 3, "position": 0, "tokens": 21}


def test_random_lengths_are_those_of_awd_lstm():
    rng = np.random.default_rng(0)
    lengths = np.array([random_length(rng, 70) for _ in range(20_000)])
    assert lengths.min() >= 5 and lengths.max() == 80
    short = lengths < 52
    assert short.mean() == pytest.approx(0.05, abs=0.005)
    assert lengths[short].mean() == pytest.approx(35, abs=1) and lengths[~short].mean() == pytest.approx(69.4, abs=0.3)
    assert lengths[~short].std() == pytest.approx(5, abs=0.3)
    assert min(random_length(rng, 6) for _ in range(100)) == 5


def test_lengths_differ_by_seed_and_epoch_and_fixed_ones_do_not():
    def lengths(seed, epochs=1):
        return predictions(TextSegments(np.arange(2000), 1, 70, seed=seed, epochs=epochs))[1]

    assert lengths(None) == [70] * 28 + [39]
    assert lengths(0) == lengths(0) != lengths(1)
    both = lengths(0, epochs=2)
    assert both[: len(lengths(0))] == lengths(0) and both != lengths(0) * 2


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("steps", [0, 1, 7, 40])
def test_segments_go_on_from_a_saved_cursor(seed, steps):
    segments = TextSegments(np.arange(500), 3, 11, seed=seed)
    for _ in range(steps):
        next(segments)
    again = TextSegments(np.arange(500), 3, 11, seed=seed)
    again.load_state_dict(segments.state_dict())
    for one, other in zip(islice(segments, 40), islice(again, 40), strict=True):
        assert all(map(np.array_equal, one, other))


@pytest.mark.parametrize("changed", [{"tokens": 499}, {"position": 167}])
def test_a_cursor_of_another_text_is_refused(changed):
    segments = TextSegments(np.arange(500), 3, 11)
    with pytest.raises(UserError, match=r"the saved cursor is of a text of .* resume with the same text"):
        segments.load_state_dict(segments.state_dict() | changed)


def test_shards_are_the_rows_of_the_whole_batch():
    def segments(shard=slice(None)):
        return TextSegments(np.arange(500), 4, 11, seed=0, shard=shard)

    for whole, first, second in islice(zip(segments(), segments(slice(2)), segments(slice(2, 4)), strict=True), 30):
        for place in range(3):
            assert np.array_equal(whole[place], np.concatenate([first[place], second[place]]))


# The real corpora


@pytest.mark.parametrize(
    ("name", "counts", "size"),
    [("ptb", (929_589, 73_760), 10_000), ("wikitext-2", (2_088_628, 217_646), 33_278)],
)
def test_the_real_files_have_the_published_counts(name, counts, size, real_data):
    train, valid = (read_split(real_data / name, split, SHARES) for split in ("train", "valid"))
    vocabulary = make_vocabulary(train, 1, 50_000)
    assert (len(train), len(valid)) == counts and len(vocabulary) == size
    assert set(valid) <= set(vocabulary)
    for batch_size in (1, 10):
        segments = TextSegments(vocabulary.numbers(valid), batch_size, 70, epochs=1)
        assert sum(int(segment.mask.sum()) for segment in segments) == counts[1] - 1
