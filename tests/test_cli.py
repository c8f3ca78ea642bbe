"""The command, as its user calls it: in a process of its own, on real files."""
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from files import npy, npz, zipped
from PIL import Image

from digitrec import __version__
from digitrec.cli import MODELS, keep, make, recall
from digitrec.data import DataError, load, read_csv

DATA = os.environ.get("DIGITREC_DATA")
nets = pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="needs Keras and an engine: digitrec[cpu]")
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
    printed, _ = digitrec("run", "--data", "digits", "--model", "svm", cwd=cwd)
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
    digitrec("run", "--data", "digits", "--model", "svm", "--out", "again", "--seed", 0, cwd=tmp_path)
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
    printed, _ = digitrec("predict", "--model", finished[0], *files, "--json", cwd=tmp_path)
    answers = [json.loads(line) for line in printed.splitlines()]
    assert [answer["digit"] for answer in answers] == labels
    for answer in answers:
        assert answer["digit"] != answer["runner_up"]
        assert 1 >= answer["probability"] >= answer["runner_up_probability"] >= 0
    printed, _ = digitrec("predict", "--model", finished[0], *files, cwd=tmp_path)
    assert [int(line.split("  ")[1]) for line in printed.splitlines()] == labels


def test_a_bad_file_does_not_keep_the_others_from_being_read(finished, tmp_path):
    (tmp_path / "blank.png").write_bytes(b"")
    picture(load("digits")[1].images[0], tmp_path / "good.png")
    printed, complaint = digitrec("predict", "--model", finished[0], "blank.png", "good.png", "missing.png", cwd=tmp_path, code=1)
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
    (["predict", "--model", "nowhere", "x.png"], 1, "no such file"),
    (["predict", "--model", "taken", "x.png"], 1, "no whole model"),
    (["predict", "--model", "long" * 100, "x.png"], 1, "no such file"),
    (["predict"], 2, "FILE"),
    (["fly"], 2, "fly"),
])
def test_a_mistake_gets_a_sentence(tmp_path, args, code, complaint):
    (tmp_path / "taken").write_text("not a folder")
    printed, told = digitrec(*args, cwd=tmp_path, code=code)
    assert complaint in told
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_refused_run_keeps_the_files_of_the_last_one(tmp_path):
    digitrec("run", "--data", "digits", "--model", "svm", "--out", "mine", cwd=tmp_path)
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
    _, told = digitrec("run", "--data", ".", "--model", "svm", cwd=tmp_path, code=1)
    assert "16 digits of 2 classes" in told and not list((tmp_path / "digitrec-run").iterdir())


def test_info_tells_what_is_here(tmp_path):
    printed, _ = digitrec("info", cwd=tmp_path, DIGITREC_DATA="")
    assert sys.version.split()[0] in printed and np.__version__ in printed and "processors" in printed
    assert "not in /kaggle/input/digit-recognizer" in printed


@nets
def test_info_asks_the_engine_for_its_devices(tmp_path):
    pytest.importorskip("jax", reason="needs jax, whose devices can be feigned")
    three = "--xla_force_host_platform_device_count=3"
    printed, _ = digitrec("info", cwd=tmp_path, KERAS_BACKEND="jax", XLA_FLAGS=three)
    assert "Keras on jax, as KERAS_BACKEND says: cpu:0, cpu:1, cpu:2" in printed


@nets
@pytest.mark.parametrize("engine", ["tensorflow", "jax"])
def test_info_survives_a_broken_engine_and_odd_names(tmp_path, engine):
    (tmp_path / f"{engine}.py").write_text("raise RuntimeError('no libtpu')")
    printed, _ = digitrec("info", cwd=tmp_path, PYTHONPATH=str(tmp_path), KERAS_BACKEND=engine, DIGITREC_DATA="/tmp/[/x][old]")
    assert "RuntimeError: no libtpu" in printed and "/tmp/[/x][old]" in printed


def test_help_and_version(tmp_path):
    assert digitrec("--version", cwd=tmp_path)[0] == f"digitrec {__version__}\n"
    for command in ([], ["run"], ["predict"], ["info"]):
        assert "Usage" in digitrec(*command, "--help", cwd=tmp_path)[0]


