"""Downloads and submissions: every file is written whole or not at all."""
import hashlib
import http.server
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from files import IMAGES, LABELS, NOT_AS_ROOT, refused, written

from digitrec import data, sources
from digitrec.data import Digits, atomic_write, read_json, write_json, write_submission
from digitrec.sources import download_mnist

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and limits as POSIX has them")


# Downloads

@pytest.fixture(autouse=True)
def nothing_at_hand(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


class Mirror(http.server.BaseHTTPRequestHandler):
    "A server that is well for /whole, slow for /slow, and ill in many ways."
    whole = np.random.default_rng(2).bytes(400_000)

    def do_GET(self):
        kind = self.path.strip("/")
        ill = {"wrong": self.whole[::-1], "split": self.whole[:-1], "empty": b"",
               "stalled": self.whole[:1000]}
        sent = ill.get(kind, self.whole)
        self.send_response(404 if kind == "gone" else 200)
        self.send_header("Content-Length",
                         str(len(self.whole) if kind in ("split", "stalled") else len(sent)))
        self.end_headers()
        try:
            for start in range(0, len(sent), 10_000):
                self.wfile.write(sent[start:start + 10_000])
                time.sleep(0.001 if kind == "slow" else 0)
            if kind == "stalled":
                self.server.over.wait(20)
        except ConnectionError:
            pass  # whoever asked has been killed

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def mirror():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    server.over = threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.over.set(), server.shutdown(), server.server_close()


@pytest.fixture
def known(monkeypatch):
    "The mirror's whole file is the one we know."
    monkeypatch.setattr(sources, "MNIST_SHA256", hashlib.sha256(Mirror.whole).hexdigest())


def test_a_whole_download_is_kept(tmp_path, mirror, known):
    path = tmp_path / "new" / "folder ✓" / "mnist.npz"
    assert download_mnist(path, mirror + "whole") == path and path.read_bytes() == Mirror.whole
    path.write_bytes(b"old")
    assert download_mnist(str(path), mirror + "whole") == path and path.read_bytes() == Mirror.whole
    assert download_mnist(url=mirror + "whole") == tmp_path / "keras" / "datasets" / "mnist.npz"
    assert os.listdir(path.parent) == ["mnist.npz"]


# Python 3.13 warns of a refused socket
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["wrong", "split", "empty", "gone", "stalled", "refused",
                                  "nowhere", "no URL"])
def test_a_bad_download_leaves_everything_as_it_was(tmp_path, mirror, known, monkeypatch, kind):
    waits, urlopen = [], sources.urllib.request.urlopen

    def impatient(url, timeout):
        waits.append(timeout)
        return urlopen(url, timeout=0.3)

    monkeypatch.setattr(sources.urllib.request, "urlopen", impatient)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refusing = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        elsewhere = {"refused": refusing, "nowhere": "http://nowhere.invalid/", "no URL": "mnist"}
        url = elsewhere.get(kind, mirror + kind)
        for path in (written(tmp_path / "good" / "mnist.npz", b"good"),
                     tmp_path / "bare" / "mnist.npz"):
            assert url in str(refused(url, download_mnist, path, url))
    assert waits[0] <= 60
    assert os.listdir(tmp_path / "good") == ["mnist.npz"]
    assert (tmp_path / "good" / "mnist.npz").read_bytes() == b"good"
    assert not (tmp_path / "bare").exists() or not os.listdir(tmp_path / "bare")


# Files, whole or not at all

WRITER = """
import sys
from digitrec.data import atomic_write
print("ready", flush=True)
for i in range(10**9):
    with atomic_write(sys.argv[1]) as temporary, open(temporary, "wb") as file:
        for _ in range(64):
            file.write(bytes([i % 256]) * 2**16)
"""
LOADER = """
import hashlib, sys
from digitrec import data, sources
sources.MNIST_SHA256 = sys.argv[2]
print("ready", flush=True)
while True:
    sources.download_mnist(sys.argv[1], sys.argv[3])
"""


