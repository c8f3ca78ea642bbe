"""What Keras computes with, and on how many devices. Keras is imported once, so each way of it gets a process of its own."""
import fnmatch
import functools
import importlib.machinery
import importlib.util
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from digitrec import backend
from digitrec.data import DataError

SIGNS = ("TPU_ACCELERATOR_TYPE", "TPU_NAME", "COLAB_TPU_ADDR")  # that a TPU is attached
EXTRAS = r'"digitrec\[cpu\]", "digitrec\[gpu\]" or "digitrec\[tpu\]"'
engines = pytest.mark.parametrize("engine", ["tensorflow", "jax"])
machines = pytest.mark.parametrize("engine, n", [("tensorflow", 1), ("tensorflow", 2), ("jax", 1), ("jax", 8)])


def need(engine):
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed here")


def python(program, *args, code=0, **env):
    "Run a program in a process of its own, for which nobody has chosen an engine; give what it printed and complained of."
    env = {**{name: value for name, value in os.environ.items() if name not in ("KERAS_BACKEND", "XLA_FLAGS", *SIGNS)},
           "TF_CPP_MIN_LOG_LEVEL": "3", **env}
    done = subprocess.run([sys.executable, "-c", program, *map(str, args)], env=env, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def machine(monkeypatch):
    "Gives a function that makes this look like a machine with these modules, devices and environment."
    def pretend(*modules, devices=(), **env):
        for name in ("KERAS_BACKEND", *SIGNS):
            monkeypatch.delenv(name, raising=False)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        find, ours = importlib.util.find_spec, {"keras", "libtpu", *backend.ENGINES}
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: find(name, package) if name not in ours
                            else importlib.machinery.ModuleSpec(name, None) if name in modules else None)
        monkeypatch.setattr(backend.glob, "glob", lambda pattern: fnmatch.filter(devices, pattern))
    return pretend


# Which engine

@pytest.mark.parametrize("modules, devices, env, attached", [
    (["libtpu"], [], {"TPU_ACCELERATOR_TYPE": "v5e-8"}, True),
    (["libtpu"], [], {"TPU_NAME": "local"}, True),
    (["libtpu"], [], {"COLAB_TPU_ADDR": "10.0.0.2:8470"}, True),
    (["libtpu"], ["/dev/accel0"], {}, True),
    (["libtpu"], ["/dev/vfio/0", "/dev/vfio/vfio"], {}, True),
    (["libtpu"], ["/dev/vfio/vfio"], {}, False),
    (["libtpu"], [], {"TPU_NAME": ""}, False),
    (["libtpu"], [], {}, False),
    ([], ["/dev/accel0"], {"TPU_ACCELERATOR_TYPE": "v5e-8"}, False),
])
def test_a_tpu_is_known_by_its_driver_and_its_device_or_address(machine, modules, devices, env, attached):
    machine(*modules, devices=devices, **env)
    assert backend.tpu_attached() is attached


@pytest.mark.parametrize("modules, devices, engine, why", [
    (["tensorflow", "jax", "libtpu"], ["/dev/accel0"], "jax", "because a TPU is attached"),
    (["jax", "libtpu"], ["/dev/accel0"], "jax", "because a TPU is attached"),
    (["tensorflow", "jax", "libtpu"], [], "tensorflow", "no TPU is attached"),
    (["tensorflow", "jax"], [], "tensorflow", "no TPU is attached"),
    (["tensorflow", "torch"], [], "tensorflow", "because it is installed"),
    (["jax", "torch"], [], "jax", "because TensorFlow is not installed"),
])
def test_jax_where_a_tpu_is_or_tensorflow_is_not_and_otherwise_tensorflow(machine, modules, devices, engine, why):
    machine(*modules, devices=devices)
    assert re.fullmatch(f"Keras on {engine}, .*{why}.*", str(backend._wanted()))


def test_tensorflow_beside_a_tpu_that_only_jax_could_use_does_not_deny_it(machine):
    machine("tensorflow", "libtpu", devices=["/dev/accel0"])
    chosen = backend._wanted()
    assert chosen.name == "tensorflow" and "no TPU" not in chosen.why


