"""Nets: killed and resumed, saved and refused, and whether settings do what they say."""
import functools
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import fields, replace
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pytest
from files import contents
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score

from digitrec.data import DataError, Digits, shifted_copies, split
from digitrec.scores import cross_validate
from digitrec.sources import load

pytest.importorskip("keras", reason="needs Keras and an engine: digitrec[cpu], [gpu] or [tpu]")
from digitrec import nets, training
from digitrec.augmentation import Warp, augment
from digitrec.cnn import layer_table
from digitrec.nets import build_models, predict_model, variable_values
from digitrec.recipe import (
    OPTIMIZERS,
    RECIPES,
    SCHEDULES,
    Augmentation,
    Recipe,
    recipe_from_dict,
    recipe_table,
    recipe_to_dict,
    register,
    registered,
)
from digitrec.training import NET_JSON, WEIGHTS, Net, digest, keras

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
TINY = replace(RECIPES["few"], name="tiny", epochs=2,
               augmentation=Augmentation(rotation=10, shift=1))
TRAIN, TEST = load("digits")
FIRST = TRAIN[:96]
DIGITS = FIRST.images, FIRST.labels
PROBE = TEST.images[:50]


@register
def smallest():
    "The net that is built fastest"
    return keras.Sequential([
        keras.Input((28, 28)), keras.layers.Flatten(),
        keras.layers.Dense(10, activation="softmax")])


SMALLEST = Recipe("any", "smallest", epochs=1, batch_size=32)


def fitted(recipe=TINY, seed=0, folder=None, **keywords):
    return Net(recipe, seed, folder, verbose=False, **keywords).fit(*DIGITS)


def only_run(folder):
    "The folder of the one run inside a folder"
    [run] = folder.iterdir()
    return run


def stopped(folder, recipe=TINY, seed=0):
    "The folder of a run that was stopped in its second epoch"
    train, epochs = training._train_epoch, []

    def interrupted(run, callbacks=()):
        epochs.append(run)
        if len(epochs) == 2:
            raise KeyboardInterrupt
        return train(run, callbacks)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "_train_epoch", interrupted)
        fitted(recipe, seed, folder)
    return only_run(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "A fitted net, and the folder that holds its run"
    folder = tmp_path_factory.mktemp("saved")
    return SimpleNamespace(net=fitted(folder=folder), folder=folder)


@pytest.fixture
def copy(saved, tmp_path):
    "A folder with a run that may be spoilt"
    return shutil.copytree(saved.folder, tmp_path / "copy")


@pytest.fixture
def run(copy):
    "The folder of that run"
    return only_run(copy)


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    "The state of a net that was stopped in its second epoch of two"
    return (stopped(tmp_path_factory.mktemp("halfway")) / "state.npz").read_bytes()


@pytest.fixture
def no_training(monkeypatch):
    "Whoever trains fails."
    monkeypatch.setattr(training, "_train_epoch", lambda *args: pytest.fail("it was trained"))


# Killed and resumed

KILLED = """
import sys
from digitrec.nets import variable_values
from digitrec.recipe import Augmentation, Recipe, register
from digitrec.sources import load
from digitrec.training import Net, digest, keras

layers = keras.layers

@register
def with_dropout():
    return keras.Sequential([
        keras.Input((28, 28)), layers.Rescaling(1 / 255), layers.Reshape((28, 28, 1)),
        layers.Conv2D(12, 5, strides=2), layers.BatchNormalization(), layers.Activation("relu"),
        layers.Conv2D(24, 5, strides=2, activation="relu"), layers.Dropout(0.3),
        layers.Flatten(), layers.Dense(10, activation="softmax")])

train, _ = load("digits")
augmentation = Augmentation(rotation=10, shear=5, zoom=0.1, shift=1, elastic=1)
recipe = Recipe("killed", "with_dropout", epochs=10, batch_size=64, learning_rate=3e-3,
                schedule="one-cycle", monitor="val_loss", augmentation=augmentation)
print("begin", flush=True)
net = Net(recipe, 3, sys.argv[1], verbose=False).fit(train.images, train.labels)
print(digest(*variable_values(net.model_.weights)), flush=True)
"""


def trained(folder, kill_after=None):
    "Train in a process of its own; the digest of the weights, or None if killed, and the seconds."
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", KILLED, folder], **pipes) as child:
        line = child.stdout.readline()
        while line and line != "begin\n":
            line = child.stdout.readline()
        start = time.perf_counter()
        try:
            rest, errors = child.communicate(timeout=kill_after)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            return None, kill_after
    assert child.returncode == 0, errors
    return rest.split()[-1], time.perf_counter() - start


@POSIX
def test_a_killed_run_ends_in_the_weights_of_an_undisturbed_run(tmp_path):
    expected, seconds = trained(tmp_path / "undisturbed")
    moments, kills = random.Random(0), []
    for i in range(int(os.environ.get("DIGITREC_KILLS", 1))):
        fraction, found = moments.uniform(0.2, 0.9), ""
        while found is not None:  # finished before the kill: the machine is faster than it was
            folder = tmp_path / f"{i}-{len(list(tmp_path.iterdir()))}"
            found, taken = trained(folder, kill_after=fraction * seconds)
            if found is not None:
                seconds = min(taken, 0.9 * seconds)
        for state in folder.glob("*/state.npz"):
            kills.append(len(training._read_state(state)[0]["rows"]))
        found, _ = trained(folder)
        assert found == expected, f"killed after epochs {kills}"
        assert set(os.listdir(only_run(folder))) == {NET_JSON, WEIGHTS}


def test_a_stopped_run_resumes_to_the_same_weights_and_history(saved, tmp_path):
    stopped(tmp_path)
    net = fitted(folder=tmp_path)
    assert (net.predict_proba(PROBE) == saved.net.predict_proba(PROBE)).all()
    columns = ["loss", "accuracy", "learning_rate"]
    assert net.history_[columns].equals(saved.net.history_[columns])


def test_files_that_a_kill_left_half_written_are_cleared_away(saved, run, copy, halfway):
    for name in (NET_JSON, WEIGHTS):
        (run / name).unlink()
    for name in (".0123abcd-state.npz", ".0123abcd-net.json", f".0123abcd-{WEIGHTS}"):
        (run / name).write_bytes(halfway[:1000])
    (run / "state.npz").write_bytes(halfway)
    net = fitted(folder=copy)
    assert net.folder_ == run and set(os.listdir(run)) == {NET_JSON, WEIGHTS}
    assert (net.predict_proba(PROBE) == saved.net.predict_proba(PROBE)).all()


def test_a_run_killed_after_its_last_file_leaves_no_state(copy, run, halfway, no_training):
    (run / "state.npz").write_bytes(halfway)
    fitted(folder=copy)
    assert set(os.listdir(run)) == {NET_JSON, WEIGHTS}


def test_a_finished_run_is_not_trained_again(copy, saved, no_training):
    before = contents(copy)
    again = fitted(folder=copy)
    assert (again.predict_proba(PROBE) == saved.net.predict_proba(PROBE)).all()
    assert again.history_.equals(saved.net.history_) and contents(copy) == before


# Many runs in a folder

@pytest.mark.parametrize("change", ["recipe", "seed", "digits", "labels", "validation"])
def test_another_run_has_a_folder_of_its_own(tmp_path, change):
    first = fitted(SMALLEST, folder=tmp_path)
    before = contents(tmp_path)
    recipe = replace(SMALLEST, learning_rate=1e-4) if change == "recipe" else SMALLEST
    digits = TRAIN[1:97] if change == "digits" else FIRST
    labels = (digits.labels + 1) % 10 if change == "labels" else digits.labels
    watched = (PROBE, TEST.labels[:50]) if change == "validation" else None
    other = Net(recipe, int(change == "seed"), tmp_path, verbose=False)
    other.fit(digits.images, labels, validation=watched)
    folders = {first.folder_, other.folder_}
    assert len(folders) == 2 and folders == set(tmp_path.iterdir())
    assert before.items() <= contents(tmp_path).items()


def test_a_net_without_a_folder_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fitted(SMALLEST).folder_ is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../up", "a/b", "..", "", "a\0b", "é ü"])
def test_a_recipes_name_cannot_lead_out_of_the_folder(tmp_path, name):
    net = fitted(replace(SMALLEST, name=name), folder=tmp_path / "runs")
    assert net.folder_.parent == tmp_path / "runs" and len(list(tmp_path.iterdir())) == 1
    assert Net.load(net.folder_).recipe.name == name


# State files

def test_a_state_with_a_bit_changed_is_refused_or_read_as_it_was(tmp_path):
    path, about = tmp_path / "state.npz", {"seed": 1, "rows": []}
    now = [np.arange(5.0), np.ones((2, 2), np.float32)]
    training._write_state(path, about, now, [np.arange(3)])
    good, refused = path.read_bytes(), 0
    for bit in range(0, 8 * len(good), 5):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found, arrays, best = training._read_state(path)
        except DataError as error:
            assert "state.npz" in error.file
            refused += 1
        else:
            assert found == {**about, "n_now": 2, "n_best": 1} and (best[0] == np.arange(3)).all()
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


@pytest.mark.parametrize("change", [
    "cut", "bit", "recipe", "seed", "trained on", "rows", "fewer arrays", "other shapes", "no rows",
    "list"])
def test_a_net_does_not_resume_from_a_state_that_is_not_its_own(tmp_path, change):
    path = stopped(tmp_path) / "state.npz"
    good = path.read_bytes()
    about, now, best = training._read_state(path)
    if change == "cut":
        path.write_bytes(good[:-1000])
    elif change == "bit":
        middle = len(good) // 2
        path.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1:])
    elif change == "list":
        np.savez(path, about=json.dumps([1, 2]))
    elif change == "no rows":
        about.pop("rows")
    elif change == "fewer arrays":
        now = now[:-1]
    elif change == "other shapes":  # the net's function was rewritten
        now = [np.zeros((*array.shape, 2)) for array in now]
    else:
        about[change] = {"recipe": {"name": "tiny"}, "seed": 7, "rows": [{"epoch": 2}]}.get(change)
    if change not in ("cut", "bit", "list"):
        training._write_state(path, about, now, best)
    before = contents(tmp_path)
    with pytest.raises(DataError) as caught:
        fitted(folder=tmp_path)
    assert str(path) in caught.value.file and contents(tmp_path) == before


