"""Every recogniser by its name; saved and loaded; a crash costs no file that was good before."""

import importlib.util
import json
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from files import contents, error_message, refused
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression

from digitrec import models
from digitrec.export import PRETRAINED, load_pretrained
from digitrec.models import NAMES, build, default_recipe, load, save
from digitrec.recipe import RECIPES
from digitrec.sources import load as load_digits

TRAIN, TEST = load_digits("digits")
nets = pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="needs Keras")
SHIPPED = Path(models.__file__).parent / "pretrained"


@pytest.fixture(scope="module")
def svm():
    return build("svm").fit(TRAIN.images[:300], TRAIN.labels[:300])


@pytest.fixture(scope="module")
def net():
    return short("tiny").fit(TRAIN.images[:200], TRAIN.labels[:200])


@pytest.fixture(scope="module")
def vote():
    return short("tiny", members=2).fit(TRAIN.images[:200], TRAIN.labels[:200])


def short(name, **settings):
    "A recogniser of one epoch"
    return build(name, verbose=False, **settings).set_params(recipe__epochs=1)


def same_predictions(first, second):
    images = TEST.images[:40]
    return np.array_equal(first.predict_proba(images), second.predict_proba(images))


# Building


@nets
def test_each_name_builds_its_recogniser(tmp_path):
    from digitrec.ensemble import Ensemble
    from digitrec.training import Net

    assert NAMES == ("ensemble", "svm", *RECIPES)
    for name in RECIPES:
        recogniser = build(name, seed=3, folder=tmp_path)
        assert type(recogniser) is Net and recogniser.recipe is RECIPES[name]
        assert recogniser.seed == 3 and recogniser.folder == tmp_path
    vote = build("record", members=15, seed=4)
    assert type(vote) is Ensemble and (vote.k, vote.seed, vote.recipe.name) == (15, 4, "record")
    assert build("ensemble").k == 5 and build("ensemble", n_digits=898).recipe.name == "few"
    assert type(build("ensemble", members=1)) is Net


@pytest.mark.parametrize(
    "n, name", [(1, "few"), (4_999, "few"), (5_000, "small"), (60_000, "small")]
)
def test_few_digits_get_a_recipe_of_their_own(n, name):
    assert default_recipe(n) == name


@pytest.mark.parametrize(
    "args, found",
    [
        (("oracle",), "name = 'oracle'"),
        ((None,), "name = 'None'"),
        (("svm", 2), "members = 2"),
        (("tiny", 0), "members = 0"),
        (("tiny", True), "members = True"),
        (("tiny", "5"), "members = '5'"),
    ],
)
def test_other_settings_are_refused(args, found):
    assert found in error_message(build, *args)


# Saving and loading


def test_an_svm_is_a_file(svm, tmp_path):
    path = save(svm, tmp_path / "deep" / "svm")
    assert path.is_file() and same_predictions(load(path), svm)
    assert [entry.name for entry in path.parent.iterdir()] == ["svm"]


@nets
def test_a_net_is_a_folder(net, tmp_path):
    loaded = load(save(net, tmp_path / "net"))
    assert same_predictions(loaded, net) and loaded.recipe == net.recipe
    assert set(contents(tmp_path)) == {"net/net.json", "net/net.weights.h5"}


