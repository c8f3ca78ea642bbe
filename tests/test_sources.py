"""Sources: each is found where a user would have it; odd files are read, bad ones refused."""
import gzip
import io
import itertools
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from files import (
    IMAGES,
    LABELS,
    NOT_AS_ROOT,
    NUMBERS,
    PIXELS,
    attempt,
    frugal,
    idx,
    in_zip,
    npy,
    npz,
    refused,
    same,
    table,
    written,
    zipped,
)

from digitrec import sources
from digitrec.data import DataError
from digitrec.pictures import draw_photograph, read_picture
from digitrec.sources import load, locate, read_csv, read_digits, read_idx, read_npz, search_paths

TRAIN, TEST = table(), table(NUMBERS[:2, 1:], PIXELS)


@pytest.fixture(autouse=True)
def nothing_at_hand(monkeypatch, tmp_path):
    "No digits but those that a test puts somewhere, and no network."
    monkeypatch.delenv("DIGITREC_DATA", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(sources, "KAGGLE_FOLDERS",
                        (str(tmp_path / "mount"), str(tmp_path / "mounts" / "digits")))
    monkeypatch.setattr(sources, "download_mnist", lambda: pytest.fail("went to the network"))


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
    "zips": {"train.csv.zip": zipped({"train.csv": TRAIN}),
             "test.csv.zip": zipped({"test.csv": TEST})},
    "zips under their old names": {"train.csv": zipped({"train.csv": TRAIN}),
                                   "test.csv": zipped({"test.csv": TEST})},
    "mixed": {"train.csv.zip": zipped({"train.csv": TRAIN}), "test.csv": TEST},
    "bundle": {"digit-recognizer.zip": zipped({"sample_submission.csv": b"", "test.csv": TEST,
                                               "train.csv": TRAIN})},
    "inside": {"competition data/train.csv": TRAIN, "competition data/test.csv": TEST},
}


def idx_files(dash="-", end="", pack=bytes):
    arrays = {"train-images-idx3": IMAGES, "train-labels-idx1": LABELS,
              "t10k-images-idx3": IMAGES[:2],
              "t10k-labels-idx1": LABELS[:2]}
    return {f"{dash.join(name.rsplit('-', 1))}-ubyte{end}": pack(idx(array))
            for name, array in arrays.items()}


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
    assert len(lines) == 4
    assert set(lines) == {f"digitrec: 3 + 2 digits, Kaggle-format ({locate('kaggle').parent.name})"}


@pytest.mark.parametrize("files", MNIST)
def test_mnists_folder_is_read(tmp_path, capsys, monkeypatch, files):
    folder = put(tmp_path / "digits", MNIST[files])
    check(load(folder), True)
    monkeypatch.setenv("DIGITREC_DATA", str(folder))
    check(load(), True), check(load("mnist"), True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert set(lines) == {f"digitrec: 3 + 2 digits, MNIST ({locate('mnist').parent.name})"}


@pytest.mark.parametrize(("file", "files", "labelled"), [
    ("any name.zip", {"any name.zip": KAGGLE["bundle"]["digit-recognizer.zip"]}, False),
    ("train.csv", KAGGLE["plain"], False),
    ("my.npz", {"my.npz": zipped(npz())}, True), ("train-images-idx3-ubyte", MNIST["IDX"], True),
])
def test_a_file_is_a_source(tmp_path, file, files, labelled):
    check(load(put(tmp_path / "digits", files) / file), labelled)


@pytest.mark.parametrize("place",
                         [f"{folder}/writer_id_70k.npy"
                          for folder in ("digits", "digits/in", "mnist-extras")])
@pytest.mark.parametrize("files", ["npz", "IDX"])
def test_writers_are_found_beside_the_digits(tmp_path, files, place):
    put(tmp_path / "all", {f"digits/{name}": content for name, content in MNIST[files].items()})
    written(tmp_path / "all" / place, npy(np.array([7, 7, 8, 9, 9])))
    train, test = load(tmp_path / "all" / "digits")
    assert train.writers.tolist() == [7, 7, 8] and test.writers.tolist() == [9, 9]


@pytest.mark.parametrize("writers",
                         [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6], [1, 2, 3, -4, 5], [1.0] * 5, ["a"] * 5],
                         ids=str)
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
    more = "for more: load('mnist') or --data mnist, or set DIGITREC_DATA to a folder"
    assert capsys.readouterr().out == f"{line}; {more}\n"


