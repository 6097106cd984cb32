"""Pictures unlike the training images are recognized."""
import os
import shutil
import types

import numpy as np
import pytest
from PIL import Image

from captioning import familiarity, networks
from captioning.captioner import OwnCaption
from captioning.familiarity import LIMIT, REMARK, prepare, read_familiarity
from captioning.features import feature_path, record_path
from captioning.grid import even
from captioning.pictures import load_square
from runtime import cli
from runtime.atomic import write_json
from runtime.tf import tf
from worlds import QUICK, SMALL, World

F = 50


def images(count, seed, axes=5):
    """Mean feature vectors that vary along only a few directions: (count, F)."""
    directions = np.random.RandomState(0).randn(axes, F)
    random = np.random.RandomState(seed)
    return 9 + random.randn(count, axes).dot(directions) + .1 * random.randn(count, F)


@pytest.fixture
def splits(tmp_path, monkeypatch):
    """Splits with a features file for each image, in COCO's order."""
    monkeypatch.setattr(familiarity, "KEPT", 6)
    write_json(record_path(str(tmp_path)), dict(SMALL, shape=(3, 2, F)))
    found = {}
    for name, count, seed in (("train", 80, 1), ("val", 60, 2)):
        paths = []
        for i, mean in enumerate(images(count, seed)):
            paths.append(feature_path(str(tmp_path), f"{name}{i}.png"))
            np.save(paths[-1], np.tile(mean, (3, 2, 1)).astype(np.float16))
        image_of = np.repeat(np.arange(count), 2)
        found[name] = types.SimpleNamespace(
            paths=paths, captions=np.arange(2 * count - 4),  # two images left out
            tokens=types.SimpleNamespace(image_of=image_of, images=np.array(
                [f"{name}{i}.png" for i in range(count)])))
        for path in paths[-2:]:
            os.remove(path)
    return found


def test_one_in_twenty_of_the_runs_own_images_is_strange_and_others_are(splits,
                                                                        tmp_path):
    prepare(*[str(tmp_path)] * 3, splits)
    found = read_familiarity(str(tmp_path))
    assert len(found.usual) == 58 and found.axes.shape == (6, F)
    np.testing.assert_allclose(found.axes.dot(found.axes.T), np.eye(6), atol=2e-3)
    own = (found.strangeness(images(58, 2)) > LIMIT).mean()
    assert .01 < own <= .06
    new = (found.strangeness(images(400, 3)) > LIMIT).mean()
    assert .01 < new < .15
    other = images(30, 4) + 3 * np.random.RandomState(7).randn(F)
    assert (found.strangeness(other) > LIMIT).all()
    # The overall scale of the features says nothing
    np.testing.assert_allclose(found.strangeness(3 * images(9, 3)),
                               found.strangeness(images(9, 3)))


def test_what_is_there_stays_and_too_few_images_say_nothing(splits, tmp_path):
    few = dict(splits, val=types.SimpleNamespace(**dict(
        vars(splits["val"]), captions=np.arange(2 * 39))))
    prepare(*[str(tmp_path)] * 3, few)
    assert read_familiarity(str(tmp_path)) is None
    path = tmp_path / "familiarity.npz"
    path.write_bytes(b"")
    prepare(*[str(tmp_path)] * 3, splits)
    assert path.read_bytes() != b""  # the training died before its first checkpoint
    path.write_bytes(b"")
    prepare(*[str(tmp_path)] * 3, few)
    assert not path.exists()
    path.write_bytes(b"")
    (tmp_path / "newest.npz").write_bytes(b"")
    prepare(*[str(tmp_path)] * 3, splits)
    assert path.read_bytes() == b""
    with pytest.raises(cli.UserError, match="familiarity.npz: damaged; delete it"):
        read_familiarity(str(tmp_path))


def test_pictures_are_made_as_small_as_the_training_images(splits, tmp_path):
    for i in range(3):
        Image.new("RGB", (8, 18)).save(str(tmp_path / f"train{i}.png"))
    prepare(*[str(tmp_path)] * 3, splits)
    assert read_familiarity(str(tmp_path)).pixels == 12
    path, stripes = str(tmp_path / "own.png"), np.zeros((60, 48, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(path)
    sharp, same, small = (load_square(path, 24, pixels) for pixels in (0, 24, 12))
    np.testing.assert_array_equal(sharp, same)
    again = Image.fromarray(stripes).resize((12, 12), Image.BILINEAR)
    np.testing.assert_array_equal(small, np.asarray(again.resize((24, 24),
                                                                 Image.BILINEAR)))
    assert load_square(path, 90, 70).shape == (90, 90, 3)  # is smaller than that


def test_features_that_are_not_finite_are_not_counted(splits, tmp_path):
    np.save(splits["train"].paths[3], np.full((3, 2, F), np.nan, np.float16))
    prepare(*[str(tmp_path)] * 3, splits)
    assert np.isfinite(read_familiarity(str(tmp_path)).mean).all()


def test_file_of_a_real_size_is_small(tmp_path):
    random = np.random.RandomState(0)
    found = familiarity.fit(random.rand(90, 2048), random.rand(1000, 2048))
    assert found.axes.shape == (32, 2048)
    familiarity.write(str(tmp_path), found)
    assert os.path.getsize(str(tmp_path / "familiarity.npz")) < 200000


@pytest.mark.parametrize("strangeness, remark", [(None, ""), (.95, ""), (.96, REMARK)])
def test_caption_of_a_strange_picture_has_a_remark(strangeness, remark):
    caption = OwnCaption("a.jpg", ["a"], np.zeros(1), np.ones((1, 2, 3)), None,
                         even(2, 3), strangeness)
    assert caption.remark == remark


def test_training_writes_it_and_captions_go_by_it(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(familiarity, "FEWEST", 4)
    monkeypatch.setattr(familiarity, "KEPT", 4)
    shutil.copytree(str(made), str(tmp_path / "w"))
    world = World(tmp_path / "w", monkeypatch)
    assert world("train.py", "--run", "b", *QUICK) == 0
    found = read_familiarity("checkpoints/b")
    assert found.axes.shape == (4, 2048) and len(found.usual) == 4
    assert found.pixels == 48  # as the scenes were drawn

    def build(made, *args):
        return lambda pixels: tf.ones([len(pixels)] + list(made["shape"])) * tf.range(
            2048.)
    monkeypatch.setattr(networks, "build", build)
    for name, words in (("b", 2), ("a", 0)):
        capsys.readouterr()
        assert world("plot_attention.py", "--run", name, "--picture",
                     "data/val/scene_000001.png", "data/val/scene_000002.png") == 0
        assert capsys.readouterr().out.count(f"({REMARK})") == words
