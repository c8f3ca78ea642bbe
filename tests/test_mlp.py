"""The perceptrons of 2021: what each is made of, and what the unused block does not hold."""
import numpy as np
import pytest

pytest.importorskip("keras", reason="needs Keras and an engine: digitrec[cpu], [gpu] or [tpu]")
from digitrec.mlp import mlp, mlp_as_written
from digitrec.recipe import RECIPES
from digitrec.training import keras

BLOCK = ["Dense", "BatchNormalization", "Activation", "Dropout"]


@pytest.mark.parametrize("build, blocks, parameters", [(mlp, 2, 200_810),
                                                       (mlp_as_written, 1, 159_810)])
def test_a_perceptron_has_its_blocks(build, blocks, parameters):
    model = build()
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds == ["InputLayer", "Rescaling", "Flatten", *BLOCK * blocks, "Dense"]
    assert model.count_params() == parameters
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    assert [layer.units for layer in dense] == [200] * blocks + [10]
    dropout = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    assert [layer.rate for layer in dropout] == [0.2] * blocks


def test_the_second_block_reads_the_first():
    model = mlp()
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    assert [layer.kernel.shape for layer in dense] == [(784, 200), (200, 200), (200, 10)]


def test_the_first_layer_of_the_first_block_matters():
    images = np.random.default_rng(0).uniform(0, 255, (4, 28, 28)).astype("float32")
    model = mlp()
    before = keras.ops.convert_to_numpy(model(images))
    first = next(layer for layer in model.layers if isinstance(layer, keras.layers.Dense))
    first.set_weights([np.ones(weights.shape) for weights in first.get_weights()])
    assert np.abs(keras.ops.convert_to_numpy(model(images)) - before).max() > 1e-3


@pytest.mark.parametrize("name", ["mlp-2021", "mlp-2021-as-written"])
def test_the_recipes_are_those_of_2021(name):
    recipe = RECIPES[name]
    assert (recipe.optimizer, recipe.learning_rate, recipe.batch_size) == ("adam", 5e-4, 32)
    assert (recipe.epochs, recipe.monitor, recipe.patience) == (50, "val_loss", 10)
    assert recipe.min_delta == 0.001 and recipe.schedule == "constant"
    assert recipe.augmentation is None
