"""Inside a net: numbers of its own, on both engines; gradients; dead units; clear errors."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

from digitrec.data import DataError, Digits
from digitrec.sources import load

pytest.importorskip("keras", reason="needs Keras and an engine: digitrec[cpu], [gpu] or [tpu]")
from digitrec import inside
from digitrec.cnn import classic_net, cv_net, first_net, record_net, standardised_net
from digitrec.mlp import mlp, mlp_as_written
from digitrec.nets import predict_model, seeded
from digitrec.recipe import Recipe, register
from digitrec.training import Net, keras

layers = keras.layers
TRAIN, TEST = load("digits")
SEVERAL, ONE = TEST.images[:20], TEST.images[:1]
NETS = (first_net, classic_net, standardised_net, cv_net, record_net, mlp, mlp_as_written)
DRAWS = all(map(importlib.util.find_spec, ("keract", "tensorflow")))
KERACT = pytest.mark.skipif(not DRAWS, reason="needs keract and TensorFlow")


@register
def inside_small():
    return keras.Sequential(
        [
            keras.Input((28, 28)),
            layers.Rescaling(1 / 255),
            layers.Reshape((28, 28, 1)),
            layers.Conv2D(6, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(8, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )


def linear():
    "A net whose log odds are a weighted sum of the pixels"
    net = keras.Sequential(
        [
            keras.Input((28, 28)),
            layers.Rescaling(1 / 255),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    net.layers[-1].set_weights([np.random.default_rng(5).normal(0, 0.05, (784, 10)), np.zeros(10)])
    return net


@pytest.fixture(scope="module")
def net():
    "A small net that has learned a little."
    return (
        Net(
            Recipe("small", "inside_small", epochs=8, batch_size=32, learning_rate=3e-3),
            verbose=False,
        )
        .fit(TRAIN.images, TRAIN.labels)
        .model_
    )


@pytest.fixture
def untouched(net):
    "The net, whose weights a test may change."
    kept = net.get_weights()
    yield net
    net.set_weights(kept)


@pytest.fixture(autouse=True)
def unseen():
    "No windows, and no figures left over."
    with matplotlib.rc_context({"backend": "agg"}):
        yield
    plt.close("all")


# The numbers


@pytest.mark.parametrize("build", NETS, ids=lambda build: build.__name__)
def test_the_last_layer_gives_the_nets_own_answer(build):
    with seeded(1):
        built = build()
    given = inside.activations(built, SEVERAL)
    assert np.allclose(
        list(given.values())[-1], built.predict(SEVERAL.astype("float32"), verbose=0), atol=1e-6
    )
    assert len(given) == len(
        [layer for layer in built.layers if not isinstance(layer, layers.InputLayer)]
    )
    assert inside.penultimate(built, SEVERAL).shape[0] == len(SEVERAL)


def test_each_layer_gives_what_it_makes_of_the_one_before(net):
    given, last = inside.activations(net, SEVERAL), SEVERAL.astype("float32")
    for layer, values in zip(net.layers, given.values(), strict=True):
        last = keras.ops.convert_to_numpy(layer(last))
        assert np.allclose(values, last, atol=1e-5)


def test_looking_changes_nothing():
    built = first_net()
    weights, result = built.get_weights(), predict_model(built, SEVERAL)
    for _ in range(2):
        (
            inside.activations(built, SEVERAL),
            inside.maximize_activation(built, "conv2d", [0], 2),
            inside.saliency(built, ONE, 1, 2),
        )
    assert all(
        (before == after).all() for before, after in zip(weights, built.get_weights(), strict=True)
    )
    assert (predict_model(built, SEVERAL) == result).all()
    assert built.convolved(ONE.astype("float32")).shape == (1, 26, 26, 32)


def test_names_do_not_depend_on_what_was_built_before():
    classic_net()
    names = " ".join(inside.activations(classic_net(), ONE))
    assert (
        names
        == "rescaling reshape conv2d conv2d_1 max_pooling2d dropout flatten dense dropout_1 dense_1"
    )
    assert list(inside.activations(classic_net(), ONE, active=True)) == [
        "conv2d",
        "conv2d_1",
        "dense",
        "dense_1",
    ]


def test_the_last_layer_reads_what_penultimate_gives(net):
    kernel, bias = net.layers[-1].get_weights()
    scores = inside.penultimate(net, SEVERAL) @ kernel + bias
    assert np.allclose(
        np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True),
        predict_model(net, SEVERAL),
        atol=1e-5,
    )


def test_feature_maps_are_the_convolutions_own():
    built = first_net()
    maps = inside.feature_maps(built, ONE)
    assert np.allclose(
        maps.transpose(1, 2, 0),
        keras.ops.convert_to_numpy(built.convolved(ONE.astype("float32")))[0],
        atol=1e-6,
    )
    filters = inside.first_filters(built)
    assert (
        filters.shape == (32, 3, 3)
        and (filters[4, 1, 2] == built.convolve.get_weights()[0][1, 2, 0, 4]).all()
    )


# Slopes and patches


def test_saliency_of_a_linear_net_is_the_difference_of_its_weights():
    built = linear()
    kernel = built.layers[-1].get_weights()[0]
    slope = inside.saliency(built, ONE, 3, 8)
    assert slope.shape == (28, 28)
    assert np.allclose(slope.ravel(), kernel[:, 3] - kernel[:, 8], atol=1e-4)


@pytest.mark.parametrize(
    "end",
    [
        [layers.Dense(10, activation="softmax")],
        [layers.Dense(10), layers.Softmax()],
        [layers.Dense(10), layers.Activation("softmax")],
    ],
    ids=["dense", "softmax", "activation"],
)
def test_logits_are_the_logs_of_the_probabilities(end):
    model = keras.Sequential(
        [keras.Input((28, 28)), layers.Rescaling(1 / 255), layers.Flatten(), *end]
    )
    logits = keras.ops.convert_to_numpy(
        inside.logit_model(model)(SEVERAL.astype("float32"))
    ).astype(float)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert np.allclose(
        odds / odds.sum(axis=1, keepdims=True), predict_model(model, SEVERAL), atol=1e-5
    )


def test_a_model_without_a_softmax_has_no_log_odds():
    model = keras.Sequential([keras.Input((28, 28)), layers.Flatten(), layers.Dense(10)])
    for compute in (inside.saliency, inside.occlusion):
        with pytest.raises(ValueError, match="ends in Dense without a softmax"):
            compute(model, ONE, 1, 2)


def test_a_digit_may_be_a_row_and_one_unit_a_number(net):
    for compute in (inside.saliency, inside.occlusion):
        flat = compute(net, ONE.reshape(1, 784), 1, 2)
        assert np.allclose(flat, compute(net, ONE, 1, 2))
    maps = inside.feature_maps(net, ONE)
    assert np.allclose(inside.feature_maps(net, ONE.reshape(1, 784)), maps)
    one, several = (inside.maximize_activation(net, "conv2d", units, 2) for units in (3, [3]))
    assert (one == several).all()


def test_occlusion_of_a_linear_net_is_the_ink_times_the_weights():
    built = linear()
    kernel = built.layers[-1].get_weights()[0]
    spoke = ONE[0] / 255 * (kernel[:, 3] - kernel[:, 8]).reshape(28, 28)
    assert np.allclose(inside.occlusion(built, ONE, 3, 8, size=1), spoke, atol=1e-4)
    around = sum(np.pad(spoke, 1)[y : y + 28, x : x + 28] for y in range(3) for x in range(3))
    assert np.allclose(inside.occlusion(built, ONE, 3, 8, size=3), around, atol=1e-4)


def test_occlusion_leaves_the_digit_as_it_was(net):
    image = ONE.copy()
    inside.occlusion(net, image, 1, 2)
    assert (image == ONE).all()


def test_saliency_agrees_with_an_experiment(net):
    digit, rival = 2, 7
    slope = inside.saliency(net, ONE, digit, rival) / 255
    step = slope / np.linalg.norm(slope)
    image = ONE.astype("float32")
    ends = [
        np.log(keras.ops.convert_to_numpy(net(image + sign * 0.5 * step))[0].astype(float))
        for sign in (1, -1)
    ]
    seen = (ends[0][digit] - ends[0][rival]) - (ends[1][digit] - ends[1][rival])
    assert seen > 0 and np.isclose(seen, (slope * step).sum(), rtol=0.1)


@pytest.mark.parametrize("layer", ["conv2d", "conv2d_1", "dense", "dense_1"])
def test_the_climb_excites_every_unit_more_than_noise_and_than_digits(net, layer):
    def answers(images):
        values = inside.activations(net, images)[layer]
        return values.reshape(len(images), -1, values.shape[-1]).mean(axis=1)

    found, noise = (
        answers(inside.maximize_activation(net, layer)).diagonal(),
        answers(inside.maximize_activation(net, layer, steps=0)).diagonal(),
    )
    assert (
        (found >= noise - 1e-6).all()
        and (found[noise > 0] > noise[noise > 0]).all()
        and (noise > 0).any()
    )
    if layer.startswith("conv2d"):
        assert (found[noise > 0] > answers(SEVERAL).max(axis=0)[noise > 0]).all()


def test_the_climb_takes_chosen_units_and_a_seed(net):
    chosen = inside.maximize_activation(net, "conv2d", [4, 1], steps=3)
    assert chosen.dtype == np.uint8 and chosen.shape == (2, 28, 28)
    assert (chosen == inside.maximize_activation(net, "conv2d", [4, 1], steps=3)).all()
    assert (chosen != inside.maximize_activation(net, "conv2d", [4, 1], steps=3, seed=1)).any()


# Dead units


@pytest.mark.parametrize("layer, dead", [("conv2d", [0, 5]), ("conv2d_1", [3]), ("dense", [2, 15])])
def test_units_killed_on_purpose_are_found(untouched, layer, dead):
    before = inside.silent_units(inside.activations(untouched, SEVERAL, active=True))
    victim = inside._layers(untouched)[layer]
    kernel, bias = victim.get_weights()
    bias[dead] = -1e5
    victim.set_weights([kernel, bias])
    after = inside.silent_units(inside.activations(untouched, SEVERAL, active=True))
    assert set(after.loc[layer, "which"]) == set(before.loc[layer, "which"]) | set(dead)
    assert (
        after.loc[layer, "silent"] == len(after.loc[layer, "which"])
        and after.loc[layer, "zeros"] > before.loc[layer, "zeros"]
    )
    assert list(after["units"]) == [6, 8, 16, 10]


def test_a_unit_that_always_says_the_same_is_silent_though_it_is_not_zero():
    values = np.random.default_rng(0).normal(size=(9, 3)).astype("float32")
    values[:, 1] = 7
    table = inside.silent_units({"layer": values})
    assert table.loc["layer", "which"] == [1] and table.loc["layer", "zeros"] == 0


def test_the_picture_counts_the_silent(untouched):
    victim = inside._layers(untouched)["dense"]
    victim.set_weights([victim.get_weights()[0], np.full(16, -1e5)])
    given = inside.activations(untouched, SEVERAL, active=True)
    figure = inside.plot_histograms(given)
    assert [ax.get_title() for ax in figure.axes[1::2]][2:] == [
        "16 of 16 silent",
        "10 of 10 silent",
    ]
    dots = figure.axes[5].lines[0].get_ydata()
    assert len(dots) == 16 and not dots.any()
    assert len(inside.plot_histograms(given, given).axes) == 8


# Why


def test_why_asks_about_the_answer_and_the_label(net):
    result, labels = predict_model(net, TEST.images), TEST.labels
    wrong = np.flatnonzero(result.argmax(axis=1) != labels)[0]
    right = np.flatnonzero(result.argmax(axis=1) == labels)[0]
    assert (
        inside.plot_why(net, TEST, wrong).get_suptitle()
        == f"Why {result[wrong].argmax()} and not {labels[wrong]}?"
    )
    assert (
        inside.plot_why(net, TEST, right).get_suptitle()
        == f"Why {labels[right]} and not {result[right].argsort()[-2]}?"
    )


# keract


@KERACT
def test_keract_draws_a_figure_for_each_layer(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()._suptitle.get_text()))
    given = inside.activations(inside_small(), ONE)
    kept = {name: values.copy() for name, values in given.items()}
    inside.draw_activations(given)
    assert shown == list(given)
    for together in (False, True):
        shown.clear()
        inside.draw_heatmaps(given, ONE, together)
        assert shown == ["rescaling", "reshape", "conv2d", "max_pooling2d", "conv2d_1"]
    assert all((kept[name] == values).all() for name, values in given.items())
    assert capsys.readouterr().out == "" and not plt.get_fignums()


@KERACT
def test_a_map_that_is_the_same_everywhere_does_not_spoil_the_others(monkeypatch):
    shown = []
    monkeypatch.setattr(
        plt, "show", lambda: shown.append(np.asarray(plt.gcf().axes[0].images[1].get_array()))
    )
    maps = np.zeros((1, 5, 5, 2), np.float32)
    maps[0, 2, 2, 1] = 1
    inside.draw_heatmaps({"maps": maps}, ONE, together=True)
    assert np.isfinite(shown[0]).all() and shown[0].max() > 0


WITHOUT = """
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = staticmethod(
    lambda name, *more: None if name.split(".")[0] == {missing!r} else find(name, *more))
