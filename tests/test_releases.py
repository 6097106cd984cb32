"""Files of earlier releases can be read, and give the same captions."""
import csv
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from captioning.decoded import read_decoded, read_nbest, read_scores, read_source
from captioning.features import feature_path, write_features
from captioning.models import load_run
from captioning.runs import read_run, read_split
from captioning.tokens import read_references, read_tokens
from commands import ROOT
from worlds import World

RELEASES = os.path.join(ROOT, "tests", "releases")
TRAIN = ("train.py", "--run", "a", "--embedding", "5", "--units", "6", "--batch-size",
         "6", "--learning-rate", ".05", "--dropout", "0", "--select", "loss")


def feature(number, kind):
    """An image's features as they were: ten channels for what it shows, and noise."""
    found = np.random.RandomState(number).uniform(0, .1, (8, 8, 2048)).astype("f2")
    found[..., 10 * kind:10 * kind + 10] += 2
    return found


@pytest.fixture(params=sorted(name for name in os.listdir(RELEASES)
                              if os.path.isdir(os.path.join(RELEASES, name))))
def old(request, tmp_path, monkeypatch):
    """A release's files with the features made again, and commands to run on them."""
    folder = tmp_path / "old"
    shutil.copytree(os.path.join(RELEASES, request.param), str(folder))
    world = World(folder, monkeypatch)
    for split, first, count in (("train", 1, 9), ("val", 101, 3)):
        os.makedirs(f"data/{split}")
        for k in range(count):
            name = f"{split}/{first + k}.jpg"
            write_features(feature_path("data/features", name), feature(first + k,
                                                                        k % 3))
            Image.new("RGB", (60, 40), (80 * (k % 3), 90, 90)).save(f"data/{name}")
    return world


def captions():
    with open("checkpoints/a/captions_val_a_results.json") as file:
        return json.load(file)


def test_everything_is_read(old):
    run = load_run("a")
    assert run.history[-1]["epoch"] == len(run.history) > 10  # up to the best epoch
    assert len(read_split(run.folder)["train"]) == 9
    tokens = read_tokens("data/tokens", "val")
    assert tokens.is_number.all() and tokens.image_ids.tolist() == ["101", "102", "103"]
    assert read_references("data/tokens", "val")["101"][0] == "A cat."
    assert read_source(run, "val")["data"] == "data"
    scores = read_scores(run.folder, "val")
    assert "repeated words, %" in scores["habits"]
    assert len(read_nbest(run.folder, "val")["101"]) == 2


def test_run_gives_the_same_captions_and_attention(old):
    before, then = captions(), read_decoded("checkpoints/a", "val",
                                            read_run("a").vocabulary)
    assert [row["caption"] for row in before] == ["a cat", "a dog", "a bus"]
    assert old("evaluate.py", "--run", "a", "--beam", "2") == 0
    now = read_decoded("checkpoints/a", "val", read_run("a").vocabulary)
    assert captions() == before
    np.testing.assert_array_equal(now.words, then.words)
    assert abs(now.alphas - then.alphas).max() < 1e-5
    assert abs(now.log_probs - then.log_probs).max() < 1e-4


def test_run_is_resumed(old):
    with open("checkpoints/a/log.csv") as file:
        rows = list(csv.DictReader(file))
    assert old(*TRAIN, "--epochs", "61") == 0
    with open("checkpoints/a/log.csv") as file:
        longer = list(csv.DictReader(file))
    assert len(longer) == 61
    for before, after in zip(rows, longer):
        assert before["val_loss"] == after["val_loss"]
    assert abs(float(longer[60]["train_loss"]) - float(rows[59]["train_loss"])) < .1


def test_figures_report_and_comparison_are_made(old):
    assert old(*TRAIN, "--epochs", "60") == 0  # draws the missing curves
    for script, *flags in (("plot_attention.py", "--count", "3"),
                           ("plot_attention.py", "--best", "1"), ("analysis.report",)):
        assert old(script, "--run", "a", *flags) == 0
    shutil.copytree("checkpoints/a", "checkpoints/b")
    assert old("evaluate.py", "--run", "a", "--compare", "b") == 0