@pytest.mark.parametrize("mount", [0, 1])
def test_kaggles_mounts_are_taken_on_kaggle(mount, capsys):
    put(Path(sources.KAGGLE_FOLDERS[mount]), KAGGLE["plain"])
    check(load()), check(load("kaggle"))
    assert capsys.readouterr().out.count("Kaggle-format") == 2


def test_an_empty_mount_is_no_reason_for_other_digits():
    Path(sources.KAGGLE_FOLDERS[0]).mkdir()
    refused(sources.KAGGLE_FOLDERS[0], load)


def test_keras_cache_is_taken_for_mnist(tmp_path, monkeypatch, capsys):
    put(tmp_path / "keras" / "datasets", MNIST["npz"])
    check(load("mnist"), True)
    assert capsys.readouterr().out == "digitrec: 3 + 2 digits, MNIST (datasets)\n"
    monkeypatch.setenv("DIGITREC_DATA", str(put(tmp_path / "tables", KAGGLE["plain"])))
    check(load("mnist"), True), check(load())


def test_what_was_told_comes_first(tmp_path, monkeypatch, capsys):
    put(Path(sources.KAGGLE_FOLDERS[0]), KAGGLE["plain"])
    put(tmp_path / "keras" / "datasets", MNIST["npz"])
    told = put(tmp_path / "told", KAGGLE["gz"] | MNIST["gz"])
    monkeypatch.setenv("DIGITREC_DATA", str(told))
    assert search_paths("kaggle")[0] == search_paths("mnist")[0] == told
    for source in ("auto", "kaggle", "mnist"):
        load(source)
    assert capsys.readouterr().out.count("(told)") == 3


@pytest.mark.parametrize("source", ["auto", "kaggle", "mnist"])
def test_a_missing_folder_is_never_replaced_by_another(tmp_path, monkeypatch, source):
    put(Path(sources.KAGGLE_FOLDERS[0]), KAGGLE["plain"])
    put(tmp_path / "keras" / "datasets", MNIST["npz"])
    monkeypatch.setenv("DIGITREC_DATA", str(tmp_path / "misspelt"))
    assert "no such" in refused("misspelt", load, source).found


@pytest.mark.parametrize("files", [{}, {"readme.txt": b"none"},
                                   {"a/b/train.csv": TRAIN, "a/b/test.csv": TEST}])
def test_a_folder_without_digits_is_refused_with_the_way_to_get_them(tmp_path, monkeypatch, files):
    (tmp_path / "bare").mkdir()
    bare = put(tmp_path / "bare", files)
    error = refused(bare, load, bare)
    assert "kaggle competitions download" in error.expected and "mnist.npz" in error.expected
    monkeypatch.setenv("DIGITREC_DATA", str(bare))
    refused(bare, load)
    error = refused("kaggle", load, "kaggle")
    assert str(bare) in error.found and "mount" in error.found
    assert "kaggle competitions download" in error.expected


@pytest.mark.parametrize(("files", "found"), [
    ({"train.csv": TRAIN}, "train.csv alone"), ({"train.csv": TEST, "test.csv": TEST}, "label"),
    ({"train.csv": TRAIN, "test.csv": TRAIN[:-99]}, ""),
    ({"train.csv": b"", "test.csv": TEST}, "lacks"),
    ({"digit-recognizer.zip": zipped({"train.csv": TRAIN, "a": b""})}, "entries"),
    *((dict(three), "3 of") for three in itertools.combinations(MNIST["gz"].items(), 3)
      if "train-images" in three[0][0]),
    (MNIST["IDX"] | {"t10k-labels-idx1-ubyte": idx(LABELS)}, "(3,)"),
    (MNIST["IDX"] | {"t10k-labels-idx1-ubyte": idx(IMAGES)}, "magic"),
])
def test_half_a_source_is_refused(tmp_path, files, found):
    put(tmp_path / "half", files)
    with pytest.raises(DataError) as caught:
        load(tmp_path / "half")
    assert found in caught.value.found and "half" in caught.value.file


def test_mnist_is_downloaded_where_it_is_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "download_mnist",
                        lambda: written(sources._keras_cache(), zipped(npz())))
    check(load("mnist"), True)
    assert locate("mnist") == tmp_path / "keras" / "datasets" / "mnist.npz"


