"""The learning rate over a run, the best epoch, averaged weights, smoothed labels."""
import argparse
import math

import numpy as np
import pytest

import train
from captioning import checkpoints, options
from captioning.batches import tensors
from methods.averaging import Averaging, better
from methods.label_smoothing import LabelSmoothing
from captioning.models import load_run
from captioning.schedule import (SELECT, complaint, epochs_since_best, learning_rate_at,
                                 worse_epochs)
from model import Captioner, loss
from runtime.tf import AdamOptimizer, tf
from worlds import SIZES, TRAIN, Runs, caption_batches, refusal, write_features

BATCHES = 3  # in an epoch of TRAIN with batches of 4 captions


@pytest.fixture
def runs(tmp_path, monkeypatch, capsys):
    return Runs(tmp_path, monkeypatch, capsys)


@pytest.fixture
def rates(monkeypatch):
    """A list to which every step adds its learning rate."""
    found = []

    class Recorder(AdamOptimizer):
        def __init__(self, learning_rate):
            super().__init__(learning_rate)
            self.rate, self.steps = learning_rate, -1  # the first creates variables

        def apply_gradients(self, *args, **kwargs):
            self.steps += 1
            if self.steps:
                found.append(float(self.rate.numpy()))
            return super().apply_gradients(*args, **kwargs)
    monkeypatch.setitem(train.OPTIMIZERS, "adam", Recorder)
    return found


# --- the best epoch -------------------------------------------------------------------

@pytest.mark.parametrize("select, key, figures, since, worse", [
    ("cider", "val_cider", [3, 7, 5, 7], 2, 2), ("cider", "val_cider", [1, 2], 0, 0),
    ("bleu-4", "val_bleu4", [9, 7, 5], 2, 2), ("loss", "val_loss", [3, 2, 4], 1, 1),
    ("loss", "val_loss", [3, 4, 2, 5], 1, 2)])
def test_first_of_the_best_epochs_counts(select, key, figures, since, worse):
    history = [dict({"val_loss": 1.}, **{key: x}) for x in figures]
    assert epochs_since_best(history, select) == since
    assert worse_epochs(history, select) == worse


@pytest.mark.parametrize("figures, losses, since, worse", [
    ([0, 0, 0], [3., 2., 1.], 0, 0), ([0, 0, 0], [3., 1., 2.], 1, 1),
    ([0, 4, 4, 0], [9., 8., 7., 1.], 1, 1), ([4, 4], [2., 2.], 1, 1)])
@pytest.mark.parametrize("select, key", [("cider", "val_cider"),
                                         ("bleu-4", "val_bleu4")])
def test_lower_loss_is_better_among_epochs_of_one_score(select, key, figures, losses,
                                                        since, worse):
    history = [{key: x, "val_loss": loss} for x, loss in zip(figures, losses)]
    assert epochs_since_best(history, select) == since
    assert worse_epochs(history, select) == worse


@pytest.mark.parametrize("select, key, told", [
    ("cider", "val_cider", True), ("bleu-4", "val_bleu4", True),
    ("loss", "val_loss", False)])
def test_score_that_stays_0_is_told(select, key, told):
    history = [dict({"val_loss": 2.}, **({key: 0.} if told else {})) for _ in range(2)]
    assert (complaint(history, select) is not None) == told
    if told:
        assert f"{key} has been 0 so far" in complaint(history, select)
        assert complaint(history + [{"val_loss": 2., key: .1}], select) is None


def test_training_whose_score_stays_0_keeps_the_epoch_of_the_lowest_loss(
        runs, monkeypatch):
    monkeypatch.setattr(train.ValidationScorer, "__call__", lambda *args: {
        "val_cider": 0., "val_bleu4": 0., "val_entropy": 50., "val_change": 50.})
    losses = [3., 1., 2., 4., 5.]
    monkeypatch.setattr(train, "validate", lambda *args, left=iter(losses): next(left))
    status, out, errors = runs("a", 5, "--select", "cider", "--patience", "2")
    assert status == 0 and errors.count("val_cider has been 0 so far") == 4, errors
    assert "best by cider: epoch 2, validation loss 1.0000" in out
    assert runs.arrays("a", "best")["val_loss"].tolist() == losses[:2]


# --- the learning rate ----------------------------------------------------------------

def test_learning_rate_decays_by_the_epoch_and_also_after_a_stop(runs, rates):
    flags = ("--decay", ".5", "--learning-rate", ".02")
    assert runs("whole", 3, *flags)[0] == 0
    expected = np.repeat([.02, .01, .005], BATCHES)
    assert rates == pytest.approx(expected)
    assert runs("parts", 1, *flags)[0] == runs("parts", 3, *flags)[0] == 0
    assert rates[len(expected):] == pytest.approx(expected)
    whole, parts = runs.arrays("whole"), runs.arrays("parts")
    assert all((whole[key] == parts[key]).all() for key in whole)


def test_cosine_falls_to_zero_at_the_end_of_the_run(runs, rates):
    assert runs("a", 2, "--schedule", "cosine", "--learning-rate", ".02")[0] == 0
    passed = np.arange(1, 2 * BATCHES + 1) / (2 * BATCHES)
    assert rates == pytest.approx(.01 * (1 + np.cos(math.pi * passed)), abs=1e-9)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("select, sign", [("loss", 1), ("cider", -1)])
