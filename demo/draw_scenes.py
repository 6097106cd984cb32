"""Step 0 of the demo: draw a small data set in COCO's layout. No network is needed.

    python -m demo.draw_scenes --data demo/data

Each scene shows one or two large shapes, each of one colour. Five captions name every
shape with its colour; boxes give the place of each shape. The same seed always draws
the same scenes.

Writes below --data, for each split (train, val):
    annotations/captions_<split>.json     five captions per image
    annotations/instances_<split>.json    a box and a category (the shape) per object
    <split>/scene_000001.png
"""
import os
import sys

if not __package__:  # started by its path, not with -m
    sys.path[0] = os.path.dirname(os.path.abspath(sys.path[0]))
import runtime  # noqa: F401  (first: it reports missing packages)

import numpy as np
from PIL import Image, ImageDraw

from captioning.coco import annotations_path
from runtime import atomic, cli

COLOURS = {"red": (214, 40, 40), "green": (60, 160, 60), "blue": (40, 80, 200),
           "yellow": (245, 205, 50)}
SHAPES = ("cross", "ring", "square")
SUPERSAMPLE = 4  # drawn this many times larger and scaled down, for smooth edges
SINGLE = ("a {0}", "there is a {0}", "a picture of a {0}", "a {0} is in the picture",
          "one {0} on a plain background")
PAIR = ("a {0} and a {1}", "a {0} {2} a {1}", "there is a {0} {2} a {1}",
        "a {0} is {2} a {1}", "a picture of a {0} {2} a {1}")


def scene(random):
    """One scene: a list of (colour, shape, (x, y, w, h)) in unit coordinates."""
    count = random.choice([1, 2])
    while True:  # until the shapes are apart
        objects = []
        for _ in range(count):
            size = random.uniform(.4, .46)
            x, y = random.uniform(.03, .97 - size, 2)
            objects.append((str(random.choice(sorted(COLOURS))),
                            str(random.choice(SHAPES)), (x, y, size, size)))
        if count == 1 or _apart(objects[0][2], objects[1][2]):
            return objects


def captions(objects):
    """Five sentences that name every object's colour and shape, in reading order."""
    if len(objects) == 1:
        return [template.format("{} {}".format(*objects[0][:2])) for template in SINGLE]
    (ax, ay, _, _), (bx, by, _, _) = (box for _, _, box in objects)
    sideways = abs(ax - bx) > abs(ay - by)
    ordered = sorted(objects, key=lambda item: item[2][0 if sideways else 1])
    names = ["{} {}".format(*item[:2]) for item in ordered]
    relation = "to the left of" if sideways else "above"
    return [template.format(*names, relation) for template in PAIR]


def draw(objects, size, random):
    """Draw the scene: an RGB image of size (width, height), on a light, noisy ground.
    """
    width, height = (side * SUPERSAMPLE for side in size)
    shade = tuple(int(v) for v in random.randint(205, 246, 3))
    canvas = Image.new("RGB", (width, height), shade)
    pen = ImageDraw.Draw(canvas)
    for colour, shape, (x, y, w, h) in objects:
        left, top, right, bottom = (x * width, y * height,
                                    (x + w) * width, (y + h) * height)
        third = (right - left) / 3, (bottom - top) / 3
        fill = COLOURS[colour]
        if shape == "square":
            pen.rectangle((left, top, right, bottom), fill=fill)
        elif shape == "ring":
            pen.ellipse((left, top, right, bottom), fill=fill)
            pen.ellipse((left + .8 * third[0], top + .8 * third[1],
                         right - .8 * third[0], bottom - .8 * third[1]), fill=shade)
        else:
            pen.rectangle((left + third[0], top, right - third[0], bottom), fill=fill)
            pen.rectangle((left, top + third[1], right, bottom - third[1]), fill=fill)
    pixels = np.asarray(canvas.reduce(SUPERSAMPLE), np.float32)
    pixels = pixels + random.normal(0, 3, pixels.shape)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def write_split(data, split, count, size, random):
    """Draw `count` scenes and write their pictures, captions and boxes."""
    os.makedirs(os.path.join(data, split), exist_ok=True)
    os.makedirs(os.path.join(data, "annotations"), exist_ok=True)
    images, sentences, boxes = [], [], []
    for i in range(1, count + 1):
        name = f"scene_{i:06d}.png"
        objects = scene(random)
        with atomic.writing(os.path.join(data, split, name)) as file:
            draw(objects, size, random).save(file, "PNG")
        images.append({"id": i, "file_name": name, "width": size[0], "height": size[1]})
        for caption in captions(objects):
            sentences.append({"id": len(sentences) + 1, "image_id": i,
                              "caption": caption})
        for colour, shape, (x, y, w, h) in objects:
            box = [x * size[0], y * size[1], w * size[0], h * size[1]]
            boxes.append({"id": len(boxes) + 1, "image_id": i, "colour": colour,
                          "category_id": SHAPES.index(shape) + 1,
                          "bbox": [round(value, 2) for value in box]})
    # Annotations last, so that an interrupted set is not mistaken for a complete one
    for kind, annotations, extra in (
            ("captions", sentences, {}),
            ("instances", boxes, {"categories": [
                {"id": i, "name": shape} for i, shape in enumerate(SHAPES, 1)]})):
        atomic.write_json(annotations_path(data, kind, split),
                          dict(extra, images=images, annotations=annotations))
    print(f"{split}: {count} scenes, {len(sentences)} captions, {len(boxes)} boxes",
          flush=True)


def _apart(a, b):
    """Whether two boxes have a gap between them, so that no shape covers another."""
    return any(a[i] + a[i + 2] + .04 < b[i] or b[i] + b[i + 2] + .04 < a[i]
               for i in (0, 1))


def main():
    args = arguments()
    print("[demo] draw the built-in data set", flush=True)
    # One generator per split: the number of training scenes does not affect validation
    for i, (split, count) in enumerate((("train", args.train), ("val", args.val))):
        write_split(args.data, split, count, (args.size, args.size),
                    np.random.RandomState([args.seed, i]))
    cli.next_step("extract_features.py", "--data", args.data, "--network",
                  "efficientnet-lite2", "--side", 292)


def arguments():
    parser = cli.parser(__doc__)
    parser.always("--data", default="demo/data", help="folder to write")
    parser.always("--train", type=cli.positive, default=1000, help="training scenes")
    parser.always("--val", type=cli.positive, default=100, help="validation scenes")
    parser.always("--size", type=cli.number(int, at_least=32), default=299,
                  help="width and height in pixels")
    parser.always("--seed", type=cli.seed, default=0, help="which scenes")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
