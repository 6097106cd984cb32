"""Last step of the demo: are the drawn scenes described correctly?

    python -m demo.score_scenes --run demo

Counts the captions of unseen scenes that name every shape with its colour and nothing
else. (analysis.pointing measures whether the model looks at the shapes.)

Reads:  checkpoints/<run>/attention_val.npz, <data>/annotations/instances_val.json
Writes: checkpoints/<run>/scenes_val.json
"""
import os
import sys

if not __package__:  # started by its path, not with -m
    sys.path[0] = os.path.dirname(os.path.abspath(sys.path[0]))
import runtime  # noqa: F401  (first: it reports missing packages)
import json
import re

import numpy as np

from captioning.coco import annotations_path
from captioning.decoded import read_decoded
from captioning.runs import add_run_flag, read_run
from demo.draw_scenes import COLOURS, SHAPES
from runtime import atomic, cli

NAMED = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")


def names_all(caption, objects):
    """Whether a caption names exactly these objects, a list of (colour, shape)."""
    return sorted(NAMED.findall(caption)) == sorted(objects)


def read_scenes(data):
    """{image id: list of (colour, shape)} of the validation scenes."""
    path = annotations_path(data, "instances", "val")
    try:
        with atomic.reading(path) as file:
            found = json.load(file)
        shape = {c["id"]: c["name"] for c in found["categories"]}
        objects = {str(image["id"]): [] for image in found["images"]}
        for box in found["annotations"]:
            objects[str(box["image_id"])].append((box["colour"],
                                                  shape[box["category_id"]]))
        return objects
    except FileNotFoundError:
        raise cli.UserError(f"{path}: no drawn scenes there; run demo.draw_scenes")
    except (ValueError, KeyError, TypeError):
        raise cli.UserError(f"{path}: not drawn by this project; run demo.draw_scenes "
                            "into an empty folder")


def main():
    args = arguments()
    print("[demo] score the drawn scenes", flush=True)
    run = read_run(args.run)
    objects = read_scenes(run.settings["data"])
    decoded = read_decoded(run.folder, "val", run.vocabulary)
    right = []
    for i, name in enumerate(decoded.image_ids):
        if str(name) not in objects:
            raise cli.UserError(f"{run.folder}: has captions of scene {name}, which is "
                                "not drawn; run evaluate.py again")
        words = run.vocabulary.words(decoded.words[i, :decoded.steps[i]])
        right.append(names_all(" ".join(words), objects[str(name)]))
    atomic.write_json(os.path.join(run.folder, "scenes_val.json"),
                      {"scenes": len(right), "right": float(np.mean(right))})
    print(f"captions that name every shape and colour rightly: {np.mean(right):.0%} "
          f"of {len(right)} new scenes")


def arguments():
    parser = cli.parser(__doc__)
    add_run_flag(parser, "demo")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