def test_plateau_waits_for_an_epoch_that_is_no_better(select, sign):
    args = argparse.Namespace(learning_rate=.1, schedule="plateau", decay=.5,
                              select=select, epochs=9)
    # The other figure keeps improving
    history = [{"val_loss": -i, "val_cider": i, SELECT[select][0]: sign * x}
               for i, x in enumerate((3, 2, 2.5, 1, 1.5))]
    assert [learning_rate_at(args, history[:n], .3) for n in range(6)] == pytest.approx(
        [.1, .1, .1, .05, .05, .025])


def test_decay_beside_a_cosine_is_refused(runs):
    assert "--decay" in refusal(runs("a", 1, "--schedule", "cosine", "--decay", ".5"))


# --- averaged weights -----------------------------------------------------------------

def test_average_is_that_of_the_formula():
    model = Captioner(SIZES)
    optimizer = Averaging(AdamOptimizer(.1), model, .5)
    checkpoints.create_optimizer_variables(model, optimizer)
    random, expected = np.random.RandomState(0), None
    for t in range(25):
        optimizer.apply_gradients(
            [(tf.constant(random.normal(size=w.shape.as_list()).astype("f4")), w)
             for w in model.weights.values()])
        kept = min(.5, t / (9 + t))
        weight = model.weights["W_1"].numpy()
        expected = weight.copy() if t == 0 else kept * expected + (1 - kept) * weight
        np.testing.assert_allclose(optimizer.kept()["W_1"], expected, rtol=1e-4,
                                   atol=1e-6)
    with better(optimizer):
        np.testing.assert_allclose(model.weights["W_1"].numpy(), expected, rtol=1e-4,
                                   atol=1e-6)
    assert (model.weights["W_1"].numpy() == weight).all()


def test_best_weights_are_the_average_and_the_newest_are_not(runs):
    assert runs("a", 2, "--average", ".9", "--learning-rate", ".02", "--dropout", ".3",
                "--decay", "1")[0] == 0
    best, newest = runs.arrays("a", "best"), runs.arrays("a")
    assert best["epoch"].tolist() == newest["epoch"].tolist() == [1, 2]
    for name in ("W_1", "E"):
        assert (best[name] == newest["optimizer/average/" + name]).all()
        assert (best[name] != newest[name]).any()
    assert (load_run("a").model.E.numpy() == best["E"]).all()


@pytest.mark.parametrize("more", [(), ("--average", ".9")])
def test_best_weights_have_a_share_of_those_that_the_run_started_from(more, runs,
                                                                      monkeypatch):
    monkeypatch.setattr(options, "START_SHARE", .3)
    assert runs("a", 1, "--learning-rate", ".02")[0] == 0
    assert runs("b", 1, "--learning-rate", ".02", "--start-from", "a",
                "--self-critical", "2", *more)[0] == 0
    start, best, newest = (runs.arrays(*which) for which in (
        ("a", "best"), ("b", "best"), ("b", "newest")))
    assert best["epoch"].tolist() == newest["epoch"].tolist() == [1]
    for name in ("W_1", "E"):
        assert (newest["optimizer/start/" + name] == start[name]).all()
        moved = newest["optimizer/average/" + name] if more else newest[name]
        np.testing.assert_allclose(best[name], .3 * start[name] + .7 * moved, rtol=1e-5,
                                   atol=1e-7)
        assert abs(moved - start[name]).max() > 1e-2


@pytest.mark.parametrize("flags", [(), ("--start-from", "a", "--self-critical", "2")])
def test_averaged_run_that_was_stopped_is_the_run_that_was_not(flags, runs):
    assert not flags or runs("a", 1)[0] == 0
    flags += ("--average", ".9", "--learning-rate", ".02")
    assert runs("whole", 3, *flags)[0] == 0
    assert runs("parts", 1, *flags)[0] == runs("parts", 3, *flags)[0] == 0
    for name in ("newest", "best"):
        whole, parts = runs.arrays("whole", name), runs.arrays("parts", name)
        assert sorted(whole) == sorted(parts) and all(
            (whole[key] == parts[key]).all() for key in whole)


# --- smoothed labels ------------------------------------------------------------------

def test_smoothed_loss_is_that_of_smoothed_labels(tmp_path):
    write_features(str(tmp_path), TRAIN)
    batch = caption_batches(TRAIN, str(tmp_path)).load(np.array([2, 6, 7]))
    batch = tensors(batch)
    model, share = Captioner(SIZES), .2
    logits, targets, _ = model.teacher_forcing(batch)
    logits, targets = logits.numpy().astype(float), np.array(targets.numpy())
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    labels = (1 - share) * np.eye(SIZES.vocabulary)[targets] + share / SIZES.vocabulary
    total, cross_entropy, N = loss(model, batch, [LabelSmoothing(share)])
    assert float(total.numpy()) == pytest.approx(-(labels * log_p).sum() / N, rel=1e-5)
    assert float(cross_entropy.numpy()) == pytest.approx(
        float(loss(model, batch)[0].numpy()), rel=1e-6)


@pytest.mark.parametrize("flag", ["--label-smoothing", "--scheduled-sampling"])
def test_self_critical_training_follows_no_true_words(flag, runs):
    assert flag in refusal(runs("a", 1, "--start-from", "b", "--self-critical", flag,
                                ".1"))
