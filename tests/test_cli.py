"""The command, as its user calls it: in a process of its own, on real files."""

import errno
import gzip
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from files import contents, idx, npy, npz, zipped
from PIL import Image

from digitrec import __version__, cli
from digitrec.cli import Plan, gather_recipes, make_plan
from digitrec.sources import load, read_csv

DATA = os.environ.get("DIGITREC_DATA")
nets = pytest.mark.skipif(
    importlib.util.find_spec("keras") is None, reason="needs Keras and an engine: digitrec[cpu]"
)
real_data = pytest.mark.skipif(not DATA, reason="needs the real digits: set DIGITREC_DATA")
TEST = load("digits")[1]
FILES = {"confusion.png", "scores.json", "submission.csv", "recogniser"}


def digitrec(*args, cwd, code=0, stdin=None, **env):
    "Run the command; what it printed to standard output and to standard error."
    program = [sys.executable, "-m", "digitrec"]
    env = {**os.environ, "COLUMNS": "300", **env}
    done = subprocess.run(
        [*program, *map(str, args)], cwd=cwd, env=env, capture_output=True, input=stdin
    )
    printed, status = done.stdout.decode(), done.stderr.decode()
    assert "Traceback" not in status, status
    assert done.returncode == code, status
    for leak in ("<_io", ".writable", "Is a directory"):
        assert leak not in status + printed
    return printed, status


def objects(printed):
    return [json.loads(line) for line in printed.splitlines()]


def picture(image, path):
    Image.fromarray(255 - image).resize((280, 280)).save(path)
    return path


def table(images, path):
    header = ",".join(f"pixel{i}" for i in range(784))
    np.savetxt(path, images.reshape(-1, 784), "%d", ",", header=header, comments="")
    return path


def folder_of_digits(folder, labelled_test, n=120):
    "A folder of embedded digits: as MNIST comes, or as Kaggle's tables, whose test has no labels"
    train = load("digits")[0]
    if labelled_test:
        arrays = {
            "x_train": train.images[:n],
            "y_train": train.labels[:n],
            "x_test": TEST.images[:80],
            "y_test": TEST.labels[:80],
        }
        content = zipped(npz(**{name: npy(array) for name, array in arrays.items()}))
        (folder / "mnist.npz").write_bytes(content)
        return folder
    table(TEST.images[:80], folder / "test.csv")
    header = ",".join(["label", *(f"pixel{i}" for i in range(784))])
    rows = np.column_stack([train.labels[:n], train.images[:n].reshape(n, 784)])
    np.savetxt(folder / "train.csv", rows, "%d", ",", header=header, comments="")
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return folder_of_digits(tmp_path_factory.mktemp("labelled"), True)


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    return folder_of_digits(tmp_path_factory.mktemp("unlabelled"), False)


@pytest.fixture(scope="module")
def svm_run(tmp_path_factory):
    "A folder that `digitrec run` wrote, and what it printed."
    cwd = tmp_path_factory.mktemp("work")
    printed, status = digitrec("run", "--data", "digits", "--recipe", "svm", cwd=cwd)
    return cwd / "digitrec-run", printed, status


# Predict


def test_a_shipped_net_reads_pictures_and_tables(tmp_path):
    picture(TEST.images[0], tmp_path / "a.png")
    table(TEST.images[10:13], tmp_path / "three.csv")
    (tmp_path / "two-ubyte").write_bytes(idx(TEST.images[13:15]))
    printed, status = digitrec("predict", "a.png", "three.csv", "two-ubyte", cwd=tmp_path)
    rows = [line.split("  ") for line in printed.splitlines()]
    assert [row[0] for row in rows] == [
        "a.png",
        *(f"three.csv[{i}]" for i in range(3)),
        "two-ubyte[0]",
        "two-ubyte[1]",
    ]
    assert [int(row[1]) for row in rows] == TEST.labels[[0, 10, 11, 12, 13, 14]].tolist()
    assert ">99.9 %" in printed and "100.0" not in printed and not status


def test_json_has_an_object_for_every_input(tmp_path):
    Image.new("L", (99, 99), 255).save(tmp_path / "blank.png")
    table(TEST.images[10:13], tmp_path / "three.csv")
    printed, status = digitrec(
        "predict", "--json", "blank.png", "three.csv", "none.png", cwd=tmp_path, code=1
    )
    results = objects(printed)
    assert [result["file"] for result in results] == ["blank.png", *["three.csv"] * 3, "none.png"]
    assert set(results[0]) == set(results[4]) == {"file", "error"} and not status
    for i, result in enumerate(results[1:4]):
        assert set(result) == {"file", "index", "digit", "probability", "rejected", "probabilities"}
        assert (result["index"], result["digit"]) == (i, TEST.labels[10 + i]) and result[
            "rejected"
        ] is False
        assert len(result["probabilities"]) == 10 and sum(result["probabilities"]) == pytest.approx(
            1, abs=1e-4
        )
        assert (
            result["probability"]
            == max(result["probabilities"])
            == result["probabilities"][result["digit"]]
        )


