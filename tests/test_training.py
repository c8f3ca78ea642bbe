"""Nets: killed and gone on with, kept and refused, told nonsense. The chapters show the rest."""
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pytest
from files import contents
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError

from digitrec.data import DataError, load
from digitrec.scores import cross_validate

pytest.importorskip("keras", reason="needs Keras and an engine: digitrec[cpu], [gpu] or [tpu]")
from digitrec import cli, training
from digitrec.augmentation import Augmentation, Strangers, augment
from digitrec.cnn import RECIPES, first_net, small_net
from digitrec.training import MANIFEST, SCHEDULES, WEIGHTS, Net, Recipe, keras, load_net, register

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
TINY = replace(RECIPES["few"], name="tiny", epochs=2, augmentation=Augmentation(rotation=10, shift=1))
TRAIN, TEST = load("digits")
SOME = TRAIN[:96]
learned = SOME.images, SOME.labels


def stopped(folder, recipe=TINY, seed=0):
    "A folder with a run of a net that was stopped in its second epoch."
    train, epochs = training._epoch, []

    def interrupted(run):
        epochs.append(run)
        if len(epochs) == 2:
            raise KeyboardInterrupt
        return train(run)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "_epoch", interrupted)
        Net(recipe, seed, folder, quiet=True).fit(*learned)
    return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    "A net, fitted, and the folder that holds it."
    folder = tmp_path_factory.mktemp("kept")
    return SimpleNamespace(net=Net(TINY, 0, folder, quiet=True).fit(*learned), folder=folder)