# Reading files

GOOD = table()
HEADER, *LINES = GOOD.split(b"\r\n")
COLUMNS = np.array(["label", *PIXELS])


# Odd, but good

ORDER = np.random.default_rng(1).permutation(785)


@pytest.mark.parametrize("content", {
    "LF": table(end="\n"), "no final newline": GOOD.rstrip(), "BOM": b"\xef\xbb\xbf" + GOOD,
    "blank lines": GOOD.replace(b"\r\n", b"\r\n\r\n\n"), "blanks": GOOD.replace(b",", b" , "),
    "signs": GOOD.replace(b",7,", b",+7,"),
    "quoted header": table(columns=[f'"{name}"' for name in COLUMNS]),
    "shuffled": table(NUMBERS[:, ORDER], COLUMNS[ORDER]),
    "label last": table(np.roll(NUMBERS, -1, 1), np.roll(COLUMNS, -1)),
    "zip from a Mac": zipped({"train.csv": GOOD, "__MACOSX/._train.csv": b"\0"}),
    "gzip": gzip.compress(GOOD),
    "zip in a folder": zipped({"inside/": b"", "inside/train.csv": GOOD}),
    "zip": in_zip(GOOD, "any.txt"),
    "gzip in two": gzip.compress(GOOD[:5000]) + gzip.compress(GOOD[5000:]),
}.items(), ids=lambda item: item[0])
def test_an_odd_table_is_read(tmp_path, content):
    path = written(tmp_path / "train.csv", content[1])
    same(read_csv(path)), same(read_digits(path)), same(read_csv(str(path)))


@pytest.mark.parametrize("name", ["Zahlen für Übung ✓", "a  b c", "数字.csv", "-", "%s {0}"])
def test_a_path_may_be_called_anything(tmp_path, name):
    path = written(tmp_path / name / name, GOOD)
    same(read_csv(path)), same(read_digits(path))
    refused(path, read_csv, written(path, GOOD[:-1500]))


@pytest.mark.parametrize("pack", [bytes, gzip.compress, in_zip], ids=["plain", "gzip", "zip"])
@pytest.mark.parametrize(("content", "labels"), [
    (GOOD, LABELS), (table(NUMBERS[:, 1:], PIXELS), None), (idx(IMAGES), None)],
    ids=["table", "no labels", "IDX"])
def test_what_a_file_holds_matters_and_not_its_name(tmp_path, content, labels, pack):
    same(read_digits(written(tmp_path / "some.dat", pack(content))), labels=labels)


def test_a_photograph_is_read_like_any_file(tmp_path):
    path = draw_photograph(tmp_path / "five.jpg")
    same(read_digits(path), read_picture(path).images, None)


def test_arrays_of_any_byte_order_and_layout_are_read(tmp_path):
    odd = {"x_train": np.asfortranarray(IMAGES), "y_train": LABELS.astype(">i4"),
           "y_test": LABELS[:2].astype(np.uint8)}
    entries = npz(**{key: npy(array) for key, array in odd.items()})
    train, test = read_npz(written(tmp_path / "mnist.npz", zipped(entries)))
    same(train), same(test, IMAGES[:2], LABELS[:2])


# Bad tables

def with_cell(cell, column=6):
    numbers = NUMBERS.astype(object)
    numbers[1, column] = cell
    return table(numbers)


CELL = "line 3, column 'pixel5'"
WRONG_CELLS = ["256", "-1", "-0", "1.5", "nan", "ink", "1e2", "0x1", "1_0", "++1", '"7"', "7\0",
               "7;7", "9" * 20]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, in_zip], ids=["plain", "gzip", "zip"])