def killed(script, *args, after):
    "Run a script, and kill it so long after it says that it is ready."
    with subprocess.Popen([sys.executable, "-c", script, *map(str, args)],
                          stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        time.sleep(after)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL, "it ended by itself"


@POSIX
def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    path, moments = written(tmp_path / "file", b"\xff" * 2**22), random.Random(0)
    for _ in range(10):
        killed(WRITER, path, after=moments.uniform(0, 0.1))
        content = path.read_bytes()
        assert len(content) == 2**22 and len(set(content)) == 1
    assert len(os.listdir(tmp_path)) > 1, "no kill fell into the writing"


@POSIX
def test_a_killed_download_leaves_a_whole_file(tmp_path, mirror):
    path, moments = written(tmp_path / "mnist.npz", b"old"), random.Random(1)
    for _ in range(10):
        path.write_bytes(b"old")
        killed(LOADER, path, hashlib.sha256(Mirror.whole).hexdigest(), mirror + "slow",
               after=moments.uniform(0, 0.2))
        assert path.read_bytes() in (b"old", Mirror.whole)


def test_what_fails_while_writing_leaves_the_old_file(tmp_path):
    path = written(tmp_path / "file", b"old")
    for fault in (KeyboardInterrupt, MemoryError, ValueError):
        with pytest.raises(fault), atomic_write(path) as temporary:
            temporary.write_bytes(b"half")
            raise fault
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


# Submissions

ONE = Digits(IMAGES, name="three digits")


def test_a_submission_of_full_length_is_as_kaggle_takes_it(tmp_path):
    predicted = np.random.default_rng(3).integers(0, 10, 28_000)
    test = Digits(np.zeros((28_000, 28, 28), np.uint8))
    path = write_submission(tmp_path / "new" / "submission.csv", predicted, test)
    header, *lines = path.read_text().splitlines()
    assert header == "ImageId,Label"
    assert lines == [f"{i},{label}" for i, label in enumerate(predicted, 1)]
    assert path.read_bytes().endswith(b"\n") and os.listdir(path.parent) == ["submission.csv"]


@pytest.mark.parametrize("predicted", [
    [], [1, 2], [1, 2, 3, 4], [[1, 2, 3]], [1.0, 2.0, 3.0], [1, 2, 10], [-1, 2, 3], ["1", "2", "3"],
    [True, False, True], [None] * 3, 5,
    [[1], [2, 3], 4], np.array([1, 2, 256], np.uint16), np.eye(3), [float("nan")] * 3,
], ids=repr)
def test_a_wrong_submission_is_refused_and_the_old_one_kept(tmp_path, predicted):
    path = written(tmp_path / "submission.csv", b"old")
    refused("predictions for three digits", write_submission, path, predicted, ONE)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["submission.csv"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.int64, np.uint64, ">i2"])
def test_any_whole_numbers_make_a_submission(tmp_path, dtype):
    path = write_submission(str(tmp_path / "a b.csv"), np.array([9, 0, 5], dtype), ONE)
    assert path.read_text() == "ImageId,Label\n1,9\n2,0\n3,5\n"


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    file = written(tmp_path / "file", b"old")
    for path in (file / "submission.csv", tmp_path, tmp_path / ("x" * 300), Path("/"), Path(".")):
        refused(path, write_submission, path, LABELS, ONE)
    assert file.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


@NOT_AS_ROOT
def test_a_folder_that_may_not_be_written_is_refused(tmp_path):
    path = written(tmp_path / "shut" / "submission.csv", b"old")
    path.parent.chmod(0o500)
    for new in (path, path.parent / "new.csv", path.parent / "new" / "new.csv"):
        assert "ermission denied" in refused(new, write_submission, new, LABELS, ONE).found
    path.parent.chmod(0o700)
    assert path.read_bytes() == b"old" and os.listdir(path.parent) == ["submission.csv"]


FULL = """
import resource, sys
import numpy as np
from digitrec.data import Digits, write_submission
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    test = Digits(np.zeros((28_000, 28, 28), np.uint8))
    write_submission(sys.argv[1], np.zeros(28_000, int), test)
except ValueError as error:
    print(error)
"""


@POSIX
def test_a_full_disk_leaves_the_old_submission(tmp_path):
    path = written(tmp_path / "submission.csv", b"old")
    printed = subprocess.check_output([sys.executable, "-c", FULL, path], text=True)
    assert printed.startswith(f"{path}: found File too large")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["submission.csv"]


@POSIX
def test_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused("pipe", write_json, tmp_path / "pipe", {})
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 1


@POSIX
def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path, monkeypatch):
    sync = data._sync

    def refuse_folders(path, *flags):
        if path.is_dir():
            raise PermissionError
        sync(path, *flags)

    monkeypatch.setattr(data, "_sync", refuse_folders)
    write_json(tmp_path / "new.json", {"n": np.int64(3)})
    assert read_json(tmp_path / "new.json") == {"n": 3}