# Nets

@pytest.fixture(scope="module")
def some(tmp_path_factory):
    "A folder with 120 of the embedded digits to learn and 80 others to be examined on, as MNIST comes."
    folder, (train, test) = tmp_path_factory.mktemp("some"), load("digits")
    arrays = {"x_train": train.images[:120], "y_train": train.labels[:120],
              "x_test": test.images[:80], "y_test": test.labels[:80]}
    (folder / "mnist.npz").write_bytes(zipped(npz(**{name: npy(array) for name, array in arrays.items()})))
    return folder


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory, some):
    "A folder in which a run with the SVM was followed by one with a net."
    cwd = tmp_path_factory.mktemp("nets")
    for model in ("svm", "cnn"):
        printed, _ = digitrec("run", "--data", some, "--model", model, "--out", "both", cwd=cwd)
        assert f"{model}, examined on 80 digits" in printed
    return cwd / "both"


@nets
def test_the_last_run_replaces_the_recogniser_of_the_one_before(two_runs, some, tmp_path):
    files = {"confusion.png", "scores.json", "submission.csv"}
    assert {path.name for path in two_runs.iterdir()} == files | {"recogniser"}
    assert {path.name for path in (two_runs / "recogniser").iterdir()} == {"net.json", "net.weights.h5"}
    folder = shutil.copytree(two_runs, tmp_path / "copy")
    digitrec("run", "--data", some, "--model", "svm", "--out", folder, cwd=tmp_path)
    assert {path.name for path in folder.iterdir()} == files | {"recogniser.skops"}


@nets
def test_a_nets_run_answers(two_runs, tmp_path):
    images, labels = load("digits")[1].images[:80], load("digits")[1].labels[:80]
    (tmp_path / "ubyte").write_bytes(bytes([0, 0, 8, 3]) + np.array(images.shape, ">u4").tobytes() + images.tobytes())
    for run in (two_runs, two_runs / "recogniser"):
        printed, _ = digitrec("predict", "--model", run, "ubyte", "--json", cwd=tmp_path)
        said = [json.loads(line)["digit"] for line in printed.splitlines()]
        assert said == np.loadtxt(two_runs / "submission.csv", int, delimiter=",", skiprows=1)[:, 1].tolist()
    assert (said != labels).sum() == json.loads((two_runs / "scores.json").read_text())["misses"] < 40


@nets
@pytest.mark.parametrize("file, content", [
    ("net.weights.h5", b"x"), ("net.weights.h5", None), ("net.json", b"{"), ("net.json", b"[]")])
def test_a_damaged_net_gets_a_sentence(two_runs, tmp_path, file, content):
    folder, picture = shutil.copytree(two_runs, tmp_path / "copy"), tmp_path / "x.png"
    path = folder / "recogniser" / file
    path.write_bytes(content) if content else path.unlink()
    Image.new("L", (28, 28), 255).save(picture)
    printed, told = digitrec("predict", "--model", folder, picture, cwd=tmp_path, code=1)
    *greeting, sentence = told.splitlines()  # TensorFlow greets
    assert not printed and sentence.startswith("digitrec: ") and file in sentence and "digitrec" not in "".join(greeting)


@nets
def test_without_more_said_an_ensemble_is_trained(some, tmp_path):
    printed, _ = digitrec("run", "--data", some, cwd=tmp_path)
    folder = tmp_path / "digitrec-run"
    assert "ensemble, examined on 80 digits" in printed and MODELS[0] == "ensemble"
    assert {path.name for path in folder.iterdir()} == {"confusion.png", "scores.json", "submission.csv", "recogniser"}
    members = [f"member-{i:02}" for i in range(5)]
    assert sorted(path.name for path in (folder / "recogniser").iterdir()) == ["ensemble.json", *members, "oof.npy"]
    picture(load("digits")[1].images[0], tmp_path / "x.png")
    assert digitrec("predict", "--model", folder, "x.png", cwd=tmp_path)[0].startswith("x.png  ")


