"""Colab's image and Kaggle's: what an install cell asks of pip there, and the engines of both.

The engines run in an environment of their own for each image. A TPU is simulated by what shows that
one is there: a driver's package, which is empty, and a variable that names its kind."""
import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from packaging.requirements import InvalidRequirement, Requirement

ROOT = Path(__file__).resolve().parent.parent
IMAGES = {  # the Python, and what is installed beside the package's own needs
    "colab": ("3.13", ["keras==3.13.*", "jax==0.7.2"]),  # the TPU machines, without TensorFlow
    "kaggle": ("3.12", ["keras==3.13.*", "tensorflow-cpu==2.20.*", "jax"]),
}
# variables that an image does not have
STRANGE = re.compile("PYTHON|KERAS_|XLA_|JAX_|TPU_|COLAB_TPU|VIRTUAL_ENV|DIGITREC")
slow = pytest.mark.skipif(
    os.environ.get("DIGITREC_IMAGES") != "1",
    reason="downloads a gigabyte and takes minutes: set DIGITREC_IMAGES=1")


# The install cells, with pip replaced by a list of what it was told

CHAPTERS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements):
    return {Requirement(text).name.lower() for text in requirements}


BASE = names(PROJECT["dependencies"])
EXTRAS = {extra: names(texts) for extra, texts in PROJECT["optional-dependencies"].items()}
# what an image brings: to install any of it would upgrade it under the notebook's feet
PLATFORM = BASE | {"keras", "tensorflow", "tensorflow-cpu", "jax", "jaxlib", "libtpu", "torch"}


@pytest.fixture
def shell(monkeypatch):
    "Return a function that runs a cell where digitrec is not: the error, and what pip was told."
    shell, told = InteractiveShell.instance(), []
    shell.register_magic_function(lambda line: told.append(shell_words(line)), magic_name="pip")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    yield lambda source: (shell.run_cell(source).error_in_exec, told)
    InteractiveShell.clear_instance()


def shell_words(line):
    return [word.strip('"') for word in line.split()]


def install_cell(path, mount):
    "A chapter's install cell, for a machine where data sets are attached to this folder"
    cells = nbformat.read(path, as_version=4).cells[1:4]
    source = next(cell.source for cell in cells if cell.source.startswith("#| eval: false"))
    assert source.count("/kaggle/input") == 1
    return source.replace("/kaggle/input", str(mount))


def packages(words):
    "The requirements among pip's arguments, by their names in lower case"
    found = {}
    for word in words[1:]:
        try:
            found[Requirement(word).name.lower()] = Requirement(word)
        except InvalidRequirement:  # an option, a folder or an address
            continue
    return found


def check_packages(words):
    "Nothing is upgraded, and what comes beside digitrec is declared by an extra that has no engine"
    assert words[0] == "install" and not {"-U", "--upgrade", "--force-reinstall"} & set(words)
    asked = packages(words)
    assert not any(requirement.extras for requirement in asked.values())
    assert not set(asked) & PLATFORM
    assert set(asked) - {"digitrec"} <= set().union(*EXTRAS.values()), asked


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_an_install_cell_asks_for_little_and_says_how_to_go_on_offline(shell, path, tmp_path):
    error, told = shell(install_cell(path, tmp_path))
    [words] = told
    check_packages(words)
    [source] = [word for word in words if word.startswith("git+https://")]
    assert "[" not in source
    assert isinstance(error, ImportError) and len(str(error).splitlines()) == 1  # nothing came
    assert "internet" in str(error) and "wheels" in str(error)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_an_install_cell_takes_attached_wheels_alone(shell, path, tmp_path):
    folder = tmp_path / "datasets/someone/digitrec-wheels"
    folder.mkdir(parents=True)
    (folder / "digitrec-0.2.0-py3-none-any.whl").touch()
    _, [words] = shell(install_cell(path, tmp_path))
    check_packages(words)
    assert "--no-index" in words and words[words.index("-f") + 1] == str(folder)
    assert "digitrec" in packages(words) and not any("://" in word for word in words)


# Imports

PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn", "tensorflow": "tensorflow-cpu",
            "dask": "distributed"}  # Dask comes with it
NOTEBOOK_ONLY = {"IPython"}  # imported where a notebook runs, and so is there


def third_parties(path):
    "The packages that a module imports anywhere, but for Python's own and digitrec"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            modules = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        for module in (module.partition(".")[0] for module in modules):
            if module not in sys.stdlib_module_names | NOTEBOOK_ONLY | {"digitrec"}:
                yield PACKAGES.get(module, module)


@pytest.mark.parametrize("path", sorted((ROOT / "digitrec").glob("*.py")), ids=lambda p: p.stem)
def test_every_import_is_declared(path):
    assert set(third_parties(path)) - BASE - set().union(*EXTRAS.values()) == set()


# The engines

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


def python(program, code, *args, **env):
    "Run code in an image; the lines that it printed."
    done = run(program, "-c", code, *args, TF_CPP_MIN_LOG_LEVEL="3", **env)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def new_environment(folder, name, *more):
    "Make an environment with what an image brings, and more; its Python."
    version, others = IMAGES[name]
    done = run(interpreter(version), "-m", "venv", folder / "venv")
    assert done.returncode == 0, done.stdout + done.stderr
    program = folder / "venv/bin/python"
    pip = program, "-m", "pip", "--disable-pip-version-check", "--quiet"
    if run(*pip, "download", "--no-deps", "--dest", folder, others[1]).returncode:
        pytest.skip("no package index can be reached")
    done = run(*pip, "install", *others, *more)
    assert done.returncode == 0, done.stderr
    return program


