"""What augmentation, label smoothing and weight decay do to a net, measured on the net itself."""
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

pytest.importorskip("keras", reason="needs Keras and an engine: digitrec[cpu], [gpu] or [tpu]")
from digitrec.augmentation import LETTERS, Warp, augment, coarsen, draw_outliers, matrices, resample
from digitrec.data import split
from digitrec.nets import build_models, predict_model, variable_values
from digitrec.recipe import RECIPES, Augmentation, Recipe, register
from digitrec.sources import load
from digitrec.training import Net, keras

TRAIN, _ = load("digits")
FIRST = TRAIN[:96]
SHIFT = Augmentation(shift=3)


def as_numpy(values):
    return np.asarray(keras.ops.convert_to_numpy(values))


@register
def inked():
    "A net whose batch norm keeps the mean image of its last batch"
    return keras.Sequential([
        keras.Input((28, 28)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(),
        keras.layers.BatchNormalization(momentum=0), keras.layers.Dense(10, activation="softmax")])


INKED = Recipe("inked", "inked", epochs=1, batch_size=96, learning_rate=1e-30)


# Augmentation: where it is applied, and where it is not

def test_the_trainers_first_layer_warps_in_training_and_not_in_prediction():
    _, trainer = build_models(replace(INKED, augmentation=SHIFT), 0, FIRST.images, 1)
    first = trainer.layers[0]
    assert isinstance(first, Warp) and first.augmentation == SHIFT
    assert (as_numpy(first(FIRST.images)) == FIRST.images).all()
    assert (as_numpy(first(FIRST.images, training=False)) == FIRST.images).all()
    warped = as_numpy(first(FIRST.images, training=True))
    moved = (warped != FIRST.images).any(axis=(1, 2))
    assert moved.mean() > 0.9


def trained_on(recipe, images=FIRST.images):
    "The mean image that a net saw in its only step: the moving mean of its batch norm"
    net = Net(recipe, verbose=False).fit(images, FIRST.labels)
    [mean] = [v for v in net.model_.variables if v.name == "moving_mean"]
    return as_numpy(mean).reshape(28, 28)


def test_a_net_sees_warped_digits_in_its_training_steps():
    plain = FIRST.images.mean(axis=0) / 255
    assert np.allclose(trained_on(INKED), plain, atol=1e-4)
    warped = trained_on(replace(INKED, augmentation=SHIFT))
    assert np.abs(warped - plain).max() > 0.02
    expected = augment(np.repeat(FIRST.images, 40, axis=0), SHIFT).mean(axis=0) / 255
    assert np.abs(warped - expected).max() < np.abs(plain - expected).max()


def test_each_epoch_warps_anew():
    seen = [trained_on(replace(INKED, epochs=epochs, augmentation=SHIFT)) for epochs in (1, 2)]
    assert np.abs(seen[0] - seen[1]).max() > 0.005


def test_validation_digits_are_not_warped():
    recipe = replace(INKED, augmentation=SHIFT)
    net = Net(recipe, verbose=False).fit(FIRST.images, FIRST.labels,
                                         validation=(FIRST.images, FIRST.labels))
    probabilities = predict_model(net.model_, FIRST.images)
    true = probabilities[np.arange(96), FIRST.labels]
    assert np.isclose(net.history_.val_loss[1], -np.log(true).mean(), rtol=1e-4)


def test_augmentation_is_no_part_of_the_net():
    model, trainer = build_models(replace(INKED, augmentation=SHIFT), 0, FIRST.images, 1)
    assert not any(isinstance(layer, Warp) for layer in model.layers)
    assert len(trainer.trainable_variables) == len(model.trainable_variables)


# How far each setting warps

def box_side(images):
    "The mean height and width of the box around the ink"
    lines = [image.any(axis=axis) for image in images > 20 for axis in (0, 1)]
    return np.mean([np.ptp(np.flatnonzero(line)) + 1 for line in lines])


def test_the_zoom_of_s2_enlarges_digits():
    augmentation = RECIPES["triple-2021"].augmentation
    assert augmentation.zoom_centre == 1.1
    assert box_side(augment(TRAIN.images, augmentation)) / box_side(TRAIN.images) > 1.05


@pytest.mark.parametrize("centre, low, high", [(0.8, 0.75, 0.92), (1.0, 0.97, 1.05),
                                               (1.25, 1.15, 1.32)])
def test_a_zoom_centre_is_the_size_of_a_warped_digit(centre, low, high):
    warped = augment(TRAIN.images, Augmentation(zoom_centre=centre))
    assert low < box_side(warped) / box_side(TRAIN.images) < high


@pytest.mark.skipif("DIGITREC_DATA" not in os.environ, reason="DIGITREC_DATA names no digits")
def test_the_zoom_of_s2_on_real_digits():
    some = load("auto")[0].images[:2000]
    growth = box_side(augment(some, RECIPES["triple-2021"].augmentation)) / box_side(some)
    assert 1.12 < growth < 1.18


def test_the_shear_of_s5_is_that_many_radians():
    augmentation = RECIPES["standardised-2017"].augmentation
    draws = np.zeros((1, 6), np.float32)
    draws[0, 1] = 1
    only_shear = as_numpy(matrices(augmentation, draws))[0]
    assert np.allclose(only_shear, [[1, 0, 0], [np.tan(0.3), 1, 0]], atol=1e-6)


def test_uniform_draws_stay_inside_and_normal_ones_do_not():
    paper = np.zeros((2000, 28, 28), np.uint8)
    paper[:, 14, 14] = 255  # how far the dot moves is the shift
    for normal in (False, True):
        warped = augment(paper, Augmentation(shift=3, normal=normal)).astype(float)
        down = (warped * np.arange(28)[:, None]).sum((1, 2)) / warped.sum((1, 2)) - 14
        assert (np.abs(down).max() > 4) == normal
        assert np.isclose(down.std(), 3 if normal else 3 / np.sqrt(3), rtol=0.1)


def test_each_style_changes_every_other_digit():
    same = np.repeat(TRAIN.images[:1] // 2, 2000, axis=0)
    for style in (Augmentation(coarse=4), Augmentation(blur=1), Augmentation(ink=0.9)):
        styled = augment(same, style)
        assert 0.45 < (styled != same).any(axis=(1, 2)).mean() < 0.55
    darkest = styled.max(axis=(1, 2)) / same[0].max()
    assert 1.85 < darkest.max() <= 1.91  # up to 1 + ink, uniform
    assert np.isclose(darkest[darkest > 1].mean(), 1.45, atol=0.03)


@pytest.mark.parametrize("side", [1, 2, 4])
def test_a_coarse_digit_is_a_small_picture_enlarged(side):
    images = TRAIN.images[:20]
    ours = as_numpy(coarsen(images.astype(np.float32), np.full(20, side, np.float32)))
    n, inner = 28 // side, slice(side, 28 - side)  # Pillow repeats the grey at the edge
    small = [Image.fromarray(image).resize((n, n), Image.Resampling.BOX) for image in images]
    theirs = [image.resize((28, 28), Image.Resampling.BILINEAR) for image in small]
    assert np.abs(ours - np.array(theirs, float))[:, inner, inner].max() <= 2  # they round twice


def test_squares_are_up_to_as_large_as_asked():
    point = np.zeros((2000, 28, 28), np.uint8)
    point[:, 14, 14] = 255
    spots = augment(point, Augmentation(coarse=3)).astype(float)
    darkest = spots.max(axis=(1, 2))
    assert 0.45 < (darkest == 255).mean() < 0.6 and darkest.min() < 255 / 5
    widths = (spots > 0).any(axis=1).sum(axis=1)
    assert 6 <= widths.max() <= 9 and widths.min() == 1  # on the border of two squares, 3 × 3


def test_a_blur_adds_a_variance_up_to_its_square_and_no_ink():
    point = np.zeros((2000, 28, 28), np.uint8)
    point[:, 14, 14] = 255
    spots = augment(point, Augmentation(blur=1.1)).astype(float)
    total = spots.sum(axis=(1, 2))
    assert np.abs(total - 255).max() < 10  # rounding of each pixel
    for axis in (1, 2):
        variances = spots.sum(axis=axis) @ (np.arange(28) - 14) ** 2 / total
        assert 1.1 < variances.max() < 1.25
        assert np.isclose(variances[variances > 0].mean(), 1.21 / 2, atol=0.05)


def test_ink_is_cut_off_at_black_and_blurs_over_the_edge_are_lost():
    full = np.full((200, 28, 28), 200, np.uint8)
    assert augment(full, Augmentation(ink=9)).max() == 255
    blurred = augment(full, Augmentation(blur=1))
    assert (blurred[:, 8:20, 8:20] == 200).all() and blurred[:, 0].min() < 200


def test_draws_of_warps_do_not_depend_on_styles():
    first = augment(TRAIN.images[:96], replace(SHIFT, coarse=2, blur=1, ink=1), seed=3)
    assert (first == augment(TRAIN.images[:96], SHIFT, seed=3)).all(axis=(1, 2)).mean() > 0.1


def test_one_look_up_is_that_of_keras():
    draws = np.random.default_rng(0).uniform(-1, 1, (96, 6)).astype(np.float32)
    wide = Augmentation(rotation=40, shear=20, zoom=0.3, shift=4, zoom_centre=1.2)
    ours = as_numpy(matrices(wide, draws))
    flipped = ours[:, ::-1][:, :, [1, 0, 2]]  # Keras writes across before down
    flipped[:, :, 2] += 13.5 * (1 - flipped[:, :, :2].sum(axis=2))  # and counts from the corner
    eight = np.concatenate([flipped.reshape(96, 6), np.zeros((96, 2))], axis=1).astype(np.float32)
    images = FIRST.images.astype(np.float32)
    theirs = keras.ops.image.affine_transform(
        images[..., None], eight, interpolation="bilinear", fill_mode="constant",
        data_format="channels_last")
    assert np.abs(as_numpy(theirs)[..., 0] - as_numpy(resample(images, ours))).max() < 0.1


# Label smoothing and weight decay

@pytest.mark.parametrize("smoothing", [0, 0.3])
def test_the_first_loss_is_that_of_smoothed_targets(smoothing):
    "With smoothing .3, the target is .73 for the true digit and .03 for each of the others."
    recipe = replace(INKED, net="flat", label_smoothing=smoothing)
    net = Net(recipe, verbose=False).fit(FIRST.images, FIRST.labels)
    logs = np.log(predict_model(net.model_, FIRST.images))
    targets = np.full((96, 10), 0.03) if smoothing else np.zeros((96, 10))
    targets[np.arange(96), FIRST.labels] = 0.73 if smoothing else 1
    assert np.isclose(net.history_.loss[1], -(targets * logs).sum(axis=1).mean(), rtol=1e-3)


@register
def flat():
    "A dense layer on pixels from 0 to 1"
    return keras.Sequential([
        keras.Input((28, 28)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(),
        keras.layers.Dense(10, activation="softmax")])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weight_decay_touches_kernels_alone(optimizer):
    "A step without gradient shrinks kernels by rate × decay, and leaves all else as it is."
    recipe = replace(INKED, net="small_net", optimizer=optimizer, learning_rate=0.1,
                     weight_decay=0.3)
    _, trainer = build_models(recipe, 0, FIRST.images, 1)
    variables = trainer.trainable_variables
    for variable in variables:
        variable.assign(np.full(variable.shape, 2.0))
    trainer.optimizer.apply([keras.ops.zeros(v.shape) for v in variables], variables)
    names = [variable.name for variable in variables]
    assert {"kernel", "bias", "gamma", "beta"} == set(names)
    for name, value in zip(names, variable_values(variables), strict=True):
        assert np.allclose(value, 2 * 0.97 if name == "kernel" else 2), name


def test_weight_decay_shrinks_a_trained_net():
    rest, _ = split(TRAIN, 0.5)
    sizes = []
    for decay in (0.0, 0.5):
        recipe = Recipe("decay", "flat", epochs=3, batch_size=32, optimizer="adamw",
                        learning_rate=0.02, weight_decay=decay)
        net = Net(recipe, verbose=False).fit(rest.images, rest.labels)
        sizes.append(np.linalg.norm(net.model_.get_weights()[0]))
    assert sizes[1] < 0.9 * sizes[0]


# Non-digits

def kinds(n=50):
    "n non-digits of each kind"
    drawn = draw_outliers(load("digits")[0].images, 5 * n / 898, seed=3)
    return dict(zip(("blank", "noise", "numbers", "mixed", "letters"), np.split(drawn, 5),
                    strict=True))


def test_non_digits_are_as_many_of_each_kind_and_depend_on_the_seed_alone():
    digits = load("digits")[0].images
    drawn = draw_outliers(digits, 0.05, seed=1)
    assert drawn.shape == (5 * 9, 28, 28) and drawn.dtype == np.uint8
    assert (drawn == draw_outliers(digits, 0.05, seed=1)).all()
    assert (drawn != draw_outliers(digits, 0.05, seed=2)).any()


def test_a_number_is_several_digits_in_the_box_of_one():
    numbers = kinds()["numbers"]
    wide, high = numbers.any(axis=1).sum(axis=1), numbers.any(axis=2).sum(axis=1)
    assert (np.maximum(wide, high) <= 21).all()  # 20, and a part of a pixel by centring
    single = load("digits")[0].images[:50]
    assert np.mean(wide / high) > 1.3 > np.mean(
        single.any(axis=1).sum(axis=1) / single.any(axis=2).sum(axis=1))


def test_neighbours_in_a_number_touch_or_stand_apart():
    pieces = [ndimage.label(number, np.ones((3, 3)))[1] for number in kinds()["numbers"]]
    assert {1, 2, 3} <= set(pieces)


def test_letters_are_none_that_may_be_a_digit():
    assert not set("IOSZBDGQCJYlosziqbgcjy") & set(LETTERS)
    letters = kinds(200)["letters"]
    assert len(np.unique(letters.reshape(200, -1), axis=0)) > 2 * len(LETTERS)  # thin to bold


def test_blank_digits_give_blank_numbers():
    drawn = draw_outliers(np.zeros((20, 28, 28), np.uint8), 1.0, seed=0)
    assert not drawn[2 * 4 : 3 * 4].any()