from digitrec import inside
from digitrec.cnn import classic_net
from digitrec.sources import load

_, test = load("digits")
net, image = classic_net(), test.images[:1]
given = inside.activations(net, image)
for draw in (lambda: inside.draw_activations(given), lambda: inside.draw_heatmaps(given, image)):
    try:
        draw()
    except ImportError as error:
        print(error)
assert inside.feature_maps(net, image).shape == (32, 26, 26)
assert inside.saliency(net, image, 1, 2).any()
print("the rest runs")
"""


@pytest.mark.parametrize(
    "missing, engine", [("keract", keras.backend.backend()), ("tensorflow", "jax")]
)
def test_without_keract_or_tensorflow_only_its_pictures_are_refused(missing, engine):
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"needs {engine}")
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(missing=missing)],
        env={**os.environ, "KERAS_BACKEND": engine},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()[-3:]
    assert lines[-1] == "the rest runs" and lines[0] == lines[1]
    assert lines[0].startswith("keract cannot be imported") and "digitrec[" not in lines[0]
    assert lines[0].endswith("pip install keract==4.5.2")


@KERACT
def test_maps_of_a_layer_share_a_scale_and_ten_outputs_are_labelled(monkeypatch):
    scales, ticks = [], []
    monkeypatch.setattr(
        plt,
        "show",
        lambda: (
            scales.append({image.get_clim() for ax in plt.gcf().axes for image in ax.images}),
            ticks.append([label.get_text() for label in plt.gcf().axes[0].get_xticklabels()]),
        ),
    )
    values = inside.activations(inside_small(), ONE)
    inside.draw_activations({name: values[name] for name in ("conv2d", "dense_1")})
    assert [len(of_layer) for of_layer in scales] == [1, 1]
    assert scales[0] == {(values["conv2d"].min(), values["conv2d"].max())}
    assert ticks[1] == list("0123456789")


def test_a_backend_that_starts_while_settings_are_changed_stays_on():
    "Notebooks start theirs at the first figure, and set `interactive`: `rc_context` would undo it."
    with matplotlib.rc_context({"interactive": False, "image.cmap": "viridis"}):
        with inside._settings(image__cmap="Greys"):
            assert plt.rcParams["image.cmap"] == "Greys"
            plt.rcParams["interactive"] = True
        assert plt.rcParams["interactive"] and plt.rcParams["image.cmap"] == "viridis"


CHAPTERS = Path(__file__).parent.parent / "nbs"
NOTEBOOKS = [CHAPTERS / "11_inside.ipynb", CHAPTERS / "11b_robustness.ipynb"]  # 10: once rerun
DRAWN = re.compile(r"^(    )?(inside\.|errors\.|distortions\.)?(plot_\w+|show\w*|draw_\w+)\(", re.M)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_that_draws_keeps_its_picture(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and "#| export" not in source and DRAWN.search(source):
            assert any("image/png" in output.get("data", {}) for output in cell["outputs"]), source


# Both engines

NUMBERS = """
import sys
import numpy as np
from digitrec import inside
from digitrec.cnn import classic_net, first_net
from digitrec.sources import load

