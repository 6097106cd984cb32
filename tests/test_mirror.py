"""Mirrored training images: results/flickr8k/mirror.py."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from captioning.coco import read_captions
from commands import environment, words
from results.flickr8k import mirror


def run(folder, *flags):
    """Run the command: (exit status, stderr)."""
    done = subprocess.run([sys.executable, *words("results.flickr8k.mirror"), *flags],
                          cwd=str(folder), stdout=subprocess.PIPE, env=environment(),
                          stderr=subprocess.PIPE, universal_newlines=True)
    return done.returncode, done.stderr


@pytest.fixture
def data(tmp_path):
    """Two training images, one in a folder and one unreadable, and one other."""
    (tmp_path / "in" / "annotations").mkdir(parents=True)
    for split, names in (("train", ["deep/a.png", "b.jpg"]), ("val", ["c.png"])):
        images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
        captions = [{"image_id": i, "caption": "Left of a right-hand glove, bright"}
                    for i in range(len(names))]
        (tmp_path / "in" / "annotations" / f"captions_{split}.json").write_text(
            json.dumps({"images": images, "annotations": captions}))
        for name in names:
            path = tmp_path / "in" / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
            Image.fromarray(pixels).save(str(path))
    (tmp_path / "in" / "train" / "b.jpg").write_bytes(b"no picture")
    return tmp_path


def test_words_for_sides_are_exchanged_and_nothing_else():
    assert mirror.exchange("Left, left and rightly to the Right (right-hand)") == (
        "Right, right and rightly to the Left (left-hand)")


def test_new_set_has_both_and_a_second_run_finds_all_done(data):
    status, errors = run(data, "--data", "in", "--out", "out")
    assert status == 0 and "1 images are missing or unreadable" in errors
    pixels = np.asarray(Image.open(str(data / "in" / "train" / "deep" / "a.png")))
    path = data / "out" / "train" / "mirrored" / "deep" / "a.png.png"
    assert (np.asarray(Image.open(str(path))) == pixels[:, ::-1]).all()
    images = read_captions(str(data / "out"), "train")
    assert [image.path for image in images] == [
        "train/deep/a.png", "train/b.jpg", "train/mirrored/deep/a.png.png"]
    assert images[2].captions == ["Right of a left-hand glove, bright"]
    assert read_captions(str(data / "out"), "val") == read_captions(
        str(data / "in"), "val")
    assert (data / "out" / "val" / "c.png").exists()
    os.utime(str(path), (1000, 1000))
    assert run(data, "--data", "in", "--out", "out")[0] == 0
    assert os.stat(str(path)).st_mtime == 1000
    assert read_captions(str(data / "out"), "train") == images


@pytest.mark.parametrize("flags, words", [
    (("--data", "in", "--out", "./in"), "is the data set itself"),
    (("--data", "in", "--out", "out", "--split", "test"), "two are needed"),
    (("--data", "none", "--out", "out"), "none")])
def test_what_cannot_be_mirrored_is_refused_in_one_line(flags, words, data):
    status, errors = run(data, *flags)
    assert status == 2 and errors.count("\n") == 1 and words in errors
    assert not (data / "out").exists()
