"""The engine and its devices. Keras is imported once, so each case gets a process of its own."""

import fnmatch
import functools
import importlib.machinery
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest

from digitrec import backend

ROOT = Path(__file__).resolve().parent.parent
SIGNS = ("TPU_ACCELERATOR_TYPE", "TPU_NAME", "COLAB_TPU_ADDR")  # that a TPU is attached
EXTRAS = r'"digitrec\[cpu\]", "digitrec\[gpu\]" or "digitrec\[tpu\]"'
engines = pytest.mark.parametrize("engine", ["tensorflow", "jax"])
machines = pytest.mark.parametrize(
    "engine, n", [("tensorflow", 1), ("tensorflow", 2), ("jax", 1), ("jax", 8)]
)


def need(engine):
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed here")


CHOSEN = (
    "KERAS_BACKEND",
    "XLA_FLAGS",
    "TF_FORCE_GPU_ALLOW_GROWTH",
    *SIGNS,
)  # what a shell may have set already


def python(program, *args, code=0, **env):
    "Run a program on the CPU, in a process of its own; return its stdout and stderr."
    clean = {name: value for name, value in os.environ.items() if name not in CHOSEN}
    cpu = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, args)],
        env={**clean, **cpu, **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def machine(monkeypatch):
    "Give a function that imitates a machine with these modules, devices and environment."

    def pretend(*modules, devices=(), **env):
        for name in ("KERAS_BACKEND", *SIGNS):
            monkeypatch.delenv(name, raising=False)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        find, ours = importlib.util.find_spec, {"keras", "libtpu", *backend.ENGINES}
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, package=None: (
                find(name, package)
                if name not in ours
                else importlib.machinery.ModuleSpec(name, None)
                if name in modules
                else None
            ),
        )
        monkeypatch.setattr(backend.glob, "glob", lambda pattern: fnmatch.filter(devices, pattern))

    return pretend


# Which engine


@pytest.mark.parametrize(
    "modules, devices, env, attached",
    [
        (["libtpu"], [], {"TPU_ACCELERATOR_TYPE": "v5e-8"}, True),
        (["libtpu"], [], {"TPU_NAME": "local"}, True),
        (["libtpu"], [], {"COLAB_TPU_ADDR": "10.0.0.2:8470"}, True),
        (["libtpu"], ["/dev/accel0"], {}, True),
        (["libtpu"], ["/dev/vfio/0", "/dev/vfio/vfio"], {}, True),
        (["libtpu"], ["/dev/vfio/vfio"], {}, False),
        (["libtpu"], [], {"TPU_NAME": ""}, False),
        (["libtpu"], [], {}, False),
        ([], ["/dev/accel0"], {"TPU_ACCELERATOR_TYPE": "v5e-8"}, False),
    ],
)
def test_a_tpu_is_known_by_its_driver_and_its_device_or_address(
    machine, modules, devices, env, attached
):
    machine(*modules, devices=devices, **env)
    assert backend.tpu_attached() is attached


@pytest.mark.parametrize(
    "modules, devices, engine, reason",
    [
        (["tensorflow", "jax", "libtpu"], ["/dev/accel0"], "jax", "because a TPU is attached"),
        (["jax", "libtpu"], ["/dev/accel0"], "jax", "because a TPU is attached"),
        (["tensorflow", "jax", "libtpu"], [], "tensorflow", "no TPU is attached"),
        (["tensorflow", "jax"], [], "tensorflow", "no TPU is attached"),
        (["tensorflow", "torch"], [], "tensorflow", "because it is installed"),
        (["jax", "torch"], [], "jax", "because TensorFlow is not installed"),
    ],
)
def test_jax_where_a_tpu_is_or_tensorflow_is_not_and_otherwise_tensorflow(
    machine, modules, devices, engine, reason
):
    machine(*modules, devices=devices)
    chosen = backend._preferred()
    assert chosen.name == engine and reason in chosen.reason
    assert str(chosen) == f"Keras on {engine}, {chosen.reason}"


def test_tensorflow_beside_a_tpu_that_only_jax_could_use_does_not_deny_it(machine):
    machine("tensorflow", "libtpu", devices=["/dev/accel0"])
    chosen = backend._preferred()
    assert chosen.name == "tensorflow" and "no TPU" not in chosen.reason


