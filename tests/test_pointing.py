"""The pointing score by hand: words that name things, boxes, baselines, intervals."""
import json
import os
import sys

import numpy as np
import pytest

from commands import printed

from analysis import pointing
from analysis.boxes import box_coverage
from analysis.pointing import gains, pointing_hits
from captioning.bootstrap import means
from captioning.decoded import Decoded, write_decoded
from captioning.grid import Axis, Grid, even
from captioning.names import NAMES, named, plural, words_for
from captioning.tokens import END, Vocabulary

COCO = ["person", "dog", "hot dog", "bus", "wine glass", "potted plant", "skis"]


@pytest.mark.parametrize("name, expected", [
    ("dog", "dogs"), ("bus", "buses"), ("wine glass", "wine glasses"),
    ("couch", "couches"), ("city", "cities"), ("boy", "boys"), ("man", "men"),
    ("knife", "knives"), ("sheep", "sheep"), ("baseball bat", "baseball bats"),
    ("scissors", "scissors"), ("person", "people"), ("box", "boxes")])
def test_plurals(name, expected):
    assert plural(name) == expected


@pytest.mark.parametrize("caption, expected", [
    ("a man and two dogs", [(1, 1, "person"), (4, 4, "dog")]),
    ("a hot dog", [(1, 2, "hot dog")]),
    ("hot dogs on a bus", [(0, 1, "hot dog"), (4, 4, "bus")]),
    ("two wine glasses", [(1, 2, "wine glass")]), ("a plant", [(1, 1, "potted plant")]),
    ("people on skis", [(0, 0, "person"), (2, 2, "skis")]),
    ("women", [(0, 0, "person")]),
    ("a hot", []), ("", []), ("the doghouse", [])])
def test_names_are_found_in_captions(caption, expected):
    assert named(caption.split(), words_for(COCO)) == expected


def test_category_that_is_not_cocos_is_named_by_itself_and_its_plural():
    names = words_for(["ring", "cross"])
    assert named("a red ring above two crosses".split(), names) == [
        (2, 2, "ring"), (5, 5, "cross")]


def test_no_word_names_two_categories():
    categories = sorted(NAMES)
    count = sum(len(words_for([category])) for category in categories)
    assert len(words_for(categories)) == count


def test_cells_inside_the_boxes():
    """One box covers the upper left quarter, another half a cell beside it."""
    share, middles, centre = box_coverage([(0, 0, 40, 30), (40, 0, 5, 30)], (80, 60),
                                          even(8))
    assert share[:4, :4].tolist() == [[1] * 4] * 4
    np.testing.assert_allclose(share[:4, 4], .5)
    assert share[4:].sum() == share[:, 5:].sum() == 0
    assert middles[:4, :4].all() and not middles[4:].any()
    assert centre  # on the corner of the first box


def test_cells_of_inception_are_counted_where_they_look():
    """A box at the left rim, as wide as the first column of cells."""
    grid = Grid(*[Axis(37.5 / 299, 32 / 299, 8)] * 2)
    share, middles, _ = box_coverage([(0, 0, 53, 299)], (299, 299), grid)
    assert (share[:, 0] > .9).all() and share[:, 1:].max() == 0
    assert middles[:, 0].all() and not middles[:, 1:].any()
    _, middles, _ = box_coverage([(0, 0, 37, 299)], (299, 299), grid)
    assert not middles.any()


def test_boxes_that_overlap_count_once():
    share, _, _ = box_coverage([(0, 0, 40, 40), (20, 20, 40, 40)], (80, 80), even(8))
    assert share.max() == 1 and abs(share.sum() - (16 + 16 - 4)) < 1e-9


def test_pointing_by_hand():
    """A box over the upper left quarter of 80 x 80 pixels, with 8 x 8 cells of 10."""
    alphas = np.zeros((4, 64))
    alphas[0, 3 * 8 + 3] = 1           # just inside
    alphas[1, 3 * 8 + 4] = 1           # just outside
    alphas[2] = 1 / 64                 # everywhere
    alphas[3, 0] = 1                   # inside, but the word names nothing here
    names = words_for(["ring", "cross"])
    rows = pointing_hits(["ring", "ring", "ring", "cross"], alphas,
                         [("ring", (0, 0, 40, 40))], (80, 80), names, even(8))
    # Peak in the box: the map's, an even map's, the centre's (a corner), a step later.
    # Mass: the same; at the centre four cells meet, and one of them is inside
    np.testing.assert_allclose(rows, [[1, .25, 1, 0, 1, .25, .25, 0],
                                      [0, .25, 1, 1, 0, .25, .25, .25],
                                      [1, .25, 1, 1, .25, .25, .25, 1]], rtol=1e-6)
    assert pointing_hits(["cross"], alphas, [("ring", (0, 0, 9, 9))], (80, 80),
                         names, even(8)).shape == (0, 8)


