"""Every flag arrives: none is lost between the command and the model."""
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import train
from captioning import bootstrap, scores
from captioning.batches import tensors
from captioning.checkpoints import create_optimizer_variables
from captioning.decoded import read_decoded
from captioning.pictures import read_square
from captioning.runs import read_run
from commands import environment
from model import Captioner
from runtime.tf import AdamOptimizer
from worlds import SIZES, TRAIN, Runs, caption_batches, write_features

# With seed 0, TensorFlow 1.10 and 2.21: the first number of some initial weights, and
# the losses of two epochs
GOLDEN_WEIGHTS = {"W_v": 0.005280351, "W_1": -0.46213907, "E": 0.04914711,
                  "U": 0.06242734, "L_o": -0.6131444}
GOLDEN_TRAIN, GOLDEN_VAL = [2.31262, 2.51800], [2.11640, 2.10523]


@pytest.fixture
def runs(tmp_path, monkeypatch, capsys):
    return Runs(tmp_path, monkeypatch, capsys)


def differs(one, other):
    """Whether two checkpoints hold different models."""
    return sorted(one) != sorted(other) or any(
        one[key].shape != other[key].shape or (one[key] != other[key]).any()
        for key in one if key not in ("train_loss", "val_loss", "total"))


# --- training -------------------------------------------------------------------------

@pytest.mark.parametrize("flags", [
    ("--penalty", "1"), ("--without", "word-query"), ("--without", "gate"),
    ("--without", "state"), ("--without", "h0"), ("--optimizer", "rmsprop"),
    ("--learning-rate", ".02"), ("--decay", ".5"), ("--schedule", "cosine"),
    ("--average", ".5"), ("--label-smoothing", ".1"),
    ("--scheduled-sampling", ".9"),
    ("--dropout", ".6"), ("--embedding", "8"), ("--units", "12"),
    ("--batch-size", "3"), ("--seed", "1")], ids=lambda flags: " ".join(flags))
def test_flag_that_makes_another_model_makes_another_model(flags, runs):
    for run, more in (("plain", ()), ("other", flags)):
        status, _, errors = runs(run, 2, *more)
        assert status == 0, errors
    assert differs(runs.arrays("plain"), runs.arrays("other"))


def test_flags_that_change_the_model_change_its_weights_by_name(runs):
    for run, flags in (("plain", ()), ("no_gate", ("--without", "gate")),
                       ("zeros", ("--without", "h0")),
                       ("rmsprop", ("--optimizer", "rmsprop"))):
        assert runs(run, 1, *flags)[0] == 0
    names = {run: {key for key in runs.arrays(run)} for run in
             ("plain", "no_gate", "zeros", "rmsprop")}
    assert {"W_beta", "b_beta", "W_h0"} <= names["plain"]
    assert not {"W_beta", "b_beta"} & names["no_gate"]
    assert not {"W_h0", "b_h0"} & names["zeros"]
    slots = {name.split("/")[1] for name in names["rmsprop"] if "optimizer/" in name}
    assert slots != {name.split("/")[1] for name in names["plain"]
                     if "optimizer/" in name}


def test_training_loss_of_the_log_is_cross_entropy_alone(runs):
    flags = ("--learning-rate", "1e-12", "--dropout", "0")  # the weights stay fixed
    assert runs("plain", 1, *flags)[0] == runs("penalty", 1, "--penalty", "9",
                                               *flags)[0] == 0
    losses = [runs.arrays(run)["train_loss"][0] for run in ("plain", "penalty")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_optimizer_gets_clipped_gradients_where_they_are_too_large(clip, tmp_path):
    class Recorder(AdamOptimizer):
        def apply_gradients(self, pairs, *args, **kwargs):
            pairs = list(pairs)
            self.found = [np.array(g.numpy()) for g, _ in pairs]
            return super().apply_gradients(pairs, *args, **kwargs)
    write_features(str(tmp_path), TRAIN)
    captions = caption_batches(TRAIN, str(tmp_path))
    optimizer = Recorder(.01)
    trainer = train.Trainer(Captioner(SIZES), optimizer, clip=clip)
    create_optimizer_variables(trainer.model, optimizer)
    batch = tensors(captions.load(captions.epoch(4)[0]))
    N = int(batch.lengths.sum())
    _, _, *raw = trainer.reduced_gradients(batch, N)
    raw = [np.array(gradient.numpy()) for gradient in raw]
    norm = np.sqrt(sum((gradient ** 2).sum() for gradient in raw))
    trainer.step(batch, N)
    assert 1e-3 < norm < 1e6
    for found, gradient in zip(optimizer.found, raw):
        np.testing.assert_allclose(found, gradient * min(1, clip / norm), rtol=1e-4,
                                   atol=1e-12)


def test_order_and_dropout_are_those_of_the_seed_and_the_epoch(tmp_path):
    write_features(str(tmp_path), TRAIN)
    captions = caption_batches(TRAIN, str(tmp_path))
    orders = [[numbers.tolist() for numbers in captions.epoch(
        4, np.random.RandomState([0, epoch]))] for epoch in (1, 2)]
    assert orders == [[[2, 6, 7, 8], [10, 1, 4], [9, 0, 5, 3]],
                      [[1, 10, 4], [9, 0, 5, 3], [2, 7, 6, 8]]]
    masks = [captions.masks(np.arange(1), .5, SIZES, seed).Ey
             for seed in ((0, 1), (0, 2), (1, 1))]
    assert masks[0].ravel()[:6].tolist() == [2, 0, 0, 0, 0, 0]
    assert not np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])


