"""Add mirrored copies (left to right) of the training images to a data set.

    python -m results.flickr8k.mirror --data flickr8k --out flickr8k_mirrored

A mirrored image has the original's captions, with `left` and `right` exchanged.
Everything else is copied, so that steps 2 to 4 can use the new folder as --data. If
stopped half-way, the same command continues.

Reads:  <data>/annotations/*.json, <data>/<split>/<image>
Writes: <out>/<split>/<image>, <out>/train/mirrored/<image>.png, and, when all those are
        there, <out>/annotations/*.json
"""
import glob
import os
import re
import shutil

from PIL import Image
from tqdm import tqdm

from captioning.coco import annotations_path, read_captions, read_json, splits
from captioning.pictures import Unreadable, upright
from runtime import atomic, cli

OTHER = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}


def exchange(caption):
    """The caption of the mirrored image."""
    return re.sub(r"\b([Ll]eft|[Rr]ight)\b", lambda m: OTHER[m.group()], caption)


def copy(source, target):
    """Copy a file, unless that is done already."""
    if not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(source, "rb") as old, atomic.writing(target) as new:
            shutil.copyfileobj(old, new)


def mirror(source, target):
    """Write the picture that step 2 sees mirrored, without loss, unless it is there."""
    if not os.path.exists(target):
        picture = upright(source).transpose(Image.FLIP_LEFT_RIGHT)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with atomic.writing(target) as file:
            picture.save(file, "png")


def main():
    parser = cli.parser(__doc__)
    parser.add_argument("--data", required=True, help="data set in COCO's layout")
    parser.add_argument("--out", required=True, help="the folder to make")
    parser.add_argument("--split", default="train", help="which split to mirror")
    args = parser.parse_args()
    images = {split: read_captions(args.data, split) for split in splits(args.data)}
    if args.split not in images or len(images) == 1:
        raise cli.UserError(f"{args.data}: has the splits {', '.join(images)}; two are "
                            "needed, one of them --split, or an image could be trained "
                            "on and its mirrored twin validated on")
    if os.path.realpath(args.data) == os.path.realpath(args.out):
        raise cli.UserError(f"--out {args.out}: is the data set itself; choose another")
    with cli.locked(args.out):
        make(args, images)


def make(args, images):
    """Write the new data set; images: {split: list of Image}."""
    content = read_json(annotations_path(args.data, "captions", args.split))
    skipped = 0
    for split, image in tqdm([(split, image) for split in images
                              for image in images[split]], unit="image"):
        source = os.path.join(args.data, image.path)
        try:
            copy(source, os.path.join(args.out, image.path))
            if split == args.split:
                name = f"mirrored/{image.file_name}.png"
                mirror(source, os.path.join(args.out, split, name))
        except (FileNotFoundError, Unreadable):
            skipped += 1
            continue
        if split == args.split:
            content["images"].append({"id": f"mirrored-{image.id}", "file_name": name})
            content["annotations"] += [{"image_id": f"mirrored-{image.id}",
                                        "caption": exchange(caption)}
                                       for caption in image.captions]
    if skipped:
        cli.warn(f"{skipped} images are missing or unreadable and were skipped")
    folder = os.path.join(args.out, "annotations")
    os.makedirs(folder, exist_ok=True)
    for path in glob.glob(os.path.join(glob.escape(args.data), "annotations", "*")):
        if path != annotations_path(args.data, "captions", args.split):
            copy(path, os.path.join(folder, os.path.basename(path)))
    atomic.write_json(annotations_path(args.out, "captions", args.split), content)


if __name__ == "__main__":
    cli.run(main)
