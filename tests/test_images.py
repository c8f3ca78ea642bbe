"""The versions and engines of Colab's TPU image and of Kaggle's, each in an environment of its own.

A TPU is simulated by what shows that one is there: a driver's package, which is empty, and a
variable that names its kind."""
import json
import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
IMAGES = {  # the Python, and what is installed beside the package's own needs
    "colab": ("3.13", ["keras==3.13.*", "jax==0.7.2"]),
    "kaggle": ("3.12", ["keras", "tensorflow-cpu==2.20.*", "jax"]),
}
# variables that an image does not have
STRANGE = re.compile("PYTHON|KERAS_|XLA_|JAX_|TPU_|COLAB_TPU|VIRTUAL_ENV|DIGITREC")
pytestmark = pytest.mark.skipif(
    os.environ.get("DIGITREC_IMAGES") != "1",
    reason="downloads a gigabyte and takes minutes: set DIGITREC_IMAGES=1")


def run(program, *args, **env):
    "Run a Python that sees nothing of the folder and the variables that the tests are run with."
    env = {**{name: value for name, value in os.environ.items() if not STRANGE.match(name)}, **env}
    return subprocess.run([program, "-P", *map(str, args)], env=env, capture_output=True, text=True)


def interpreter(version):
    "A Python of this version that runs: on the path, or pyenv's"
    others = Path.home().glob(f".pyenv/versions/{version}.*/bin/python")
    for program in [shutil.which(f"python{version}"), *others]:
        if program and run(program, "--version").stdout.startswith(f"Python {version}."):
            return program
    pytest.skip(f"there is no Python {version} here")


def python(program, code, **env):
    "Run code in an image; the lines that it printed."
    done = run(program, "-c", code, TF_CPP_MIN_LOG_LEVEL="3", **env)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    "Return a function that makes an image once, and returns a function that runs code in it."
    made, root = {}, tmp_path_factory.mktemp("images")

    def image(name):
        if name not in made:
            version, others = IMAGES[name]
            folder = root / name
            done = run(interpreter(version), "-m", "venv", folder / "venv")
            assert done.returncode == 0, done.stdout + done.stderr
            program = folder / "venv/bin/python"
            pip = program, "-m", "pip", "--disable-pip-version-check", "--quiet"
            if run(*pip, "download", "--no-deps", "--dest", folder, others[1]).returncode:
                pytest.skip("no package index can be reached")
            source = folder / "source"  # a copy, as building leaves files behind
            shutil.copytree(ROOT / "digitrec", source / "digitrec")
            for file in ("pyproject.toml", "README.md", "LICENSE"):
                shutil.copy(ROOT / file, source)
            done = run(*pip, "install", source, *others)
            assert done.returncode == 0, done.stderr
            made[name] = partial(python, program)
        return made[name]
    yield image
    shutil.rmtree(root)  # gigabytes


@pytest.fixture
def tpu(tmp_path):
    "The environment variables of a machine with a TPU, on which JAX computes on the CPU."
    (tmp_path / "libtpu").mkdir()
    (tmp_path / "libtpu/__init__.py").touch()
    return {"PYTHONPATH": str(tmp_path), "TPU_ACCELERATOR_TYPE": "v5e-8", "JAX_PLATFORMS": "cpu"}


CHOICE = """
from digitrec.backend import choose_backend
choose_backend()
from digitrec import augmentation, cnn, ensemble, mlp, training
print(training.keras.backend.backend())
"""

TRAIN = """
import json
import digitrec.mlp
from digitrec.backend import devices, distribute
from digitrec.recipe import Augmentation, Recipe
from digitrec.sources import load
from digitrec.training import Net

digits = load("digits")[0]
warp = Augmentation(rotation=10, shift=1, elastic=0.5)
recipe = Recipe("small", "mlp", epochs=3, batch_size=64, augmentation=warp)
with distribute() as n:
    facts = {"devices": len(devices()), "shared": n}
net = Net(recipe, verbose=False).fit(digits.images, digits.labels)
facts["loss"] = net.history_.loss.tolist()
facts["accuracy"] = float((net.predict(digits.images) == digits.labels).mean())
print(json.dumps(facts))
"""

VOTE = """
import json
import digitrec.mlp
from digitrec.ensemble import Ensemble
from digitrec.recipe import Recipe
from digitrec.sources import load

train, test = load("digits")
recipe = Recipe("small", "mlp", epochs=5, batch_size=32)
ensemble = Ensemble(recipe, k=2, verbose=False).fit(train.images, train.labels)
probabilities = ensemble.predict_proba(test.images)
print(json.dumps({
    "members": len(ensemble.members_), "off one": abs(probabilities.sum(axis=1) - 1).max(),
    "accuracy": float((probabilities.argmax(axis=1) == test.labels).mean())}))
"""


@pytest.mark.parametrize("name, engine, why", [
    ("colab", "jax", "TensorFlow is not installed"),
    ("kaggle", "tensorflow", "no TPU is attached"),
])
def test_the_engine_without_a_tpu(images, name, engine, why):
    message, chosen = images(name)(CHOICE)
    assert re.fullmatch(f"digitrec: Keras on {engine}, because .*{why}", message)
    assert chosen == engine


@pytest.mark.parametrize("name", IMAGES)
def test_the_engine_beside_a_tpu(images, tpu, name):
    expected = ["digitrec: Keras on jax, because a TPU is attached", "jax"]
    assert images(name)(CHOICE, **tpu) == expected


@pytest.mark.parametrize("name", IMAGES)
def test_a_net_learns_on_eight_devices(images, tpu, name):
    eight = "--xla_force_host_platform_device_count=8"
    facts = json.loads(images(name)(TRAIN, XLA_FLAGS=eight, **tpu)[-1])
    assert facts["devices"] == facts["shared"] == 8
    assert facts["loss"] == sorted(facts["loss"], reverse=True) and facts["accuracy"] > 0.5


@pytest.mark.parametrize("name", IMAGES)
def test_an_ensemble_learns_the_embedded_digits(images, name):
    facts = json.loads(images(name)(VOTE)[-1])
    assert facts["members"] == 2 and facts["off one"] < 1e-9
    assert facts["accuracy"] > 0.8
