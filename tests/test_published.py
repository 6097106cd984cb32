"""The published design is trained as published, only faster."""
import csv
import json
import os

import numpy as np
import pytest

from benchmarks import published
from captioning.decode import Decoder
from captioning.features import feature_path
from captioning.tokens import END, PAD, START
from commands import command
from runtime.tf import COMPILED_KERAS_CRASHES, compiled, tf
from worlds import VAL, write_data


@pytest.fixture
def model():
    model = published.Published(11, embedding=5, units=7)
    features = np.random.RandomState(0).uniform(0, 2, (3, 64, 9)).astype(np.float32)
    words = np.array([[START, 4, 5, 6, END] + 8 * [0], [START, 7, END] + 10 * [0],
                      [START, 8, 9, END] + 9 * [0]], np.int32)
    model.loss(tf.constant(features), tf.constant(words[:, :2]))  # builds the weights
    return model, features, words


def test_cut_and_compiled_step_is_the_tutorial_s(model):
    model, features, words = model

    def values(gradients, words):
        found = gradients(tf.constant(features), tf.constant(words))
        return [tf.convert_to_tensor(g).numpy() for g in found]
    whole = values(model.gradients, words)
    model.looped = False
    cut = values(compiled(lambda *batch: [tf.convert_to_tensor(g) for g in
                                          model.gradients(*batch)]), words[:, :5])
    assert len(whole) == len(cut) == 1 + len(model.variables)
    for a, b in zip(whole, cut):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-7)


def test_padding_adds_nothing_to_its_loss_but_counts_in_the_mean(model):
    model, features, words = model
    alone = [float(model.loss(tf.constant(features[i:i + 1]),
                              tf.constant(words[i:i + 1, :n])).numpy())
             for i, n in enumerate((words != PAD).sum(axis=1))]
    together = float(model.loss(tf.constant(features), tf.constant(words)).numpy())
    assert together == pytest.approx(sum(alone) / 3, rel=1e-5)


def test_searched_greedily_it_says_what_its_own_loop_says(model):
    model, features, _ = model
    for image in features:
        words, maps = model.decode(image, 6)
        caption = Decoder(published.Searched(model), compile=False).search(
            image[None], max_steps=6, forbidden=())[0][0]
        assert caption.words == words
        np.testing.assert_allclose(caption.alphas, maps, rtol=1e-5)


@pytest.mark.skipif(COMPILED_KERAS_CRASHES, reason="crashes with 1.9")
def test_command_trains_goes_on_and_scores(tmp_path):
    write_data(tmp_path)
    os.remove(feature_path(str(tmp_path / "data" / "features"), VAL.images[0]))
    log = tmp_path / "checkpoints" / "published" / "log.csv"
    texts = []
    for epochs in ("1", "2"):
        command(tmp_path, "benchmarks.published", "--epochs", epochs,
                "--batch-size", "4", PATH="")  # without Java, which takes seconds
        texts.append(log.read_text())
    assert texts[1].startswith(texts[0])  # the first epoch is not repeated
    rows = list(csv.DictReader(texts[1].splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert 0 < float(rows[1]["train_loss"]) != float(rows[0]["train_loss"]) > 0
    for name in ("greedy", "beam3"):
        with open(str(log.parent / f"scores_val_{name}.json")) as file:
            scores = json.load(file)
        assert 0 <= scores["scores"]["BLEU-1 with punctuation"] <= 100