# Saved nets

def rewrite(run, change):
    "Rewrite a net's description."
    about = json.loads((run / NET_JSON).read_text())
    change(about)
    (run / NET_JSON).write_text(json.dumps(about))


def unreadable(run, where=""):
    "A net's folder must be refused, with a file in it named, and stay as it is."
    before = contents(run)
    with pytest.raises(DataError) as caught:
        Net.load(run)
    assert str(run) in caught.value.file and "net." in caught.value.file, str(caught.value)
    assert where in str(caught.value) and contents(run) == before


def test_a_net_saved_elsewhere_is_the_same(saved, tmp_path):
    again = Net.load(saved.net.save(tmp_path / "new" / "folder"))
    assert (again.predict_proba(PROBE) == saved.net.predict_proba(PROBE)).all()
    assert (again.recipe, again.seed, again.folder_) == (TINY, 0, tmp_path / "new" / "folder")
    assert again.history_.equals(saved.net.history_) and again.best_epoch_ == 2
    assert again.about_ == saved.net.about_ and again.seconds_ == saved.net.seconds_


def test_a_truncated_description_is_refused(run):
    text = (run / NET_JSON).read_bytes()
    for end in range(0, len(text) - 2, 10):
        (run / NET_JSON).write_bytes(text[:end])
        unreadable(run, NET_JSON)


STRANGE = [None, True, -1, 1.5, "x", [], {}, [[]], {"x": 1}]


@pytest.mark.parametrize("key, values", {
    "": [value for value in STRANGE if not isinstance(value, dict)] + [{}],
    "recipe": STRANGE, "recipe net": STRANGE, "recipe epochs": STRANGE,
    "recipe batch_size": STRANGE, "recipe schedule": STRANGE, "recipe optimizer": STRANGE,
    "recipe learning_rate": [None, True, -1, "x", [], {}],
    "recipe augmentation": [True, 1.5, "x", [[]], {"x": 1}],
    "recipe augmentation rotation": [None, -1, "x", [], {}], "recipe unknown": STRANGE,
    "files": STRANGE, f"files {WEIGHTS}": STRANGE, "history": STRANGE, "history 0": STRANGE,
    "history 0 seconds": [None, "x", [], {}], "history 0 epoch": [[], {}],
    "seed": [None, -1, 1.5, "x", [], {}], "trained on": [-1, [], {}, None],
}.items(), ids=lambda value: value.replace(" ", ".") if isinstance(value, str) else "")
def test_a_description_with_something_strange_in_it_is_refused(run, key, values):
    parts = [key] if key == "trained on" else key.split()
    *path, last = [int(part) if part.isdigit() else part for part in parts] or [None]
    good, failed = json.loads((run / NET_JSON).read_text()), []
    for value in values:
        about = json.loads(json.dumps(good))
        if last is None:
            about = value
        else:
            functools.reduce(lambda part, name: part[name], path, about)[last] = value
        (run / NET_JSON).write_text(json.dumps(about))
        try:
            unreadable(run)
        except BaseException as error:  # pytest's own is no Exception
            failed.append(f"{value!r}: {type(error).__name__} {error}"[:200])
    assert not failed