_, test = load("digits")
found = {}
for build in (first_net, classic_net):
    net, rng = build(), np.random.default_rng(3)
    net.set_weights([rng.normal(0, 0.05, weights.shape) for weights in net.get_weights()])
    image = test.images[:1]
    numbers = inside.activations(net, test.images[:3]) | {
        "saliency": inside.saliency(net, image, 1, 2),
        "occlusion": inside.occlusion(net, image, 1, 2),
        "climb": inside.maximize_activation(net, "conv2d", [0, 1], steps=4).astype(float),
        "maps": inside.feature_maps(net, image)}
    found |= {f"{build.__name__} {name}": values for name, values in numbers.items()}
np.savez(sys.argv[1], **found)
"""


def test_both_engines_give_the_same_numbers(tmp_path):
    found = []
    for engine in ("tensorflow", "jax"):
        if importlib.util.find_spec(engine) is None:
            pytest.skip(f"needs {engine}")
        env = {**os.environ, "KERAS_BACKEND": engine}
        subprocess.run(
            [sys.executable, "-c", NUMBERS, tmp_path / f"{engine}.npz"],
            env=env,
            check=True,
            capture_output=True,
        )
        found.append(np.load(tmp_path / f"{engine}.npz"))
    tensorflow, jax = found
    assert tensorflow.files == jax.files and len(jax.files) == 7 + 10 + 8
    for name in jax.files:
        # within two grey levels, or a thousandth
        within = 2 if "climb" in name else 1e-3 * max(1e-3, abs(jax[name]).max())
        assert np.allclose(tensorflow[name], jax[name], rtol=0, atol=within), name


def test_other_engines_are_refused(net, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ValueError, match="torch; expected TensorFlow or JAX"):
        inside.saliency(net, ONE, 1, 2)


# Told nonsense


class Crooked(keras.Model):
    "A class whose layers are not in the order of the way through it"

    def __init__(self):
        super().__init__()
        self.flatten, self.one, self.two = layers.Flatten(), layers.Dense(10), layers.Dense(10)

    def call(self, images):
        return self.one(self.flatten(images)) + self.two(self.flatten(images))


def crooked():
    net = Crooked()
    net(np.zeros((1, 28, 28), np.float32))
    return net


BAD_IMAGES = [
    None,
    "a picture",
    3,
    ONE.astype(float),
    ONE[0],
    np.zeros((1, 8, 8), np.uint8),
    [[1, 2], [3]],
    TEST.images[:0],
]


@pytest.mark.parametrize("images", BAD_IMAGES, ids=map(str, range(len(BAD_IMAGES))))
def test_images_that_are_none_are_refused(net, images):
    for ask in (inside.activations, inside.penultimate, inside.feature_maps):
        with pytest.raises(DataError):
            ask(net, images)
    for ask in (inside.saliency, inside.occlusion):
        with pytest.raises(DataError):
            ask(net, images, 1, 2)


NO_NETS = [
    None,
    "net",
    Net(Recipe("small", "inside_small")),
    layers.Dense(3),
    keras.Sequential(),
    keras.Sequential([layers.Dense(3)]),
]


@pytest.mark.parametrize("bad", NO_NETS, ids=lambda bad: type(bad).__name__)
def test_nets_that_are_none_are_refused(bad):
    for ask in (
        lambda: inside.activations(bad, ONE),
        lambda: inside.penultimate(bad, ONE),
        lambda: inside.first_filters(bad),
        lambda: inside.feature_maps(bad, ONE),
        lambda: inside.maximize_activation(bad, "conv2d"),
        lambda: inside.saliency(bad, ONE, 1, 2),
        lambda: inside.occlusion(bad, ONE, 1, 2),
        lambda: inside.plot_why(bad, TEST, 0),
    ):
        with pytest.raises(ValueError, match="a Keras model that has been built"):
            ask()


def test_a_net_without_convolutions_is_refused():
    for ask in (lambda: inside.first_filters(mlp()), lambda: inside.feature_maps(mlp(), ONE)):
        with pytest.raises(ValueError, match="no convolution among rescaling, flatten"):
            ask()


def test_a_class_whose_layers_do_not_follow_one_another_is_refused():
    with pytest.raises(ValueError, match="do not follow one another"):
        inside.activations(crooked(), ONE)


@pytest.mark.parametrize("index", [-1, len(TEST), 1.0, "0", None, True], ids=repr)
def test_a_digit_that_is_not_there_is_refused(net, index):
    for ask in (lambda: inside.one_digit(TEST, index), lambda: inside.plot_why(net, TEST, index)):
        with pytest.raises(ValueError, match=f"embedded test: index = .*from 0 to {len(TEST) - 1}"):
            ask()


def test_digits_without_labels_are_refused(net):
    with pytest.raises(DataError, match="no labels"):
        inside.plot_why(net, Digits(TEST.images), 0)


@pytest.mark.parametrize(
    "pair", [(1, 1), (-1, 2), (3, 10), (1.0, 2), ("1", 2), (None, 2)], ids=repr
)
def test_answers_that_are_no_two_digits_are_refused(net, pair):
    for ask in (inside.saliency, inside.occlusion):
        with pytest.raises(ValueError, match="two different digits"):
            ask(net, ONE, *pair)


@pytest.mark.parametrize("size", [0, -1, 2, 29, 1.5, "5"], ids=repr)
def test_patches_that_cannot_be_are_refused(net, size):
    with pytest.raises(ValueError, match="an odd number from 1 to 27"):
        inside.occlusion(net, ONE, 1, 2, size)


@pytest.mark.parametrize("setting", [{"steps": -5}, {"steps": "a"}, {"seed": -1}], ids=str)
def test_steps_and_seeds_are_whole_numbers(net, setting):
    with pytest.raises(ValueError, match="expected a whole number, 0 or more"):
        inside.maximize_activation(net, "conv2d", **setting)


@pytest.mark.parametrize("units", [[], [6], [-1], [0.5], ["a"]], ids=repr)
def test_units_and_layers_that_a_net_does_not_have_are_refused(net, units):
    with pytest.raises(ValueError, match="numbers from 0 to 5"):
        inside.maximize_activation(net, "conv2d", units)
    with pytest.raises(ValueError, match="no layer 'attention'.*conv2d_1"):
        inside.maximize_activation(net, "attention")


@KERACT
def test_keract_is_given_one_digit_and_maps(net):
    several, single = inside.activations(net, SEVERAL[:2]), inside.activations(net, ONE)
    for ask in (
        lambda: inside.draw_activations(several),
        lambda: inside.draw_heatmaps(several, ONE),
    ):
        with pytest.raises(ValueError, match="activations of 2 digits"):
            ask()
    with pytest.raises(ValueError, match="0 layers with feature maps"):
        inside.draw_heatmaps({"dense": single["dense"]}, ONE)
    with pytest.raises(ValueError, match="2 digits"):
        inside.draw_heatmaps(single, SEVERAL[:2])


def test_histograms_need_several_digits_and_the_same_layers(net):
    single = inside.activations(net, ONE, active=True)
    several = inside.activations(net, SEVERAL, active=True)
    with pytest.raises(ValueError, match="2 or more"):
        inside.silent_units(single)
    with pytest.raises(ValueError, match="before: layers dense"):
        inside.plot_histograms(several, {"dense": several["dense"]})
