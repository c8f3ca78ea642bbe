"""The command, as its user calls it: in a process of its own, on real files."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from digitrec import __version__
from digitrec.data import load, read_csv

DATA = os.environ.get("DIGITREC_DATA")
real_data = pytest.mark.skipif(not DATA, reason="needs the real digits: set DIGITREC_DATA to their folder")


def digitrec(*args, cwd, code=0, **env):
    "Run the installed command; give what it printed and what it complained of."
    program = Path(sys.executable).with_name("digitrec")
    env = {**os.environ, "COLUMNS": "300", **env}
    done = subprocess.run([program, *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def picture(image, path):
    Image.fromarray(255 - image).resize((280, 280)).save(path)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A folder in which `digitrec run` has left its files, and what it printed."
    cwd = tmp_path_factory.mktemp("work")
    printed, _ = digitrec("run", "--data", "digits", cwd=cwd)
    return cwd / "digitrec-run", printed


def test_run_on_the_embedded_digits(finished):
    folder, printed = finished
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["n"] == 899 and scores["accuracy"] >= 0.97
    assert scores["misses"] == 899 - round(scores["accuracy"] * 899)
    assert f"{scores['accuracy']:.2%}" in printed
    for name in ("submission.csv", "scores.json", "confusion.png", "recogniser.skops"):
        assert (folder / name).is_file() and name in printed
    with Image.open(folder / "confusion.png") as image:
        assert image.width > 600


def test_the_submission_holds_the_recognisers_answers(finished):
    folder, _ = finished
    rows = np.loadtxt(folder / "submission.csv", int, delimiter=",", skiprows=1)
    assert rows[:, 0].tolist() == list(range(1, 900))
    scores = json.loads((folder / "scores.json").read_text())
    assert (rows[:, 1] != load("digits")[1].labels).sum() == scores["misses"]


def test_a_seed_is_a_run(finished, tmp_path):
    folder, _ = finished
    digitrec("run", "--data", "digits", "--out", "again", "--seed", 0, cwd=tmp_path)
    assert (tmp_path / "again/submission.csv").read_bytes() == (folder / "submission.csv").read_bytes()


@pytest.mark.parametrize("kind", ["picture", "table", "idx"])
def test_predict_reads_every_kind_of_file(finished, tmp_path, kind):
    clear = load("digits")[1][[0, 2, 3]]
    images, labels = clear.images, clear.labels.tolist()
    if kind == "picture":
        files = [picture(image, tmp_path / f"{i}.png") for i, image in enumerate(images)]
    elif kind == "table":
        files = [tmp_path / "three.csv"]
        header = ",".join(f"pixel{i}" for i in range(784))
        np.savetxt(files[0], images.reshape(3, 784), "%d", ",", header=header, comments="")
    else:
        files = [tmp_path / "three-ubyte"]
        files[0].write_bytes(bytes([0, 0, 8, 3]) + np.array(images.shape, ">u4").tobytes() + images.tobytes())
    printed, _ = digitrec("predict", finished[0], *files, "--json", cwd=tmp_path)
    answers = [json.loads(line) for line in printed.splitlines()]
    assert [answer["digit"] for answer in answers] == labels
    for answer in answers:
        assert answer["digit"] != answer["runner_up"]
        assert 1 >= answer["probability"] >= answer["runner_up_probability"] >= 0
    printed, _ = digitrec("predict", finished[0], *files, cwd=tmp_path)
    assert [int(line.split("  ")[1]) for line in printed.splitlines()] == labels


def test_a_bad_file_does_not_keep_the_others_from_being_read(finished, tmp_path):
    (tmp_path / "blank.png").write_bytes(b"")
    picture(load("digits")[1].images[0], tmp_path / "good.png")
    printed, complaint = digitrec("predict", finished[0], "blank.png", "good.png", "missing.png", cwd=tmp_path, code=1)
    assert printed.startswith("good.png") and len(printed.splitlines()) == 1
    assert "blank.png" in complaint and "missing.png" in complaint


@pytest.mark.parametrize("args, code, complaint", [
    (["run", "--data", "nowhere"], 1, "no such file or folder"),
    (["run", "--out", "taken"], 1, "expected a place that can be written"),
    (["run", "--out", "taken/below"], 1, "expected a place that can be written"),
    (["run", "--out", "long" * 100], 1, "expected a place that can be written"),
    (["run", "--data", "long" * 100], 1, "no such file or folder"),
    (["run", "--model", "oracle"], 2, "oracle"),
    (["run", "--seed", "x"], 2, "--seed"),
    (["predict", "nowhere", "x.png"], 1, "no such file"),
    (["predict", "taken", "x.png"], 1, "no whole model"),
    (["predict"], 2, "RUN"),
    (["fly"], 2, "fly"),
])
def test_a_mistake_gets_a_sentence(tmp_path, args, code, complaint):
    (tmp_path / "taken").write_text("not a folder")
    printed, told = digitrec(*args, cwd=tmp_path, code=code)
    assert complaint in told
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_refused_run_keeps_the_files_of_the_last_one(tmp_path):
    digitrec("run", "--data", "digits", "--out", "mine", cwd=tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
    (tmp_path / "train.csv").write_text("label,pixel0\n1,2\n")
    (tmp_path / "test.csv").write_text("pixel0\n2\n")
    _, told = digitrec("run", "--data", ".", "--out", "mine", cwd=tmp_path, code=1)
    assert "train.csv, line 1" in told and "lacks 'pixel1'" in told
    assert {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()} == before


def test_too_few_digits_to_learn_from(tmp_path):
    header = ",".join(f"pixel{i}" for i in range(784))
    row = ",".join(["0"] * 700 + ["9"] * 84)
    (tmp_path / "train.csv").write_text("\n".join([f"label,{header}", *[f"{i % 2},{row}" for i in range(20)]]) + "\n")
    (tmp_path / "test.csv").write_text(f"{header}\n{row}\n")
    _, told = digitrec("run", "--data", ".", cwd=tmp_path, code=1)
    assert "16 digits of 2 classes" in told and not list((tmp_path / "digitrec-run").iterdir())


def test_info_tells_what_is_here(tmp_path):
    printed, _ = digitrec("info", cwd=tmp_path, DIGITREC_DATA="")
    assert sys.version.split()[0] in printed and np.__version__ in printed and "processors" in printed
    assert "not in /kaggle/input/digit-recognizer" in printed


def test_info_asks_the_engine_for_its_devices(tmp_path):
    (tmp_path / "jax.py").write_text("def devices():\n    return ['TPU:0', 'TPU:1']\n")
    printed, _ = digitrec("info", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert "TPU:0, TPU:1" in printed


def test_info_survives_a_broken_engine_and_odd_names(tmp_path):
    (tmp_path / "jax.py").write_text("raise RuntimeError('no libtpu')")
    printed, _ = digitrec("info", cwd=tmp_path, PYTHONPATH=str(tmp_path), DIGITREC_DATA="/tmp/[/x][old]")
    assert "jax: RuntimeError: no libtpu" in printed and "/tmp/[/x][old]" in printed


def test_help_and_version(tmp_path):
    assert digitrec("--version", cwd=tmp_path)[0] == f"digitrec {__version__}\n"
    for command in ([], ["run"], ["predict"], ["info"]):
        assert "Usage" in digitrec(*command, "--help", cwd=tmp_path)[0]


@real_data
def test_a_submission_for_the_kaggle_format_digits(tmp_path):
    digitrec("run", "--data", "kaggle", "--model", "svm", "--out", "out", cwd=tmp_path)
    sample = np.loadtxt(Path(DATA) / "kaggle-format/sample_submission.csv", int, delimiter=",", skiprows=1)
    rows = np.loadtxt(tmp_path / "out/submission.csv", int, delimiter=",", skiprows=1)
    assert (tmp_path / "out/submission.csv").read_text().startswith("ImageId,Label\n")
    assert rows.shape == (28_000, 2) and (rows[:, 0] == sample[:, 0]).all()
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert scores["examined on"] == "8,400 digits, Kaggle-format train, held out at random"
    assert scores["after learning"] == "33,600 digits, Kaggle-format train"
    assert scores["n"] == 8_400 and scores["accuracy"] > 0.983
    # its 28,000 digits are MNIST's, in another order: a hash of the pixels finds the label of each
    mnist = {image.tobytes(): label for part in load("mnist") for image, label in zip(part.images, part.labels, strict=True)}
    truth = [mnist[image.tobytes()] for image in read_csv(Path(DATA) / "kaggle-format/test.csv.gz").images]
    assert (rows[:, 1] == truth).mean() > 0.983