@pytest.mark.parametrize(("content", "place", "found", "expected"), [
    *((with_cell(cell), CELL, repr(cell), "a whole number from 0 to 255") for cell in WRONG_CELLS),
    *((with_cell(cell), CELL, "an empty cell", "a whole number from 0 to 255")
      for cell in ["", " "]),
    (with_cell("7\x1c,300"), "line 3", "", "from 0 to 255"),
    (with_cell("10", 0), "line 3, column 'label'", "10", "a label from 0 to 9"),
    (with_cell("10", 0).replace(b"\r\n", b"\r\n\n"), "line 5, column 'label'", "10",
     "a label from 0 to 9"),
    (with_cell("-1", 0), "line 3, column 'label'", "'-1'", "a whole number"),
    (HEADER, "", "no digits", "a line for each"),
    (HEADER + b"\r\n\n\r\n", "", "no digits", "a line for each"),
    (b"", "line 1", "lacks 'pixel0' and 783 more", "label"),
    (b"\r\n".join(LINES), "line 1", "lacks 'pixel0'", "label"),
    (GOOD.replace(b"pixel7,", b""), "line 1", "lacks 'pixel7'", "once each"),
    (GOOD.replace(b"pixel7,", b"pixel8,"), "line 1", "lacks 'pixel7'", "once each"),
    (GOOD.replace(b"pixel7,", b"pixel7,pixel7,"), "line 1", "repeats 'pixel7'", "once each"),
    (GOOD.replace(b"label", b"label,label"), "line 1", "repeats 'label'", "once each"),
    (GOOD.replace(b"label", b"digit"), "line 1", "unknown 'digit'", "label"),
    (GOOD.replace(b"\r\n", b"\r"), "line 1", "lacks", "once each"),
    (GOOD.decode().encode("utf-16"), "line 1", "lacks", "label"),
    (b"\n".join([HEADER, LINES[0], LINES[1] + b",0"]), "line 3", "786 cells", "785"),
    (b"\n".join([HEADER, LINES[0], LINES[1].rpartition(b",")[0], LINES[2]]), "line 3", "784 cells",
     "785"),
    (b"\n".join([HEADER, LINES[0].rpartition(b",")[0], LINES[1]]), "line 2", "784 cells", "785"),
    (b"\n".join([HEADER, *(line.rpartition(b",")[0] for line in LINES[:3])]), "line", "784 cells",
     "785"),
    (b"\n".join([HEADER, LINES[0], LINES[1] + b"\r\r", LINES[2]]), "line 3", "", ""),
    (b"\n".join([HEADER, LINES[0].ljust(8192) + LINES[1]]), "line 2", "", ""),
    (HEADER.ljust(32768) + LINES[0], "line 1", "", ""),
])
def test_a_bad_table_is_refused(tmp_path, content, place, found, expected, pack):
    path = written(tmp_path / "train.csv", pack(content))
    for read in (read_csv, read_digits):
        error = refused(path, read, path)
        assert place in error.place and found in error.found and expected in error.expected


# Bad archives

def encrypted():
    "A zip that says it is encrypted."
    archive = bytearray(in_zip(GOOD))
    archive[6] = archive[archive.index(b"PK\1\2") + 8] = 1
    return bytes(archive)


def far():
    "A zip whose directory says that the entry lies 16 exabytes further on."
    archive = in_zip(GOOD)
    directory, end = archive.index(b"PK\1\2"), archive.index(b"PK\5\6")
    entry, more = bytearray(archive[directory:end]), struct.pack("<HHQ", 1, 8, 2**64 - 1)
    entry[42:46], entry[30:32] = b"\xff" * 4, struct.pack("<H", len(more))
    size = struct.pack("<I", len(entry) + len(more))
    return archive[:directory] + entry + more + archive[end:end + 12] + size + archive[end + 16:]


def changed(archive, offset, byte):
    return archive[:offset] + bytes([byte]) + archive[offset + 1:]


PACKED, LZMA = in_zip(GOOD), in_zip(GOOD, method=zipfile.ZIP_LZMA)


@pytest.mark.parametrize(("content", "found"), {
    "two tables": (zipped({"a.csv": GOOD, "b.csv": GOOD}), "entries ['a.csv', 'b.csv']"),
    "one name twice": (zipped({"a/train.csv": GOOD, "b/train.csv": GOOD}), "entries"),
    "only a folder": (zipped({"inside/": b""}), "entries []"),
    "encrypted": (encrypted(), "encrypted"),
    "far": (far(), ""),
    "zip without its end": (PACKED[:-30], "damaged"), "half a zip": (PACKED[:900], "damaged"),
    "unknown method": (changed(PACKED, PACKED.index(b"PK\1\2") + 10, 99), "damaged"),
    "gzip without its end": (gzip.compress(GOOD)[:-9], "damaged"),
    "half a gzip": (gzip.compress(GOOD)[:900], "damaged"),
    "more after a gzip": (gzip.compress(GOOD) + b"more", "damaged"),
    "wrong lzma": (changed(LZMA, 50, 255), "damaged"),
    "wrong name": (in_zip(GOOD, "数字.csv").replace("数".encode(), b"\xff\xff\xff"), "damaged"),
}.values(), ids=lambda _: "")
def test_a_bad_archive_is_refused(tmp_path, content, found):
    path = written(tmp_path / "digits.zip", content)
    for read in (read_csv, read_digits):
        error = refused(path, read, path)
        assert found in error.found and "''" not in error.expected


