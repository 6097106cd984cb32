"""Last step of the demo: are the drawn scenes described rightly, and looked at rightly?

    python score_scenes.py --run demo

Two figures on scenes that the model has not seen: how many captions name every shape
with its colour and nothing else, and how often the peak of the attention for a shape's
name lies in the box of such a shape. Beside the second stand what attention spread
evenly over the picture, and attention on its centre, would score on the same words.

Reads:  checkpoints/<run>/attention_val.npz, <data>/annotations/instances_val.json
Writes: checkpoints/<run>/scenes_val.json
"""
import json
import os
import re

import numpy as np

import atomic
import cli
from download_coco import read_boxes
from draw_scenes import COLOURS, SHAPES
from evaluate import decoded_path, read_decoded
from plot_attention import visible
from tf_runtime import start
from train import read_run

NAMED = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")


def names_all(caption, objects):
    """Whether a caption names just these objects: a list of (colour, shape)."""
    return sorted(NAMED.findall(caption)) == sorted(objects)


def inside(boxes, x, y):
    """Whether a point lies in one of the boxes (x, y, w, h)."""
    return any(left <= x <= left + w and top <= y <= top + h
               for left, top, w, h in boxes)


def point(words, alphas, boxes, size):
    """For every shape word that the scene has: (hit, evenly spread, centre), (n, 3).

    words: list of str; alphas: (T, L); boxes: list of (shape, box); size: pixels.
    """
    rows = []
    side = int(round(alphas.shape[1] ** .5))
    cells = [((c + .5) * size / side, (r + .5) * size / side)  # their middles, pixels
             for r in range(side) for c in range(side)]
    for word, alpha in zip(words, alphas):
        named = [box for shape, box in boxes if shape == word]
        if named:
            rows.append((inside(named, *cells[int(np.argmax(alpha))]),
                         np.mean([inside(named, x, y) for x, y in cells]),
                         inside(named, size / 2, size / 2)))
    return np.array(rows, float).reshape(-1, 3)


def read_scenes(data):
    """{image id: list of (colour, shape)} and the scenes' size in pixels."""
    path = os.path.join(data, "annotations", "instances_val.json")
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        shape = {c["id"]: c["name"] for c in found["categories"]}
        objects = {str(image["id"]): [] for image in found["images"]}
        for box in found["annotations"]:
            objects[str(box["image_id"])].append((box["colour"],
                                                  shape[box["category_id"]]))
        return objects, found["images"][0]["width"]
    except FileNotFoundError:
        raise cli.UserError(f"{path}: no drawn scenes there; run draw_scenes.py")
    except (ValueError, KeyError, IndexError, TypeError):
        raise cli.UserError(f"{path}: not drawn by this project; run draw_scenes.py "
                            "into an empty folder")


def main():
    args = arguments()
    print("[demo] score the drawn scenes", flush=True)
    start()
    run = read_run(args.run)
    data = run.settings["data"]
    objects, size = read_scenes(data)
    boxes = {str(i): found for i, found in read_boxes(data, "val").items()}
    decoded = read_decoded(decoded_path(run.folder, "val"), run.vocabulary)
    right, pointed = [], []
    for i, name in enumerate(decoded.image_ids):
        words = visible(decoded.words[i, :decoded.steps[i]], run.vocabulary)
        right.append(names_all(" ".join(words), objects[str(name)]))
        pointed.append(point(words, decoded.alphas[i], boxes[str(name)], size))
    hit, spread, centre = np.concatenate(pointed).mean(axis=0)
    words = sum(len(rows) for rows in pointed)
    atomic.write_json(os.path.join(run.folder, "scenes_val.json"), {
        "scenes": len(right), "right": float(np.mean(right)), "words": words,
        "peak_in_box": hit, "peak_in_box_uniform": spread,
        "peak_in_box_centre": centre})
    print(f"captions that name every shape and colour rightly: {np.mean(right):.0%} "
          f"of {len(right)} new scenes")
    print(f"attention's peak in the box of the named shape: {hit:.0%} of {words} words "
          f"(spread evenly {spread:.0%}, always the centre {centre:.0%})")


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--run", default="demo", help="name below checkpoints/")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