@pytest.mark.parametrize("requested", ["theano", "TensorFlow", " jax"])
def test_a_request_that_names_no_engine_is_a_wrong_setting(machine, requested):
    machine("tensorflow", "jax", KERAS_BACKEND=requested)
    with pytest.raises(
        ValueError,
        match=rf"^KERAS_BACKEND is '{requested}'; expected one of tensorflow, jax, torch$",
    ):
        backend._preferred()


@pytest.mark.parametrize(
    "requested, modules", [("torch", ["tensorflow"]), ("jax", []), ("tensorflow", ["jax"])]
)
def test_a_requested_engine_that_is_missing_is_an_import_error(machine, requested, modules):
    machine(*modules, KERAS_BACKEND=requested)
    with pytest.raises(
        ImportError, match=f"^KERAS_BACKEND is '{requested}', which is not installed: pip install "
                           f"{requested}, or unset KERAS_BACKEND$"
    ):
        backend._preferred()


@pytest.mark.parametrize("modules", [["keras"], ["keras", "torch"]])
def test_no_engine(machine, modules):
    machine(*modules)
    with pytest.raises(
        ImportError, match=f"^Keras needs TensorFlow or JAX, and neither is installed: .*{EXTRAS}"
    ):
        backend._preferred()


MISSING = pytest.mark.parametrize(
    "missing, found",
    [
        (["keras"], "Keras is not installed"),
        (["tensorflow", "jax"], "Keras needs TensorFlow or JAX, and neither is installed"),
    ],
)


@MISSING
def test_what_is_missing_is_named_with_the_extras(missing, found):
    if "keras" not in missing:
        need("keras")
    absent = f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"
    _, complaint = python(
        absent + "from digitrec.backend import choose_backend; choose_backend()", code=1
    )
    assert re.search(f"ImportError: {found}: .*{EXTRAS}", complaint.splitlines()[-1])


@MISSING
def test_the_chapters_that_train_say_what_to_install(missing, found):
    if "keras" not in missing:
        need("keras")
    absent = f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"
    _, complaint = python(absent + "import digitrec.training", code=1)
    assert re.search(f"ImportError: {found}: .*{EXTRAS}", complaint.splitlines()[-1])


def test_an_error_is_no_choice():
    "After a refused request, a corrected one is taken: nothing of the error stays in the cache."
    need("keras")
    printed, _ = python(
        "import os; from digitrec.backend import choose_backend\n"
        "try: choose_backend()\n"
        "except ValueError: del os.environ['KERAS_BACKEND']; choose_backend()",
        KERAS_BACKEND="mxnet",
    )
    assert printed.startswith("digitrec: Keras on ") and "KERAS_BACKEND" not in printed


def test_keras_that_goes_away_after_the_choice_changes_nothing():
    need("keras")
    printed, _ = python(
        "from unittest.mock import patch; from digitrec import backend\n"
        "first = backend.choose_backend(verbose=False)\n"
        "with patch('digitrec.backend._installed', lambda module: False):\n"
        "    assert backend.choose_backend(verbose=False) is first\n"
        "    backend._choose.cache_clear()\n"
        "    try: backend.choose_backend()\n"
        "    except ImportError as error: print(error)\n"
        "import keras; print(backend.choose_backend(verbose=False).reason)"
    )
    assert re.fullmatch(
        f"Keras is not installed: .*{EXTRAS}\nwith which it was imported before .*\n", printed
    )


def test_choosing_imports_no_engine():
    need("keras")
    printed, _ = python(
        "import sys; from digitrec.backend import *\n"
        "tpu_attached(); choose_backend(verbose=False); print({*ENGINES, 'keras'} & {*sys.modules})"
    )
    assert printed == "set()\n"


@engines
def test_a_request_is_met_and_printed(engine):
    need(engine)
    program = ("from digitrec.backend import choose_backend; choose_backend(); "
               "import keras; print(keras.backend.backend())")
    printed, _ = python(program, KERAS_BACKEND=engine)
    assert re.fullmatch(f"digitrec: Keras on {engine}, .*KERAS_BACKEND.*\n{engine}\n", printed)


def test_the_choice_and_its_reason_stand():
    need("keras")
    printed, _ = python(
        "from digitrec.backend import choose_backend; import os\n"
        "choose_backend(); choose_backend(); import keras\n"
        "os.environ['KERAS_BACKEND'] = 'torch'; print('digitrec:', choose_backend(verbose=False))"
    )
    first, *again = printed.splitlines()
    assert again == [first, first] and "KERAS_BACKEND" not in first