def test_every_epoch_has_another_order_and_other_masks(runs, monkeypatch):
    seen, real = [], train.Trainer.step

    def spy(trainer, batch, N):
        words, masks = batch.parcel.words.numpy(), batch.parcel.masks
        seen.append((words.tobytes(), masks.Ey.numpy().tobytes()))
        return real(trainer, batch, N)
    monkeypatch.setattr(train.Trainer, "step", spy)
    assert runs("a", 2, "--seed", "3")[0] == 0
    first, second = seen[:len(seen) // 2], seen[len(seen) // 2:]
    assert [words for words, _ in first] != [words for words, _ in second]
    assert not {masks for _, masks in first} & {masks for _, masks in second}
    monkeypatch.setattr(train.Trainer, "step", real)


def test_golden_numbers_of_one_small_run(runs):
    weights = Captioner(SIZES, seed=0).weights
    found = {name: weights[name].numpy().ravel()[0] for name in
             ("W_v", "W_1", "E", "U", "L_o")}
    assert found == pytest.approx(GOLDEN_WEIGHTS, abs=1e-6)
    assert runs("a", 2, "--guidance", "0", "--without", "word-query", "--dropout", ".3",
                "--decay", "1")[0] == 0
    arrays = runs.arrays("a")
    assert arrays["train_loss"] == pytest.approx(GOLDEN_TRAIN, abs=5e-4)
    assert arrays["val_loss"] == pytest.approx(GOLDEN_VAL, abs=5e-4)


# --- decoding -------------------------------------------------------------------------

UNK, A, B, C, END = 3, 4, 5, 6, 2


def write_chain(path):
    """Write a checkpoint whose next word depends only on the last one.

    UNK, A or B come first; after A and C mostly C, sometimes the end; after B the end.
    """
    with np.load(path) as file:
        arrays = dict(file)
    for name in ("E", "L_o", "L_h", "L_z", "b_o"):
        arrays[name] = np.zeros_like(arrays[name])
    for row, before in enumerate(((1,), (A, C), (B,))):
        arrays["E"][list(before), row] = 1
        arrays["L_o"][row] = -9
    arrays["L_o"][0, [UNK, A, B]] = 3, 1, .8
    arrays["L_o"][1, [C, END]] = 2, 0
    arrays["L_o"][2, END] = 9
    np.savez(path, **arrays)


@pytest.mark.parametrize("flags, words", [
    ((), [A] + 49 * [C]), (("--max-steps", "3"), [A, C, C]),
    (("--beam", "4"), [B, END]),
    (("--beam", "4", "--length-power", "3"), [A, C, END])], ids=str)
def test_flags_of_the_search_reach_the_search(flags, words, world):
    write_chain("checkpoints/a/best.npz")
    assert world("evaluate.py", "--run", "a", *flags) == 0
    decoded = read_decoded("checkpoints/a", "val", read_run("a").vocabulary)
    for row, steps in zip(decoded.words, decoded.steps):
        assert row[:steps].tolist() == words


def test_p_and_interval_of_a_comparison_are_two_sided_of_95_percent(monkeypatch):
    """Two systems that differ little on 40 images, resampled by hand."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 40000)  # to leave little to chance
    random = np.random.RandomState(28)
    true = {str(i): ["a b c d e f g h"] for i in range(40)}
    one, two = ({i: "a b c d e f g h"[:2 * random.randint(shortest, 9) - 1]
                 for i in true} for shortest in (1, 2))
    first, second = (scores.score(made, true, java=False) for made in (one, two))
    point, low, high, p = scores.compare(first, second)["ROUGE-L"]
    gain = second.parts["ROUGE-L"] - first.parts["ROUGE-L"]
    drawn = gain[np.random.RandomState(1).randint(40, size=(40000, 40))].mean(axis=1)
    assert point == pytest.approx(gain.mean())
    assert .3 < p < .6  # far from 0 and 1, where one-sided and two-sided look alike
    assert p == pytest.approx(2 * min((drawn < 0).mean(), (drawn > 0).mean()), abs=.02)
    spread = np.ptp(drawn)
    assert low == pytest.approx(np.percentile(drawn, 2.5), abs=.01 * spread)
    assert high == pytest.approx(np.percentile(drawn, 97.5), abs=.01 * spread)


# --- pictures and processes -----------------------------------------------------------

def test_columns_of_one_pixel_become_grey(tmp_path):
    stripes = np.zeros((598, 598, 3), np.uint8)
    stripes[:, ::2] = 255
    path = str(tmp_path / "a.png")
    Image.fromarray(stripes).save(path)
    pixels = read_square(path, 299)
    assert 100 < pixels[5:-5, 5:-5].min() <= pixels[5:-5, 5:-5].max() < 155


def test_killed_child_ends_its_parent_with_137(tmp_path):
    (tmp_path / "dies.py").write_text("import os; os.kill(os.getpid(), 9)\n")
    done = subprocess.run([sys.executable, "-m", "runtime.restart", "0", "dies.py"],
                          cwd=str(tmp_path), env=environment(), stderr=subprocess.PIPE)
    assert done.returncode == 137


@pytest.mark.parametrize("processes", [2, 3])
def test_images_that_processes_read_are_disjoint(processes, tmp_path):
    write_features(str(tmp_path), TRAIN)
    captions = caption_batches(TRAIN, str(tmp_path))
    order = captions.epoch(4, np.random.RandomState(0))
    owners = captions.assign_images(order, processes)
    read = [{captions.paths[i] for numbers in order for i in TRAIN.image_of[
        numbers[owners[TRAIN.image_of[numbers]] == rank]]} for rank in range(processes)]
    assert all(read) and sum(map(len, read)) == len(set.union(*read)) == 6