@nets
def test_an_ensemble_is_a_folder_of_nets(vote, tmp_path):
    loaded = load(save(vote, tmp_path / "vote"))
    assert same_predictions(loaded, vote) and np.array_equal(loaded.oof_, vote.oof_)
    assert [member.folder_.parent for member in loaded.members_] == [tmp_path / "vote"] * 2
    assert same_predictions(load(tmp_path / "vote" / "member-00"), vote.members_[0])
    same = load(save(loaded, tmp_path / "vote"))  # over itself
    assert same_predictions(same, vote) and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_shipped_net_is_loaded_by_its_name(name, tmp_path, monkeypatch):
    expected = load_pretrained(name)
    assert same_predictions(load(name), expected) and same_predictions(
        load(SHIPPED / f"{name}.onnx"), expected
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert "no recogniser in it" in error_message(load, name)  # what exists comes first


@nets
def test_a_runs_folder_is_loaded(svm, net, tmp_path):
    for recogniser in (svm, net, svm):
        save(recogniser, tmp_path / "recogniser")
        assert same_predictions(load(tmp_path), recogniser)
        assert [path.name for path in tmp_path.iterdir()] == ["recogniser"]


def test_what_is_no_recogniser_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no recogniser")
    (tmp_path / "folder").mkdir()
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("schema.json", "{}")
    for name, found in {
        "notes.txt": "no whole recogniser",
        "zip": "no whole recogniser",
        "folder": "no recogniser in it",
        "nowhere": "no such file or folder",
        "long" * 100: "no such file or folder",
    }.items():
        assert found in refused(tmp_path / name, load, tmp_path / name).found


def test_a_damaged_svm_is_refused(svm, tmp_path):
    path = save(svm, tmp_path / "svm")
    good = path.read_bytes()
    for bad in (good[:-100], good[: len(good) // 2], b""):
        path.write_bytes(bad)
        assert "no whole recogniser" in refused(path, load, path).found


def test_types_that_nobody_trusts_are_refused(tmp_path):
    import skops.io

    skops.io.dump({"a": Path("x")}, tmp_path / "path")
    assert "types" in refused(tmp_path / "path", load, tmp_path / "path").found
    skops.io.dump(LogisticRegression(), tmp_path / "other")
    assert "no whole recogniser" in refused(tmp_path / "other", load, tmp_path / "other").found


def test_a_file_that_unpacks_to_too_much_is_refused(svm, tmp_path, monkeypatch):
    path = save(svm, tmp_path / "svm")
    monkeypatch.setattr(models, "MAX_MODEL", 10_000)
    assert "bytes, unpacked" in refused(path, load, path).found


class Stranger(LogisticRegression):
    pass


def test_what_could_not_be_loaded_is_not_saved(svm, tmp_path):
    path = save(svm, tmp_path / "svm")
    before = contents(tmp_path)
    stranger = Stranger().fit(TRAIN.flat[:50], TRAIN.labels[:50])
    assert "Stranger" in error_message(save, stranger, path)
    assert "pack" in error_message(save, load_pretrained("tiny"), path)
    with pytest.raises(NotFittedError):
        save(build("svm"), path)
    assert contents(tmp_path) == before


@nets
def test_a_folder_with_other_files_is_not_replaced(net, vote, svm, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    save(vote, tmp_path / "vote")
    shutil.copytree(tmp_path / "vote" / "member-00", tmp_path / "vote" / "another")
    before = contents(tmp_path)
    for recogniser in (net, vote, svm):
        for name in ("mine", "vote"):
            assert (
                "other files" in refused(tmp_path / name, save, recogniser, tmp_path / name).found
            )
    assert contents(tmp_path) == before
    assert "no name" in error_message(save, net, "")


@nets
@pytest.mark.parametrize(
    "name", ["member-00/notes.txt", "member-01/old/notes.txt", "oof.npy/notes.txt", "old/notes.txt"]
)
def test_a_file_at_any_depth_keeps_its_folder(vote, svm, tmp_path, name):
    path = save(vote, tmp_path / "vote")
    file = path / name
    if file.parent.is_file():
        file.parent.unlink()
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    before = contents(tmp_path)
    for recogniser in (vote, svm):
        found = refused(path, save, recogniser, path).found
        assert found == f"a folder with other files ({name.removesuffix('/notes.txt')!r})" or (
            found == f"a folder with other files ({name!r})"
        )
    assert contents(tmp_path) == before


@nets
def test_a_file_that_save_did_not_write_is_not_replaced(net, svm, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "empty").write_text("")
    for name, content in {"other": "{}", "list": "[]", "text": "mine"}.items():
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr("schema.json", content)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("1.jpg", "mine")
    (tmp_path / "link").symlink_to(tmp_path / "notes.txt")
    before = contents(tmp_path)
    names = [path.name for path in tmp_path.iterdir()]
    for name in names:
        for recogniser in (net, svm):
            found = refused(tmp_path / name, save, recogniser, tmp_path / name).found
            assert found == "a file that `save` did not write"
    assert contents(tmp_path) == before and (tmp_path / "link").is_symlink()


def test_what_is_no_file_is_not_replaced(svm, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "did not write" in refused(tmp_path / "pipe", save, svm, tmp_path / "pipe").found


def test_the_shipped_nets_are_not_replaced(svm):
    before = contents(SHIPPED)
    assert "other files" in refused(SHIPPED, save, svm, SHIPPED).found
    assert contents(SHIPPED) == before


def test_a_place_that_cannot_be_written_is_said(svm, tmp_path):
    (tmp_path / "file").write_text("")
    assert "can be written" in error_message(save, svm, tmp_path / "file" / "below")


# Crashes


class Crash(BaseException):
    pass


CALLS = [(os, "replace"), (os, "fsync"), (Path, "rename"), (Path, "unlink"), (shutil, "rmtree")]


def crash_at(monkeypatch, number):
    "Make the `number`th change of the disk, and each later one, fail as if the process were gone"
    count = [0]

    def counted(function):
        def call(*args, **kwargs):
            count[0] += 1
            if count[0] >= number:
                raise Crash
            return function(*args, **kwargs)

        return call

    for owner, name in CALLS:
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))


@nets
@pytest.mark.parametrize(
    "before, after",
    [
        ("net", "vote"),
        ("vote", "net"),
        ("svm", "net"),
        ("net", "svm"),
        ("svm", "svm"),
        ("net", "net"),
    ],
)
def test_a_crash_at_any_moment_leaves_the_old_or_the_new(
    request, tmp_path, monkeypatch, before, after
):
    old, new = request.getfixturevalue(before), request.getfixturevalue(after)
    expected, crashes = contents(save(new, tmp_path / "undisturbed")), 0
    for number in range(1, 200):
        path = tmp_path / str(number) / "recogniser"
        save(old, path)
        with monkeypatch.context() as patch:
            crash_at(patch, number)
            try:
                save(new, path)
                break
            except Crash:
                crashes += 1
        found = load(path.parent if number % 2 else path)
        assert same_predictions(found, old) or same_predictions(found, new)
        assert contents(save(new, path)) == expected
        assert [left.name for left in path.parent.iterdir()] == ["recogniser"]
    assert 2 <= crashes < 199
    assert same_predictions(load(path), new)


@nets
def test_a_failed_save_leaves_the_ensemble_as_it_was(vote, tmp_path, monkeypatch):
    save(vote, tmp_path / "vote")
    folders = [member.folder_ for member in vote.members_]
    with monkeypatch.context() as patch:
        crash_at(patch, 3)
        with pytest.raises(Crash):
            save(vote, tmp_path / "vote")
    assert [member.folder_ for member in vote.members_] == folders


@nets
def test_saved_files_hold_no_code(net, tmp_path):
    folder = save(net, tmp_path / "net")
    about = json.loads((folder / "net.json").read_text())
    assert about["recipe"]["net"] == "tiny_net" and replace(net.recipe) == net.recipe
    about["recipe"]["net"] = "os.system"
    (folder / "net.json").write_text(json.dumps(about))
    assert "no description of a known net" in error_message(load, folder)


def test_a_folder_of_somebody_elses_is_not_replaced(svm, tmp_path):
    strange = {"members": 5, "scores": [], "split": "seeds"}
    theirs = [("net.json", {"mine": 1}), ("ensemble.json", {"members": []}),
              ("ensemble.json", strange)]
    for i, (name, content) in enumerate(theirs):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / name).write_text(json.dumps(content))
        before = contents(tmp_path)
        refused(folder.name, save, svm, folder)
        assert contents(tmp_path) == before


def test_what_is_no_recogniser_is_not_saved(tmp_path):
    for thing in (None, "net", [1]):
        message = error_message(save, thing, tmp_path / "x")
        assert f"a {type(thing).__name__}; expected a fitted recogniser" in message
    assert not list(tmp_path.iterdir())


def test_an_svm_is_loaded_whatever_its_name(svm, tmp_path):
    assert same_predictions(load(save(svm, tmp_path / "mine.onnx")), svm)
