"""The nets that come with the package: whole, as good as their cards say, and at home without Keras."""
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import digitrec
from digitrec.data import load, refusal
from digitrec.export import PRETRAINED, Pretrained, load_pretrained
from digitrec.scores import ece, nll

SHIPPED = Path(digitrec.__file__).parent / "pretrained"
TRAIN, TEST = load("digits")
LIMITS = {"single": 300_000, "vote": 15 * 300_000, "small": 50_000, "tiny": 10_000}
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


def test_each_file_has_its_card_and_no_other_lies_there():
    expected = [f"{name}.{kind}" for name in PRETRAINED for kind in ("json", "onnx")]
    assert sorted(path.name for path in SHIPPED.iterdir()) == sorted(expected)


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_card_says_what_it_must(name):
    card = load_pretrained(name).card
    assert card["name"] == name and card["bytes"] == (SHIPPED / f"{name}.onnx").stat().st_size
    assert card["parameters"] <= LIMITS[name] and len(card["seeds"]) >= (2 if name == "vote" else 1)
    assert "MNIST" in card["learned"] and "60,000" in card["learned"]
    assert card["seconds to train"] > 0 and card["machine"] and card["recipe"]["name"] in ("record", "small", "tiny")
    for labels in ("given labels", "corrected labels"):
        scores = card["MNIST test"][labels]
        assert scores["low"] < scores["accuracy"] < scores["high"]
        assert scores["misses"] == round((1 - scores["accuracy"]) * scores["n"])
    assert card["MNIST test"]["given labels"]["n"] == 10_000 and 9_980 <= card["MNIST test"]["corrected labels"]["n"] < 10_000


@pytest.mark.parametrize("name", PRETRAINED)
def test_they_keep_the_contract(name):
    reader = load_pretrained(name)
    said = reader.predict_proba(TEST.images[:40])
    assert said.shape == (40, 10) and said.dtype == float and np.allclose(said.sum(axis=1), 1)
    assert (reader.predict(TEST.images[:40]) == said.argmax(axis=1)).all() and reader.classes_.tolist() == list(range(10))
    assert reader.predict_proba(TEST.images[:0]).shape == (0, 10) and reader.refuses(TEST.images[:0]).shape == (0,)
    assert np.allclose(reader.predict_proba(TEST.images[7:8])[0], said[7], atol=1e-5)
    for ask in (reader.predict, reader.predict_proba, reader.refuses):
        assert "shape (899, 784)" in refusal(ask, TEST.flat)


@pytest.mark.parametrize("name", PRETRAINED)
def test_they_read_digits_of_another_origin(name):
    "1,797 digits of 8 x 8, by 43 people in Turkey; none of the nets learned any."
    reader = load_pretrained(name)
    right = [(reader.predict(part.images) == part.labels).mean() for part in (TRAIN, TEST)]
    assert min(right) > 0.9


@pytest.mark.parametrize("name", PRETRAINED)
def test_what_is_no_digit_is_refused(name):
    reader, rng = load_pretrained(name), np.random.default_rng(0)
    size = (100, 28, 28)
    noise = [rng.integers(0, 256, size), rng.integers(0, 2, size) * 255, rng.normal(128, 40, size).clip(0, 255),
             (rng.random(size) < 0.1) * 255]
    for grey in (0, 128, 255):
        assert reader.refuses(np.full((1, 28, 28), grey, np.uint8)).all()
    for images in noise:
        assert reader.refuses(images.astype(np.uint8)).all()


@pytest.mark.skipif(not MNIST.is_dir(), reason="DIGITREC_DATA names no folder with mnist")
@pytest.mark.parametrize("name", PRETRAINED)
def test_mnist_bears_the_card_out(name):
    test, reader = load(MNIST)[1], load_pretrained(name)
    said, card = reader.predict_proba(test.images), reader.card["MNIST test"]
    assert (said.argmax(axis=1) != test.labels).sum() == pytest.approx(card["given labels"]["misses"], abs=1)
    assert nll(test.labels, said) == pytest.approx(card["given labels"]["nll"], abs=1e-4)
    assert ece(test.labels, said) == pytest.approx(card["given labels"]["ece"], abs=1e-3)
    assert reader.refuses(test.images).mean() <= 0.01


def test_without_keras_and_without_a_network(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(OFFLINE)
    Image.fromarray(255 - TEST.images[0]).resize((280, 280)).save(tmp_path / "photo.png")

    def python(*args):
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        how = {"env": env, "cwd": tmp_path, "text": True, "capture_output": True, "check": True}
        return subprocess.run([sys.executable, "-c", *args], **how).stdout

    loading = "import digitrec, sys; digitrec.load_pretrained(); print({'keras', 'tensorflow', 'jax', 'onnx'} & set(sys.modules))"
    assert python(loading) == "set()\n"
    said = python("from digitrec.cli import app; app()", "predict", "photo.png")
    assert re.match(rf"photo\.png  {TEST.labels[0]}  \d+\.\d%", said), said


def spoilt(tmp_path, name="tiny"):
    for kind in ("json", "onnx"):
        shutil.copy(SHIPPED / f"{name}.{kind}", tmp_path)
    return tmp_path / f"{name}.onnx", tmp_path / f"{name}.json"


def test_a_damaged_net_or_card_is_refused(tmp_path):
    net, card = spoilt(tmp_path)
    good = net.read_bytes()
    for bad in (good[:-1], good[:5000] + bytes([good[5000] ^ 1]) + good[5001:], b""):
        net.write_bytes(bad)
        assert "sha256" in refusal(Pretrained, net)
    net.unlink()
    assert "No such file" in refusal(Pretrained, net)
    net.write_bytes(good)
    wrong = '{"shifts": -1, "threshold": 0.5}'
    for bad, found in (("[]", "no card"), ("{", "no manifest"), ("{}", "no card"), (wrong, "no card")):
        card.write_text(bad)
        assert found in refusal(Pretrained, net)
    card.unlink()
    assert "no such file" in refusal(Pretrained, net)


def test_a_net_of_another_make_is_refused(tmp_path):
    net, card = spoilt(tmp_path)
    net.write_bytes(b"no net at all")
    card.write_text(json.dumps({**json.loads(card.read_text()), "sha256": hashlib.sha256(net.read_bytes()).hexdigest()}))
    assert "no net" in refusal(Pretrained, net)


@pytest.mark.parametrize("name", ["", "record", "../single", None, 3])
def test_another_name_is_refused(name):
    assert "one of single, vote, small, tiny" in refusal(load_pretrained, name)