@pytest.mark.parametrize("name", [
    "os.system", "builtins.eval", "system", "", "digitrec", "digitrec.cnn.small_net", "small_net ",
    "digitrec.\0.net", "digitrec.cli.run", "Net", "RECIPES", "Warp", "draw_outliers"])
def test_a_description_cannot_name_what_builds_no_net(run, name, monkeypatch):
    called = []
    for path in ("os.system", "digitrec.sources.download_mnist"):
        monkeypatch.setattr(path, lambda *args, **kwargs: called.append(args))
    rewrite(run, lambda about: about["recipe"].update(net=name))
    unreadable(run)
    assert not called


def with_weights(run, weights):
    "Give a folder other weights, and its description their SHA-256."
    (run / WEIGHTS).write_bytes(weights)
    rewrite(run, lambda about: about["files"].update({WEIGHTS: sha256(weights).hexdigest()}))


@pytest.mark.parametrize("net", ["first_net", "mlp", "cv_net", "standardised_net"])
def test_weights_of_another_net_are_refused_though_their_sha256_fits(run, tmp_path, net):
    registered(net)().save_weights(tmp_path / "other.weights.h5")
    with_weights(run, (tmp_path / "other.weights.h5").read_bytes())
    unreadable(run, "weights of another net")


def test_damaged_weights_are_refused_though_their_sha256_fits(run):
    good, failed = (run / WEIGHTS).read_bytes(), []
    moments = random.Random(0)
    damaged = [b"", b"x", bytes(5000), good[:100], good[:-1], good[: len(good) // 2]]
    for _ in range(40):  # in the structure at the file's beginning
        spoilt = bytearray(good)
        spoilt[moments.randrange(2500)] ^= 255
        damaged.append(bytes(spoilt))
    for weights in damaged:
        with_weights(run, weights)
        try:
            assert Net.load(run).predict_proba(FIRST.images[:5]).shape == (5, 10)
        except DataError:
            assert (run / WEIGHTS).read_bytes() == weights
        except Exception as error:
            failed.append(f"{type(error).__name__}: {error}"[:120])
    assert not failed


def test_missing_and_changed_weights_are_refused(run):
    good = (run / WEIGHTS).read_bytes()
    for weights in (b"", good[:-1], good + b"\0", good[:-1] + bytes([good[-1] ^ 1])):
        (run / WEIGHTS).write_bytes(weights)
        unreadable(run, WEIGHTS)
    (run / WEIGHTS).unlink()
    unreadable(run, WEIGHTS)


# Recipes and augmentations

ANYTHING = (st.none() | st.booleans() | st.integers() | st.integers(-3, 40) | st.floats()
            | st.floats(-1, 2) | st.text(max_size=3)
            | st.sampled_from([0, 1, -0.0, 1.0, 1e300, 10**400, 5e-324, float("nan"),
                               float("inf"), Augmentation, "Augmentation"]))
SETTINGS = [field.name for field in fields(Recipe) if field.name not in ("name", "net")]


@settings(max_examples=200, deadline=20_000)
@given(st.sampled_from(SETTINGS), ANYTHING, st.sampled_from(SCHEDULES),
       st.sampled_from(["adam", "sgd"]))
def test_a_recipe_is_refused_or_can_be_built_written_and_read(field, value, schedule, optimizer):
    start = replace(SMALLEST, schedule=schedule, optimizer=optimizer, monitor="val_loss")
    try:
        recipe = replace(start, **{field: value})
    except ValueError as error:
        assert f"{field} = " in str(error) and not isinstance(error, DataError)
        return
    assert recipe_from_dict(json.loads(json.dumps(recipe_to_dict(recipe)))) == recipe
    build_models(recipe, 0, FIRST.images, 3)


def test_numbers_of_numpy_are_as_good_as_python_s():
    grid = {"epochs": np.int64(3), "batch_size": np.int32(8), "tta": np.uint8(1),
            "patience": np.int64(2), "monitor": "val_loss", "learning_rate": np.float32(0.5)}
    recipe = Net(SMALLEST).set_params(**{f"recipe__{key}": grid[key] for key in grid}).recipe
    assert json.loads(json.dumps(recipe_to_dict(recipe)))["epochs"] == 3
    assert recipe == replace(SMALLEST, epochs=3, batch_size=8, tta=1, patience=2,
                             monitor="val_loss", learning_rate=0.5)


def test_what_is_no_dictionary_is_no_recipe():
    with pytest.raises(TypeError, match="a recipe: list; expected a dictionary"):
        recipe_from_dict([])


@pytest.mark.parametrize("rate", [1, np.float32(0.5), np.int64(1)])
def test_every_number_can_be_a_learning_rate(rate, tmp_path):
    net = fitted(replace(SMALLEST, learning_rate=rate, optimizer="adadelta"), folder=tmp_path)
    again = Net.load(net.folder_)
    assert (again.predict_proba(PROBE) == net.predict_proba(PROBE)).all()


WARPS = [field.name for field in fields(Augmentation) if field.name != "normal"]


@settings(max_examples=200, deadline=20_000)
@given(st.sampled_from(WARPS), ANYTHING)
def test_an_augmentation_is_refused_or_can_be_built_written_and_read(field, value):
    try:
        augmentation = replace(Augmentation(), **{field: value})
    except ValueError as error:
        assert f"{field} = " in str(error) and not isinstance(error, DataError)
        return
    recipe = replace(SMALLEST, augmentation=augmentation)
    assert recipe_from_dict(json.loads(json.dumps(recipe_to_dict(recipe)))) == recipe
    assert Warp(augmentation)(FIRST.images[:2]).shape == (2, 28, 28)


@pytest.mark.parametrize("extreme", [
    Augmentation(rotation=180, shear=60, zoom=0.9, shift=28, elastic=28, zoom_centre=10,
                 coarse=4, blur=1.15, ink=9, normal=True),
    Augmentation(coarse=4), Augmentation(blur=1.15), Augmentation(ink=9),
    Augmentation(zoom=0.9, zoom_centre=0.1), Augmentation(elastic=28),
])
def test_the_strongest_augmentation_gives_digits(extreme):
    warped = augment(FIRST.images, extreme)
    assert warped.shape == FIRST.images.shape and warped.dtype == np.uint8
    assert (warped != FIRST.images).any()


# What a recipe's settings do

@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_one_of_keras_and_trains(name):
    recipe = replace(SMALLEST, optimizer=name, learning_rate=1e-3)
    _, trainer = build_models(recipe, 0, FIRST.images, 3)
    assert type(trainer.optimizer).__name__.lower() == name
    before = variable_values(trainer.trainable_variables)
    trainer.fit(FIRST.images, np.eye(10)[FIRST.labels], verbose=0, shuffle=False)
    after = variable_values(trainer.trainable_variables)
    assert all((a != b).any() and np.isfinite(a).all() for a, b in zip(after, before, strict=True))


def rates(schedule, steps=10, epochs=5):
    recipe = replace(SMALLEST, epochs=epochs, schedule=schedule, learning_rate=0.5, decay=0.5)
    rate = nets.learning_rate_schedule(recipe, steps)
    if isinstance(rate, float):
        return np.full(steps * epochs, rate)
    return np.array([float(rate(step)) for step in range(steps * epochs)])


def test_every_schedule_gives_the_learning_rates_that_it_is_named_for():
    assert set(SCHEDULES) == {"constant", "exponential", "one-cycle"}
    assert (rates("constant") == 0.5).all()
    assert np.allclose(rates("exponential"), 0.5 * 0.5 ** (np.arange(50) // 10))
    cycle = rates("one-cycle")
    assert cycle[0] < 0.05 and np.isclose(cycle.max(), 0.5) and cycle.argmax() == 15
    assert (np.diff(cycle[:16]) > 0).all() and (np.diff(cycle[15:]) < 0).all() and cycle[-1] < 0.01


def test_the_history_shows_the_learning_rate_of_each_epoch():
    net = fitted(replace(SMALLEST, epochs=3, schedule="exponential", decay=0.5, learning_rate=0.1))
    assert np.allclose(net.history_.learning_rate, [0.1, 0.05, 0.025])


def test_augmentation_warps_the_training_digits_and_no_others(monkeypatch):
    call, modes = Warp.call, []

    def watched(self, images, training=False):
        modes.append(training)
        return call(self, images, training)

    monkeypatch.setattr(Warp, "call", watched)
    plain = fitted(replace(TINY, augmentation=None, epochs=1))
    assert not modes
    warped = fitted(replace(TINY, augmentation=Augmentation(rotation=20, shift=2), epochs=1))
    assert True in modes
    assert warped.history_.loss[1] != plain.history_.loss[1]
    assert (warped.predict_proba(PROBE) != plain.predict_proba(PROBE)).any()
    assert (warped.predict_proba(PROBE) == warped.predict_proba(PROBE)).all()
    assert not any("warp" in layer.name.lower() for layer in warped.model_.layers)


def test_label_smoothing_changes_the_loss_as_its_formula_says():
    images, targets = FIRST.images, np.eye(10)[FIRST.labels]
    losses = {}
    for smoothing in (0, 0.2):
        recipe = replace(SMALLEST, label_smoothing=smoothing)
        model, trainer = build_models(recipe, 0, images // 64, 3)
        losses[smoothing] = trainer.evaluate(images // 64, targets, verbose=0, batch_size=96)[0]
    logs = np.log(predict_model(model, images // 64, 96))
    for smoothing, loss in losses.items():
        smooth = targets * (1 - smoothing) + smoothing / 10
        assert np.isclose(loss, -(smooth * logs).sum(axis=1).mean(), rtol=1e-3)
    assert losses[0] != losses[0.2]


def after_a_step_without_gradient(**changes):
    "Each trainable variable's name and value before and after a step that only decays"
    recipe = replace(SMALLEST, net="small_net", learning_rate=0.1, **changes)
    _, trainer = build_models(recipe, 0, FIRST.images, 3)
    for variable in trainer.trainable_variables:
        variable.assign(np.ones(variable.shape))
    zeros = [keras.ops.zeros(v.shape) for v in trainer.trainable_variables]
    trainer.optimizer.apply(zeros, trainer.trainable_variables)
    values = variable_values(trainer.trainable_variables)
    return [(v.name, value) for v, value in zip(trainer.trainable_variables, values, strict=True)]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weight_decay_shrinks_kernels_and_spares_biases_and_batch_norm(optimizer):
    values = after_a_step_without_gradient(optimizer=optimizer, weight_decay=0.5)
    assert {name for name, _ in values} == {"kernel", "bias", "gamma", "beta"}
    for name, value in values:
        assert np.allclose(value, 0.95 if name == "kernel" else 1), name


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "ftrl"])
def test_no_weight_decay_is_none(optimizer):  # ftrl computes weights anew from its gradients
    for name, value in after_a_step_without_gradient(optimizer=optimizer):
        assert np.allclose(value, 1), name


def test_test_time_augmentation_averages_shifted_copies(saved):
    alone = predict_model(saved.net.model_, PROBE)
    assert (saved.net.predict_proba(PROBE) == alone).all()
    net = fitted(replace(TINY, tta=2))  # the same training
    copies = [predict_model(net.model_, copy) for copy in shifted_copies(PROBE, 2)]
    assert len(copies) == 5 and np.allclose(copies[0], alone)
    mean = np.exp(np.mean(np.log(np.maximum(copies, 1e-12)), axis=0))
    voted = net.predict_proba(PROBE)
    assert np.allclose(voted, mean / mean.sum(axis=1, keepdims=True)) and (voted != alone).any()


def test_validation_uses_test_time_augmentation_too():
    recipe, watched = replace(TINY, tta=2, epochs=1), (TEST.images, TEST.labels)
    net = Net(recipe, verbose=False).fit(*DIGITS, validation=watched)
    right = (net.predict(TEST.images) == TEST.labels).mean()
    assert net.history_.val_accuracy[1] == right


def test_the_best_epoch_is_restored_and_patience_stops():
    recipe = replace(SMALLEST, epochs=30, learning_rate=0.3, monitor="val_loss", patience=2,
                     optimizer="sgd")
    watched = (PROBE, TEST.labels[:50])
    net = Net(recipe, verbose=False).fit(*DIGITS, validation=watched)
    losses = net.history_.val_loss
    assert net.best_epoch_ == losses.idxmin() and len(losses) == net.best_epoch_ + 2 < 30
    chosen = np.maximum(net.predict_proba(PROBE)[np.arange(50), TEST.labels[:50]], 1e-15)
    assert np.isclose(-np.log(chosen).mean(), losses.min(), rtol=1e-3)


def test_a_seed_decides_everything():
    first, again, other = fitted(), fitted(), fitted(seed=1)
    assert (first.predict_proba(PROBE) == again.predict_proba(PROBE)).all()
    assert (first.predict_proba(PROBE) != other.predict_proba(PROBE)).any()


def test_epochs_see_each_digit_once_in_another_order():
    orders = [nets.epoch_order(96, 32, 0, epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(96)) for order in orders)
    assert (orders[0] != orders[1]).any() and (nets.epoch_order(96, 32, 1, 0) != orders[0]).any()
    assert len(nets.epoch_order(100, 32, 0, 0)) == 96 and len(nets.epoch_order(5, 32, 0, 0)) == 5


# Outlier exposure

def test_a_net_trained_on_outliers_is_not_confident_about_noise():
    noise = np.random.default_rng(1).integers(0, 256, (50, 28, 28)).astype(np.uint8)
    recipe = replace(TINY, epochs=8, outlier_exposure=0.4)
    net = Net(recipe, verbose=False).fit(TRAIN.images, TRAIN.labels)
    confidence = np.median(net.predict_proba(TEST.images).max(axis=1))
    assert net.predict_proba(noise).max() < 0.5 < confidence


def test_outliers_are_added_with_equal_targets():
    recipe = replace(TINY, outlier_exposure=0.25)
    images, targets = training._with_outliers(recipe, FIRST, 0)
    assert len(images) == len(targets) == 96 + 25 and (images[:96] == FIRST.images).all()
    assert np.allclose(targets[96:], 0.1) and (targets[:96].argmax(axis=1) == FIRST.labels).all()


def test_a_stopped_run_with_outliers_resumes_to_the_same_weights(tmp_path):
    recipe = replace(TINY, outlier_exposure=0.2, tta=1)
    stopped(tmp_path, recipe)
    whole, again = fitted(recipe), fitted(recipe, folder=tmp_path)
    assert (whole.predict_proba(PROBE) == again.predict_proba(PROBE)).all()


# The recipes

@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_a_net_that_can_be_built(name):
    recipe = RECIPES[name]
    model = registered(recipe.net)()
    assert recipe.name == name and isinstance(model, keras.Model)
    assert predict_model(model, PROBE[:3]).shape == (3, 10)


@pytest.mark.parametrize("net, parameters", [
    ("mlp_as_written", 159_810), ("mlp", 200_810), ("cv_net", 327_242), ("triple_net", 1_091_018),
    ("first_net", 693_962), ("classic_net", 1_199_882), ("standardised_net", 1_691_501)])
def test_published_nets_have_their_numbers_of_parameters(net, parameters):
    model = registered(net)()
    assert model.count_params() == parameters == layer_table(model)["parameters"].sum()


@pytest.mark.parametrize("net, published", [
    ("standardised_net_as_written", 1_683_768), ("standardised_net", 1_683_882)])
def test_both_nets_of_2017_have_their_trainable_parameters(net, published):
    weights = registered(net)().trainable_weights
    assert sum(int(np.prod(values.shape)) for values in weights) == published


def test_a_layer_table_needs_weights():
    with pytest.raises(ValueError, match="expected a built model"):
        layer_table(keras.Sequential([keras.layers.Dense(10)]))


def test_a_layer_table_counts_each_position_and_refuses_kernels_it_does_not_know():
    layers, begin = keras.layers, [keras.Input((28, 28)), keras.layers.Reshape((28, 28, 1))]
    dense = keras.Sequential([*begin, layers.Dense(3)])
    assert layer_table(dense)["MACs"].tolist() == [0, 28 * 28 * 3]
    with pytest.raises(ValueError, match="is a DepthwiseConv2D; expected Conv2D, Dense"):
        layer_table(keras.Sequential([*begin, layers.DepthwiseConv2D(3)]))


def test_the_published_recipes_are_as_published():
    third, fifth = RECIPES["triple-2021"], RECIPES["standardised-2017"]
    assert (third.patience, third.min_delta, third.monitor) == (10, 0.001, "val_loss")
    assert third.augmentation.zoom_centre == 1.1
    assert fifth.augmentation.shear == pytest.approx(17.19, abs=0.01)
    rate = nets.learning_rate_schedule(fifth, 10)
    assert [float(rate(step)) for step in (0, 9, 10, 19)] == pytest.approx([.01, .01, 1e-4, 1e-4])


# Precision

def test_bfloat16_is_in_the_steps_and_in_nothing_else():
    seen = []

    @register
    class Peek(keras.layers.Layer):
        def call(self, x):
            seen.append(keras.backend.standardize_dtype(x.dtype))
            return x

    @register
    def peeked():
        begin = [keras.Input((28, 28)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
        return keras.Sequential([*begin, Peek(), keras.layers.Dense(10, activation="softmax")])

    recipe = Recipe("peeked", "peeked", epochs=1, precision="bfloat16")
    net = Net(recipe, verbose=False)
    net.fit(FIRST.images[:256], FIRST.labels[:256], validation=(PROBE, np.zeros(len(PROBE), int)))
    assert "bfloat16" in seen
    seen.clear()
    net.predict_proba(PROBE[:100])
    net.model_(PROBE[:3].astype("float32"))
    assert set(seen) == {"float32"}
    assert {str(weights.dtype) for weights in net.model_.weights} == {"float32"}


def test_bfloat16_and_float32_reach_the_same_accuracy():
    train, test = load("digits")
    recipe = replace(RECIPES["few"], epochs=6)
    errors = [(Net(replace(recipe, precision=precision), verbose=False)
               .fit(train.images, train.labels).predict(test.images) != test.labels).sum()
              for precision in ("float32", "bfloat16")]
    assert abs(errors[0] - errors[1]) <= 2 * np.sqrt(2 * max(sum(errors), 12)), errors


@register
def normed():
    "A convolution and its batch norm"
    layers = keras.layers
    return keras.Sequential([
        keras.Input((28, 28)), layers.Rescaling(1 / 255), layers.Reshape((28, 28, 1)),
        layers.Conv2D(4, 3, strides=2, activation="relu"), layers.BatchNormalization(),
        layers.Flatten(), layers.Dense(10, activation="softmax")])


ON_TENSORFLOW = pytest.mark.skipif(keras.backend.backend() != "tensorflow",
                                   reason="fused batch norm is TensorFlow's")


@ON_TENSORFLOW
def test_the_steps_normalise_by_the_fused_operation_and_the_net_stays_keras():
    recipe = Recipe("normed", "normed", epochs=1)
    net = Net(recipe, verbose=False).fit(*DIGITS)
    norms = [layer for layer in net.model_.layers
             if type(layer) is keras.layers.BatchNormalization]
    assert norms and not any("call" in vars(layer) for layer in norms)

    def operations():
        import tensorflow
        call = tensorflow.function(lambda x: net.model_(x, training=True))
        graph = call.get_concrete_function(np.zeros((4, 28, 28), np.float32)).graph
        return {operation.type for operation in graph.get_operations()}

    assert "FusedBatchNormV3" not in operations()
    with nets.fused_batch_norm(net.model_):
        assert "FusedBatchNormV3" in operations()
    assert "FusedBatchNormV3" not in operations()


@ON_TENSORFLOW
def test_batch_norms_that_differ_stay_unfused_and_older_keras_is_served():
    layers = keras.layers
    norms = [layers.BatchNormalization(**settings) for settings in (
        {}, {"axis": 1}, {"center": False}, {"synchronized": True}, {"dtype": "float64"},
        {"trainable": False})]
    model = keras.Sequential([keras.Input((5, 5, 4)), *norms])
    for norm in norms:
        vars(norm).pop("renorm", None)  # Keras 3.13, on Colab and Kaggle, does not have it
    with nets.fused_batch_norm(model):
        assert ["call" in vars(norm) for norm in norms] == [True, *[False] * 5]


@ON_TENSORFLOW
def test_fused_batch_norm_trains_as_keras_does(monkeypatch):
    def trained():
        recipe = Recipe("normed", "normed", epochs=2)
        return Net(recipe, verbose=False).fit(TRAIN.images[:512], TRAIN.labels[:512]).history_

    fused = trained()
    monkeypatch.setattr(training, "fused_batch_norm", lambda model: nullcontext())
    plain = trained()
    assert (fused["loss"] != plain["loss"]).any()  # by rounding: it was used
    assert fused["loss"].to_numpy() == pytest.approx(plain["loss"].to_numpy(), rel=0.02)


def test_a_precision_that_is_none_is_refused():
    with pytest.raises(ValueError, match="precision = 'float16'; expected one of float32"):
        Recipe("", "mlp", precision="float16")


# Keras callbacks

class Watch(keras.callbacks.Callback):
    "Note the epochs that begin and end, and stop after one of them"

    def __init__(self, stop_after=99):
        super().__init__()
        self.seen, self.stop_after = [], stop_after

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append((epoch, logs["loss"]))
        self.model.stop_training = epoch + 1 >= self.stop_after


def test_callbacks_are_called_with_each_epoch():
    watch = Watch()
    net = fitted(replace(SMALLEST, epochs=3), callbacks=(watch,))
    assert [epoch for epoch, _ in watch.seen] == [0, 1, 2]
    assert np.allclose([loss for _, loss in watch.seen], net.history_.loss)


def test_a_callback_can_stop_the_training():
    assert len(fitted(replace(SMALLEST, epochs=9), callbacks=(Watch(2),)).history_) == 2


# Writers, rows and shapes

def test_a_validation_split_keeps_each_writer_on_one_side():
    writers = np.arange(96) // 6
    recipe = replace(SMALLEST, monitor="val_loss", validation_split=0.25)
    net = Net(recipe, 5, verbose=False).fit(*DIGITS, groups=writers)
    rest, held = split(Digits(*DIGITS, "digits", writers), 0.25, 5)
    assert not set(rest.writers) & set(held.writers)
    assert net.about_["trained on"] == digest(rest.images, rest.labels)
    assert net.about_["validated on"] == digest(held.images, held.labels)


def test_flat_rows_are_as_good_as_images(saved):
    rows = FIRST.images.reshape(96, 784)
    net = Net(TINY, verbose=False).fit(rows, FIRST.labels)
    expected = saved.net.predict_proba(PROBE)
    assert (net.predict_proba(PROBE.reshape(50, 784)) == expected).all()


# Nonsense

FEW = FIRST.images[:40], FIRST.labels[:40]
NO_IMAGES = {
    "floats": FEW[0] / 255, "one": FEW[0][0], "channels": FEW[0][..., None], "none": None,
    "word": "x", "uneven": [FEW[0][0], FEW[0][1][:5]], "objects": FEW[0].astype(object),
    "signed": FEW[0].astype(np.int8), "wide": np.zeros((40, 28, 27), np.uint8),
}
NO_LABELS = {
    "ten": np.r_[FEW[1][:-1], 10], "minus one": np.r_[FEW[1][:-1], -1], "floats": FEW[1] / 1,
    "few": FEW[1][:-1], "many": np.r_[FEW[1], 1], "one-hot": np.eye(10, dtype=int)[FEW[1]],
    "words": FEW[1].astype(str), "none": None, "truths": FEW[1] > 3,
}
NO_PAIRS = [5, "xy", (), FEW[:1], (*FEW, FEW[1]), FIRST, (FEW[0][:0], FEW[1][:0])]
param = pytest.param


@pytest.mark.parametrize("images, labels, validation", [
    *[param(images, FEW[1], None, id=f"images-{name}") for name, images in NO_IMAGES.items()],
    *[param(FEW[0], labels, None, id=f"labels-{name}") for name, labels in NO_LABELS.items()],
    *[param(*FEW, (images, FEW[1]), id=f"validation-images-{name}")
      for name, images in NO_IMAGES.items()],
    *[param(*FEW, (FEW[0], labels), id=f"validation-labels-{name}")
      for name, labels in NO_LABELS.items()],
    *[param(*FEW, pair, id=f"validation-{type(pair).__name__}-{i}")
      for i, pair in enumerate(NO_PAIRS)],
    param(FEW[0][:0], FEW[1][:0], None, id="nothing"),
])
def test_a_net_refuses_what_is_no_digits_and_writes_nothing(tmp_path, images, labels, validation):
    with pytest.raises(DataError):
        net = Net(TINY, 0, tmp_path / "run", verbose=False)
        net.fit(images, labels, validation=validation)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("groups", [np.arange(39), np.arange(40) / 1, "x", 5])
def test_a_net_refuses_groups_that_are_none(tmp_path, groups):
    with pytest.raises(DataError):
        Net(TINY, 0, tmp_path / "run", verbose=False).fit(*FEW, groups=groups)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe, seed", [
    (None, 0), ("few", 0), (smallest, 0), (TINY, -1), (TINY, 0.5), (TINY, "0"), (TINY, None),
    (TINY, True), (replace(TINY, net="nowhere"), 0)])
def test_a_net_refuses_what_is_no_recipe_or_seed(tmp_path, recipe, seed):
    with pytest.raises(ValueError, match=r"recipe = |seed = |net: ") as caught:
        Net(recipe, seed, tmp_path / "run").fit(*DIGITS)
    assert not isinstance(caught.value, DataError) and not (tmp_path / "run").exists()


def test_too_few_of_a_digit_to_hold_some_out(tmp_path):
    sevens = TRAIN.labels == 7
    digits = TRAIN[np.r_[np.flatnonzero(~sevens)[:40], np.flatnonzero(sevens)[:1]]]
    with pytest.raises(DataError, match="1 of digit 7"):
        net = Net(replace(TINY, monitor="val_loss"), 0, tmp_path / "run")
        net.fit(digits.images, digits.labels)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("images", NO_IMAGES.values(), ids=NO_IMAGES)
def test_only_images_are_predicted_and_warped(saved, images):
    def warped(images):
        return augment(images, Augmentation())

    for function in (saved.net.predict, saved.net.predict_proba, warped):
        with pytest.raises(DataError, match=r"uint8"):
            function(images)


def test_digits_are_warped_only_by_an_augmentation_and_a_seed():
    for how in [(None,), ("x",), (Augmentation(), -1), (Augmentation(), "x"),
                (Augmentation(), None)]:
        with pytest.raises(ValueError, match="augment: ") as caught:
            augment(FIRST.images, *how)
        assert not isinstance(caught.value, DataError)


# A loss that is not finite

def test_a_loss_that_is_not_finite_fails_again_and_leaves_the_last_good_state(tmp_path):
    stopped(tmp_path)  # after a good epoch
    good, messages = contents(tmp_path), []
    batches = training._batches

    def spoilt(images, targets, *rest):
        return batches(images, targets * np.nan, *rest)

    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(FloatingPointError) as caught:
            patch.setattr(training, "_batches", spoilt)
            fitted(folder=tmp_path)
        messages.append(str(caught.value))
        assert contents(tmp_path) == good
    assert messages[0] == messages[1] and "recipe tiny, epoch 2, step 1" in messages[0]


WILD = replace(SMALLEST, optimizer="sgd", learning_rate=1e37, batch_size=96)  # one step in all


@pytest.mark.parametrize("validation", [None, (TEST.images[:20], TEST.labels[:20])],
                         ids=["alone", "watched"])
def test_a_failed_first_epoch_leaves_no_fitted_net_and_no_files(tmp_path, validation):
    for _ in range(2):
        net = Net(WILD, 0, tmp_path / "run", verbose=False)
        with pytest.raises(FloatingPointError, match="recipe any, epoch 1, step 1"):
            net.fit(*DIGITS, validation=validation)
        for function in (net.predict, net.predict_proba, net.save):
            with pytest.raises(NotFittedError):
                function(PROBE)
        assert not list(tmp_path.rglob("*.*"))


def test_a_fitted_net_that_fails_to_train_again_is_not_fitted():
    net = fitted(SMALLEST)
    net.recipe = WILD
    with pytest.raises(FloatingPointError):
        net.fit(*DIGITS)
    with pytest.raises(NotFittedError):
        net.predict(PROBE)


def test_a_net_that_fails_later_is_that_of_its_last_good_epoch():
    batches, epochs = training._batches, []

    def spoilt(images, targets, *rest):
        epochs.append(len(epochs) + 1)
        return batches(images, targets * (np.nan if len(epochs) == 2 else 1), *rest)

    net = Net(replace(SMALLEST, epochs=3), verbose=False)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(FloatingPointError, match="epoch 2"):
        patch.setattr(training, "_batches", spoilt)
        net.fit(*DIGITS)
    one_epoch = fitted(SMALLEST)
    assert (net.predict_proba(PROBE) == one_epoch.predict_proba(PROBE)).all()
    assert len(net.history_) == 1


class Interrupt(keras.callbacks.Callback):
    "Interrupt in the middle of the third epoch"

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, step, logs=None):
        if self.epoch == 2 and step == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("monitor, epoch", [("val_loss", 1), (None, 2)])
def test_an_interrupted_net_has_the_weights_of_its_best_epoch(monkeypatch, monitor, epoch):
    def worse(run):
        return {"val_loss": len(run.rows) + 1.0, "val_accuracy": 0.5}

    monkeypatch.setattr(training, "_validate", worse)
    recipe, watched = replace(SMALLEST, epochs=4, monitor=monitor, batch_size=16), DIGITS
    net = Net(recipe, verbose=False, callbacks=(Interrupt(),))
    with pytest.raises(KeyboardInterrupt):
        net.fit(*DIGITS, validation=watched)
    assert net.best_epoch_ == epoch and len(net.history_) == 2
    expected = Net(replace(recipe, epochs=epoch), verbose=False).fit(*DIGITS, validation=watched)
    assert (net.predict_proba(PROBE) == expected.predict_proba(PROBE)).all()


@pytest.mark.parametrize("kind", ["EarlyStopping", "ReduceLROnPlateau"])
def test_callbacks_that_remember_epochs_are_refused(kind):
    net = Net(SMALLEST, callbacks=(getattr(keras.callbacks, kind)(),))
    with pytest.raises(ValueError, match=f"callbacks have {kind}.*expected the recipe's monitor"):
        net.fit(*DIGITS)


@pytest.mark.parametrize(
    "callbacks", [None, ["x"], keras.callbacks.Callback()], ids=["none", "a text", "one alone"]
)
def test_callbacks_are_a_tuple_of_callbacks(callbacks):
    with pytest.raises(ValueError, match="expected a tuple of Keras's callbacks"):
        Net(SMALLEST, callbacks=callbacks).fit(*DIGITS)


@pytest.mark.parametrize("show", [training.plot_history, training.history_table])
def test_a_history_needs_a_fitted_net(show):
    with pytest.raises(NotFittedError):
        show(Net(SMALLEST))


def test_settings_of_a_recipe_need_a_recipe():
    with pytest.raises(ValueError, match="recipe = 'small'; expected a Recipe"):
        Net("small").set_params(recipe__epochs=3)


def test_a_builder_has_a_name():
    with pytest.raises(ValueError, match="expected a function with a name"):
        register(functools.partial(print))


def test_no_recipes_make_an_empty_table():
    assert recipe_table({}).shape == (0, 9)


# A net whose code changes

ACTIVATION = {"name": "relu"}


@register
def changing():
    "A net whose activation is set from outside, as by someone who edits a notebook"
    return keras.Sequential([
        keras.Input((28, 28)), keras.layers.Flatten(),
        keras.layers.Dense(4, activation=ACTIVATION["name"]),
        keras.layers.Dense(10, activation="softmax")])


class Drawing(keras.layers.Layer):
    "Draw a seed, as some of Keras's random layers do"

    def get_config(self):
        return {**super().get_config(), "seed": random.randrange(10**9)}

    def call(self, x):
        return x


@register
def nested():
    "Layers within layers, which Keras names by number, and one that draws a seed for itself"
    inner = keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten(),
                              keras.layers.Dense(4, activation="relu")])
    return keras.Sequential([keras.Input((28, 28)), Drawing(), inner,
                             keras.layers.Dense(10, activation="softmax")])


def test_numbers_in_names_and_seeds_are_no_change_of_code(tmp_path):
    net = fitted(Recipe("nested", "nested", epochs=1), 3, tmp_path)
    assert (Net.load(net.folder_).predict_proba(PROBE) == net.predict_proba(PROBE)).all()


def test_weights_of_a_net_whose_code_has_changed_are_refused(tmp_path, monkeypatch):
    recipe = Recipe("changing", "changing", epochs=2)
    net = fitted(recipe, 0, tmp_path / "finished")
    halted = stopped(tmp_path / "stopped", recipe)
    assert fitted(recipe, 0, tmp_path / "finished").folder_ == net.folder_
    monkeypatch.setitem(ACTIVATION, "name", "tanh")
    for function in (lambda: fitted(recipe, 0, tmp_path / "finished"),
                     lambda: Net.load(net.folder_),
                     lambda: fitted(recipe, 0, tmp_path / "stopped")):
        with pytest.raises(DataError, match="whose code has changed"):
            function()
    monkeypatch.setattr(keras, "__version__", "9.9")  # whose settings may have other names
    Net.load(net.folder_)
    assert halted.exists()


# The contract of a recogniser

def test_a_net_honours_the_recognisers_contract(saved):
    net = clone(saved.net)
    assert net.get_params() == saved.net.get_params() and is_classifier(net)
    for function in (net.predict, net.predict_proba):
        with pytest.raises(NotFittedError):
            function(TEST.images[:3])
    images = TEST.images[:300]
    probabilities = saved.net.predict_proba(images)
    assert probabilities.shape == (300, 10) and probabilities.dtype == np.float64
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-12)
    assert (saved.net.predict(images) == probabilities.argmax(axis=1)).all()
    assert saved.net.classes_.tolist() == list(range(10)) and saved.net.n_features_in_ == 784
    assert saved.net.predict_proba(images[:0]).shape == (0, 10)
    assert saved.net.predict(images[:0]).shape == (0,)
    for i in (0, 150, 299):
        alone = saved.net.predict_proba(images[i: i + 1])[0]
        assert np.allclose(alone, probabilities[i], atol=1e-5)


def test_a_fitted_net_can_be_pickled(saved):
    again = pickle.loads(pickle.dumps(saved.net))  # noqa: S301
    assert np.allclose(again.predict_proba(PROBE), saved.net.predict_proba(PROBE), atol=1e-6)


def test_the_fields_of_the_recipe_are_parameters():
    net = Net(TINY)
    params = net.get_params()
    assert params["recipe__learning_rate"] == TINY.learning_rate and params["recipe"] == TINY
    assert net.set_params(recipe__learning_rate=0.5, seed=3) is net
    assert net.recipe == replace(TINY, learning_rate=0.5) and net.seed == 3
    net.set_params(recipe=SMALLEST, recipe__epochs=7)
    assert net.recipe == replace(SMALLEST, epochs=7) and clone(net).recipe == net.recipe
    assert not [name for name in net.get_params(deep=False) if "__" in name]


@pytest.mark.parametrize("params", [
    {"recipe__rate": 1}, {"nothing": 1}, {"recipe__epochs": 0}, {"recipe__epochs__x": 1},
    {"seed__x": 1}])
def test_unknown_and_impossible_parameters_are_refused(params):
    net = Net(TINY)
    with pytest.raises(ValueError):
        net.set_params(**params)
    assert net.recipe == TINY


def test_a_net_is_cross_validated_and_searched_with_a_run_folder(tmp_path):
    digits = TRAIN[:300]
    net = Net(replace(RECIPES["few"], epochs=5, batch_size=8), verbose=False)
    result = cross_validate(net, digits, k=2)
    assert result.probabilities.shape == (300, 10) and result.accuracies.min() > 0.5
    small = Net(SMALLEST, 0, tmp_path, verbose=False)
    values = cross_val_score(small, digits.images, digits.labels, cv=3)
    assert len(values) == len(list(tmp_path.iterdir())) == 3
    search = GridSearchCV(small, {"recipe__learning_rate": [1e-3, 1e-4]}, cv=2, refit=False)
    search.fit(digits.images, digits.labels)
    assert len(list(tmp_path.iterdir())) == 3 + 4


def test_a_net_that_is_not_verbose_prints_nothing(capfd):
    Net(replace(TINY, epochs=1), verbose=False).fit(*FEW)
    assert capfd.readouterr().out == ""


def test_a_seed_may_be_numpys(tmp_path):
    net = fitted(SMALLEST, seed=np.int64(3), folder=tmp_path)
    assert (net.predict_proba(PROBE) == fitted(SMALLEST, seed=3).predict_proba(PROBE)).all()


def test_an_interrupt_during_validation_costs_the_epoch_only(monkeypatch):
    validate, calls = training._validate, []

    def interrupted(run):
        calls.append(variable_values(run.model.variables))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return validate(run)

    monkeypatch.setattr(training, "_validate", interrupted)
    net = Net(replace(SMALLEST, epochs=3), verbose=False)
    with pytest.raises(KeyboardInterrupt):
        net.fit(*DIGITS, validation=(PROBE, TEST.labels[:50]))
    assert len(net.history_) == net.best_epoch_ == 1
    weights = zip(variable_values(net.model_.variables), calls[0], strict=True)
    assert all((now == after_first).all() for now, after_first in weights)


@register
def without_softmax():
    "A net that ends in logits"
    return keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.Dense(10)])