@engines
def test_keras_that_is_already_imported_is_taken_as_it_is(engine):
    need(engine)
    printed, _ = python(
        "import keras, os; os.environ['KERAS_BACKEND'] = 'torch'\n"
        "from digitrec.backend import choose_backend; choose_backend()",
        KERAS_BACKEND=engine,
    )
    assert re.fullmatch(f"digitrec: Keras on {engine}, .*imported.*\n", printed)


@pytest.mark.parametrize(
    "env, growth", [({}, "true"), ({"TF_FORCE_GPU_ALLOW_GROWTH": "false"}, "false")]
)
@pytest.mark.parametrize("before", ["", "import keras"])
def test_tensorflow_takes_a_gpus_memory_as_it_needs_it(env, growth, before):
    need("keras")
    printed, _ = python(
        f"{before}\nimport os\nfrom digitrec.backend import choose_backend\n"
        "choose_backend(verbose=False)\n"
        "print(os.environ['TF_FORCE_GPU_ALLOW_GROWTH'])",
        **env,
    )
    assert printed == f"{growth}\n"


# How many devices

PRETEND = """
import sys
import tensorflow as tf
parts = [tf.config.LogicalDeviceConfiguration()] * int(sys.argv[1])
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
"""

STEP = """
import json
import numpy as np
from digitrec.backend import devices, distribute
import keras
rng = np.random.default_rng(0)
images, labels = rng.random((64, 784), np.float32), rng.integers(0, 10, 64)
keras.utils.set_random_seed(0)
with distribute() as shared:
    dense = keras.layers.Dense
    net = keras.Sequential([keras.Input((784,)), dense(32, "relu"), dense(10, "softmax")])
    net.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    net.fit(images, labels, batch_size=64, epochs=3, verbose=0)
weights = [weight.tolist() for weight in net.get_weights()]
print(json.dumps({"devices": devices(), "shared": shared, "weights": weights}))
"""


@functools.cache
def stepped(engine, n):
    need(engine)
    printed, _ = python(
        PRETEND * (engine == "tensorflow") + STEP,
        n,
        KERAS_BACKEND=engine,
        XLA_FLAGS=f"--xla_force_host_platform_device_count={n}",
    )
    return json.loads(printed.splitlines()[-1])


@machines
def test_all_devices_are_listed_and_used(engine, n):
    facts = stepped(engine, n)
    assert facts["shared"] == len(facts["devices"]) == n
    assert [name.lower() for name in facts["devices"]] == [f"cpu:{i}" for i in range(n)]


@pytest.mark.parametrize("engine, n", [("tensorflow", 2), ("jax", 8)])
def test_several_devices_end_in_the_weights_of_one(engine, n):
    pairs = zip(stepped(engine, 1)["weights"], stepped(engine, n)["weights"], strict=True)
    assert all(np.allclose(single, several, atol=1e-6) for single, several in pairs)


@pytest.mark.parametrize(
    "visible, expected",
    [
        ({"TPU": 8, "CPU": 1}, [f"TPU:{i}" for i in range(8)]),
        ({"GPU": 2, "CPU": 1}, ["GPU:0", "GPU:1"]),
        ({"CPU": 1}, ["CPU:0"]),
    ],
)
def test_tensorflow_devices_are_the_tpu_chips_or_the_gpus_or_the_cpu(
    monkeypatch, visible, expected
):
    class Device:
        def __init__(self, name):
            self.name = name

    class Config:
        @staticmethod
        def get_visible_devices(kind):
            return [Device(kind)] * visible.get(kind, 0)

        @staticmethod
        def list_logical_devices(kind):
            prefix = "/job:localhost/replica:0/task:0" if kind == "TPU" else ""
            return [Device(f"{prefix}/device:{kind}:{i}") for i in range(visible.get(kind, 0))]

    module, started = type(sys)("tensorflow"), []
    module.config = Config
    monkeypatch.setitem(sys.modules, "tensorflow", module)
    monkeypatch.setattr(backend, "tpu_attached", lambda: "TPU" in visible)
    monkeypatch.setattr(backend, "_tpu_resolver", lambda: started.append(True))
    assert backend._tensorflow_devices() == expected
    assert started == [True] * ("TPU" in visible)


