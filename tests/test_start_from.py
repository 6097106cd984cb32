"""A run that starts from another takes its weights and its words, nothing else."""
import json
import os

import numpy as np
import pytest

from captioning.checkpoints import checkpoint_path
from captioning.tokens import read_tokens, read_vocabulary
from worlds import Runs, refusal, refused


@pytest.fixture
def runs(tmp_path, monkeypatch, capsys):
    runs = Runs(tmp_path, monkeypatch, capsys)
    assert runs("a", 2, "--learning-rate", ".02")[0] == 0
    return runs


STILL = ("--learning-rate", "1e-30", "--dropout", "0")  # no step moves a weight


def test_run_begins_with_the_best_weights_of_the_other(runs):
    with np.load(runs.file("a", "newest.npz")) as file:
        newest = dict(file)
    for name in ("newest", "previous"):  # only the best one is needed
        os.remove(runs.file("a", name + ".npz"))
    status, out, errors = runs("b", 1, "--start-from", "a", *STILL)
    assert status == 0, errors
    best, begun = runs.arrays("a", "best"), runs.arrays("b")
    assert f"starting from checkpoints/a, epoch {best['epoch'][-1]}\n" in out
    assert begun["epoch"].tolist() == [1]
    weights = [name for name in newest if "/" not in name and name != "progress"]
    assert len(weights) > 15
    for name in weights:
        np.testing.assert_array_equal(begun[name], best[name])


def test_optimizer_is_a_fresh_one(runs):
    runs("b", 1, "--start-from", "a", *STILL)
    steps = 3  # in the one epoch
    assert runs.arrays("b")["optimizer/beta1_power"] == pytest.approx(.9 ** (steps + 1))


def test_other_settings_may_be_chosen_where_the_sizes_fit(runs):
    for run, flags in (("seed", ("--seed", "7")), ("penalty", ("--penalty", "1")),
                       ("batch", ("--batch-size", "3")),
                       ("optimizer", ("--optimizer", "rmsprop"))):
        status, _, errors = runs(run, 1, "--start-from", "a", *flags)
        assert status == 0 and "no place" not in errors, errors


def test_weights_that_the_new_model_has_no_place_for_are_named(runs):
    status, _, errors = runs("b", 1, "--start-from", "a", "--without", "gate")
    assert status == 0
    assert "checkpoints/a: its W_beta, b_beta have no place in this model" in errors


def test_run_that_was_stopped_goes_on_without_the_other_run(runs):
    flags = ("--start-from", "a", "--learning-rate", ".01")
    assert runs("whole", 2, *flags)[0] == runs("parts", 1, *flags)[0] == 0
    os.rename("checkpoints/a", "checkpoints/gone")
    status, out, errors = runs("parts", 2, *flags)
    assert status == 0 and "starting from" not in out, errors
    whole, parts = runs.arrays("whole"), runs.arrays("parts")
    assert all((whole[name] == parts[name]).all() for name in whole)


def test_run_whose_checkpoints_are_all_damaged_starts_from_the_other_again(runs):
    flags = ("--start-from", "a", "--learning-rate", ".01")
    assert runs("whole", 1, *flags)[0] == runs("b", 1, *flags)[0] == 0
    for name in ("newest", "previous", "best"):
        with open(checkpoint_path("checkpoints/b", name), "r+b") as file:
            file.truncate(99)
    status, out, errors = runs("b", 1, *flags)
    assert status == 0 and "starting from checkpoints/a" in out, errors
    assert (runs.arrays("b")["U"] == runs.arrays("whole")["U"]).all()


def test_begun_run_is_not_resumed_as_a_descendant_of_another(runs):
    assert runs("b", 1)[0] == 0
    assert "another start from" in refusal(runs("b", 2, "--start-from", "a"))


@pytest.mark.parametrize("flags, said", [
    (("--units", "12"), "W_1 is (7, 11), here (7, 12)"),
    (("--embedding", "8"), "W_v is (2048, 7), here (2048, 8)")])
def test_weights_of_other_sizes_are_refused_in_one_line(flags, said, runs):
    line = refusal(runs("b", 1, "--start-from", "a", *flags))
    assert line.startswith("train.py: checkpoints/a: its weights do not fit: ")
    assert said in line
    assert not os.path.exists(runs.file("b", "newest.npz"))


def test_weights_that_the_other_run_lacks_are_named(runs):
    assert runs("gateless", 1, "--without", "gate")[0] == 0
    assert "W_beta is not there, here (11, 1)" in refusal(
        runs("b", 1, "--start-from", "gateless"))


@pytest.mark.parametrize("name, said", [("nobody", "nobody/settings.json: no such run"),
                                        ("b", "cannot start from itself")])
def test_run_that_cannot_be_started_from_is_named(name, said, runs):
    assert said in refusal(runs("b", 1, "--start-from", name))


def test_other_words_are_refused_with_the_command_that_mends_it(runs):
    path = "checkpoints/a/vocabulary.tsv"
    with open(path) as file:
        text = file.read()
    with open(path, "w") as file:
        file.write(text.replace("\tdog\t", "\tfox\t"))
    line = refusal(runs("b", 1, "--start-from", "a"))
    assert f"{path}: the tokens have other words" in line
    assert f"tokenize_captions.py --vocabulary {path}" in line


def test_features_of_another_network_are_refused(runs):
    with open("checkpoints/a/settings.json") as file:
        settings = json.load(file)
    settings["extractor"] = {"weights": "other.h5", "digest": "ab", "dtype": "float16"}
    with open("checkpoints/a/settings.json", "w") as file:
        json.dump(settings, file)
    line = refusal(runs("b", 1, "--start-from", "a"))
    assert "checkpoints/a was trained on features of" in line and "other.h5" in line


# --- data with the old words ----------------------------------------------------------

def test_other_data_take_the_words_of_the_old_ones(world):
    old = read_vocabulary("data/tokens")
    assert world("demo.draw_scenes", "--data", "other", "--train", "3", "--val", "2",
                 "--seed", "5", "--size", "32") == 0
    assert world("tokenize_captions.py", "--data", "other", "--vocabulary",
                 "checkpoints/a/vocabulary.tsv") == 0
    new = read_vocabulary("other/tokens")
    assert new.index_word == old.index_word and new.digest() == old.digest()
    train = read_tokens("other/tokens", "train")
    counts = np.bincount(train.words.ravel(), minlength=len(new))
    counts[0] = 0
    assert new.counts == counts.tolist() != old.counts


@pytest.mark.parametrize("flags, words", [
    (("--vocabulary", "nowhere.tsv"), "nowhere.tsv: no vocabulary there"),
    (("--vocabulary", "data/annotations/captions_train.json"), "not a vocabulary"),
    (("--vocabulary", "data/tokens/vocabulary.tsv", "--vocab-size", "9"),
     "--vocab-size: has no effect with --vocabulary")])
def test_vocabulary_that_cannot_be_taken_is_refused(flags, words, world, capsys):
    assert words in refused(world, capsys, "tokenize_captions.py", *flags)