@pytest.mark.parametrize("asked, modules, there", [
    ("theano", ["tensorflow", "jax"], "tensorflow, jax"),
    ("TensorFlow", ["tensorflow"], "tensorflow"),
    ("torch", ["tensorflow"], "tensorflow"),
    ("jax", [], "none is"),
])
def test_a_wish_that_cannot_be_met_is_named(machine, asked, modules, there):
    machine(*modules, KERAS_BACKEND=asked)
    with pytest.raises(DataError, match=rf"^KERAS_BACKEND: found '{asked}'; expected an engine .*\({there}\)$"):
        backend._wanted()


@pytest.mark.parametrize("modules", [["keras"], ["keras", "torch"]])
def test_no_engine(machine, modules):
    machine(*modules)
    with pytest.raises(DataError, match=f"^Keras: found neither TensorFlow nor JAX.*{EXTRAS}"):
        backend._wanted()


@pytest.mark.parametrize("missing, found", [(["keras"], "not installed"), (["tensorflow", "jax"], "neither TensorFlow nor JAX")])
def test_the_chapters_that_train_say_what_to_install(missing, found):
    if "keras" not in missing:
        need("keras")
    absent = f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"  # as Python itself marks what must not be imported
    _, complaint = python(absent + "import digitrec.training", code=1)
    assert re.search(f"DataError: Keras: found {found}.*{EXTRAS}", complaint.splitlines()[-1])


def test_choosing_imports_no_engine():
    need("keras")
    printed, _ = python("import sys; from digitrec.backend import *\n"
                        "tpu_attached(); choose_backend(None); print({*ENGINES, 'keras'} & {*sys.modules})")
    assert printed == "set()\n"


@engines
def test_a_wish_is_met_and_said(engine):
    need(engine)
    program = "from digitrec.backend import choose_backend; choose_backend(); import keras; print(keras.backend.backend())"
    printed, _ = python(program, KERAS_BACKEND=engine)
    assert re.fullmatch(f"digitrec: Keras on {engine}, .*KERAS_BACKEND.*\n{engine}\n", printed)


def test_the_choice_and_its_reason_stand():
    need("keras")
    printed, _ = python("from digitrec.backend import choose_backend; import os\n"
                        "choose_backend(); choose_backend(); import digitrec.training\n"
                        "os.environ['KERAS_BACKEND'] = 'torch'; print('digitrec:', choose_backend(None))")
    first, *again = printed.splitlines()
    assert again == [first, first] and "KERAS_BACKEND" not in first


@engines
def test_keras_that_is_already_imported_is_taken_as_it_is(engine):
    need(engine)
    printed, _ = python("import keras, os; os.environ['KERAS_BACKEND'] = 'torch'\n"
                        "from digitrec.backend import choose_backend; choose_backend()", KERAS_BACKEND=engine)
    assert re.fullmatch(f"digitrec: Keras on {engine}, .*imported.*\n", printed)


# How many devices

NETS = """
import json, os, sys
from pathlib import Path
import numpy as np

n, folder = int(sys.argv[1]), Path(sys.argv[2])
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={n}"
if os.environ["KERAS_BACKEND"] == "tensorflow":
    import tensorflow as tf

    processor = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * n)

from digitrec import training
from digitrec.augmentation import Augmentation
from digitrec.backend import devices, distribute
from digitrec.data import DataError, load
from digitrec.training import Net, Recipe, digest, keras, load_net, register

layers, digits = keras.layers, load("digits")[0][:640]


def net(*middle):
    ends = [keras.Input((28, 28)), layers.Rescaling(1 / 255), layers.Flatten()], [layers.Dense(10, activation="softmax")]
    return keras.Sequential([*ends[0], layers.Dense(32, activation="relu"), *middle, *ends[1]])


@register
def plain():
    return net()


@register
def noisy():
    return net(layers.BatchNormalization(), layers.Dropout(0.2))


def trained(recipe, folder=None):
    return Net(recipe, folder=folder, quiet=True).fit(digits.images, digits.labels)
"""