@nets
@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_a_killed_run_is_gone_on_with(two_runs, some, tmp_path):
    command, folder = ["run", "--data", some, "--model", "cnn", "--out", "killed"], tmp_path / "killed"
    program, states = Path(sys.executable).with_name("digitrec"), lambda: list(folder.glob(".training/*/*/state.npz"))
    with subprocess.Popen([program, *command], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        while child.poll() is None and not states():
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert child.returncode == -signal.SIGKILL and not (folder / "scores.json").exists()
    with np.load(*states()) as state:
        learned = json.loads(str(state["about"]))["rows"]
    digitrec(*command, cwd=tmp_path)
    for name in ("submission.csv", "scores.json"):
        assert (folder / name).read_bytes() == (two_runs / name).read_bytes()
    rows, expected = (json.loads((run / "recogniser" / "net.json").read_text())["history"] for run in (folder, two_runs))
    assert 0 < len(learned) < len(rows) and rows[: len(learned)] == learned  # to the second: they were not learned again
    assert [row["loss"] for row in rows] == [row["loss"] for row in expected]
    assert not (folder / ".training").exists()


WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, *args, **kwargs):
        return None if name.split(".")[0] in {modules} else super().find_spec(name, *args, **kwargs)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


ENGINES = {"tensorflow", "jax", "torch"}


def without(modules, folder):
    "How to run the command as if some modules were not installed."
    (folder / "sitecustomize.py").write_text(WITHOUT.replace("{modules}", repr(modules)))
    return {"cwd": folder, "PYTHONPATH": str(folder), "KERAS_BACKEND": ""}


@pytest.mark.parametrize("model, modules", [("ensemble", {"keras", *ENGINES}), ("mlp", {"keras"}), ("cnn", ENGINES)])
def test_a_net_without_keras_or_an_engine_asks_for_an_extra(some, tmp_path, model, modules):
    _, told = digitrec("run", "--data", some, "--model", model, code=1, **without(modules, tmp_path))
    complaint = told.split("digitrec: ")[-1]
    assert complaint.startswith("Keras: found") and '"digitrec[cpu]", "digitrec[gpu]" or "digitrec[tpu]"' in complaint


@nets
def test_without_keras_there_is_the_svm(two_runs, some, tmp_path):
    bare = without({"keras", *ENGINES}, tmp_path)
    picture(load("digits")[1].images[0], tmp_path / "x.png")
    assert "Keras: found" in digitrec("predict", "--model", two_runs, "x.png", code=1, **bare)[1]
    assert "svm, examined on 80 digits" in digitrec("run", "--data", some, "--model", "svm", **bare)[0]
    assert digitrec("predict", "--model", "digitrec-run", "x.png", **bare)[0].startswith("x.png  ")
    assert "DataError: Keras: found" in digitrec("info", **bare)[0]


@nets
@pytest.mark.parametrize("model", MODELS)
def test_every_model_can_be_made(model, tmp_path):
    from sklearn.base import is_classifier

    recogniser = make(model, load("digits")[0], tmp_path, seed=3, say=None)
    assert is_classifier(recogniser) and not list(tmp_path.iterdir())
    if model != "svm":
        assert (recogniser.seed, recogniser.folder, recogniser.quiet) == (3, tmp_path, True)
        assert recogniser.recipe.name == {"ensemble": "few", "cnn": "few"}.get(model, model)


@nets
def test_a_failure_to_keep_a_recogniser_leaves_the_one_before(two_runs, tmp_path, monkeypatch):
    folder = shutil.copytree(two_runs, tmp_path / "copy")
    before = {path.name: path.read_bytes() for path in (folder / "recogniser").iterdir()}
    recogniser = recall(folder)
    for place in ("digitrec.training.write_json", "pathlib.Path.rename"):  # in the midst of writing, and of putting it in place
        with monkeypatch.context() as patch, pytest.raises((DataError, KeyboardInterrupt)):
            patch.setattr(place, lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
            keep(recogniser, folder)
        assert {path.name: path.read_bytes() for path in (folder / "recogniser").iterdir()} == before
    keep(recogniser, folder)
    assert {path.name for path in folder.iterdir()} == {"confusion.png", "scores.json", "submission.csv", "recogniser"}


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