def endless(start, again, times):
    "A gzip and a zip of a start and of many equal parts: a few MB that unpack to many GB."
    def deflated(part):
        packer = zlib.compressobj(1, zlib.DEFLATED, -15)
        return packer.compress(part) + packer.flush(zlib.Z_FULL_FLUSH)
    body = deflated(start) + deflated(again) * times + b"\3\0"
    name, sizes = b"train.csv", struct.pack("<III", 0, len(body), 0xFFFFFFF0)
    fields = struct.pack("<HHHHH", 20, 0, 8, 0, 0x21) + sizes + struct.pack("<HH", len(name), 0)
    entry = b"PK\1\2" + struct.pack("<H", 20) + fields + bytes(14) + name
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), 30 + len(name) + len(body), 0)
    packed = gzip.compress(start) + gzip.compress(again, 1) * times
    return packed, b"PK\3\4" + fields + name + body + entry + end


ZEROS = bytes(2**26)
DIGIT, WIDE = b",".join([b"0"] * 785) + b"\n", b",".join([b"0"] * 4096) + b"\n"


@pytest.mark.parametrize("start", {
    "nothing": b"", "header": HEADER + b"\n", "table": HEADER + b"\n" + LINES[0] + b"\n",
    "IDX": idx(IMAGES),
    "npy": npy(np.arange(5)), "TIFF": b"II*\0\xf0\xff\xff\xff",
}.items(), ids=lambda item: item[0])
def test_an_archive_of_gigabytes_of_zeros_is_refused(tmp_path, start):
    for content in endless(start[1], ZEROS, 60):
        path = written(tmp_path / "train-images-idx3-ubyte", content)
        for read in (read_csv, read_idx, read_npz, read_digits, read_picture):
            with frugal(150):
                refused(path, read, path)
        if path.read_bytes().startswith(b"\x1f"):
            written(tmp_path / "mnist.npz", zipped(npz()))
            path.rename(tmp_path / "writer_id_70k.npy")
            with frugal():
                refused("writer_id_70k.npy", load, tmp_path / "mnist.npz")


@pytest.mark.parametrize("line", [DIGIT, b"\n", b"\r\n", WIDE],
                         ids=["digits", "LF", "CRLF", "wide lines"])
def test_an_archive_of_endless_lines_is_refused(tmp_path, monkeypatch, line):
    monkeypatch.setattr(sources, "MAX_DIGITS", 10_000)
    for content in endless(HEADER + b"\n", line * (2**24 // len(line)), 240):
        path = written(tmp_path / "train.csv", content)
        with frugal(25):
            refused(path, read_csv, path)


def test_as_many_digits_as_allowed_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_DIGITS", 3)
    same(read_csv(written(tmp_path / "train.csv", GOOD)))
    assert "3 digits" in refused("train.csv", read_csv,
                                 written(tmp_path / "train.csv", GOOD + LINES[0])).expected
    assert "3" in refused("images", read_idx,
                          written(tmp_path / "images", idx(IMAGES[[0, 0, 0, 0]]))).expected


# Bad IDX and npz

@pytest.mark.parametrize(("content", "place", "found"), [
    (b"", "first 4 bytes", "none"), (idx(LABELS), "first 4 bytes", "00000801"),
    (b"\0\0\x0d\3" + idx(IMAGES)[4:], "first 4", "00000d03"),
    (GOOD, "first 4 bytes", "6c616265"), (idx(IMAGES)[:12], "header", "sizes ()"),
    (idx(IMAGES[:0]), "header", "(0, 28, 28)"),
    (idx(IMAGES[:, 1:]), "header", "(3, 27, 28)"), (idx(IMAGES)[:-1], "after", "2,351 bytes"),
    (idx(IMAGES) + b"\0", "after", "more"),
    (idx(IMAGES)[:4] + b"\xff" * 4 + idx(IMAGES)[8:], "header", "4294967295"),
])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, in_zip], ids=["plain", "gzip", "zip"])
def test_bad_idx_is_refused(tmp_path, content, place, found, pack):
    path = written(tmp_path / "train-images-idx3-ubyte", pack(content))
    error = refused(path, read_idx, path)
    assert place in error.place and found in error.found