def test_mass_of_a_name_is_that_of_its_best_word_and_its_peak_that_of_the_noun():
    alphas = np.zeros((3, 64))
    alphas[0, 0] = alphas[1, 63] = alphas[2, 63] = 1
    rows = pointing_hits(["hot", "dog", "runs"], alphas, [("hot dog", (0, 0, 40, 40))],
                         (80, 80), words_for(["hot dog"]), even(8))
    assert rows[:, [0, 4]].tolist() == [[0, 1]]


def test_gains_over_the_baselines_by_hand():
    row = np.array([.7, .3, .5, .6, .6, .3, .4, .5])
    np.testing.assert_allclose(gains(row), [.2, 2])
    mean, low, high = means([row[None]] * 9, of=gains)
    np.testing.assert_allclose([mean, low, high], [[.2, 2]] * 3)


def test_mean_is_of_words_and_interval_of_images():
    groups = [np.ones((3, 1)), np.zeros((1, 1)), np.zeros((0, 1))] * 30
    mean, low, high = means(groups)[:, 0]
    assert mean == .75 and .6 < low < .75 < high < .9
    same = means([np.full((2, 1), .4)] * 20)[:, 0]
    np.testing.assert_allclose(same, .4)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """pointing.py on a run with perfect attention, or on demand with other maps."""
    vocabulary = Vocabulary(["ring", "cross", "a", "red"], [0] * 8)
    ids = {word: i for i, word in enumerate(vocabulary.index_word)}
    words = np.array([[ids["a"], ids["red"], ids["ring"], END],
                      [ids["a"], ids["cross"], END, 0]], np.int32)
    alphas = np.full((2, 4, 64), 1 / 64, np.float32)
    alphas[0, 2], alphas[1, 1] = np.eye(64)[9], np.eye(64)[62]
    decoded = Decoded(np.array(["val/a.jpg", "val/deep/b.jpg"]), np.array(["7", "8"]),
                      words,
                      np.array([4, 3], np.int32), alphas, np.zeros((2, 4), np.float32),
                      np.ones((2, 4), np.float32))
    content = {
        "images": [{"id": i, "width": 160, "height": 80} for i in (7, 8)],
        "categories": [{"id": 1, "name": "ring"}, {"id": 2, "name": "cross"}],
        "annotations": [{"image_id": 7, "category_id": 1, "bbox": [20, 10, 20, 10]},
                        {"image_id": 8, "category_id": 2, "bbox": [120, 70, 20, 10]}]}
    (tmp_path / "data" / "annotations").mkdir(parents=True)
    (tmp_path / "data" / "annotations" / "instances_val.json").write_text(
        json.dumps(content))
    os.makedirs(str(tmp_path / "run"))
    fake = type("Run", (), {"folder": str(tmp_path / "run"), "vocabulary": vocabulary,
                            "settings": {"data": str(tmp_path / "data")}})
    monkeypatch.setattr(pointing, "read_run", lambda name: fake)
    write_decoded(fake.folder, "val", decoded, {"data": str(tmp_path / "data")})

    def command(*flags):
        monkeypatch.setattr(sys, "argv", ["analysis.pointing", *flags])
        return printed(capsys, pointing.main)
    command.folder = tmp_path
    return command


def test_command_prints_and_keeps_the_score(run):
    status, out, _ = run("--run", "a")
    assert status == 0 and "on 2 words in the captions of 2 of 2 images" in out
    found = json.loads((run.folder / "run" / "pointing_val.json").read_text())
    assert found["peak"] == found["mass"] == [1, 1, 1]
    assert found["peak_uniform"][0] == pytest.approx(1 / 64, abs=1e-4)
    assert found["mass_uniform"][0] == pytest.approx(1 / 64, abs=1e-3)
    assert found["peak_centre"][0] == 0 and found["categories"] == {"ring": 1,
                                                                    "cross": 1}
    assert found["change"][0] > .3
    assert "100.0 (100.0 - 100.0)" in out


def test_missing_boxes_and_captions_without_things_are_refused_in_one_line(run):
    path = run.folder / "data" / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    content["annotations"] = content["annotations"][:0]
    path.write_text(json.dumps(content))
    status, _, errors = run()
    assert status == 2 and errors.count("\n") == 1 and "nothing to score" in errors
    path.unlink()
    status, _, errors = run()
    assert status == 2 and "instances_val.json" in errors