def copy_source(folder):
    "Copy what builds the package, as building leaves files behind."
    for source in ("digitrec", "web"):
        shutil.copytree(ROOT / source, folder / source)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    "Return a function that makes an image once, and returns a function that runs code in it."
    made, root = {}, tmp_path_factory.mktemp("images")

    def image(name):
        if name not in made:
            source = copy_source(root / name / "source")
            made[name] = partial(python, new_environment(root / name, name, source))
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
import sys
import digitrec.cnn
import digitrec.mlp
from digitrec.ensemble import Ensemble
from digitrec.recipe import Recipe
from digitrec.sources import load

train, test = load("digits")
recipe = Recipe("small", sys.argv[1], epochs=5, batch_size=32)
ensemble = Ensemble(recipe, k=2, verbose=False).fit(train.images, train.labels)
probabilities = ensemble.predict_proba(test.images)
print(json.dumps({
    "members": len(ensemble.members_), "off one": abs(probabilities.sum(axis=1) - 1).max(),
    "accuracy": float((probabilities.argmax(axis=1) == test.labels).mean())}))
"""


@slow
@pytest.mark.parametrize("name, engine, why", [
    ("colab", "jax", "TensorFlow is not installed"),
    ("kaggle", "tensorflow", "no TPU is attached"),
])
def test_the_engine_without_a_tpu(images, name, engine, why):
    message, chosen = images(name)(CHOICE)
    assert re.fullmatch(f"digitrec: Keras on {engine}, because .*{why}", message)
    assert chosen == engine


@slow
@pytest.mark.parametrize("name", IMAGES)
def test_the_engine_beside_a_tpu(images, tpu, name):
    expected = ["digitrec: Keras on jax, because a TPU is attached", "jax"]
    assert images(name)(CHOICE, **tpu) == expected


@slow
@pytest.mark.parametrize("name", IMAGES)
def test_a_net_learns_on_eight_devices(images, tpu, name):
    eight = "--xla_force_host_platform_device_count=8"
    facts = json.loads(images(name)(TRAIN, XLA_FLAGS=eight, **tpu)[-1])
    assert facts["devices"] == facts["shared"] == 8
    assert facts["loss"] == sorted(facts["loss"], reverse=True) and facts["accuracy"] > 0.5


@slow
@pytest.mark.parametrize("net", ["mlp", "tiny_net"])
@pytest.mark.parametrize("name", IMAGES)
def test_an_ensemble_learns_the_embedded_digits(images, name, net):
    facts = json.loads(images(name)(VOTE, net)[-1])
    assert facts["members"] == 2 and facts["off one"] < 1e-9
    assert facts["accuracy"] > 0.8


# Each chapter alone, as a reader runs it: its own install cell, then all others at test scale

BROUGHT = ["scikit-learn==1.6.1", "pandas", "matplotlib", "seaborn", "pillow>=11.3", "jinja2",
           "joblib", "typer", "rich", "ipykernel", "nbclient", "nbformat"]
EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient

notebook, folder = nbformat.read(sys.argv[1], as_version=4), sys.argv[2]
NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": folder}}).execute()
"""


REFUSED = {("colab", "08c_loop"): "This chapter needs TensorFlow: on Colab, choose a runtime "
                                  "without a TPU"}


def freeze(program):
    "The packages of an environment, each with its version"
    return set(run(program, "-m", "pip", "list", "--format", "freeze").stdout.splitlines())


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    "Return a function that makes an image without digitrec once: its Python, and attached wheels."
    made, root = {}, tmp_path_factory.mktemp("bare")

    def image(name):
        if name not in made:
            program = new_environment(root / name, name, *BROUGHT)
            attached = root / name / "input/datasets/someone/digitrec-wheels"
            version = IMAGES[name][0]
            tool = sys.executable, ROOT / "tools/wheels.py", attached, "--python", version
            subprocess.run(tool, check=True)
            made[name] = program, root / name / "input"
        return made[name]
    yield image
    shutil.rmtree(root)  # gigabytes


def alone(path, mount, folder):
    "Write a chapter, with data sets attached at `mount`, and what it fetches from the repository."
    notebook = nbformat.read(path, as_version=4)
    [cell] = [cell for cell in notebook.cells if cell.source.startswith("#| eval: false")]
    cell.source = install_cell(path, mount)
    nbformat.write(notebook, folder / path.name)
    for file in (ROOT / "nbs").glob("*.csv"):
        shutil.copy(file, folder)
    shutil.copytree(ROOT / "nbs/published", folder / "published")
    return folder / path.name


@slow
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", IMAGES)
def test_a_chapter_runs_alone_and_upgrades_nothing(bare, tmp_path, name, path):
    program, mount = bare(name)
    before = freeze(program)
    env = {"IN_TEST": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu",
           "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    try:
        done = run(program, "-c", EXECUTE, alone(path, mount, tmp_path), tmp_path, **env)
        if (name, path.stem) in REFUSED:
            assert done.returncode and REFUSED[name, path.stem] in done.stderr
        else:
            assert done.returncode == 0, done.stderr[-3000:]
        assert before <= freeze(program)
        done = run(program, "-m", "pip", "check")
        assert done.returncode == 0, done.stdout
    finally:
        run(program, "-m", "pip", "uninstall", "--yes", "digitrec")
