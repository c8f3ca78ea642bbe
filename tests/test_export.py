"""The nets that come with the package, and the ONNX files of others: each layer, or an error."""

import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from files import error_message
from PIL import Image, ImageDraw, ImageFont

import digitrec
from digitrec import export
from digitrec.data import DataError
from digitrec.export import (
    PRETRAINED,
    Pretrained,
    coverage_curve,
    is_rejected,
    load_pretrained,
    median_seed,
    pack,
    to_onnx,
    to_saved_model,
    write_card,
)
from digitrec.pictures import mnist_form
from digitrec.recipe import RECIPES, recipe_from_dict, registered
from digitrec.scores import ece, nll
from digitrec.sources import load

if importlib.util.find_spec("keras"):
    from digitrec.nets import predict_model
    from digitrec.training import Net

SHIPPED = Path(digitrec.__file__).parent / "pretrained"
TRAIN, TEST = load("digits")
LABELS = np.concatenate([TRAIN.labels, TEST.labels])
LIMITS = {"single": 350_000, "vote": 15 * 350_000, "small": 50_000, "tiny": 10_000}
MNIST = Path(os.environ.get("DIGITREC_DATA") or "nowhere") / "mnist"
OFFLINE = """
import socket, sys
class Nothing:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("keras", "tensorflow", "jax", "onnx"):
            raise ImportError(name)
sys.meta_path.insert(0, Nothing())
def refuse(*args, **kwargs): raise OSError("no network")
socket.socket.connect = refuse
"""


@functools.cache
def on_embedded(name):
    "A shipped net's probabilities of the 1,797 embedded digits"
    return load_pretrained(name).predict_proba(np.concatenate([TRAIN.images, TEST.images]))


def test_each_file_has_its_card_and_no_other_lies_there():
    expected = [f"{name}.{kind}" for name in PRETRAINED for kind in ("json", "onnx")]
    assert sorted(path.name for path in SHIPPED.iterdir()) == sorted(expected)


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_card_says_what_it_must(name):
    card = load_pretrained(name).card
    assert card["name"] == name and card["bytes"] == (SHIPPED / f"{name}.onnx").stat().st_size
    assert card["parameters"] <= LIMITS[name] and len(card["seeds"]) >= (2 if name == "vote" else 1)
    assert "MNIST" in card["trained on"] and "60,000" in card["trained on"]
    assert card["seconds to train"] > 0 and card["machine"]
    recipe = recipe_from_dict(card["recipe"])
    assert replace(recipe, precision="float32") == RECIPES[recipe.name]
    assert recipe.name == {"single": "large", "vote": "large"}.get(name, name)
    errors = {int(seed): n for seed, n in card["validation errors by seed"].items()}
    assert card["seeds"] == (list(errors) if name == "vote" else [median_seed(errors)])
    for labels in ("given labels", "corrected labels"):
        scores = card["MNIST test"][labels]
        assert scores["low"] < scores["accuracy"] < scores["high"]
        assert scores["errors"] == round((1 - scores["accuracy"]) * scores["n"])
    assert card["MNIST test"]["given labels"]["n"] == 10_000
    assert 9_980 <= card["MNIST test"]["corrected labels"]["n"] < 10_000


@pytest.mark.parametrize("name", PRETRAINED)
def test_they_keep_the_contract(name):
    net, images = load_pretrained(name), TEST.images[:40]
    predicted = net.predict_proba(images)
    assert predicted.shape == (40, 10) and predicted.dtype == float
    assert np.allclose(predicted.sum(axis=1), 1) and net.classes_.tolist() == list(range(10))
    assert (net.predict(images) == predicted.argmax(axis=1)).all()
    assert net.predict_proba(images[:0]).shape == (0, 10) and net.rejects(images[:0]).shape == (0,)
    assert np.allclose(net.predict_proba(images[7:8])[0], predicted[7], atol=1e-5)
    assert np.array_equal(net.predict_proba(images.reshape(40, 784)), predicted)
    for call in (net.predict, net.predict_proba, net.rejects):
        assert "float32 of shape" in error_message(call, TEST.nhwc)