@pytest.fixture
def copy(kept, tmp_path):
    "A folder with a net that may be spoilt."
    return shutil.copytree(kept.folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    "The state of a net that was stopped in its second epoch of two."
    return (stopped(tmp_path_factory.mktemp("halfway")) / "state.npz").read_bytes()


# Killed, and gone on with

KILLED = """
import sys
from digitrec.augmentation import Augmentation
from digitrec.data import load
from digitrec.training import Net, Recipe, _values, digest, keras, register

layers = keras.layers

@register
def net():
    return keras.Sequential([
        keras.Input((28, 28)), layers.Rescaling(1 / 255), layers.Reshape((28, 28, 1)), layers.Conv2D(12, 5, strides=2),
        layers.BatchNormalization(), layers.Activation("relu"), layers.Conv2D(24, 5, strides=2, activation="relu"),
        layers.Dropout(0.3), layers.Flatten(), layers.Dense(10, activation="softmax")])

train, _ = load("digits")
augmentation = Augmentation(rotation=10, shear=5, zoom=0.1, shift=1, elastic=1)
recipe = Recipe("killed", net, epochs=16, batch=64, rate=3e-3, schedule="one-cycle", best="loss", augmentation=augmentation)
print("begin", flush=True)
fitted = Net(recipe, 3, sys.argv[1], quiet=True).fit(train.images, train.labels)
print(digest(*_values(fitted.net_.weights)), flush=True)  # dropout's own random state is not kept with a finished net
"""


def trained(folder, kill_after=None):
    "Train in a process of its own, perhaps killed; the digest of the weights, or None, and the seconds that training took."
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", KILLED, folder], **pipes) as child:
        said = [child.stdout.readline()]
        while said[-1] and said[-1] != "begin\n":
            said.append(child.stdout.readline())
        start = time.perf_counter()
        try:
            rest, errors = child.communicate(timeout=kill_after)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            return None, kill_after
    assert child.returncode == 0, errors
    return rest.split()[-1], time.perf_counter() - start


@POSIX
def test_a_killed_run_ends_in_the_weights_of_an_undisturbed_one(tmp_path):
    expected, seconds = trained(tmp_path / "undisturbed")
    moments, kills = random.Random(0), []
    for i in range(int(os.environ.get("DIGITREC_KILLS", 2))):
        share, found = moments.uniform(0, 0.9), ""
        while found is not None:  # through before it could be killed: the machine is faster than it was
            folder = tmp_path / f"{i}-{len(list(tmp_path.iterdir()))}"
            found, taken = trained(folder, kill_after=share * seconds)
            if found is not None:
                seconds = min(taken, 0.9 * seconds)
        if (state := folder / "state.npz").exists():
            kills.append(len(training._read_state(state)[0]["rows"]))
        found, _ = trained(folder)
        assert found == expected, f"killed after epochs {kills}"
        assert set(os.listdir(folder)) == {MANIFEST, WEIGHTS}


def test_what_a_killed_run_left_behind_is_cleared_away(kept, tmp_path, halfway):
    for name in (".0123abcd-state.npz", ".0123abcd-net.json", f".0123abcd-{WEIGHTS}"):  # half of a file, as a kill leaves it
        (tmp_path / name).write_bytes(halfway[:1000])
    (tmp_path / "state.npz").write_bytes(halfway)
    assert (Net(TINY, 0, tmp_path, quiet=True).fit(*learned).predict_proba(TEST.images[:50])
            == kept.net.predict_proba(TEST.images[:50])).all()
    assert set(os.listdir(tmp_path)) == {MANIFEST, WEIGHTS}


def test_a_run_killed_after_its_last_file_leaves_no_state(copy, halfway):
    (copy / "state.npz").write_bytes(halfway)
    Net(TINY, 0, copy, quiet=True).fit(*learned)
    assert set(os.listdir(copy)) == {MANIFEST, WEIGHTS}


def test_a_finished_run_is_not_trained_again(copy, monkeypatch, kept):
    before = contents(copy)
    monkeypatch.setattr(training, "_epoch", lambda run: pytest.fail("it was trained"))
    again = Net(TINY, 0, copy, quiet=True).fit(*learned)
    assert (again.predict_proba(TEST.images[:50]) == kept.net.predict_proba(TEST.images[:50])).all()
    assert contents(copy) == before


# State files

def test_a_state_with_a_bit_changed_is_refused_or_read_as_it_was(tmp_path):
    path, about, now = tmp_path / "state.npz", {"seed": 1, "rows": []}, [np.arange(5.0), np.ones((2, 2), np.float32)]
    training._write_state(path, about, now, [np.arange(3)])
    good, refused = path.read_bytes(), 0
    for bit in range(0, 8 * len(good), 5):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            said, arrays, best = training._read_state(path)
        except DataError as error:
            assert "state.npz" in error.file
            refused += 1
        else:
            assert said == {**about, "n": 2, "n_best": 1} and (best[0] == np.arange(3)).all()
            assert all((a == b).all() for a, b in zip(arrays, now, strict=True))
        assert path.read_bytes() == damaged
    assert refused > len(good) / 2


def test_a_truncated_state_is_refused(tmp_path, halfway):
    path = tmp_path / "state.npz"
    for end in range(0, len(halfway), len(halfway) // 50):
        path.write_bytes(halfway[:end])
        with pytest.raises(DataError, match="state.npz"):
            training._read_state(path)
    assert path.read_bytes() == halfway[:end]


@pytest.mark.parametrize("change", ["cut", "bit", "recipe", "seed", "digits", "fewer arrays", "other shapes", "no rows", "list"])
def test_a_net_does_not_go_on_from_a_state_that_is_not_its_own(tmp_path, halfway, change):
    path = tmp_path / "state.npz"
    path.write_bytes(halfway)
    about, now, best = training._read_state(path)
    if change == "cut":
        path.write_bytes(halfway[:-1000])
    elif change == "bit":
        middle = len(halfway) // 2
        path.write_bytes(halfway[:middle] + bytes([halfway[middle] ^ 1]) + halfway[middle + 1:])
    elif change == "list":
        np.savez(path, about=json.dumps([1, 2]))
    elif change == "no rows":
        training._write_state(path, {key: value for key, value in about.items() if key != "rows"}, now, best)
    elif change == "fewer arrays":
        training._write_state(path, about, now[:-1], best)
    elif change == "other shapes":  # the net's function was rewritten
        training._write_state(path, about, [np.zeros((*array.shape, 2)) for array in now], best)
    net = Net(replace(TINY, rate=1e-4) if change == "recipe" else TINY, int(change == "seed"), tmp_path, quiet=True)
    before, digits = contents(tmp_path), TRAIN[1:97] if change == "digits" else SOME
    with pytest.raises(DataError) as caught:
        net.fit(digits.images, digits.labels)
    assert str(path) in caught.value.file and contents(tmp_path) == before


# Kept nets

def changed(folder, change):
    "Rewrite a net's manifest."
    about = json.loads((folder / MANIFEST).read_text())
    change(about)
    (folder / MANIFEST).write_text(json.dumps(about))


def unreadable(folder, where=""):
    "A net's folder must be refused, with a file in it named, and stay as it is."
    before = contents(folder)
    with pytest.raises(DataError) as caught:
        load_net(folder)
    assert "net." in caught.value.file or "recipe" in caught.value.file or "augmentation" in caught.value.file, str(caught.value)
    assert where in str(caught.value) and contents(folder) == before


def test_a_truncated_manifest_is_refused(copy):
    text = (copy / MANIFEST).read_bytes()
    for end in range(0, len(text) - 2, 10):
        (copy / MANIFEST).write_bytes(text[:end])
        unreadable(copy, MANIFEST)


STRANGE = [None, True, -1, 1.5, "x", [], {}, [[]], {"x": 1}]


@pytest.mark.parametrize("key, values", {
    "": [value for value in STRANGE if not isinstance(value, dict)] + [{}],
    "recipe": STRANGE, "recipe net": STRANGE, "recipe epochs": STRANGE, "recipe batch": STRANGE, "recipe schedule": STRANGE,
    "recipe rate": [None, True, -1, "x", [], {}], "recipe augmentation": [True, 1.5, "x", [[]], {"x": 1}],
    "recipe augmentation part": STRANGE, "recipe augmentation rotation": [None, -1, "x", [], {}], "recipe unknown": STRANGE,
    "files": STRANGE, f"files {WEIGHTS}": STRANGE, "history": STRANGE, "history 0": STRANGE,
    "history 0 seconds": [None, "x", [], {}],
    "history 0 epoch": [[], {}], "seed": [None, -1, 1.5, "x", [], {}], "learned": [-1, [], {}], "validated": [-1, [], {}],
}.items(), ids=lambda value: value.replace(" ", ".") if isinstance(value, str) else "")
def test_a_manifest_with_something_strange_in_it_is_refused(copy, key, values):
    *path, last = [int(part) if part.isdigit() else part for part in key.split()] or [None]
    good, failed = json.loads((copy / MANIFEST).read_text()), []
    for value in values:
        about = json.loads(json.dumps(good))
        if last is None:
            about = value
        else:
            functools.reduce(lambda part, name: part[name], path, about)[last] = value
        (copy / MANIFEST).write_text(json.dumps(about))
        try:
            unreadable(copy)
        except BaseException as error:  # pytest's own is no Exception
            failed.append(f"{value!r}: {type(error).__name__} {error}"[:200])
    assert not failed


@pytest.mark.parametrize("part", [
    "os.system", "builtins.eval", "system", "", "digitrec", "digitrec.", "digitrec..data", "digitrec.nowhere.net",
    "digitrec.\0.net", "digitrec.cli.app", "digitrec.cli.run", "digitrec.data.download_mnist",
    "digitrec.training.save_net", "digitrec.cnn.RECIPES",
    "digitrec.data.os.system", "digitrec.augmentation.Augmentation",
])
def test_a_manifest_cannot_name_what_nobody_registered(copy, part, monkeypatch):
    called = []
    for place in ("os.system", "digitrec.data.download_mnist", "digitrec.training.save_net", "digitrec.cli.run"):
        monkeypatch.setattr(place, lambda *args, **kwargs: called.append(args))
    changed(copy, lambda about: about["recipe"].update(net=part))
    unreadable(copy)
    part = "digitrec.cnn.small_net" if part.endswith("Augmentation") else part  # registered, each of the other kind
    changed(copy, lambda about: about["recipe"].update(net="digitrec.cnn.small_net", augmentation={"part": part}))
    unreadable(copy)
    assert not called


def fitted_up(folder, weights):
    "Give a folder other weights, and its manifest their sha256."
    (folder / WEIGHTS).write_bytes(weights)
    changed(folder, lambda about: about["files"].update({WEIGHTS: sha256(weights).hexdigest()}))


@pytest.mark.parametrize("net", [first_net, RECIPES["mlp-2021"].net, RECIPES["cv-2020"].net, RECIPES["standardised-2017"].net])
def test_weights_of_another_net_are_refused_though_their_sha256_fits(copy, tmp_path, net):
    net().save_weights(tmp_path / "other.weights.h5")
    fitted_up(copy, (tmp_path / "other.weights.h5").read_bytes())
    unreadable(copy, "weights of another net")


def test_damaged_weights_are_refused_though_their_sha256_fits(copy):
    good, failed = (copy / WEIGHTS).read_bytes(), []
    moments = random.Random(0)
    damaged = [b"", b"x", bytes(5000), good[:100], good[:-1], good[: len(good) // 2]]
    for _ in range(40):  # in the structure at the file's beginning
        spoilt = bytearray(good)
        spoilt[moments.randrange(2500)] ^= 255
        damaged.append(bytes(spoilt))
    for weights in damaged:
        fitted_up(copy, weights)
        try:
            assert load_net(copy).predict_proba(SOME.images[:5]).shape == (5, 10)
        except DataError:
            assert (copy / WEIGHTS).read_bytes() == weights
        except Exception as error:
            failed.append(f"{type(error).__name__}: {error}"[:120])
    assert not failed


def test_missing_and_changed_weights_are_refused(copy):
    good = (copy / WEIGHTS).read_bytes()
    for weights in (b"", good[:-1], good + b"\0", good[:-1] + bytes([good[-1] ^ 1])):
        (copy / WEIGHTS).write_bytes(weights)
        unreadable(copy, WEIGHTS)
    (copy / WEIGHTS).unlink()
    unreadable(copy, WEIGHTS)


# Recipes and augmentations

ANYTHING = (st.none() | st.booleans() | st.integers() | st.integers(-3, 40) | st.floats() | st.floats(-1, 2) | st.text(max_size=3)
            | st.sampled_from([0, 1, -0.0, 1.0, 1e300, 10**400, 5e-324, float("nan"), float("inf")]))


@register
def smallest():
    "The net that is the quickest to build"
    return keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")])


@settings(max_examples=300, deadline=20_000)
@given(st.sampled_from([field.name for field in fields(Recipe) if field.name not in ("name", "net")]), ANYTHING,
       st.sampled_from(SCHEDULES), st.sampled_from(["adam", "sgd"]))
def test_a_recipe_is_refused_or_can_be_built_kept_and_read(field, value, schedule, optimiser):
    try:
        recipe = replace(Recipe("any", smallest, schedule=schedule, optimiser=optimiser, best="loss"), **{field: value})
    except DataError as error:
        assert f"{field} = " in str(error)
        return
    assert training._restored(json.loads(json.dumps(training._described(recipe)))) == recipe
    training.build(recipe, 0, SOME.images, 3)


@pytest.mark.parametrize("rate", [1, np.float32(0.5), np.int64(1)])
def test_every_number_makes_a_learning_rate(rate, tmp_path):
    recipe = Recipe("any", smallest, epochs=1, rate=rate, optimiser="adadelta")
    net = Net(recipe, 0, tmp_path, quiet=True).fit(*learned)
    assert (load_net(tmp_path).predict_proba(SOME.images) == net.predict_proba(SOME.images)).all()


@settings(max_examples=300, deadline=20_000)
@given(st.sampled_from([field.name for field in fields(Augmentation) if field.name != "normal"]), ANYTHING)
def test_an_augmentation_is_refused_or_can_be_built_kept_and_read(field, value):
    try:
        augmentation = replace(Augmentation(), **{field: value})
    except DataError as error:
        assert f"{field} = " in str(error)
        return
    recipe = Recipe("any", smallest, augmentation=augmentation)
    assert training._restored(json.loads(json.dumps(training._described(recipe)))) == recipe
    assert augmentation.layer()(SOME.images[:2]).shape == (2, 28, 28)


@pytest.mark.parametrize("extreme", [
    Augmentation(rotation=180, shear=60, zoom=0.9, shift=28, elastic=28, zoom_centre=10, normal=True),
    Augmentation(zoom=0.9, zoom_centre=0.1), Augmentation(elastic=28),
])
def test_the_wildest_augmentation_gives_digits(extreme):
    warped = augment(SOME.images, extreme)
    assert warped.shape == SOME.images.shape and warped.dtype == np.uint8 and (warped != SOME.images).any()


def test_only_a_dataclass_with_a_layer_augments():
    @dataclass
    class Nothing:
        pass

    for part in (Nothing(), Augmentation, "Augmentation", keras.layers.Layer()):
        with pytest.raises(DataError, match="augmentation = "):
            training.build(Recipe("any", smallest, augmentation=part), 0, SOME.images, 1)


# What the published recipes are

MLPS = {"epochs": 50, "batch": 32, "rate": 5e-4, "best": "loss", "patience": 10, "min_delta": 1e-3}


@pytest.mark.parametrize("name, parameters, told", [
    ("mlp-2021-as-written", 159_810, MLPS),
    ("mlp-2021", 200_810, MLPS),
    ("cv-2020", 327_242, {"epochs": 45, "schedule": "exponential", "decay": 0.95,
                          "augmentation": Augmentation(rotation=10, zoom=0.1, shift=2.8)}),
    ("triple-2021", 1_091_018, {
        "epochs": 200, "schedule": "exponential", "decay": 0.95, "best": "loss", "patience": 10,
        "augmentation": Augmentation(rotation=5, shear=5, zoom=0.1, shift=1, zoom_centre=1.1, normal=True)}),
    ("first-2020", 693_962, {"epochs": 10, "batch": 64}),
    ("classic-2018", 1_199_882, {"epochs": 12, "optimiser": "adadelta", "rate": 1.0}),
    ("standardised-2017", 1_691_501, {
        "epochs": 2, "batch": 64, "schedule": "exponential", "decay": 0.1,
        "augmentation": Augmentation(rotation=8, shear=0.3, zoom=0.08, shift=2.24)}),
])
def test_published_recipes_are_as_they_were_published(name, parameters, told):
    recipe = RECIPES[name]
    expected = {field.name: field.default for field in fields(Recipe)} | told | {"name": name, "net": recipe.net}
    assert {field.name: getattr(recipe, field.name) for field in fields(Recipe)} == expected
    assert recipe.net().count_params() == parameters


def test_the_command_knows_every_recipe():
    assert cli.RECIPE_NAMES == tuple(RECIPES) and set(RECIPES) < set(cli.MODELS)
    assert [name for name, recipe in RECIPES.items() if recipe.name != name] == []


# Nonsense

FEW = SOME.images[:40], SOME.labels[:40]
NO_IMAGES = {
    "floats": FEW[0] / 255, "rows": FEW[0].reshape(40, 784), "one": FEW[0][0], "channels": FEW[0][..., None], "none": None,
    "word": "x", "uneven": [FEW[0][0], FEW[0][1][:5]], "objects": FEW[0].astype(object), "signed": FEW[0].astype(np.int8),
    "wide": np.zeros((40, 28, 27), np.uint8),
}
NO_LABELS = {
    "ten": np.r_[FEW[1][:-1], 10], "minus one": np.r_[FEW[1][:-1], -1], "floats": FEW[1] / 1, "few": FEW[1][:-1],
    "many": np.r_[FEW[1], 1], "one-hot": np.eye(10, dtype=int)[FEW[1]], "words": FEW[1].astype(str), "none": None,
    "truths": FEW[1] > 3,
}


@pytest.mark.parametrize("images, labels, validation", [
    *[pytest.param(images, FEW[1], None, id=f"images-{name}") for name, images in NO_IMAGES.items()],
    *[pytest.param(FEW[0], labels, None, id=f"labels-{name}") for name, labels in NO_LABELS.items()],
    *[pytest.param(*FEW, (images, FEW[1]), id=f"validation-images-{name}") for name, images in NO_IMAGES.items()],
    *[pytest.param(*FEW, (FEW[0], labels), id=f"validation-labels-{name}") for name, labels in NO_LABELS.items()],
    *[pytest.param(*FEW, validation, id=f"validation-{type(validation).__name__}-{i}") for i, validation in enumerate(
        [5, "xy", (), FEW[:1], (*FEW, FEW[1]), SOME, (FEW[0][:0], FEW[1][:0])])],
    pytest.param(FEW[0][:0], FEW[1][:0], None, id="nothing"),
])
def test_a_net_refuses_what_is_no_digits_and_writes_nothing(tmp_path, images, labels, validation):
    with pytest.raises(DataError):
        Net(TINY, 0, tmp_path / "run", quiet=True).fit(images, labels, validation)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe, seed", [
    (None, 0), ("few", 0), (small_net, 0), (TINY, -1), (TINY, 0.5), (TINY, "0"), (TINY, None)])
def test_a_net_refuses_what_is_no_recipe_or_seed(tmp_path, recipe, seed):
    with pytest.raises(DataError, match="recipe = |seed = "):
        Net(recipe, seed, tmp_path / "run").fit(*learned)
    assert not (tmp_path / "run").exists()


def test_too_few_of_a_digit_to_hold_some_out(tmp_path):
    digits = TRAIN[np.r_[np.flatnonzero(TRAIN.labels != 7)[:40], np.flatnonzero(TRAIN.labels == 7)[:1]]]
    with pytest.raises(DataError, match="1 of digit 7"):
        Net(replace(TINY, best="loss"), 0, tmp_path / "run").fit(digits.images, digits.labels)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("images", NO_IMAGES.values(), ids=NO_IMAGES)
def test_only_images_are_read_and_warped(kept, images):
    for ask in (kept.net.predict, kept.net.predict_proba, lambda images: augment(images, Augmentation())):
        with pytest.raises(DataError, match=r"uint8 of shape \(n, 28, 28\)"):
            ask(images)


def test_digits_are_warped_only_by_an_augmentation_and_a_seed():
    for how in [(None,), ("x",), (Augmentation(), -1), (Augmentation(), "x"), (Augmentation(), None)]:
        with pytest.raises(DataError):
            augment(SOME.images, *how)


# A loss that is no number

def test_a_loss_that_is_no_number_fails_again_and_keeps_the_last_good_state(tmp_path):
    stopped(tmp_path)  # after a good epoch
    good = contents(tmp_path)
    wild, messages = training._batches, []
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError, match="loss that is no number") as caught:
            patch.setattr(training, "_batches", lambda images, targets, *rest: wild(images, targets * np.nan, *rest))
            Net(TINY, 0, tmp_path, quiet=True).fit(*learned)
        messages.append(str(caught.value))
        assert contents(tmp_path) == good
    assert messages[0] == messages[1] and "epoch 2, step 1" in messages[0]
    assert len(training._read_state(tmp_path / "state.npz")[0]["rows"]) == 1


@pytest.mark.parametrize("validation", [None, (TEST.images[:20], TEST.labels[:20])], ids=["alone", "watched"])
def test_weights_that_burst_in_the_last_step_are_no_success(tmp_path, validation):
    wild = replace(TINY, optimiser="sgd", rate=1e30, schedule="constant", epochs=1, batch=len(SOME))  # one step in all
    for _ in range(2):
        net = Net(wild, 0, tmp_path / "run", quiet=True)
        with pytest.raises(DataError, match="recipe tiny"):
            net.fit(*learned, validation)
        assert np.isfinite(net.predict_proba(TEST.images[:20])).all()
        assert not (tmp_path / "run" / MANIFEST).exists() and not (tmp_path / "run" / "state.npz").exists()


# The contract of a recogniser

def test_a_net_keeps_the_recognisers_contract(kept):
    net = clone(kept.net)
    assert net.get_params() == kept.net.get_params() and is_classifier(net)
    for ask in (net.predict, net.predict_proba):
        with pytest.raises(NotFittedError):
            ask(TEST.images[:3])
    several = kept.net.predict_proba(TEST.images[:300])
    assert several.shape == (300, 10) and several.dtype == np.float64 and np.allclose(several.sum(axis=1), 1, atol=1e-12)
    assert (kept.net.predict(TEST.images[:300]) == several.argmax(axis=1)).all() and kept.net.classes_.tolist() == list(range(10))
    assert kept.net.predict_proba(TEST.images[:0]).shape == (0, 10) and kept.net.predict(TEST.images[:0]).shape == (0,)
    for i in (0, 150, 299):
        assert np.allclose(kept.net.predict_proba(TEST.images[i: i + 1])[0], several[i], atol=1e-5)


def test_a_net_is_cross_validated():
    said = cross_validate(Net(replace(RECIPES["few"], epochs=5, batch=8), quiet=True), TRAIN[:300], k=2)
    assert said.probabilities.shape == (300, 10) and said.accuracies.shape == (2,) and said.accuracies.min() > 0.5


def test_a_quiet_net_says_nothing(capfd):
    Net(replace(TINY, epochs=1), quiet=True).fit(*FEW)
    assert capfd.readouterr().out == ""


def test_a_net_that_met_strangers_is_unsure_of_noise(tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (50, 28, 28)).astype(np.uint8)
    recipe = replace(TINY, epochs=8, strangers=Strangers(0.4))
    net = Net(recipe, 0, tmp_path, quiet=True).fit(TRAIN.images, TRAIN.labels)
    assert net.predict_proba(noise).max() < 0.5 < np.median(net.predict_proba(TEST.images).max(axis=1))
    assert load_net(tmp_path).recipe == recipe
    with pytest.raises(DataError, match="strangers"):
        Net(replace(recipe, strangers=Strangers(0.3)), 0, tmp_path, quiet=True).fit(TRAIN.images, TRAIN.labels)


def test_a_stopped_run_with_strangers_goes_on_to_the_same_weights(tmp_path):
    recipe = replace(TINY, strangers=Strangers(0.2), shifts=1)
    whole = Net(recipe, 0, quiet=True).fit(*learned)
    again = Net(recipe, 0, stopped(tmp_path, recipe), quiet=True).fit(*learned)
    assert (whole.predict_proba(TEST.images[:50]) == again.predict_proba(TEST.images[:50])).all()


@pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan"), "0.1", True, None])
def test_a_share_of_strangers_that_cannot_be_is_refused(share):
    with pytest.raises(DataError, match="share"):
        Strangers(share)


@pytest.mark.parametrize("field, value", [
    ("strangers", 0.1), ("strangers", Augmentation()), ("strangers", Strangers), ("shifts", -1), ("shifts", 1.0), ("shifts", 15),
    ("shifts", True)])
def test_a_recipe_refuses_what_it_cannot_ask_or_show(field, value):
    with pytest.raises(DataError, match=field):
        replace(TINY, **{field: value})