def test_a_net_that_gives_no_probabilities_is_refused():
    with pytest.raises(ValueError, match="expected probabilities, as of a softmax"):
        fitted(Recipe("logits", "without_softmax", epochs=1))


def test_the_history_has_the_rate_that_a_callback_set():
    rates = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 if epoch == 0 else 0.001)
    net = fitted(replace(SMALLEST, epochs=3), callbacks=(rates,))
    assert net.history_.learning_rate.tolist() == pytest.approx([0.1, 0.001, 0.001])


def test_a_kind_of_early_stopping_is_refused_too():
    class Mine(keras.callbacks.EarlyStopping):
        pass

    with pytest.raises(ValueError, match="callbacks have Mine, which remembers"):
        fitted(SMALLEST, callbacks=(Mine(),))


@pytest.mark.parametrize("setting", [
    {"rotation": 180.05}, {"shear": 60.05}, {"zoom": 0.905}, {"shift": 28.05},
    {"elastic": 28.05}, {"zoom_centre": 10.05}, {"coarse": 0.95}, {"coarse": 4.05},
    {"blur": 1.155}, {"ink": 9.05}, {"ink": -0.05}])
def test_an_augmentation_keeps_its_limits(setting):
    with pytest.raises(ValueError, match="expected"):
        Augmentation(**setting)


def test_a_recipes_name_is_a_text():
    with pytest.raises(ValueError, match="name = 5; expected a text"):
        Recipe(5, "smallest")


def test_weights_that_cannot_be_read_are_refused(run):
    (run / WEIGHTS).unlink()
    (run / WEIGHTS).mkdir()
    unreadable(run, WEIGHTS)
