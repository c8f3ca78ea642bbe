"""Measure the drawing page in a browser (nbs/draw.csv), and take its pictures (nbs/images)."""

import base64
import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
import numpy as np
import onnxruntime
import pandas as pd
from PIL import Image
from playwright.sync_api import sync_playwright

from digitrec.draw import CHOICES, draw, page
from digitrec.sources import load

ROOT = Path(__file__).resolve().parent.parent
STROKES = json.loads((ROOT / "tests/strokes.json").read_text())
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
]
UNPACK = "const all = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));"
RUN = (
    f"(text) => {{ {UNPACK} return Array.from({{ length: all.length / 784 }}, (_, i) => "
    "Array.from(digitrec.net().run(all.subarray(784 * i, 784 * i + 784)))); }"
)
TIME = f"""(text) => {{ {UNPACK} return Array.from({{ length: 200 }}, (_, i) => {{
    const start = performance.now();
    digitrec.predict(all.subarray(784 * i, 784 * i + 784));
    return performance.now() - start;
}}); }}"""


def packed(images) -> str:
    return base64.b64encode(images.tobytes()).decode()


def compare(tab, name, images) -> dict:
    "The page's predictions for images, beside those of ONNX Runtime"
    session = onnxruntime.InferenceSession(ROOT / f"digitrec/pretrained/{name}.onnx")
    theirs = session.run(None, {"images": images.astype(np.float32)})[0][:, 0]
    ours = np.concatenate(
        [tab.evaluate(RUN, packed(images[i : i + 1000])) for i in range(0, len(images), 1000)]
    )
    return {
        "digits": f"{len(images):,}",
        "other predictions": int((ours.argmax(1) != theirs.argmax(1)).sum()),
        "difference": f"{abs(ours - theirs).max():.0e}",
    }


def measure(browser, address, machine: str) -> pd.DataFrame:
    "A row for each net and data set"
    train, test = load("digits")
    sets = {
        "MNIST test": load("mnist")[1].images,
        "embedded": np.concatenate([train.images, test.images]),
    }
    tab, rows = browser.new_page(), []
    tab.goto(address)
    for name in CHOICES:
        tab.get_by_label(name, exact=False).check()
        rounds = [tab.evaluate(TIME, packed(test.images[:200])) for _ in range(5)]
        times = min(rounds, key=np.median)  # the one that other programs disturbed least
        for source, images in sets.items():
            rows.append(
                {
                    "net": name,
                    "source": source,
                    **compare(tab, name, images),
                    "median (ms)": f"{np.median(times):.1f}",
                    "95 % within (ms)": f"{np.quantile(times, 0.95):.1f}",
                    "browser": f"Chromium {browser.version.split('.')[0]}",
                    "machine": machine,
                }
            )
    tab.close()
    return pd.DataFrame(rows).set_index("net")


def draw_four(tab, frame):
    "Draw a 4 with the mouse, and ask why."
    box = frame.locator("#paper").bounding_box()
    for stroke in STROKES["slanted"]["4"]:
        for i, (x, y) in enumerate(stroke):
            tab.mouse.move(box["x"] + x * box["width"] / 100, box["y"] + y * box["height"] / 100)
            if i == 0:
                tab.mouse.down()
        tab.mouse.up()
    frame.locator("#why").click()
    tab.mouse.move(1, 1)
    tab.wait_for_timeout(4000)
    frame.evaluate("document.activeElement.blur()")


def shrunk(picture: bytes) -> bytes:
    "A PNG of 256 colours"
    file = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        file, "PNG", optimize=True
    )
    return file.getvalue()


def photograph(browser, address):
    "The page in both colour schemes"
    for scheme in ("light", "dark"):
        tab = browser.new_page(color_scheme=scheme, viewport={"width": 1100, "height": 975})
        tab.goto(address)
        draw_four(tab, tab.main_frame)
        (ROOT / f"nbs/images/draw-{scheme}.png").write_bytes(shrunk(tab.screenshot()))
        tab.close()


def photograph_output(browser, folder):
    "Put a screenshot in the place of the page that the chapter's cell `draw()` shows."
    path = ROOT / "nbs/12b_draw.ipynb"
    notebook = nbformat.read(path, as_version=4)
    [cell] = [cell for cell in notebook.cells if cell.source == "draw()"]
    output = folder / "output.html"
    output.write_text(
        f"<!doctype html><body style='margin: 0'>{draw()._repr_html_()}", encoding="utf-8"
    )
    tab = browser.new_page(color_scheme="light", viewport={"width": 960, "height": 1150})
    tab.goto(output.as_uri())
    draw_four(tab, tab.frames[1])
    picture = base64.b64encode(shrunk(tab.screenshot())).decode()
    cell.outputs = [
        nbformat.v4.new_output("display_data", {"image/png": picture, "text/plain": "Draw a digit"})
    ]
    nbformat.write(notebook, path)


if __name__ == "__main__":
    machine = sys.argv[1] if len(sys.argv) > 1 else f"{os.cpu_count()} CPU cores"
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        file = Path(folder) / "page.html"
        file.write_text(page(), encoding="utf-8")
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        measure(browser, file.as_uri(), machine).to_csv(ROOT / "nbs/draw.csv")
        photograph(browser, file.as_uri())
        photograph_output(browser, Path(folder))
        browser.close()