def test_standard_input_and_folders_are_read(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "notes.txt").write_text("no picture")
    paths = [picture(TEST.images[i], tmp_path / "scans" / f"{i}.png") for i in (0, 2, 3)]
    printed, _ = digitrec(
        "predict", "--json", "scans", "-", cwd=tmp_path, stdin=paths[0].read_bytes()
    )
    results = objects(printed)
    assert [result["file"] for result in results] == [
        "scans/0.png",
        "scans/2.png",
        "scans/3.png",
        "-",
    ]
    assert results[0]["probabilities"] == results[-1]["probabilities"]
    assert "standard input" in digitrec("predict", "-", cwd=tmp_path, stdin=b"", code=1)[1]
    closed = f'exec "{sys.executable}" -m digitrec predict - <&-'
    done = subprocess.run(["sh", "-c", closed], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "a closed input" in done.stderr
    (tmp_path / "empty").mkdir()
    assert "a folder without pictures" in digitrec("predict", "empty", cwd=tmp_path, code=1)[1]


def test_what_is_rejected_is_said(tmp_path):
    golden = json.loads(Path(__file__).with_name("golden.json").read_text())
    row = golden["rows"][golden["nets"]["single"]["rejected"].index(True)]
    table(TEST.images[row : row + 1], tmp_path / "hard.csv")
    printed, _ = digitrec("predict", "hard.csv", cwd=tmp_path)
    assert printed.startswith("hard.csv  ?  perhaps no digit")
    printed, _ = digitrec("predict", "hard.csv", "--json", "--strict", cwd=tmp_path, code=3)
    assert objects(printed)[0]["rejected"] is True


def test_a_table_becomes_a_submission(tmp_path):
    table(TEST.images[10:15], tmp_path / "five.csv")
    printed, status = digitrec("predict", "five.csv", "--out", "mine.csv", cwd=tmp_path)
    expected = [f"{i + 1},{label}" for i, label in enumerate(TEST.labels[10:15])]
    assert (tmp_path / "mine.csv").read_text().splitlines() == ["ImageId,Label", *expected]
    assert not printed and "5 predictions written to mine.csv" in status
    (tmp_path / "empty").mkdir()
    for inputs in (["five.csv", "five.csv"], ["empty"]):
        assert (
            "one table" in digitrec("predict", *inputs, "--out", "x.csv", cwd=tmp_path, code=2)[1]
        )
    digitrec("predict", "nowhere.csv", "--out", "x.csv", cwd=tmp_path, code=1)
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.parametrize("out", ["five.csv", "./five.csv", "link.csv", "hard.csv", "-"])
def test_a_submission_does_not_replace_its_table(tmp_path, out):
    path = table(TEST.images[10:15], tmp_path / "five.csv")
    (tmp_path / "link.csv").symlink_to(path)
    os.link(path, tmp_path / "hard.csv")
    before = contents(tmp_path)
    program = [sys.executable, "-m", "digitrec", "predict"]
    args = ["-", "--out", "five.csv"] if out == "-" else ["five.csv", "--out", out]
    with open(path, "rb") as stdin:
        done = subprocess.run(
            [*program, *args], cwd=tmp_path, stdin=stdin, capture_output=True, text=True
        )
    assert done.returncode == 2 and "another file than the table itself" in done.stderr
    assert contents(tmp_path) == before and (tmp_path / "link.csv").is_symlink()


def test_a_bad_file_does_not_stop_the_others(tmp_path):
    (tmp_path / "blank.png").write_bytes(b"")
    picture(TEST.images[0], tmp_path / "good.png")
    printed, status = digitrec(
        "predict", "blank.png", "good.png", "missing.png", cwd=tmp_path, code=1
    )
    assert printed.startswith("good.png") and len(printed.splitlines()) == 1
    assert "blank.png" in status and "missing.png" in status


def test_a_folder_that_cannot_be_read_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    from typer.testing import CliRunner

    for name in ("before", "locked", "after"):
        (tmp_path / name).mkdir()
        picture(TEST.images[0], tmp_path / name / "good.png")
    (tmp_path / "after" / "folder.png").mkdir()  # no picture, whatever its name
    iterdir = Path.iterdir

    def locked(path):
        if path.name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", locked)  # for root, no folder is locked
    folders = [str(tmp_path / name) for name in ("before", "locked", "after")]
    done = CliRunner().invoke(cli.app, ["predict", "--json", *folders])
    results = objects(done.stdout)
    assert done.exit_code == 1 and ["digit" in result for result in results] == [True, False, True]
    expected = f"{folders[1]}: found Permission denied; expected a folder that can be read"
    assert results[1] == {"file": folders[1], "error": expected}


# Errors and help


@pytest.mark.parametrize(
    "args, code, complaint",
    [
        (["run", "--data", "nowhere"], 1, "no such file or folder"),
        (
            ["run", "--data", "digits", "--out", "taken"],
            1,
            "taken: found a file; expected a folder",
        ),
        (
            ["run", "--data", "digits", "--out", "taken/below"],
            1,
            "expected a folder that can be written",
        ),
        (
            ["run", "--data", "digits", "--out", "long" * 100],
            1,
            "expected a folder that can be written",
        ),
        (["run", "--data", "long" * 100], 1, "no such file or folder"),
        (["run", "--recipe", "oracle"], 2, "'oracle' is none of svm, mlp"),
        (["run", "--recipe", "svm", "--members", "2"], 2, "--members"),
        (["run", "--members", "0"], 2, "--members"),
        (["run", "--precision", "float16"], 2, "'float16' is none of float32, bfloat16"),
        (["run", "--recipe", "svm", "--precision", "bfloat16"], 2, "the SVM has none"),
        (["run", "--seed", "x"], 2, "--seed"),
        (["predict", "--model", "nowhere", "x.png"], 1, "expected single, vote, small, tiny"),
        (["predict", "--model", "taken", "x.png"], 1, "no whole recogniser"),
        (["predict", "--model", "long" * 100, "x.png"], 1, "no such file"),
        (["predict"], 2, "FILE"),
        (["fly"], 2, "fly"),
    ],
)
def test_an_error_gets_a_sentence(tmp_path, args, code, complaint):
    (tmp_path / "taken").write_text("not a folder")
    printed, status = digitrec(*args, cwd=tmp_path, code=code)
    assert complaint in status and not printed
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_errors_by_kind():
    import typer

    from digitrec.cli import one_sentence
    from digitrec.recipe import registered

    with pytest.raises(typer.Exit) as ended, one_sentence():
        registered("no such net")
    assert ended.value.exit_code == 1
    with pytest.raises(ValueError, match="could not convert"), one_sentence():
        float(np.array("a library's error").item())  # raised here, in no module of ours
    with pytest.raises(typer.Exit), one_sentence():
        import a_package_that_is_not_installed  # noqa: F401


def test_help_is_light_and_whole(tmp_path):
    assert digitrec("--version", cwd=tmp_path)[0] == f"digitrec {__version__}\n"
    for command in ([], ["run"], ["predict"], ["recipes"], ["info"], ["draw"]):
        for flag in ("-h", "--help"):
            printed = digitrec(*command, flag, cwd=tmp_path, COLUMNS="60")[0]
            assert "Usage: digitrec" in printed
        assert re.search(rf"\n  digitrec {''.join(command)}", printed), "no example"
        assert not re.search(r"<\w+", printed), "a type of Python's"
    assert "--install-completion" in digitrec("-h", cwd=tmp_path)[0]
    script = (
        "import sys, digitrec.cli; sys.argv = ['digitrec', '-h']\ntry: digitrec.cli.app()\n"
        "finally: print({'keras', 'tensorflow', 'jax', 'sklearn', 'onnxruntime'}"
        " & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.endswith("set()\n"), done.stdout


def test_any_encoding_can_print_what_the_command_says(tmp_path):
    picture(TEST.images[0], tmp_path / "ψ.png")
    env = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    for args in (["recipes"], ["predict", "ψ.png"]):
        done = subprocess.run(
            [sys.executable, "-m", "digitrec", *args], cwd=tmp_path, env=env, capture_output=True
        )
        assert done.returncode == 0 and b"Traceback" not in done.stderr and b"?" in done.stdout


def test_completion_knows_the_recipes(tmp_path):
    env = {
        "_DIGITREC_COMPLETE": "complete_bash",
        "COMP_WORDS": "digitrec run --recipe sma",
        "COMP_CWORD": "3",
    }
    assert "small" in digitrec(cwd=tmp_path, **env)[0]


# Recipes and info


def test_recipes_are_listed(tmp_path):
    from digitrec.recipe import RECIPES

    rows = json.loads(digitrec("recipes", "--json", cwd=tmp_path)[0])
    assert [row["recipe"] for row in rows] == list(RECIPES) and all(row["by"] for row in rows)
    printed = digitrec("recipes", cwd=tmp_path)[0]
    assert len(printed.splitlines()) == 3 + len(RECIPES)
    assert len({len(line) for line in printed.splitlines()}) == 1
    header = " ".join(" ".join(printed.splitlines()[:3]).split())
    assert header.startswith("errors of 10,000 MNIST test digits,")
    assert "mean ± sd (seeds)" in header
    for row, line in zip(rows, printed.splitlines()[3:], strict=True):
        assert line.split()[-2] == ("yes" if RECIPES[row["recipe"]].tta else "no")


def test_errors_in_the_list_are_those_of_the_log():
    from digitrec.recipe import RECIPES

    log = pd.read_csv(Path(__file__).parent.parent / "nbs/experiments.csv")
    race = log[log.group == "race"]
    log = log[(log.group == "test") & log.name.isin(list(RECIPES))]
    expected = {}
    for name, rows in log.sort_values("seed").groupby("name"):
        rows = rows[rows.epochs == RECIPES[name].epochs]  # the log trains one recipe for less
        if rows.empty:
            continue
        errors = rows.errors_tta if RECIPES[name].tta else rows.errors
        raced = race[race.name == name] if name in set(race.name) else rows
        as_listed = (raced.precision == RECIPES[name].precision).all()
        minutes = round(raced.seconds.mean() / 60, 1) if as_listed else None
        expected[name] = (tuple(errors.astype(int).tolist()), minutes)
    assert expected == cli._MEASURED  # paste `expected` into chapter 13 after new experiments
    assert list(cli._MEASURED) == [name for name in RECIPES if name in expected]


def test_a_spread_over_seeds():
    assert cli._spread([37, 34, 26, 33, 28]) == "31.6 ± 4.5 (5)"
    assert [cli._spread(errors) for errors in ([83, 85], [83], [])] == ["83, 85", "83", "–"]


@nets
def test_the_parameters_in_the_list_are_those_of_the_nets():
    from digitrec.recipe import RECIPES, registered

    for row in gather_recipes():
        model = registered(RECIPES[row["recipe"]].net)()
        assert row["parameters"] == model.count_params(), row["recipe"]


def test_info_says_what_is_here(tmp_path):
    printed, _ = digitrec("info", cwd=tmp_path, DIGITREC_DATA="")
    assert sys.version.split()[0] in printed and np.__version__ in printed
    assert "not in /kaggle/input/digit-recognizer" in printed
    about = json.loads(digitrec("info", "--json", cwd=tmp_path)[0])
    assert about["packages"]["numpy"] == np.__version__ and set(about["data"]) == {
        "kaggle",
        "mnist",
    }
    assert about["shipped"]["tiny"]["parameters"] == 8066 and isinstance(about["extras"], dict)


def test_info_names_no_home_folder(tmp_path):
    env = {"HOME": str(tmp_path), "DIGITREC_DATA": str(tmp_path / "digits")}
    printed = digitrec("info", cwd=tmp_path, KERAS_HOME="", **env)[0]
    assert str(tmp_path) not in printed and f"~{os.sep}digits" in printed


@nets
@pytest.mark.parametrize("engine", ["tensorflow", "jax"])
def test_info_survives_a_broken_engine_and_odd_names(tmp_path, engine):
    (tmp_path / f"{engine}.py").write_text("raise RuntimeError('no libtpu')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    env = {"PYTHONPATH": path, "KERAS_BACKEND": engine, "DIGITREC_DATA": "/tmp/[/x][old]"}
    printed, _ = digitrec("info", cwd=tmp_path, **env)
    assert "RuntimeError: no libtpu" in printed and "/tmp/[/x][old]" in printed


# Run


def test_run_on_the_embedded_digits(svm_run):
    folder, printed, status = svm_run
    scores = json.loads((folder / "scores.json").read_text())
    assert (
        scores["n"] == 899 and scores["accuracy"] >= 0.97 and scores["scored_by"] == "test labels"
    )
    assert scores["errors"] == 899 - round(scores["accuracy"] * 899)
    assert f"{scores['accuracy']:.4f}" in printed and "digitrec:" not in printed
    assert "898 + 899 digits" in status and "train on 898 digits" in status
    assert all(key.isidentifier() for key in scores)
    assert {path.name for path in folder.iterdir()} == FILES
    rows = np.loadtxt(folder / "submission.csv", int, delimiter=",", skiprows=1)
    assert rows[:, 0].tolist() == list(range(1, 900))
    assert (rows[:, 1] != TEST.labels).sum() == scores["errors"]
    assert scores["submission_counts"] == np.bincount(rows[:, 1], minlength=10).tolist()
    assert scores["precision"] is None  # the SVM has none
    with Image.open(folder / "confusion.png") as image:
        assert image.width > 600


def test_a_seed_is_a_run_and_the_next_one_says_what_it_replaces(svm_run, tmp_path):
    folder = shutil.copytree(svm_run[0], tmp_path / "copy")
    before = (folder / "submission.csv").read_bytes()
    _, status = digitrec(
        "run", "--data", "digits", "--recipe", "svm", "--out", "copy", cwd=tmp_path
    )
    assert "copy holds an earlier run (svm, " in status
    assert (folder / "submission.csv").read_bytes() == before


def test_a_run_of_ones_own_predicts(svm_run, tmp_path):
    (tmp_path / "ubyte").write_bytes(idx(TEST.images[:80]))
    printed, _ = digitrec("predict", "--model", svm_run[0], "ubyte", "--json", cwd=tmp_path)
    rows = np.loadtxt(svm_run[0] / "submission.csv", int, delimiter=",", skiprows=1)
    results = objects(printed)
    assert [result["digit"] for result in results] == rows[:80, 1].tolist()
    assert not any(result["rejected"] for result in results)


def test_strict_needs_a_model_that_rejects(svm_run, tmp_path):
    picture(TEST.images[0], tmp_path / "x.png")
    args = ["predict", "--model", svm_run[0], "x.png", "--strict"]
    printed, status = digitrec(*args, cwd=tmp_path, code=2)
    assert "this model has no threshold and rejects nothing" in status and not printed


def test_a_refused_run_keeps_the_files_of_the_last_one(svm_run, tmp_path):
    before = contents(svm_run[0])
    (tmp_path / "train.csv").write_text("label,pixel0\n1,2\n")
    (tmp_path / "test.csv").write_text("pixel0\n2\n")
    _, status = digitrec("run", "--data", ".", "--out", svm_run[0], cwd=tmp_path, code=1)
    assert "train.csv, line 1" in status and contents(svm_run[0]) == before


@pytest.mark.parametrize("name", ["submission.csv", "confusion.png", "scores.json"])
def test_a_run_replaces_no_file_that_no_run_wrote(tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text('{"mine": 1}')
    before = contents(tmp_path)
    args = ["run", "--data", "digits", "--recipe", "svm", "--out", "out"]
    _, status = digitrec(*args, cwd=tmp_path, code=1)
    assert "a file that no run wrote; expected an empty folder, or one of an earlier" in status
    assert "train on" not in status and contents(tmp_path) == before


def test_a_run_refuses_a_recogniser_of_another_kind(tmp_path):
    (tmp_path / "recogniser").write_text("mine")
    args = ["run", "--data", "digits", "--recipe", "svm", "--out", "."]
    _, status = digitrec(*args, cwd=tmp_path, code=1)
    assert "a file that `save` did not write" in status
    assert contents(tmp_path) == {"recogniser": b"mine"}


def test_a_run_that_was_stopped_while_it_wrote_is_repeated(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    args = ["run", "--data", "digits", "--recipe", "svm", "--out", str(tmp_path / "out")]
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cli, "write_json", interrupted)
        stopped = CliRunner().invoke(cli.app, args)
    assert stopped.exit_code == 130 and "holds what is trained" not in stopped.stderr
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == FILES - {"scores.json"} | {".training"}
    again = CliRunner().invoke(cli.app, args)
    assert again.exit_code == 0 and "resume" not in again.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


def test_without_test_labels_the_svm_is_scored_on_held_out_digits(unlabelled, tmp_path):
    _, status = digitrec("run", "--data", unlabelled, "--recipe", "svm", cwd=tmp_path)
    scores = json.loads((tmp_path / "digitrec-run/scores.json").read_text())
    assert (scores["scored_by"], scores["n"], scores["n_trained"]) == ("held out", 24, 120)
    assert (
        "train on 96 digits, to be scored on the other 24" in status
        and "train on 120 digits" in status
    )


@pytest.mark.parametrize("n, classes, found", [
    (20, 2, "found 16; expected at least 50"), (100, 1, "80 digits of 1 classes")])
def test_too_few_digits_or_classes_to_train_on(tmp_path, n, classes, found):
    header = ",".join(f"pixel{i}" for i in range(784))
    row = ",".join(["0"] * 700 + ["9"] * 84)
    rows = [f"label,{header}", *[f"{i % classes},{row}" for i in range(n)]]
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "test.csv").write_text(f"{header}\n{row}\n")
    _, status = digitrec("run", "--data", ".", "--recipe", "svm", cwd=tmp_path, code=1)
    assert found in status and not list((tmp_path / "digitrec-run").iterdir())


# Progress


def epochs_of(*seconds):
    return [{"seconds": value, "loss": 0.5, "learning_rate": 0.1} for value in seconds]


@pytest.mark.parametrize(
    "n, epochs, members, seconds",
    [
        (3, 4, {0: (epochs_of(10, 2), False)}, 2 * 2 + 2 * (10 + 3 * 2)),
        (3, 4, {0: (epochs_of(10, 2, 2, 2), True)}, 2 * (10 + 3 * 2)),
        (2, 3, {0: (epochs_of(10, 2, 2), True), 1: (epochs_of(20), False)}, 2 * 2),
        (3, 3, {0: (epochs_of(10, 2, 4), True), 1: (epochs_of(20), False)}, 2 * 3 + 15 + 2 * 3),
        (3, 1, {0: (epochs_of(10), True)}, 2 * 10),
        (5, 1, {0: (epochs_of(10), True), 1: (epochs_of(20), True)}, 3 * 15),
        (2, 9, {0: (epochs_of(10, 2), True)}, 10 + 8 * 2),  # stopped early
        (2, 2, {0: (epochs_of(10, 2), True), 1: (epochs_of(10, 2), True)}, 0),
        (4, 3, {0: (epochs_of(9, 2), False), 1: (epochs_of(9, 2), False)},
         (2 * 2 + 2 * (9 + 2 * 2)) // 2),  # two side by side, on a cluster
    ],
)
def test_first_and_later_epochs_are_averaged_apart(n, epochs, members, seconds):
    plan = Plan("small", n, 0)
    assert cli._seconds_left(plan, epochs, members) == seconds
    line = cli._progress_line(plan, epochs, members)
    assert (f"about {seconds} s left" in line) == (seconds > 0) == ("left" in line)


def test_no_time_left_before_a_later_epoch():
    plan = Plan("small", 2, 0)
    assert "left" not in cli._progress_line(plan, 3, {0: (epochs_of(10), False)})


@pytest.mark.parametrize("second, shown", [
    (0.004, "a.png  5  99.6 %  (or 8, 0.4 %)"), (0.0004, "a.png  5  >99.9 %"),
    (0, "a.png  5  >99.9 %")])
def test_a_runner_up_is_named_from_a_tenth_of_a_percent_on(second, shown):
    probabilities = np.zeros((1, 10))
    probabilities[0, [5, 8]] = 1 - second, second
    assert cli._line(*cli._predictions("a.png", probabilities, 0), 1) == shown


@pytest.mark.parametrize("digit, other", [(1, 3), (3, 1)])
def test_a_digit_is_not_its_own_runner_up(digit, other):
    probabilities = [0.0] * 10
    probabilities[1] = probabilities[3] = 0.5
    prediction = {"file": "a.png", "index": 0, "digit": digit, "probability": 0.5,
                  "rejected": False, "probabilities": probabilities}
    assert cli._line(prediction, 1) == f"a.png  {digit}  50.0 %  (or {other}, 50.0 %)"


class Metadata:
    "The metadata of an installed package, as importlib reads it"

    def __init__(self, *needs):
        self.needs = needs

    def get_all(self, name):
        return self.needs if name == "Requires-Dist" else None


@pytest.mark.parametrize("installed, found", [
    ({"jax": "0.10", "libtpu": "0.0.42"}, True), ({"jax": "0.10"}, False),
    ({"jax": "0.6", "libtpu": "0.0.42"}, False), ({}, False)])
def test_an_extra_needs_the_extras_of_its_packages(monkeypatch, installed, found):
    packages = {"digitrec": Metadata("numpy", "jax[tpu]>=0.7; extra == 'tpu'"),
                "jax": Metadata("ml_dtypes", "libtpu==0.0.42; extra == 'tpu'")}
    monkeypatch.setattr(cli.importlib.metadata, "metadata", packages.get)
    monkeypatch.setattr(cli, "_version", installed.get)
    assert cli._has_extra("digitrec", "tpu") is found


def test_a_line_of_progress_is_printed_once(monkeypatch):
    first, done = (epochs_of(9), False), (epochs_of(9, 1), True)
    moments = [{}, {0: first}, {0: first}, {0: done}, *[{0: done}] * 9, {0: done, 1: first}]
    moments += [{0: done, 1: (epochs_of(9, 1), False)}, {0: done, 1: done}, {0: done, 1: done}]
    shown, clock, stops = [], iter(range(0, 10_000, 40)), iter([False] * 16 + [True])
    states = iter(moments)
    monkeypatch.setattr(cli, "_members_of", lambda *_: next(states))
    monkeypatch.setattr(cli, "_say", shown.append)
    monkeypatch.setattr(cli.time, "monotonic", lambda: 100 + next(clock))
    stop = type("Stop", (), {"wait": lambda self, seconds: next(stops)})()
    cli._watch(Plan("small", 2, 0), 2, Path(), stop, None)
    places = [re.match(r"(net \d) of 2, (epoch \d)", line).groups() for line in shown]
    assert places == [(f"net {i}", f"epoch {j}") for i in (1, 2) for j in (1, 2)]


@nets
def test_an_ensemble_is_scored_out_of_fold_and_trained_once(unlabelled, tmp_path):
    args = ["run", "--data", unlabelled, "--recipe", "dash", "--members", "2"]
    printed, status = digitrec(*args, cwd=tmp_path)
    folder = tmp_path / "digitrec-run"
    scores = json.loads((folder / "scores.json").read_text())
    assert (scores["scored_by"], scores["n"], scores["members"]) == ("out of fold", 120, 2)
    assert scores["precision"] == "float32" and sum(scores["submission_counts"]) == 80
    oof = np.load(folder / "recogniser" / "oof.npy")
    errors = (oof.argmax(axis=1) != load("digits")[0].labels[:120]).sum()
    assert scores["errors"] == errors and "not trained on it" in printed
    assert status.count("train on") == 1 and "net 2 of 2, epoch 1 of 1" in status
    assert {path.name for path in folder.iterdir()} == FILES


@pytest.mark.parametrize("recipe, members, n_digits, expected", [
    (None, None, 898, Plan("few", 5, 0)), (None, None, 42_000, Plan("small", 5, 0)),
    (None, 3, 42_000, Plan("small", 3, 0)), ("svm", None, 898, Plan("svm", 1, 0)),
    ("tiny", None, 898, Plan("tiny", 5, 0))])
def test_without_options_five_nets_are_trained(recipe, members, n_digits, expected):
    "Chapter 13 runs the first in earnest."
    assert make_plan(recipe, members, 0, n_digits) == expected


@nets
def test_a_net_is_trained_in_the_precision_asked_for(labelled, tmp_path):
    args = ["run", "--data", labelled, "--recipe", "dash", "--members", "1"]
    printed, _ = digitrec(*args, "--precision", "bfloat16", cwd=tmp_path)
    assert printed.splitlines()[0].endswith("1 net by the recipe dash, in bfloat16")
    about = json.loads((tmp_path / "digitrec-run/recogniser/net.json").read_text())
    assert about["recipe"]["precision"] == "bfloat16"
    scores = json.loads((tmp_path / "digitrec-run/scores.json").read_text())
    assert scores["precision"] == "bfloat16"


@pytest.fixture(scope="module")
def net_run(tmp_path_factory, labelled):
    cwd = tmp_path_factory.mktemp("net")
    digitrec("run", "--data", labelled, "--recipe", "few", "--members", "1", cwd=cwd)
    return cwd / "digitrec-run"


@nets
@pytest.mark.parametrize(
    "file, content",
    [("net.weights.h5", b"x"), ("net.weights.h5", None), ("net.json", b"{"), ("net.json", b"[]")],
)
def test_a_damaged_net_gets_a_sentence(net_run, tmp_path, file, content):
    folder = shutil.copytree(net_run, tmp_path / "copy")
    path = folder / "recogniser" / file
    path.write_bytes(content) if content else path.unlink()
    picture(TEST.images[0], tmp_path / "x.png")
    printed, status = digitrec("predict", "--model", folder, "x.png", cwd=tmp_path, code=1)
    assert not printed and status.splitlines()[-1].startswith("digitrec: ")
    assert file in status or "no recogniser" in status


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 damaged", b"no zip"])
def test_a_damaged_state_has_no_epochs(tmp_path, content):
    (tmp_path / "state.npz").write_bytes(content)
    assert cli._epochs_of(tmp_path) == ([], False)
    (tmp_path / "net.json").write_text("[]")
    assert cli._epochs_of(tmp_path) == ([], False)


def test_other_digits_have_runs_of_their_own(tmp_path):
    names = set()
    for digits in (TEST[:20], TEST[20:40]):
        with cli._runs_in(tmp_path, Plan("few", 5, 0), digits) as runs:
            names.add(runs.name)
    assert len(names) == 2


@nets
@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_a_stopped_run_resumes(net_run, labelled, tmp_path, name):
    command = ["run", "--data", labelled, "--recipe", "few", "--members", "1", "--out", "killed"]
    folder, number = tmp_path / "killed", getattr(signal, name)
    states = lambda: list(folder.glob(".training/*/*/*/state.npz"))  # noqa: E731
    program = [sys.executable, "-m", "digitrec", *map(str, command)]
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 (ignored by `&`)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "preexec_fn": heed}
    with subprocess.Popen(program, cwd=tmp_path, **pipes) as child:
        while child.poll() is None and not states():
            time.sleep(0.005)
        child.send_signal(number)
        _, status = child.communicate()
    assert child.returncode in (-number, 130) and not (folder / "scores.json").exists()
    assert name == "SIGKILL" or b"the same command resumes from there" in status
    with np.load(*states()) as state:
        trained = json.loads(str(state["about"]))["rows"]
    assert "resume what a stopped run left" in digitrec(*command, cwd=tmp_path)[1]
    for file in ("submission.csv", "scores.json"):
        assert (folder / file).read_bytes() == (net_run / file).read_bytes()
    rows = json.loads((folder / "recogniser" / "net.json").read_text())["history"]
    assert 0 < len(trained) < len(rows) and rows[: len(trained)] == trained  # not trained again
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
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return {"cwd": folder, "PYTHONPATH": path, "KERAS_BACKEND": ""}


@pytest.mark.parametrize(
    "args, modules",
    [([], {"keras", *ENGINES}), (["--recipe", "mlp"], {"keras"}), (["--members", 1], ENGINES)],
)
def test_a_net_without_keras_or_an_engine_names_an_extra(labelled, tmp_path, args, modules):
    _, status = digitrec("run", "--data", labelled, *args, code=1, **without(modules, tmp_path))
    assert "digitrec[cpu]" in status.splitlines()[-1]


@nets
def test_without_keras_there_is_the_svm(net_run, labelled, tmp_path):
    bare = without({"keras", *ENGINES}, tmp_path)
    picture(TEST.images[0], tmp_path / "x.png")
    assert "digitrec[cpu]" in digitrec("predict", "--model", net_run, "x.png", code=1, **bare)[1]
    assert "the SVM" in digitrec("run", "--data", labelled, "--recipe", "svm", **bare)[0]
    assert digitrec("predict", "--model", "digitrec-run", "x.png", **bare)[0].startswith("x.png  ")
    assert "digitrec[cpu]" in digitrec("info", **bare)[0]


@real_data
def test_a_submission_for_the_kaggle_format_digits(tmp_path):
    "On the first rows of Kaggle's tables; chapter 13 shows the whole of them."
    (tmp_path / "kaggle-format").mkdir()
    for name, n in (("train", 6_000), ("test", 3_000)):
        with gzip.open(Path(DATA) / f"kaggle-format/{name}.csv.gz", "rt") as rows:
            (tmp_path / f"kaggle-format/{name}.csv").write_text("".join(islice(rows, n + 1)))
    run = ("run", "--data", "kaggle", "--recipe", "svm", "--out", "out")
    digitrec(*run, cwd=tmp_path, DIGITREC_DATA=str(tmp_path))
    assert (tmp_path / "out/submission.csv").read_text().startswith("ImageId,Label\n")
    rows = np.loadtxt(tmp_path / "out/submission.csv", int, delimiter=",", skiprows=1)
    assert rows.shape == (3_000, 2) and (rows[:, 0] == np.arange(1, 3_001)).all()
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert (scores["scored_by"], scores["scored_on"]) == ("held out", "Kaggle-format train")
    assert (scores["n"], scores["n_trained"]) == (1_200, 6_000) and scores["accuracy"] > 0.955
    # its digits are MNIST's, in another order: the pixels find the label of each
    mnist = {
        image.tobytes(): label
        for part in load("mnist")
        for image, label in zip(part.images, part.labels, strict=True)
    }
    test = read_csv(tmp_path / "kaggle-format/test.csv")
    truth = [mnist[image.tobytes()] for image in test.images]
    assert (rows[:, 1] == truth).mean() > 0.955
