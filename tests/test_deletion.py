"""The deletion test: how much log p of a word falls without some cells."""
import json

import numpy as np
import pytest

from analysis import deletion
from analysis.deletion import DELETED, Name, drops, kept_cells, log_probs, summarize
from captioning.coco import read_objects
from captioning.decode import Decoder
from captioning.decoded import read_decoded, read_source, write_decoded
from captioning.runs import read_run
from captioning.tokens import END
from commands import exit_status
from model import likeliest
from test_model import SIDE, SIZES, model_of

WHAT = [key for key, _ in DELETED]


@pytest.fixture(scope="module")
def captioned():
    """A model, the features of one image (L, F), and its Caption."""
    model = model_of("float32")
    features = np.random.RandomState(2).normal(0, 2, (SIDE, SIZES.features))
    features = features.astype(np.float32)
    caption = Decoder(model).search(features[None], max_steps=6,
                                    forbidden=range(4))[0][0]
    return model, features, caption


def name_of(place, inside):
    mask = np.zeros(SIDE, np.bool_)
    mask[inside] = True
    return Name(0, place, mask)


def test_with_all_cells_it_is_the_log_probability_of_decoding(captioned):
    model, features, caption = captioned
    words = np.array([caption.words], np.int32)
    np.testing.assert_allclose(log_probs(model, features[None], words)[0],
                               caption.log_probs, atol=1e-5)
    keep = np.ones((1, len(caption.words), SIDE))
    np.testing.assert_allclose(log_probs(model, features[None], words, keep)[0],
                               caption.log_probs, atol=1e-5)


def test_cells_are_deleted_as_the_table_says():
    alpha = np.array([.05, .3, .05, .2, .1, .1, .1, .05, .05])
    kept = kept_cells(name_of(0, [1, 4, 5]), alpha, 2, np.random.RandomState(0))
    assert sorted(kept) == sorted(WHAT)
    assert np.flatnonzero(~kept["most"][0]).tolist() == [1, 3]
    assert np.flatnonzero(~kept["boxes"][0]).tolist() == [1, 4, 5]
    assert np.flatnonzero(kept["outside"][0]).tolist() == [1, 4, 5]
    assert (~kept["random"]).sum(axis=1).tolist() == [2] * 4
    assert ((~kept["random_boxes"]).sum(axis=1) == 3).all()
    assert len({tuple(row) for row in kept["random_boxes"]}) > 1


@pytest.mark.parametrize("inside", [[], list(range(SIDE))])
def test_box_that_covers_no_cell_or_all_is_left_out(inside):
    kept = kept_cells(name_of(0, inside), np.ones(SIDE), 2, np.random.RandomState(0))
    assert sorted(kept) == ["most", "random"]


def test_drops_are_those_of_captions_scored_one_by_one(captioned):
    model, features, caption = captioned
    words, place = np.array(caption.words, np.int32), 2
    found = drops(model, features, words, [name_of(place, [0, 4])], caption.alphas, 3,
                  np.random.RandomState(0))
    assert found.shape == (1, 2, len(DELETED)) and np.isfinite(found).all()
    whole = log_probs(model, features[None], words[None])[0, place]
    for when, first in enumerate((place, 0)):
        for what, cells in (("most", np.argsort(-caption.alphas[place])[:3]),
                            ("boxes", [0, 4]), ("outside", [1, 2, 3, 5, 6, 7, 8])):
            keep = np.ones((1, len(words), SIDE))
            for t in range(first, place + 1):
                keep[0, t, cells] = 0
            lower = log_probs(model, features[None], words[None], keep)[0, place]
            assert found[0, when, WHAT.index(what)] == pytest.approx(whole - lower,
                                                                     abs=1e-5)
    assert abs(found[0, 0] - found[0, 1]).max() > 1e-3  # earlier steps matter


def test_means_leave_out_what_was_not_to_be_had():
    fallen = np.full((2, 2, len(DELETED)), np.nan)
    fallen[0], fallen[1, :, 0] = 1., 3.
    summary = summarize([fallen] * 5, 0)
    assert summary["at_the_word"]["most"][0] == 2
    assert summary["up_to_it"]["boxes"] == [1, 1, 1]


def test_command_prints_and_keeps_the_table(world, capsys):
    """On captions that name one of the drawn things correctly."""
    assert world("evaluate.py", "--run", "a", "--look", "likeliest") == 0
    run = read_run("a")
    decoded = read_decoded(run.folder, "val", run.vocabulary)
    objects = read_objects("data", decoded.images.tolist(), decoded.image_ids.tolist())
    ids = {word: i for i, word in enumerate(run.vocabulary.index_word)}
    words = np.array([[ids["a"], ids[things[0][0]], END] for _, things in objects],
                     np.int32)
    count = len(words)
    write_decoded(run.folder, "val", decoded._replace(
        words=words, steps=np.full(count, 3, np.int32),
        alphas=np.full((count, 3, 64), 1 / 64, np.float32),
        log_probs=np.zeros((count, 3), np.float32),
        betas=np.ones((count, 3), np.float32)), read_source(run, "val"))
    world.monkeypatch.setattr(deletion, "start", lambda: None)
    world.monkeypatch.setattr("sys.argv", ["analysis.deletion", "--run", "a"])
    capsys.readouterr()
    looks, real = set(), deletion.drops
    world.monkeypatch.setattr(deletion, "drops", lambda model, *rest: (
        looks.add(model.look), real(model, *rest))[1])
    assert exit_status(deletion.main) == 0
    assert looks == {likeliest}  # as when decoding, not as in training
    printed = capsys.readouterr().out
    assert f"on {count} words in the captions of {count} images" in printed
    assert f"all words: {3 * count} in the captions of {count} images" in printed
    assert printed.count("permuted over the cells") == 2 == printed.count("even over")
    with open("checkpoints/a/deletion_val.json") as file:
        found = json.load(file)
    assert found["words"] == count and set(found["at_the_word"]) == set(WHAT)
