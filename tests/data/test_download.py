"""Downloads from a server on the loopback address: changed, missing and torn files, what is there already, names."""

import hashlib
import io
import sys
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from fastweights import cli
from fastweights.data import babi, download
from fastweights.data.download import CORPORA, Corpus
from fastweights.errors import UserError

FILES = {"train.txt": b"a rose is a rose\n" * 20, "valid.txt": b"a rose\n" * 9, "test.txt": b"is a rose\n" * 9}
INNER = {name: f"archive/inner/{name}" for name in FILES}


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *unused):
        self.server.requests.append(self.path)

    def do_GET(self):
        if self.path not in self.server.torn:
            super().do_GET()
            return
        self.log_message()
        content = (Path(self.directory) / self.path[1:]).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        self.close_connection = True


@pytest.fixture
def web(tmp_path):
    """The folder of a server, its address as `url`, what was asked for as `requests`; `torn` files end halfway."""
    folder = tmp_path / "web"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    server.folder, server.requests, server.torn = folder, [], set()
    server.url = f"http://127.0.0.1:{server.server_port}/"
    for name, content in FILES.items():
        (folder / f"a.{name}").write_bytes(content)
    pack(folder / "archive.tar.gz", FILES)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def pack(path, files, names=INNER):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(names[name])
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture(autouse=True)
def corpora(web, tmp_path, monkeypatch):
    """Two corpora on the server, one of them in an archive; caches in a folder of this test."""
    hashes = {name: f"sha256:{hashlib.sha256(content).hexdigest()}" for name, content in FILES.items()}
    hashes["valid.txt"] = f"md5:{hashlib.md5(FILES['valid.txt']).hexdigest()}"
    monkeypatch.setitem(CORPORA, "ptb", Corpus(web.url, {name: f"a.{name}" for name in FILES}, hashes))
    monkeypatch.setitem(CORPORA, "babi", Corpus(web.url, INNER, hashes, "archive.tar.gz"))
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def contents(folder):
    """All files of a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.mark.parametrize("name", ["ptb", "babi"])
def test_all_files_are_fetched_once(name, web, tmp_path):
    folder = tmp_path / "out"
    assert list(download.download(name, folder)) == [folder / file for file in FILES]
    assert contents(folder) == FILES
    assert len(web.requests) == (3 if name == "ptb" else 1)
    web.requests.clear()
    assert list(download.download(name, folder)) == [folder / file for file in FILES]
    assert not web.requests


@pytest.mark.parametrize("name", ["ptb", "babi"])
def test_only_what_is_missing_or_damaged_is_fetched_again(name, web, tmp_path):
    folder = tmp_path / "out"
    list(download.download(name, folder))
    web.requests.clear()
    (folder / "valid.txt").unlink()
    (folder / "test.txt").write_bytes(b"half")
    assert {*download.download(name, folder)} == {folder / file for file in FILES}
    assert contents(folder) == FILES
    assert web.requests == (["/a.valid.txt", "/a.test.txt"] if name == "ptb" else ["/archive.tar.gz"])


@pytest.mark.parametrize("name", ["ptb", "babi"])
def test_a_changed_file_is_left_out(name, web, tmp_path):
    changed = FILES | {"train.txt": FILES["train.txt"] + b"x"}
    (web.folder / "a.train.txt").write_bytes(changed["train.txt"])
    pack(web.folder / "archive.tar.gz", changed)
    with pytest.raises(UserError, match=r"left out, as the hash is not the known one: train\.txt from http://127"):
        list(download.download(name, tmp_path / "out"))
    assert contents(tmp_path / "out") == {file: FILES[file] for file in ("valid.txt", "test.txt")}


@pytest.mark.parametrize(("name", "file"), [("ptb", "/a.valid.txt"), ("babi", "/archive.tar.gz")])
def test_an_interrupted_download_leaves_nothing_half(name, file, web, tmp_path):
    web.torn.add(file)
    with pytest.raises(UserError, match=rf"cannot download http://127.0.0.1:\d+{file} \(\w+\); try again later"):
        list(download.download(name, tmp_path / "out"))
    assert contents(tmp_path / "out") == ({"train.txt": FILES["train.txt"]} if name == "ptb" else {})
    web.torn.clear()
    assert len(list(download.download(name, tmp_path / "out"))) == 3
    assert contents(tmp_path / "out") == FILES


@pytest.mark.parametrize("name", ["ptb", "babi"])
def test_a_stop_on_the_way_leaves_nothing_half(name, tmp_path):
    files = download.download(name, tmp_path / "out")
    next(files)
    files.close()  # as by Ctrl-C
    assert contents(tmp_path / "out") == {"train.txt": FILES["train.txt"]}


def test_files_that_are_not_there(web, tmp_path):
    (web.folder / "a.valid.txt").unlink()
    with pytest.raises(UserError, match=r"cannot download http\S+/a\.valid\.txt \(404 File not found\); try again"):
        list(download.download("ptb", tmp_path / "out"))
    web.server_close()
    with pytest.raises(UserError, match=r"cannot download .* \(ConnectionError\); .* with --mirror URL"):
        list(download.download("babi", tmp_path / "elsewhere", "http://127.0.0.1:1"))


@pytest.mark.parametrize("content", [b"no archive", b"", "torn", "another", "damaged"])
def test_an_archive_that_is_none(content, web, tmp_path):
    path = web.folder / "archive.tar.gz"
    if content == "torn":
        content = path.read_bytes()[:-60]
    if content == "damaged":
        content = path.read_bytes()[:60] + b"\xff" * 30 + path.read_bytes()[90:]
    if content == "another":
        pack(path, FILES, {name: f"other/{name}" for name in FILES})
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"archive\.tar\.gz is not the archive that it should be"):
        list(download.download("babi", tmp_path / "out"))
    assert set(contents(tmp_path / "out")) <= {*FILES}


def test_an_archive_writes_no_other_file(web, tmp_path):
    """A link in it is not followed out of it, and no path of it is used."""
    secret = tmp_path / "secret"
    secret.write_bytes(FILES["train.txt"])
    with tarfile.open(web.folder / "archive.tar.gz", "w:gz") as archive:
        for name in ("archive/inner/train.txt", "../../evil.txt"):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, str(secret)
            archive.addfile(member)
    with pytest.raises(UserError, match="is not the archive that it should be"):
        list(download.download("babi", tmp_path / "out"))
    assert contents(tmp_path / "out") == {} and not list(tmp_path.rglob("evil.txt"))


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file.out \(.*\); choose another --out"):
        list(download.download("ptb", tmp_path / "file" / "out"))


def test_without_pooch_one_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(UserError, match=r"pip install 'fastweights\[download\]'"):
        download.cache_folder("ptb")
    assert download.find("ptb") == "ptb"


def test_names_stand_for_the_cache_where_no_file_has_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert download.find("ptb") == "ptb"  # nothing was downloaded yet
    list(download.download("ptb", download.cache_folder("ptb")))
    found = Path(download.find("ptb"))
    assert contents(found) == FILES and tmp_path in found.parents
    assert download.find("wikitext-2") == "wikitext-2" and download.find("my.txt") == "my.txt"
    (tmp_path / "ptb").mkdir()
    assert download.find("ptb") == "ptb"


def test_on_the_command_line(web, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "download", "ptb"]) == 0
    printed = capsys.readouterr()
    assert "3 files in " in printed.out and printed.out.endswith("--data ptb\n") and not printed.err
    quick = ["--training.steps=1", "--training.batch_size=2", "--model.core.hidden_size=4", "--model.embedding_size=4"]
    assert cli.main(["train", "text/lstm", *quick, "--data=ptb"]) == 0
    assert cli.main(["evaluate", "runs/text/lstm", "--data=ptb", "--split=test"]) == 0
    capsys.readouterr()
    (web.folder / "mirror").mkdir()
    (web.folder / "archive.tar.gz").rename(web.folder / "mirror" / "archive.tar.gz")
    command = ["data", "download", "babi", "--out=stories", "--json", "--mirror"]
    assert cli.main([*command, f"{web.url}mirror"]) == 0
    assert '"folder": "stories"' in capsys.readouterr().out
    for command in (["babi", "--mirror=nowhere"], ["babi", f"--mirror={web.url}none/"]):
        assert cli.main(["data", "download", *command]) == 2
        error = capsys.readouterr().err
        assert error.startswith("fastweights: ") and error.count("\n") == 1 and "--mirror" in error
    with pytest.raises(SystemExit) as end:
        cli.main(["data", "download", "penn"])
    assert end.value.code == 2 and "invalid choice: 'penn'" in capsys.readouterr().err


def test_the_hashes_of_babi_are_of_its_files():
    known = {babi.file_name(task, split) for task in range(1, 21) for split in ("train", "valid")} - {"qa3_train.txt"}
    assert {*download.BABI} == known
    assert all(len(text.removeprefix("sha256:")) == 64 for text in download.BABI.values())


@pytest.mark.parametrize(
    ("name", "folder"), [("ptb", "ptb"), ("wikitext-2", "wikitext-2"), ("babi", "babi/en-valid-10k")]
)
def test_the_real_files_have_the_known_hashes(name, folder, monkeypatch, real_data):
    monkeypatch.undo()  # the real corpora
    files = {path.name: path for path in (real_data / folder).iterdir()}
    for file in {*files} & {*CORPORA[name].hashes}:
        algorithm, _, digest = CORPORA[name].hashes[file].partition(":")
        assert hashlib.new(algorithm, files[file].read_bytes()).hexdigest() == digest, file
    assert {"train.txt", "valid.txt"} <= {*files} or {*CORPORA[name].hashes} <= {*files}
