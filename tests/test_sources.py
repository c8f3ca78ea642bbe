"""Sources: each is found where a user would have it, and nothing is guessed."""
import gzip
import itertools

import numpy as np
import pytest
from files import IMAGES, LABELS, NUMBERS, PIXELS, idx, npy, npz, refused, same, table, written, zipped

from digitrec import data
from digitrec.data import (
    DataError,
    load,
    locate,
    places,
)

TRAIN, TEST = table(), table(NUMBERS[:2, 1:], PIXELS)


@pytest.fixture(autouse=True)
def nothing_at_hand(monkeypatch, tmp_path):
    "No digits but those that a test puts somewhere, and no network."
    monkeypatch.delenv("DIGITREC_DATA", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(data, "KAGGLE_FOLDERS", (str(tmp_path / "mount"), str(tmp_path / "mounts" / "digits")))
    monkeypatch.setattr(data, "download_mnist", lambda: pytest.fail("went to the network"))


def put(folder, files):
    for name, content in files.items():
        written(folder / name, content)
    return folder


def check(pair, labelled=False):
    "Both parts are the digits that were put there."
    same(pair[0]), same(pair[1], IMAGES[:2], LABELS[:2] if labelled else None)


# Kaggle's table and MNIST's files, in a folder

KAGGLE = {
    "plain": {"train.csv": TRAIN, "test.csv": TEST},
    "gz": {"train.csv.gz": gzip.compress(TRAIN), "test.csv.gz": gzip.compress(TEST)},
    "zips": {"train.csv.zip": zipped({"train.csv": TRAIN}), "test.csv.zip": zipped({"test.csv": TEST})},
    "zips under their old names": {"train.csv": zipped({"train.csv": TRAIN}), "test.csv": zipped({"test.csv": TEST})},
    "mixed": {"train.csv.zip": zipped({"train.csv": TRAIN}), "test.csv": TEST},
    "bundle": {"digit-recognizer.zip": zipped({"sample_submission.csv": b"", "test.csv": TEST, "train.csv": TRAIN})},
    "inside": {"competition data/train.csv": TRAIN, "competition data/test.csv": TEST},
}


def idx_files(dash="-", end="", pack=bytes):
    arrays = {"train-images-idx3": IMAGES, "train-labels-idx1": LABELS, "t10k-images-idx3": IMAGES[:2],
              "t10k-labels-idx1": LABELS[:2]}
    return {f"{dash.join(name.rsplit('-', 1))}-ubyte{end}": pack(idx(array)) for name, array in arrays.items()}


MNIST = {
    "npz": {"mnist.npz": zipped(npz())}, "IDX": idx_files(), "IDX with dots": idx_files("."),
    "gz": idx_files("-", ".gz", gzip.compress),
    "gz with dots": idx_files(".", ".gz", gzip.compress),
    "zip": idx_files("-", ".zip", lambda content: zipped({"any": content})),
    "inside": {f"raw/{name}": content for name, content in idx_files().items()},
}


@pytest.mark.parametrize("name", ["digits", "Ziffern für Übung ✓"])
@pytest.mark.parametrize("files", KAGGLE)
def test_kaggles_folder_is_read(tmp_path, capsys, monkeypatch, files, name):
    folder = put(tmp_path / name, KAGGLE[files])
    check(load(folder)), check(load(str(folder)))
    monkeypatch.setenv("DIGITREC_DATA", str(folder))
    check(load()), check(load("kaggle"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and set(lines) == {f"digitrec: 3 + 2 digits, Kaggle-format ({locate('kaggle').parent.name})"}


@pytest.mark.parametrize("files", MNIST)
def test_mnists_folder_is_read(tmp_path, capsys, monkeypatch, files):
    folder = put(tmp_path / "digits", MNIST[files])
    check(load(folder), True)
    monkeypatch.setenv("DIGITREC_DATA", str(folder))
    check(load(), True), check(load("mnist"), True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and set(lines) == {f"digitrec: 3 + 2 digits, MNIST ({locate('mnist').parent.name})"}


@pytest.mark.parametrize(("file", "files", "labelled"), [
    ("any name.zip", {"any name.zip": KAGGLE["bundle"]["digit-recognizer.zip"]}, False),
    ("train.csv", KAGGLE["plain"], False),
    ("my.npz", {"my.npz": zipped(npz())}, True), ("train-images-idx3-ubyte", MNIST["IDX"], True),
])
def test_a_file_is_a_source(tmp_path, file, files, labelled):
    check(load(put(tmp_path / "digits", files) / file), labelled)


@pytest.mark.parametrize("place", [f"{folder}/writer_id_70k.npy" for folder in ("digits", "digits/in", "mnist-extras")])
@pytest.mark.parametrize("files", ["npz", "IDX"])
def test_writers_are_found_beside_the_digits(tmp_path, files, place):
    put(tmp_path / "all", {f"digits/{name}": content for name, content in MNIST[files].items()})
    written(tmp_path / "all" / place, npy(np.array([7, 7, 8, 9, 9])))
    train, test = load(tmp_path / "all" / "digits")
    assert train.writers.tolist() == [7, 7, 8] and test.writers.tolist() == [9, 9]


@pytest.mark.parametrize("writers", [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6], [1, 2, 3, -4, 5], [1.0] * 5, ["a"] * 5], ids=str)
def test_writers_that_do_not_fit_are_refused(tmp_path, writers):
    put(tmp_path, {**MNIST["npz"], "writer_id_70k.npy": npy(np.array(writers))})
    refused("writer_id_70k.npy", load, tmp_path)


def test_several_sources_may_lie_side_by_side(tmp_path, monkeypatch):
    put(tmp_path / "all" / "a", MNIST["npz"]), put(tmp_path / "all" / "b", KAGGLE["plain"])
    monkeypatch.setenv("DIGITREC_DATA", str(tmp_path / "all"))
    check(load()), check(load("kaggle")), check(load("mnist"), True)


# Named sources

def test_without_a_source_the_embedded_digits_are_taken(capsys):
    train, test = load()
    assert (len(train), len(test)) == (898, 899)
    line = "digitrec: 898 + 899 digits, embedded (inside scikit-learn)"
    assert capsys.readouterr().out == f"{line}; for more: load('mnist'), or set DIGITREC_DATA to a folder\n"


@pytest.mark.parametrize("mount", [0, 1])
def test_kaggles_mounts_are_taken_on_kaggle(mount, capsys):
    put(data.Path(data.KAGGLE_FOLDERS[mount]), KAGGLE["plain"])
    check(load()), check(load("kaggle"))
    assert capsys.readouterr().out.count("Kaggle-format") == 2


def test_an_empty_mount_is_no_reason_for_other_digits():
    data.Path(data.KAGGLE_FOLDERS[0]).mkdir()
    refused(data.KAGGLE_FOLDERS[0], load)


def test_keras_cache_is_taken_for_mnist(tmp_path, monkeypatch, capsys):
    put(tmp_path / "keras" / "datasets", MNIST["npz"])
    check(load("mnist"), True)
    assert capsys.readouterr().out == "digitrec: 3 + 2 digits, MNIST (datasets)\n"
    monkeypatch.setenv("DIGITREC_DATA", str(put(tmp_path / "tables", KAGGLE["plain"])))
    check(load("mnist"), True), check(load())


def test_what_was_told_comes_first(tmp_path, monkeypatch, capsys):
    put(data.Path(data.KAGGLE_FOLDERS[0]), KAGGLE["plain"]), put(tmp_path / "keras" / "datasets", MNIST["npz"])
    told = put(tmp_path / "told", KAGGLE["gz"] | MNIST["gz"])
    monkeypatch.setenv("DIGITREC_DATA", str(told))
    assert places("kaggle")[0] == places("mnist")[0] == told
    for source in ("auto", "kaggle", "mnist"):
        load(source)
    assert capsys.readouterr().out.count("(told)") == 3


@pytest.mark.parametrize("source", ["auto", "kaggle", "mnist"])
def test_a_missing_folder_is_never_replaced_by_another(tmp_path, monkeypatch, source):
    put(data.Path(data.KAGGLE_FOLDERS[0]), KAGGLE["plain"]), put(tmp_path / "keras" / "datasets", MNIST["npz"])
    monkeypatch.setenv("DIGITREC_DATA", str(tmp_path / "misspelt"))
    assert "no such" in refused("misspelt", load, source).found


@pytest.mark.parametrize("files", [{}, {"readme.txt": b"none"}, {"a/b/train.csv": TRAIN, "a/b/test.csv": TEST}])
def test_a_folder_without_digits_is_refused_with_the_way_to_get_them(tmp_path, monkeypatch, files):
    (tmp_path / "bare").mkdir()
    bare = put(tmp_path / "bare", files)
    error = refused(bare, load, bare)
    assert "kaggle competitions download" in error.expected and "mnist.npz" in error.expected
    monkeypatch.setenv("DIGITREC_DATA", str(bare))
    refused(bare, load)
    error = refused("kaggle", load, "kaggle")
    assert str(bare) in error.found and "mount" in error.found and "kaggle competitions download" in error.expected


@pytest.mark.parametrize(("files", "found"), [
    ({"train.csv": TRAIN}, "train.csv alone"), ({"train.csv": TEST, "test.csv": TEST}, "label"),
    ({"train.csv": TRAIN, "test.csv": TRAIN[:-99]}, ""),
    ({"train.csv": b"", "test.csv": TEST}, "lacks"),
    ({"digit-recognizer.zip": zipped({"train.csv": TRAIN, "a": b""})}, "entries"),
    *((dict(some), "3 of") for some in itertools.combinations(MNIST["gz"].items(), 3) if "train-images" in some[0][0]),
    (MNIST["IDX"] | {"t10k-labels-idx1-ubyte": idx(LABELS)}, "(3,)"),
    (MNIST["IDX"] | {"t10k-labels-idx1-ubyte": idx(IMAGES)}, "magic"),
])
def test_half_a_source_is_refused(tmp_path, files, found):
    put(tmp_path / "half", files)
    with pytest.raises(DataError) as caught:
        load(tmp_path / "half")
    assert found in caught.value.found and "half" in caught.value.file


def test_mnist_is_downloaded_where_it_is_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "download_mnist", lambda: written(data._keras_cache(), zipped(npz())))
    check(load("mnist"), True)
    assert locate("mnist") == tmp_path / "keras" / "datasets" / "mnist.npz"