@pytest.mark.parametrize(("labels", "found"), [
    (LABELS[:2], "(2,)"), (np.append(LABELS, 1), "(4,)"), (np.array([1, 10, 2]), "10")],
    ids=["fewer", "more", "ten"])
def test_labels_that_do_not_fit_their_images_are_refused(tmp_path, labels, found):
    images = written(tmp_path / "train-images", idx(IMAGES))
    assert found in refused("train-labels", read_idx, images,
                            written(tmp_path / "train-labels", idx(labels))).found
    for key in ("y_train", "y_test"):
        entries = npz(x_test=npy(IMAGES), y_test=npy(LABELS)) | {f"{key}.npy": npy(labels)}
        assert found in refused("mnist.npz", read_npz,
                                written(tmp_path / "mnist.npz", zipped(entries))).found


@pytest.mark.parametrize("source, missing, files", [
    ("mnist", "train-labels-idx1-ubyte", idx_files()),
    ("kaggle", "test.csv", {"train.csv": TRAIN, "test.csv": TEST})])
def test_files_of_another_folder_do_not_fill_a_gap(tmp_path, source, missing, files):
    put(tmp_path / "digits" / "others", files)
    folder = put(tmp_path / "digits", {name: files[name] for name in files.keys() - {missing}})
    with pytest.raises(DataError, match="3 of MNIST's IDX files|train.csv alone"):
        load(folder)


def test_swapped_idx_files_are_refused(tmp_path):
    images = written(tmp_path / "train-images", idx(IMAGES))
    labels = written(tmp_path / "train-labels", idx(LABELS))
    assert "00000801" in refused(labels, read_idx, labels, images).found
    assert "00000803" in refused(images, read_idx, images, images).found


def headed(header):
    "An .npy with such a header."
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + IMAGES.tobytes()


def described(descr="'|u1'", shape="(3, 28, 28)", more=""):
    fields = f"'descr': {descr}, 'fortran_order': False, 'shape': {shape}{more}"
    return headed(f"{{{fields}}}\n".encode())


@pytest.mark.parametrize("content", [
    b"", b"text", npy(IMAGES)[:9], npy(IMAGES)[:-1], npy(IMAGES) + b"\0", npy(IMAGES / 255),
    npy(IMAGES.astype(np.uint16)), npy(IMAGES > 0),
    npy(IMAGES[0]), npy(IMAGES[:0]), npy(IMAGES.reshape(3, 784)), npy(IMAGES.astype("S3")),
    headed(b""),
    headed(b"{}"), headed(b"\0"),
    described(shape="(1000001, 28, 28)"), described(shape="(1000000, 28, 28)"),
    described(shape="(-3, 28, 28)"),
    described(shape=f"({10**40}, 28, 28)"),
    described(shape="3"), described(shape="(3.0, 28, 28)"), described("[]"), described("()"),
    described("',,'"),
    described("None"),
    described("'|a1'"), described("[('a', '|u1')]"), described("('|u1', (2, 2))"),
    described("'M8'"),
    described(more=", b'x': 1"),
    headed(b"{[]: 1}"), headed(b"-" * 9000 + b"1"), headed(b"(" * 9000), headed(b"[" * 60000),
    described(shape="(3L, 28, 28)", more=", 'x': 1"),
], ids=lambda content: repr(content[10:70]))
def test_a_bad_array_is_refused(tmp_path, content):
    path = written(tmp_path / "mnist.npz", zipped(npz(x_train=content)))
    with frugal():
        assert refused(path, read_npz, path).place in ("x_train", "x_train, images")
    written(tmp_path / "mnist.npz", zipped(npz()))
    path = written(tmp_path / "writer_id_70k.npy", content)
    refused(path, load, tmp_path)