@engines
def test_the_chapters_processes_see_the_cpu_only(engine, monkeypatch):
    "The chapter's own cells, on a machine whose environment asks for a GPU and for three devices."
    need(engine)
    cells = [
        cell.source
        for cell in nbformat.read(ROOT / "nbs/04_backend.ipynb", as_version=4).cells
        if cell.cell_type == "code"
    ]
    [constants], [body], [run], [step] = (
        [cell for cell in cells if cell.startswith(start)]
        for start in ("CPU_ONLY", "STEP", "def run(", "def step(")
    )
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    for sign in SIGNS:
        monkeypatch.delenv(sign, raising=False)
    names = {"os": os, "np": np, "subprocess": subprocess, "sys": sys}
    for cell in (constants, body, run, step):
        exec(cell, names)
    found, biases = names["step"](engine, 1)
    assert found == 1 and biases.shape == (10,) and np.abs(biases).max() > 0


# Training (of the chapters to come) on all devices

NETS = """
import json, os, sys
from pathlib import Path
import numpy as np

n, folder = int(sys.argv[1]), Path(sys.argv[2])
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={n}"
if os.environ["KERAS_BACKEND"] == "tensorflow":
    import tensorflow as tf

    processor = tf.config.list_physical_devices("CPU")[0]
    devices = [tf.config.LogicalDeviceConfiguration()] * n
    tf.config.set_logical_device_configuration(processor, devices)

from digitrec import training
from digitrec.backend import devices, distribute
from digitrec.nets import variable_values
from digitrec.recipe import Augmentation, Recipe, register
from digitrec.sources import load
from digitrec.training import Net, digest, keras

layers, digits = keras.layers, load("digits")[0][:640]


def net(*middle):
    begin = [keras.Input((28, 28)), layers.Rescaling(1 / 255), layers.Flatten()]
    end = layers.Dense(10, activation="softmax")
    return keras.Sequential([*begin, layers.Dense(32, activation="relu"), *middle, end])


@register
def plain():
    return net()


@register
def noisy():
    return net(layers.BatchNormalization(), layers.Dropout(0.2))


def trained(recipe, folder=None):
    return Net(recipe, folder=folder, verbose=False).fit(digits.images, digits.labels)
"""

TRAIN = (
    NETS
    + """
with distribute() as shared:
    facts = {"devices": len(devices()), "shared": shared}
facts["plain"] = trained(Recipe("plain", "plain", epochs=2, batch_size=64)).history_.loss.tolist()

recipe = Recipe("noisy", "noisy", epochs=3, batch_size=64, learning_rate=3e-3,
                augmentation=Augmentation(rotation=10, shear=5, zoom=0.1, shift=1, elastic=0.5,
                                          coarse=2, blur=1, ink=1))
whole = trained(recipe, folder / "whole")
said = whole.predict_proba(digits.images[:300])
direct = keras.ops.convert_to_numpy(whole.model_(digits.images[:300].astype("float32")))
facts["noisy"] = whole.history_.loss.tolist()
facts["off one"] = abs(said.sum(axis=1) - 1).max()
facts["off the net's own word"] = float(abs(said - direct).max())
facts["accuracy"] = float((whole.predict(digits.images) == digits.labels).mean())
again = Net.load(whole.folder_).predict_proba(digits.images[:300])
facts["off when loaded"] = abs(again - said).max()
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
digests = {digest(*variable_values(net.model_.variables)) for net in (parts, whole)}
facts["the same"] = len(digests) == 1

try:
    trained(Recipe("odd", "plain", epochs=1, batch_size=63))
except ValueError as error:
    facts["odd"] = str(error)
print(json.dumps(facts))
"""
)

READ = (
    NETS
    + """
[run] = folder.iterdir()
print(json.dumps(Net.load(run).predict_proba(digits.images[:300]).tolist()))
"""
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "Give a function that trains small nets on so many devices, once, in a folder."

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
    assert re.fullmatch(
        f"recipe odd: batch_size = 63; expected a multiple of {n}, the number of devices",
        facts["odd"],
    )


@pytest.mark.parametrize("writer, n, reader", [("tensorflow", 2, "jax"), ("jax", 8, "tensorflow")])
def test_weights_mean_the_same_to_the_other_engine(trained, writer, n, reader):
    need(reader)
    _, folder = trained(writer, n)
    printed, _ = python(READ, 1, folder / "whole", KERAS_BACKEND=reader)
    assert np.array(json.loads(printed.splitlines()[-1])) == pytest.approx(
        np.load(folder / "said.npy"), abs=1e-4
    )
