"""Good files with faults put in by chance: each is read exactly as it stands, or refused."""
import csv
import gzip
import io
import re
import struct
import zipfile

import numpy as np
import pytest
from files import (
    IMAGES,
    LABELS,
    NUMBERS,
    PIXELS,
    attempt,
    idx,
    in_zip,
    many,
    mutated,
    npy,
    npz,
    refused,
    same,
    table,
    written,
    zipped,
)
from hypothesis import given, settings

from digitrec.data import DataError
from digitrec.sources import load, read_csv, read_idx, read_npz

GOOD = table()


def slow_read(content):
    "A table's images and labels, read cell by cell; None where it is no table of digits."
    header, *lines = content.split(b"\n")
    header = header.decode("utf-8-sig", "replace").strip()
    names = [name.strip().strip('"') for name in header.split(",")]
    lines = [line.removesuffix(b"\r").decode("latin-1") for line in lines]
    if "\r" in "".join(lines) or {*names} - {"label"} != {*PIXELS} or len({*names}) < len(names):
        return None
    lines = csv.reader([line for line in lines if line], quoting=csv.QUOTE_NONE)
    rows = [[cell.strip() for cell in line] for line in lines]
    if {len(row) for row in rows} != {len(names)}:
        return None
    cells = [cell for row in rows for cell in row]
    if not all(re.fullmatch(r"\+?[0-9]+", cell) and int(cell) < 256 for cell in cells):
        return None
    columns = dict(zip(names, zip(*[map(int, row) for row in rows], strict=True), strict=True))
    images = np.column_stack([columns[pixel] for pixel in PIXELS]).reshape(-1, 28, 28)
    labels = columns.get("label")
    return None if labels and max(labels) > 9 else (images, labels)


@given(mutated(GOOD) | mutated(table(end="\n")) | mutated(table(NUMBERS[:, 1:], PIXELS)))
@settings(many, max_examples=600)
def test_a_mutated_table_is_read_as_a_slow_reader_reads_it(tmp_path, content):
    path = written(tmp_path / "train.csv", content)
    expected = slow_read(content)
    if expected is None:
        refused(path, read_csv, path)
    else:
        same(read_csv(path), *expected)


@pytest.mark.parametrize("content", {
    "gzip": gzip.compress(GOOD), "zip": in_zip(GOOD),
    "stored": in_zip(GOOD, method=zipfile.ZIP_STORED),
    "bzip2": in_zip(GOOD, method=zipfile.ZIP_BZIP2), "lzma": in_zip(GOOD, method=zipfile.ZIP_LZMA),
    "named in UTF-8": in_zip(GOOD, "数字/数字.csv"),
}.items(), ids=lambda item: item[0])
def test_a_mutated_archive_holds_the_same_table_or_is_refused(tmp_path, content):
    @many
    @given(mutated(content[1]))
    def check(content):
        path = written(tmp_path / "train", content)
        if digits := attempt(path, read_csv, path):
            same(digits)
    check()


@many
@given(mutated(idx(IMAGES)), mutated(idx(LABELS)))
def test_mutated_idx_is_read_to_the_byte_or_refused(tmp_path, images, labels):
    for pair in [(images, idx(LABELS)), (idx(IMAGES), labels), (images, labels)]:
        paths = [written(tmp_path / name, content)
                 for name, content in zip(["images", "labels"], pair, strict=True)]
        pixels, said = np.frombuffer(pair[0][16:], np.uint8), np.frombuffer(pair[1][8:], np.uint8)
        heads = struct.pack(">4I", 0x803, len(said), 28, 28), struct.pack(">2I", 0x801, len(said))
        good = (pair[0][:16], pair[1][:8]) == heads and len(pixels) == 784 * len(said) > 0
        if good and said.max() < 10:
            same(read_idx(*paths), pixels.reshape(-1, 28, 28), said)
        else:
            with pytest.raises(DataError, match="images|labels"):
                read_idx(*paths)


@many
@given(mutated(gzip.compress(idx(IMAGES))) | mutated(in_zip(idx(IMAGES))))
def test_mutated_packed_idx_holds_the_same_digits_or_is_refused(tmp_path, content):
    path = written(tmp_path / "images", content)
    if digits := attempt(path, read_idx, path):
        same(digits, labels=None)


@many
@given(mutated(zipped(npz(), zipfile.ZIP_STORED)) | mutated(zipped(npz())))
def test_a_mutated_npz_holds_the_same_digits_or_is_refused(tmp_path, content):
    path = written(tmp_path / "mnist.npz", content)
    if parts := attempt(path, read_npz, path):
        same(parts[0]), same(parts[1], IMAGES[:2], LABELS[:2])


@many
@given(mutated(npy(np.arange(5))) | mutated(npy(np.arange(5, dtype=np.uint16))))
def test_mutated_writers_are_what_numpy_reads_or_refused(tmp_path, content):
    written(tmp_path / "mnist.npz", zipped(npz()))
    path = written(tmp_path / "writer_id_70k.npy", content)
    if parts := attempt(path, load, tmp_path):
        writers = np.concatenate([part.writers for part in parts])
        assert writers.tolist() == np.load(io.BytesIO(content)).tolist()