def test_the_predictions_of_the_shipped_nets_have_not_changed():
    "tests/golden.json: 20 embedded digits, 10 of them hard; written by tests/write_golden.py."
    golden = json.loads(Path(__file__).with_name("golden.json").read_text())
    assert set(golden["nets"]) == set(PRETRAINED) and len(golden["rows"]) == 20
    for name, expected in golden["nets"].items():
        net, images = load_pretrained(name), TEST.images[golden["rows"]]
        assert net.predict_proba(images) == pytest.approx(
            np.array(expected["probabilities"]), abs=6e-4
        )
        assert net.rejects(images).tolist() == expected["rejected"]
        assert 0 < sum(expected["rejected"]) < 20


@pytest.mark.parametrize("name", PRETRAINED)
def test_they_read_digits_of_another_origin(name):
    "1,797 digits of 8 x 8, by 13 people in Turkey; no net was trained on any."
    assert (on_embedded(name).argmax(axis=1) == LABELS).mean() > 0.9


@pytest.mark.parametrize("name", PRETRAINED)
def test_what_is_no_digit_is_rejected(name):
    net, rng = load_pretrained(name), np.random.default_rng(0)
    size = (100, 28, 28)
    noise = [
        rng.integers(0, 256, size),
        rng.integers(0, 2, size) * 255,
        rng.normal(128, 40, size).clip(0, 255),
        (rng.random(size) < 0.1) * 255,
    ]
    for grey in (0, 128, 255):
        assert net.rejects(np.full((1, 28, 28), grey, np.uint8)).all()
    for images in noise:
        assert net.rejects(images.astype(np.uint8)).all()


def cropped(image):
    inked = np.flatnonzero(image.any(axis=0))
    return image[:, inked[0] : inked[-1] + 1]


def two_digits_apart(gap, n=60):
    "Pairs of embedded test digits, each cropped, `gap` pixels apart; below 0, overlapping"
    chosen, rows = TEST.images[np.random.default_rng(0).integers(0, len(TEST), (n, 2))], []
    for left, right in (map(cropped, pair) for pair in chosen):
        row = np.zeros((28, left.shape[1] + gap + right.shape[1]))
        row[:, : left.shape[1]] = left
        row[:, left.shape[1] + gap :] = np.maximum(row[:, left.shape[1] + gap :], right)
        rows.append(mnist_form(row))
    return np.array(rows)


def in_print(texts):
    "Texts in the font that comes with matplotlib, in which no net met a letter"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    font, rows = ImageFont.truetype(str(path), 72), []
    for text in texts:
        canvas = Image.new("L", (400, 160))
        ImageDraw.Draw(canvas).text((50, 20), text, 255, font)
        rows.append(mnist_form(np.asarray(canvas)))
    return np.array(rows)


@pytest.mark.parametrize("name", PRETRAINED)
def test_several_digits_and_letters_are_rejected_and_digits_are_not(name):
    "Measured at worst, by `tiny`: .98 of the touching pairs and of the numbers, all letters."
    net = load_pretrained(name)
    assert net.rejects(two_digits_apart(8)).mean() >= 0.95
    assert net.rejects(two_digits_apart(-1)).mean() >= 0.93
    assert net.rejects(in_print(map(str, range(10, 100)))).mean() >= 0.95
    assert net.rejects(in_print("AEFHKLMNPRTUVWXadefhkmnprtuvwx")).mean() >= 0.95
    assert not net.rejects(in_print("0123456789")).any()
    assert is_rejected(on_embedded(name), net.card["threshold"]).mean() <= 0.08


@pytest.mark.skipif(not MNIST.is_dir(), reason="DIGITREC_DATA names no folder with mnist")
@pytest.mark.parametrize("name", ["single", "small", "tiny"])
def test_mnist_bears_the_card_out(name):
    test, net = load(MNIST)[1], load_pretrained(name)
    card = net.card["MNIST test"]["given labels"]
    predicted = net.predict_proba(test.images)
    errors = (predicted.argmax(axis=1) != test.labels).sum()
    assert errors == pytest.approx(card["errors"], abs=1)
    assert nll(test.labels, predicted) == pytest.approx(card["nll"], abs=1e-4)
    assert ece(test.labels, predicted) == pytest.approx(card["ece"], abs=1e-3)
    assert is_rejected(predicted, net.card["threshold"]).mean() <= 0.01


