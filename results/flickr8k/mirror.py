"""Make a data set whose training images also stand there mirrored, left for right.

    python results/flickr8k/mirror.py --data flickr8k --out flickr8k_mirrored

A mirrored image has the captions of the image with `left` and `right` exchanged. All
other splits are copied. Steps 2 to 6 then take the new folder as --data.
"""
import json
import os
import re
import shutil
import sys

from PIL import Image
from tqdm import tqdm

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "../..")))
import atomic  # noqa: E402
import cli  # noqa: E402
from download_coco import read_captions, splits  # noqa: E402

OTHER = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}


def exchange(caption):
    """The caption of the mirrored image."""
    return re.sub(r"\b([Ll]eft|[Rr]ight)\b", lambda m: OTHER[m.group()], caption)


def mirror(source, target):
    """Write the picture mirrored, without loss, unless that is done already."""
    if os.path.exists(target):
        return
    with Image.open(source) as picture, atomic.writing(target) as file:
        picture.convert("RGB").transpose(Image.FLIP_LEFT_RIGHT).save(file, "png")


def main():
    parser = cli.parser(__doc__)
    parser.add_argument("--data", required=True, help="data set in COCO's layout")
    parser.add_argument("--out", required=True, help="the folder to make")
    parser.add_argument("--split", default="train", help="which split to mirror")
    args = parser.parse_args()
    images = read_captions(args.data, args.split)
    os.makedirs(os.path.join(args.out, "annotations"), exist_ok=True)
    for split in splits(args.data):
        folder = os.path.join(args.out, split)
        if not os.path.exists(folder):
            shutil.copytree(os.path.join(args.data, split), folder + ".part")
            os.rename(folder + ".part", folder)
        name = os.path.join("annotations", f"captions_{split}.json")
        shutil.copyfile(os.path.join(args.data, name), os.path.join(args.out, name))
    path = os.path.join(args.out, "annotations", f"captions_{args.split}.json")
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    for image in tqdm(images, unit="image"):
        new = f"mirrored/{os.path.splitext(image.file_name)[0]}.png"
        target = os.path.join(args.out, args.split, new)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        mirror(os.path.join(args.data, image.path), target)
        content["images"].append({"id": f"mirrored-{image.id}", "file_name": new})
        content["annotations"] += [{"image_id": f"mirrored-{image.id}",
                                    "caption": exchange(caption)}
                                   for caption in image.captions]
    atomic.write_json(path, content)


if __name__ == "__main__":
    cli.run(main)
