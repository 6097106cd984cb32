"""The drawn data set: reproducible, in COCO's layout, and true to its captions."""
import json
import os

import numpy as np
import pytest
from PIL import Image

from captioning.coco import read_boxes, read_captions, splits
from commands import command
from demo import draw_scenes as ds, score_scenes as sc


def draw(folder, *flags):
    return command(".", "demo.draw_scenes", "--data", str(folder), *flags)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    out = draw(folder, "--train", "12", "--val", "5", "--size", "96")
    assert "python extract_features.py" in out
    return str(folder)


def test_set_has_the_layout_of_coco(scenes):
    assert splits(scenes) == ["train", "val"]
    for split, count in (("train", 12), ("val", 5)):
        images = read_captions(scenes, split)
        assert len(images) == count
        for image in images:
            assert len(image.captions) == len(ds.SINGLE) == len(ds.PAIR) == 5
            with Image.open(os.path.join(scenes, image.path)) as picture:
                assert picture.size == (96, 96) and picture.mode == "RGB"


def test_captions_name_every_shape_and_colour_of_the_scene(scenes):
    objects = sc.read_scenes(scenes)
    for image in read_captions(scenes, "val"):
        for caption in image.captions:
            assert sc.names_all(caption, objects[str(image.id)]), caption


def test_colour_of_a_shape_stands_inside_its_box(scenes):
    with open(os.path.join(scenes, "annotations", "instances_train.json")) as file:
        content = json.load(file)
    names = {image["id"]: image["file_name"] for image in content["images"]}
    for item in content["annotations"]:
        with Image.open(os.path.join(scenes, "train", names[item["image_id"]])) as p:
            pixels = np.asarray(p, int)
        near = abs(pixels - ds.COLOURS[item["colour"]]).max(2) < 25
        rows, columns = near.nonzero()
        x, y, w, h = item["bbox"]
        inside = ((x - 1 <= columns) & (columns <= x + w + 1)
                  & (y - 1 <= rows) & (rows <= y + h + 1)).sum()
        assert inside > .25 * w * h, item  # a ring fills least of its box


def test_relation_in_the_caption_is_that_of_the_boxes(scenes):
    boxes = read_boxes(scenes, "train")
    seen = 0
    for image in read_captions(scenes, "train"):
        size, found = boxes[image.id]
        assert size == (96, 96)
        if len(found) == 2:
            seen += 1
            # The captions name the shapes in reading order.
            (_, (ax, ay, _, _)), (_, (bx, by, _, _)) = found
            word = "left" if abs(ax - bx) > abs(ay - by) else "above"
            assert sum(word in caption for caption in image.captions) == 4
    assert seen


def test_same_seed_draws_the_same_and_another_seed_something_else(tmp_path):
    flags = ("--train", "3", "--val", "2", "--size", "64")
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        draw(tmp_path / name, "--seed", seed, *flags)

    def content(name):
        return {os.path.join(os.path.basename(root), file):
                open(os.path.join(root, file), "rb").read()
                for root, _, files in os.walk(str(tmp_path / name)) for file in files}
    a, b, c = (content(name) for name in "abc")
    assert a == b and set(a) == set(c)
    assert all(a[name] != c[name] for name in a)


def test_more_training_scenes_do_not_change_validation(tmp_path):
    for name, count in (("a", "1"), ("b", "4")):
        draw(tmp_path / name, "--train", count, "--val", "2", "--size", "64")
    a, b = ((tmp_path / name / "annotations" / "captions_val.json").read_text()
            for name in "ab")
    assert a == b


# --- the figure of the demo -----------------------------------------------------------

@pytest.mark.parametrize("caption, right", [
    ("a red ring and a blue cross", True), ("a blue cross above a red ring", True),
    ("a red ring", False), ("a red cross and a blue ring", False),
    ("a red ring and a blue cross and a red ring", False), ("", False)])
def test_right_caption_names_just_the_objects_there_are(caption, right):
    assert sc.names_all(caption, [("red", "ring"), ("blue", "cross")]) == right
