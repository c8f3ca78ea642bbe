"""Write tests/golden.json: what the shipped nets predict for 20 embedded digits.

Run it only if a net was replaced on purpose."""

import json
from pathlib import Path

import numpy as np

from digitrec.export import PRETRAINED, load_pretrained
from digitrec.sources import load

def main():
    test = load("digits")[1]
    nets = {name: load_pretrained(name) for name in PRETRAINED}
    highest = np.mean([net.predict_proba(test.images).max(axis=1) for net in nets.values()], axis=0)
    rows = sorted({*range(10), *np.argsort(highest)[:10].tolist()})
    rows += [row for row in range(10, 30) if row not in rows][: 20 - len(rows)]
    golden = {"rows": rows, "nets": {}}
    for name, net in nets.items():
        images = test.images[rows]
        golden["nets"][name] = {
            "probabilities": net.predict_proba(images).round(3).tolist(),
            "rejected": net.rejects(images).tolist(),
        }
    text = json.dumps(golden).replace("], [", "],\n [")
    Path(__file__).with_name("golden.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