@pytest.mark.skipif(not MNIST.is_dir(), reason="DIGITREC_DATA names no folder with mnist")
def test_a_tenth_of_mnist_agrees_with_the_card_of_the_vote():
    "Within three standard errors; all of it would take five times as long as `single`."
    test, net = load(MNIST)[1], load_pretrained("vote")
    rows = np.random.default_rng(0).choice(len(test), 1000, replace=False)
    losses = -np.log(net.predict_proba(test.images[rows])[np.arange(1000), test.labels[rows]])
    card = net.card["MNIST test"]["given labels"]
    assert abs(losses.mean() - card["nll"]) <= 3 * losses.std() / np.sqrt(1000)


def test_without_keras_and_without_a_network(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(OFFLINE)
    Image.fromarray(255 - TEST.images[0]).resize((280, 280)).save(tmp_path / "photo.png")

    def python(*args):
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        how = {"env": env, "cwd": tmp_path, "text": True, "capture_output": True, "check": True}
        return subprocess.run([sys.executable, "-c", *args], **how).stdout

    loading = (
        "import digitrec, sys; digitrec.load_pretrained().card; "
        "print({'keras', 'tensorflow', 'jax', 'onnx'} & set(sys.modules))"
    )
    assert python(loading) == "set()\n"
    printed = python("from digitrec.cli import app; app()", "predict", "photo.png")
    assert re.match(rf"photo\.png  {TEST.labels[0]}  >?\d+\.\d %", printed), printed


# Damage


def copied(tmp_path, name="tiny"):
    for kind in ("json", "onnx"):
        shutil.copy(SHIPPED / f"{name}.{kind}", tmp_path)
    return tmp_path / f"{name}.onnx", tmp_path / f"{name}.json"


def message(path):
    "The error at the first prediction: a file is read only then"
    return error_message(Pretrained(path).predict, TEST.images[:1])


def test_a_damaged_net_or_card_is_refused(tmp_path):
    net, card = copied(tmp_path)
    good = net.read_bytes()
    for bad in (good[:-1], good[:5000] + bytes([good[5000] ^ 1]) + good[5001:], b""):
        net.write_bytes(bad)
        assert "SHA-256" in message(net)
    net.unlink()
    assert "No such file" in message(net)
    net.write_bytes(good)
    wrong = ['{"tta": -1, "threshold": 0.5}', '{"tta": 0, "threshold": NaN}', "[]", "{}"]
    for bad, found in (("{", "no JSON"), *((text, "no card") for text in wrong)):
        card.write_text(bad)
        assert found in message(net)
    card.unlink()
    assert "no such file" in message(net)


def test_a_net_of_another_make_is_refused(tmp_path):
    net, card = copied(tmp_path)
    net.write_bytes(b"no net at all")
    about = json.loads(card.read_text())
    card.write_text(json.dumps({**about, "sha256": hashlib.sha256(net.read_bytes()).hexdigest()}))
    assert "no net" in message(net)


def test_a_net_with_other_inputs_is_refused(tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    x, y = (make.make_tensor_value_info(name, kind, [None, 28, 28]) for name in "xy")
    graph = make.make_graph([make.make_node("Identity", ["x"], ["y"])], "other", [x], [y])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    net, card = copied(tmp_path)
    net.write_bytes(model.SerializeToString())
    about = json.loads(card.read_text())
    card.write_text(json.dumps({**about, "sha256": hashlib.sha256(net.read_bytes()).hexdigest()}))
    assert "a net from ['x']" in message(net)


@pytest.mark.parametrize("threshold", [95, -0.1, np.nan])
def test_a_threshold_is_a_probability(tmp_path, threshold):
    assert "expected a number from 0 to 1" in error_message(pack, "x", [], threshold, tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_path_is_another_net(tmp_path):
    net, images = load_pretrained("tiny"), TEST.images[:20]
    before = net.predict_proba(images)
    net.set_params(path=SHIPPED / "small.onnx")
    assert np.array_equal(net.predict_proba(images), load_pretrained("small").predict_proba(images))
    assert not np.allclose(before, net.predict_proba(images), atol=1e-4)


@pytest.mark.parametrize("name", ["", "record", "../single", None, 3])
def test_another_name_is_refused(name):
    assert "one of single, vote, small, tiny" in error_message(load_pretrained, name)


@pytest.mark.parametrize("highest, expected", [(0.69, True), (0.7, False), (0.71, False)])
def test_one_rule_of_rejection(highest, expected):
    row = np.array([[highest] + [(1 - highest) / 9] * 9])
    assert is_rejected(row, 0.7).tolist() == [expected]


# Rejecting


@pytest.mark.parametrize(
    "name, errors, rejected, left", [("single", 40, 57, 29), ("vote", 42, 66, 23)]
)
def test_what_rejecting_buys(name, errors, rejected, left):
    "Chapter 12's figures on the 1,797 embedded digits; a runtime may move one at the threshold."
    net, predicted = load_pretrained(name), on_embedded(name)
    assert (predicted.argmax(axis=1) != LABELS).sum() == pytest.approx(errors, abs=1)
    curve = coverage_curve(LABELS, predicted)
    assert curve.iloc[-1].accepted == 1797
    chosen = curve[curve.threshold >= net.card["threshold"]].iloc[-1]
    assert 1797 - chosen.accepted == is_rejected(predicted, net.card["threshold"]).sum()
    assert 1797 - chosen.accepted == pytest.approx(rejected, abs=2)
    assert chosen.errors == pytest.approx(left, abs=1)


def rows_of(*pairs):
    "Rows of probabilities, each with a digit and its probability, the highest"
    return np.array([[p if i == digit else (1 - p) / 9 for i in range(10)] for digit, p in pairs])


def test_a_curve_of_coverage_and_errors():
    rows = rows_of((3, 0.6), (1, 0.9), (4, 0.6), (7, 0.8), (2, 0.6))
    curve = coverage_curve([3, 1, 5, 8, 2], rows)
    assert curve.threshold.tolist() == [0.9, 0.8, 0.6]  # equals are accepted together
    assert curve.accepted.tolist() == [1, 2, 5] and curve.errors.tolist() == [0, 1, 2]
    for row in curve.itertuples():
        accepted = ~is_rejected(rows, row.threshold)
        assert accepted.sum() == row.accepted
    for labels, found in (([3], "shape"), ([3, 1, 5, 8, 11], "11"), ([3.5, 1, 5, 8, 2], "labels")):
        assert found in error_message(coverage_curve, labels, rows)


@pytest.mark.parametrize(
    "errors, expected",
    [
        ({0: 9}, 0),
        ({0: 41, 1: 30, 2: 35, 3: 52, 4: 33}, 2),
        ({4: 33, 3: 52, 2: 35, 1: 30, 0: 41}, 2),
        ({0: 5, 1: 5, 2: 5}, 1),
        ({2: 5, 1: 5, 0: 9}, 2),
        ({10: 0, 11: 100, 12: 50}, 12),
    ],
)
def test_the_median_seed_is_chosen(errors, expected):
    "Neither the best nor the worst, whatever the order of the seeds."
    assert median_seed(errors) == expected


@pytest.mark.parametrize("errors", [{}, {0: 3, 1: 4}])
def test_an_even_number_of_seeds_has_no_median(errors):
    assert f"{len(errors)} seeds" in error_message(median_seed, errors)


# Keras to ONNX: every layer with weights such as training leaves, and spread-out probabilities

have = importlib.util.find_spec
to_write = pytest.mark.skipif(not (have("keras") and have("onnx")), reason="needs Keras and onnx")
INK = 1 / 255


def randomise(model, seed=0):
    "Give a model weights as training leaves them, with probabilities neither equal nor certain."
    rng = np.random.default_rng(seed)
    kinds = {
        "kernel": lambda shape: rng.normal(0, 1.5 / np.sqrt(np.prod(shape[:-1])), shape),
        "bias": lambda shape: rng.normal(0, 0.3, shape),
        "gamma": lambda shape: rng.uniform(0.4, 1.6, shape) * rng.choice([-1, 1], shape),
        "beta": lambda shape: rng.normal(0, 0.4, shape),
        "moving_mean": lambda shape: rng.normal(0, 0.4, shape),
        "moving_variance": lambda shape: rng.uniform(0.3, 3, shape),
    }
    for weight in model.weights:
        kind = weight.path.rpartition("/")[2]
        if kind in kinds:
            weight.assign(kinds[kind](tuple(weight.shape)))
    logits = np.log(predict_model(model, TEST.images[:100]).clip(1e-30))
    last = [layer for layer in model.layers if layer.weights][-1]
    for weight in last.weights:
        weight.assign(np.asarray(weight) * 2 / logits.std())
    return model


def check_agreement(tmp_path, *models):
    "The probabilities of the ONNX file and of Keras, within .001, and spread out"
    import onnxruntime

    path, images = to_onnx(list(models), tmp_path / "net.onnx"), TEST.images[:100]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [found] = session.run(None, {"images": images.astype(np.float32)})
    for i, model in enumerate(models):
        expected = predict_model(model, images)
        assert 0.25 < expected.max(axis=1).mean() < 0.97
        assert found[:, i] == pytest.approx(expected, abs=1e-3)


def sequential(*middle, start=None, end=None):
    "A net of the usual first and last layers, and others between"
    from keras import Input, Sequential, layers

    start = [layers.Rescaling(INK), layers.Reshape((28, 28, 1))] if start is None else start
    end = [layers.Flatten(), layers.Dense(10, activation="softmax")] if end is None else end
    return Sequential([Input((28, 28)), *start, *middle, *end])


def conv(filters=6, size=3, **settings):
    from keras import layers

    return layers.Conv2D(filters, size, **settings)


def norm(**settings):
    from keras import layers

    return layers.BatchNormalization(**settings)


def pool(*args, **settings):
    from keras import layers

    return layers.MaxPooling2D(*args, **settings)


def dense(*args, **settings):
    from keras import layers

    return layers.Dense(*args, **settings)


def activation(name):
    from keras import layers

    return layers.Activation(name)


def flat():
    from keras import layers

    return layers.Flatten()


MIDDLES = {
    "nothing": lambda: [],
    "a convolution": lambda: [conv()],
    "same padding": lambda: [conv(padding="same")],
    "strides": lambda: [conv(strides=2)],
    "same padding, strides, an even kernel": lambda: [conv(size=4, strides=2, padding="same")],
    "uneven kernel and strides": lambda: [conv(size=(3, 5), strides=(2, 1), padding="same")],
    "no bias": lambda: [conv(use_bias=False)],
    "relu": lambda: [conv(activation="relu")],
    "tanh": lambda: [conv(activation="tanh")],
    "sigmoid": lambda: [conv(activation="sigmoid")],
    "folded": lambda: [conv(), norm()],
    "folded without a bias": lambda: [conv(use_bias=False), norm(), activation("relu")],
    "after an activation": lambda: [conv(activation="relu"), norm()],
    "across pooling": lambda: [conv(), pool(), norm(), activation("relu")],
    "no gamma": lambda: [conv(), pool(), norm(scale=False)],
    "no beta": lambda: [conv(), norm(center=False)],
    "neither": lambda: [conv(activation="relu"), norm(scale=False, center=False)],
    "twice": lambda: [conv(), norm(), norm()],
    "norm first": lambda: [norm(), conv(), pool(), norm(), conv(), norm()],
    "pooling": lambda: [conv(), pool()],
    "pooling of another size": lambda: [conv(), pool(3, strides=2)],
    "pooling, same": lambda: [conv(), pool(2, padding="same"), pool(3, strides=2, padding="same")],
    "same pooling, then norm": lambda: [conv(), pool(2, padding="same"), norm()],
    "dense": lambda: [conv(), flat(), dense(20, activation="relu")],
    "dense without a bias": lambda: [flat(), dense(20, use_bias=False), norm(), activation("tanh")],
    "dense, norm": lambda: [flat(), norm(), dense(20), norm(), activation("sigmoid")],
    "activations": lambda: [
        conv(),
        activation("relu"),
        conv(),
        activation("tanh"),
        activation("sigmoid"),
        activation("linear"),
    ],
}


@to_write
@pytest.mark.parametrize("middle", MIDDLES)
def test_each_layer_is_translated(tmp_path, middle):
    check_agreement(tmp_path, randomise(sequential(*MIDDLES[middle]())))


def first_layers():
    from keras import layers

    standard = layers.Normalization(axis=None)
    standard.adapt(TEST.images.astype(np.float32))
    shape = partial(layers.Reshape, (28, 28, 1))
    return [
        [layers.Rescaling(1 / 127.5, offset=-1), shape()],
        [standard, shape()],
        [layers.Normalization(axis=None, mean=30.0, variance=6000.0), shape()],
        [shape(), layers.Rescaling(INK, offset=0.5)],
    ]


@to_write
def test_the_first_layers_are_translated(tmp_path):
    from keras import layers

    for start in first_layers():
        check_agreement(tmp_path, randomise(sequential(conv(), start=start)))
    check_agreement(tmp_path, randomise(sequential(start=[layers.Rescaling(INK)])))


@to_write
def test_a_negative_scale_across_pooling_is_not_folded(tmp_path, monkeypatch):
    "Without the check for it, the file would predict otherwise, and these tests would see it."
    model = randomise(sequential(*MIDDLES["across pooling"]()))
    [gamma] = [weight for weight in model.weights if weight.path.endswith("gamma")]
    assert (np.asarray(gamma) < 0).any()
    check_agreement(tmp_path, model)
    monkeypatch.setattr(export, "_foldable_norm", lambda layer, left: left[1])
    with pytest.raises(AssertionError):
        check_agreement(tmp_path, model)


@to_write
@pytest.mark.parametrize("axis", [2, -2])
@pytest.mark.parametrize("kind", ["image", "convolution", "pooling"])
def test_a_batch_norm_over_columns(tmp_path, kind, axis):
    "Fields of unequal sides: rows cannot pass for columns."
    before = {"image": [], "convolution": [conv(size=(2, 5))], "pooling": [conv(), pool((1, 2))]}
    model = randomise(sequential(*before[kind], norm(axis=axis), conv()))
    check_agreement(tmp_path, model)


@to_write
def test_each_kind_that_is_translated_has_its_test():
    made = {type(layer).__name__ for middle in MIDDLES.values() for layer in middle()}
    made |= {type(layer).__name__ for layers in first_layers() for layer in layers}
    assert {*export._TRANSLATIONS, "Conv2D"} <= made


@to_write
def test_softmax_and_dropout_may_be_layers_of_their_own(tmp_path):
    from keras import layers

    end = [flat(), layers.Dropout(0.5), dense(10), activation("softmax")]
    check_agreement(tmp_path, randomise(sequential(conv(), layers.Dropout(0.3), end=end)))


@to_write
@pytest.mark.parametrize("name", RECIPES)
def test_the_net_of_each_recipe_is_translated_or_refused(tmp_path, name):
    model = registered(RECIPES[name].net)()
    for layer in model.layers:
        if type(layer).__name__ == "Normalization":
            layer.adapt(TEST.images.astype(np.float32))
    if name == "first-2020":
        assert "a class of its own" in error_message(to_onnx, [model], tmp_path / "net.onnx")
        return
    check_agreement(tmp_path, randomise(model, 1))


@to_write
def test_a_vote_is_one_file(tmp_path):
    check_agreement(tmp_path, *(randomise(sequential(conv(), norm()), seed) for seed in range(3)))


def other_layers():
    "Layers and settings that have no translation, each with what the message names"
    from keras import layers

    class Dense(layers.Dense):
        "Another one of the same name"

    class Noisy(layers.Dropout):
        "Not the same as nothing when predicting"

    def relu(x):
        return 2 * x

    return {
        "gelu": [conv(activation="gelu")],
        "silu": [conv(activation="silu")],
        "'elu'": [flat(), dense(9, activation="elu")],
        "'leaky_relu'": [activation("leaky_relu")],
        "'relu'": [conv(activation=relu)],
        "softmax": [conv(activation="softmax")],
        "LayerNormalization": [layers.LayerNormalization()],
        "GroupNormalization": [layers.GroupNormalization(1)],
        "AveragePooling2D": [conv(), layers.AveragePooling2D(2)],
        "GlobalMaxPooling2D": [layers.GlobalMaxPooling2D()],
        "ReLU": [layers.ReLU(max_value=6)],
        "DepthwiseConv2D": [layers.DepthwiseConv2D(3)],
        "PReLU": [layers.PReLU()],
        "SeparableConv2D": [layers.SeparableConv2D(4, 3)],
        "UpSampling2D": [layers.UpSampling2D()],
        "Conv2DTranspose": [layers.Conv2DTranspose(4, 3)],
        "Cropping2D": [layers.Cropping2D(2)],
        "groups = 2": [conv(4), conv(4, groups=2)],
        "dilation_rate = (2, 2)": [conv(dilation_rate=2)],
        "axis = 1": [norm(axis=1)],
        "an input of 4": [conv(), dense(4)],
        "(14, 56, 1)": [layers.Reshape((14, 56, 1))],
        "of Dense": [flat(), Dense(20)],
        "Noisy": [Noisy(0.5)],
        "ZeroPadding2D": [layers.ZeroPadding2D()],
        "a scale": [conv(), layers.Rescaling([1.0] * 6)],
        "a mean": [conv(), layers.Normalization(axis=-1, mean=[1.0] * 6, variance=[1.0] * 6)],
    }


@to_write
def test_every_other_layer_is_refused_by_name(tmp_path):
    for named, middle in other_layers().items():
        found = error_message(to_onnx, [sequential(*middle)], tmp_path / "net.onnx")
        assert named in found and found.startswith("layer "), (named, found)
    assert not list(tmp_path.iterdir())


@to_write
def test_what_is_no_row_of_layers_is_refused(tmp_path):
    import keras
    from keras import layers

    start = keras.Input((28, 28))
    flattened = flat()(start)
    left, right = (dense(10, activation="softmax")(flattened) for _ in range(2))
    shared = dense(784)
    answer = dense(10, activation="softmax")
    twice = dense(10, activation="softmax")
    inner = keras.Sequential([keras.Input((28, 28)), flat(), dense(20)])
    models = {
        "on a branch": keras.Model(start, layers.Add()([left, right])),
        "inputs and outputs [(28, 28), (10,), (10,)]": keras.Model(start, [left, right]),
        "Dense on a branch": keras.Model(start, answer(shared(shared(flattened)))),
        "Dense used twice": keras.Model(start, twice(twice(dense(10)(flattened)))),
        "Sequential": keras.Sequential([keras.Input((28, 28)), inner, dense(10)]),
        "inputs and outputs [(28, 28, 1), (10,)]": keras.Sequential(
            [keras.Input((28, 28, 1)), flat(), dense(10)]
        ),
        "inputs and outputs [(28, 28), (9,)]": keras.Sequential([start, flat(), dense(9)]),
    }
    for named, model in models.items():
        assert named in error_message(to_onnx, [model], tmp_path / "net.onnx"), named


@to_write
def test_weights_too_large_for_half_precision_are_refused(tmp_path):
    model = sequential(conv())
    model.layers[-1].bias.assign(np.full(10, 1e5))
    assert "65,504" in error_message(to_onnx, [model], tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@to_write
@pytest.mark.parametrize(
    "name, settings",
    [
        ("tiny", {}),
        ("tiny", {"precision": "bfloat16"}),
        ("standardised-2017-as-written", {}),
    ],
)
def test_what_is_packed_predicts_as_the_net_did(tmp_path, name, settings):
    net = Net(replace(RECIPES[name], epochs=1, batch_size=64, **settings), verbose=False)
    net.fit(TRAIN.images[:300], TRAIN.labels[:300])
    before = {path: path.read_bytes() for path in SHIPPED.iterdir()}
    packed = pack("mine", [net], 0.5, tmp_path, note="of a test")
    assert packed.card["note"] == "of a test" and packed.card["tta"] == net.recipe.tta
    assert packed.card["recipe"].get("precision") == settings.get("precision")
    images = TEST.images[:50]
    assert packed.predict_proba(images) == pytest.approx(net.predict_proba(images), abs=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.json", "mine.onnx"]
    assert {path: path.read_bytes() for path in SHIPPED.iterdir()} == before


@to_write
def test_nets_of_two_recipes_are_not_packed(tmp_path):
    for n in (0, 2):
        nets = [Net(RECIPES[name], verbose=False) for name in ("tiny", "small")[:n]]
        message = error_message(pack, "nets", nets, 0.5, tmp_path)
        assert f"nets of {n} recipes; expected nets of one" in message
    assert not list(tmp_path.iterdir())


@to_write
def test_nets_not_fitted_are_not_packed(tmp_path):
    with pytest.raises(ValueError, match=r"not fitted yet"):
        pack("mine", [Net(RECIPES["tiny"], verbose=False)], 0.5, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_card_needs_its_file(tmp_path):
    with pytest.raises(DataError, match=r"nothing.onnx.*expected an ONNX file"):
        write_card(tmp_path / "nothing.onnx", {})
    assert not list(tmp_path.iterdir())


# SavedModel

saved = pytest.mark.skipif(
    not (have("keras") and have("tensorflow")), reason="needs Keras and TensorFlow"
)


class Fitted:
    "What `to_saved_model` needs of a net: a model with weights, and the recipe's copies"

    def __init__(self, model, tta):
        self.model_, self.recipe = model, replace(RECIPES["tiny"], tta=tta)

    def predict_proba(self, images):
        from digitrec.scores import predict_with_tta

        return predict_with_tta(partial(predict_model, self.model_), images, self.recipe.tta)


def served(path, images):
    import tensorflow as tf

    serve = tf.saved_model.load(path).signatures["serving_default"]
    [probabilities] = serve(images=tf.constant(images.astype(np.float32))).values()
    return probabilities.numpy()


@saved
@pytest.mark.parametrize("name, tta", [("tiny", 2), ("first-2020", 0)])
def test_any_net_is_written_as_a_saved_model(tmp_path, name, tta):
    net = Fitted(registered(RECIPES[name].net)(), tta)
    path, images = to_saved_model(net, tmp_path / "deep" / "model"), TEST.images[:7]
    assert served(path, images) == pytest.approx(net.predict_proba(images), abs=1e-5)
    assert [entry.name for entry in path.parent.iterdir()] == ["model"]
    before = sorted(path.rglob("*"))
    with pytest.raises(DataError, match="a file or a folder"):
        to_saved_model(net, path)
    assert sorted(path.rglob("*")) == before


@saved
def test_an_ensemble_is_one_saved_model(tmp_path):
    class Vote:
        members_ = [Fitted(randomise(registered("tiny_net")(), seed), 1) for seed in range(2)]

    images = TEST.images[:7]
    expected = np.mean([net.predict_proba(images) for net in Vote.members_], axis=0)
    path = to_saved_model(Vote(), tmp_path / "model")
    assert served(path, images) == pytest.approx(expected, abs=1e-5)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="a path that can be written"):
        to_saved_model(Vote(), tmp_path / "file" / "below")


def test_another_recogniser_is_no_saved_model(tmp_path):
    for recogniser in (load_pretrained("tiny"), None):
        found = error_message(to_saved_model, recogniser, tmp_path / "model")
        assert f"a {type(recogniser).__name__}; expected a fitted Net or Ensemble" in found
    assert not list(tmp_path.iterdir())