def test_an_array_of_python_2_is_read_or_refused_without_a_warning(tmp_path):
    path = written(tmp_path / "mnist.npz", zipped(npz(x_train=described(shape="(3L, 28L, 28L)"))))
    if parts := attempt(path, read_npz, path):
        same(parts[0])


def test_an_endless_header_is_not_read(tmp_path):
    bomb = b"\x93NUMPY\2\0\xf0\xff\xff\xff" + bytes(2**28)
    for content in (zipped(npz(x_train=bomb)), zipped({"x_train.npy": bomb})):
        with frugal():
            refused("mnist.npz", read_npz, written(tmp_path / "mnist.npz", content))


def test_wrong_entry_names_are_refused(tmp_path):
    for name in ("x_train", "X_train.npy", "x_train.npy.txt"):
        entries = {name: npy(IMAGES), **npz()}
        del entries["x_train.npy"]
        error = refused("mnist.npz", read_npz, written(tmp_path / "mnist.npz", zipped(entries)))
        assert "entries" in error.found and "'x_train.npy'" in error.expected


class Marker:
    "Whoever unpickles this makes a file."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("shape", [(1,), (3,), (3, 1, 1), (3, 28, 28)])
@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_a_pickle_never_runs(tmp_path, key, shape):
    marker, objects = tmp_path / "it ran", np.empty(shape, object)
    objects.fill(Marker(marker))
    bomb = npy(objects)
    np.load(io.BytesIO(bomb), allow_pickle=True)
    assert marker.exists(), "the bomb is not armed"
    marker.unlink()
    refused("mnist.npz", load, written(tmp_path / "mnist.npz", zipped(npz(**{key: bomb}))))
    for start in (0, bomb.index(b"\n") + 1):  # with its header, and the bare pickle
        written(tmp_path / "mnist.npz", zipped(npz()))
        refused("writer_id_70k.npy", load,
                written(tmp_path / "writer_id_70k.npy", bomb[start:]).parent)
        refused("mnist.npz", load, written(tmp_path / "mnist.npz", bomb[start:]))
    assert not marker.exists()


# Files that cannot be opened

@pytest.mark.parametrize("read", [read_csv, read_idx, read_npz, read_digits, read_picture, load])
def test_what_cannot_be_opened_is_refused(tmp_path, read):
    assert "no such file" in refused("train.csv", read, tmp_path / "nowhere" / "train.csv").found
    for path in (written(tmp_path / "file", GOOD) / "train.csv", tmp_path / ("x" * 300),
                 tmp_path / "with\0null"):
        refused(path, read, path)
    if read is not load:
        assert "directory" in refused(tmp_path, read, tmp_path).found


@NOT_AS_ROOT
@pytest.mark.parametrize("read", [read_csv, read_idx, read_npz, read_digits, read_picture, load])
def test_what_may_not_be_read_is_refused(tmp_path, read):
    path = written(tmp_path / "shut" / "train.csv", GOOD)
    written(tmp_path / "shut" / "test.csv", GOOD)
    for shut in (path, path.parent):
        shut.chmod(0)
        found = refused(path, read, path).found
        assert "ermission denied" in found or read is load
        if read is load and shut == path.parent:
            refused(shut, read, shut)
        shut.chmod(0o700)


# The door

def test_reading_needs_no_heavy_imports(tmp_path):
    path = written(tmp_path / "train.csv", GOOD)
    heavy = ["keras", "tensorflow", "jax", "torch", "sklearn", "scipy", "pandas", "matplotlib",
             "PIL"]
    script = ("import sys, digitrec.sources; digitrec.sources.read_csv(sys.argv[1]);"
              f"print([name for name in {heavy} if name in sys.modules])")
    assert subprocess.check_output([sys.executable, "-c", script, path], text=True).strip() == "[]"


@pytest.mark.parametrize("name", ["train.csv", "test.csv"])
def test_a_zip_of_one_table_is_not_taken_twice(tmp_path, name):
    (tmp_path / "my.zip").write_bytes(zipped({name: TRAIN}))
    assert "one entry called" in refused("my.zip", load, tmp_path / "my.zip").expected


@pytest.mark.parametrize("name", ["digits", "mnist", "kaggle"])
def test_a_named_folder_comes_before_a_source_of_its_name(tmp_path, monkeypatch, name):
    put(tmp_path / name, KAGGLE["plain"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIGITREC_DATA", name)
    check(load(), False)