TRAIN = NETS + """
with distribute() as shared:
    facts = {"devices": len(devices()), "shared": shared}
facts["plain"] = trained(Recipe("plain", plain, epochs=2, batch=64)).history_.loss.tolist()

recipe = Recipe("noisy", noisy, epochs=3, batch=64, rate=3e-3,
                augmentation=Augmentation(rotation=10, shear=5, zoom=0.1, shift=1, elastic=0.5))
whole = trained(recipe, folder / "whole")
said = whole.predict_proba(digits.images[:300])
direct = keras.ops.convert_to_numpy(whole.net_(digits.images[:300].astype("float32")))
facts["noisy"] = whole.history_.loss.tolist()
facts["off one"] = abs(said.sum(axis=1) - 1).max()
facts["off the net's own word"] = float(abs(said - direct).max())
facts["accuracy"] = float((whole.predict(digits.images) == digits.labels).mean())
facts["off when loaded"] = abs(load_net(folder / "whole").predict_proba(digits.images[:300]) - said).max()
np.save(folder / "said", said)

write, written = training._write_state, []


def write_and_stop(*state):
    write(*state)
    written.append(len(state[1]["rows"]))
    if written == [1, 2]:
        raise InterruptedError


training._write_state = write_and_stop
try:
    trained(recipe, folder / "parts")
except InterruptedError:
    facts["stopped after"] = written[-1]
parts = trained(recipe, folder / "parts")
facts["written"] = written
facts["the same"] = digest(*training._values(parts.net_.variables)) == digest(*training._values(whole.net_.variables))

try:
    trained(Recipe("odd", plain, epochs=1, batch=63))
except DataError as error:
    facts["odd"] = str(error)
print(json.dumps(facts))
"""

READ = NETS + """
print(json.dumps(load_net(folder).predict_proba(digits.images[:300]).tolist()))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "Gives a function that trains small nets on so many devices, once; it gives what came of it, and the folder that keeps it."
    @functools.cache
    def train(engine, n):
        need(engine)
        folder = tmp_path_factory.mktemp(f"{engine}-{n}-")
        printed, _ = python(TRAIN, n, folder, KERAS_BACKEND=engine)
        return json.loads(printed.splitlines()[-1]), folder
    return train


@machines
def test_a_net_learns_on_all_devices(trained, engine, n):
    facts, _ = trained(engine, n)
    assert facts["devices"] == facts["shared"] == n
    assert len(facts["noisy"]) == 3 and facts["noisy"] == sorted(facts["noisy"], reverse=True)
    assert facts["accuracy"] > 0.5


@machines
def test_every_digit_gets_its_own_probabilities(trained, engine, n):
    facts, _ = trained(engine, n)
    assert facts["off one"] < 1e-9
    assert facts["off the net's own word"] < 1e-5
    assert facts["off when loaded"] < 1e-6


@pytest.mark.parametrize("engine, n", [("tensorflow", 2), ("jax", 8)])
def test_many_devices_learn_from_a_batch_what_one_learns(trained, engine, n):
    assert trained(engine, n)[0]["plain"] == pytest.approx(trained(engine, 1)[0]["plain"], rel=1e-4)


@machines
def test_a_run_that_was_stopped_comes_to_the_same_weights(trained, engine, n):
    facts, _ = trained(engine, n)
    assert facts["stopped after"] == 2 and facts["written"] == [1, 2, 3]
    assert facts["the same"]


@pytest.mark.parametrize("engine, n", [("tensorflow", 2), ("jax", 8)])
def test_a_batch_that_cannot_be_shared_is_refused(trained, engine, n):
    facts, _ = trained(engine, n)
    assert re.fullmatch(f"recipe odd: found .*63 for {n} devices; expected .* that can be shared equally", facts["odd"])


@pytest.mark.parametrize("writer, n, reader", [("tensorflow", 2, "jax"), ("jax", 8, "tensorflow")])
def test_weights_mean_the_same_to_the_other_engine(trained, writer, n, reader):
    need(reader)
    _, folder = trained(writer, n)
    printed, _ = python(READ, 1, folder / "whole", KERAS_BACKEND=reader)
    assert np.array(json.loads(printed.splitlines()[-1])) == pytest.approx(np.load(folder / "said.npy"), abs=1e-4)
