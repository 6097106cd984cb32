"""Self-critical training: the gradient, the samples, and runs that follow it."""
import csv
import itertools
import json
import os
import signal

import numpy as np
import pytest

import train
from captioning import options
from captioning.decode import Decoder
from methods.rewards import Rewards
from methods.self_critical import SelfCritical, weighted
from captioning.tokens import END, START
from model import Captioner, Sizes, loss
from runtime.tf import tf
from worlds import (TRAIN, VOCABULARY, Runs, caption_batches, refusal, write_features)
from worlds import SIZES as SMALL

SIZES = Sizes(vocabulary=3, features=7, annotation=5, embedding=6, hidden=4,
              attention=3)
STEPS = 3


def model_of(sizes=SIZES, dtype="float64", seed=2, end=0.):
    """A Captioner with large random weights; `end` is the end token's bias."""
    model, random = Captioner(sizes, dtype=dtype), np.random.RandomState(seed)
    for name, weight in model.weights.items():
        value = random.normal(0, .4, weight.shape.as_list())
        if name == "b_o":
            value[END] = end
        weight.assign(value.astype(dtype))
    return model


def features_of(images=1):
    return np.random.RandomState(5).normal(0, 1, (images, 4, 7)).astype(np.float32)


def every_caption():
    """All captions of up to 3 steps over 3 words, ended or cut."""
    others = [word for word in range(3) if word != END]
    found = [list(words) + [END] for n in range(STEPS)
             for words in itertools.product(others, repeat=n)]
    return found + [list(words) for words in itertools.product(others, repeat=STEPS)]


def log_p(model, features, caption):
    """The log p of a caption, summed word by word: a scalar tensor."""
    context, before, total = model.encode(tf.constant(features)), START, 0.
    h = model.h_0(context.a)
    for word in caption:
        Ey, gates = model.embed(np.array([before], np.int32))
        h, z, _, _ = model.step(context, h, gates)
        total += tf.nn.log_softmax(model.deep_output(Ey, h, z))[0, word]
        before = word
    return total


def gradient(tape, value, model):
    """All gradients as one vector, float64."""
    return np.concatenate([tf.convert_to_tensor(g).numpy().ravel() for g in
                           tape.gradient(value, list(model.weights.values()))])


# --- the gradient ---------------------------------------------------------------------

@pytest.fixture(scope="module")
def exact():
    """A model, all captions, their rewards and probabilities, and the gradient of the
    expected reward.
    """
    model, features, captions = model_of(), features_of(), every_caption()
    rewards = np.random.RandomState(1).uniform(0, 3, len(captions))
    with tf.GradientTape() as tape:
        each = [tf.exp(log_p(model, features, caption)) for caption in captions]
        expected = sum(p * reward for p, reward in zip(each, rewards))
    p = np.array([float(x.numpy()) for x in each])
    assert len(captions) == 1 + 2 + 4 + 8 and p.sum() == pytest.approx(1)
    assert p.min() > 1e-4
    return model, features, captions, rewards, p, gradient(tape, expected, model)


@pytest.mark.parametrize("samples", [2, 3])
def test_mean_of_the_gradient_over_all_samples_is_that_of_the_expected_reward(samples,
                                                                              exact):
    model, features, captions, rewards, p, expected = exact
    drawn = list(itertools.product(range(len(captions)), repeat=samples))
    batch = weighted(tf.constant(np.repeat(features, len(drawn), axis=0)),
                     [captions[i] for group in drawn for i in group],
                     rewards[np.array(drawn)])
    probable = p[np.array(drawn)].prod(axis=1)  # of each possible set of samples
    batch = batch.replacing(weights=batch.parcel.weights * probable[batch.image_of])
    with tf.GradientTape() as tape:
        total, _, N = loss(model, batch)
        total *= N / samples
    found = -gradient(tape, total, model)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert np.linalg.norm(expected) > .1


def test_samples_that_earn_the_same_teach_nothing():
    batch = weighted(features_of(2), [[0, END], [0, 0, 1], [END], [1, 1, END]],
                     np.array([[2., 2.], [.5, .5]]))
    assert (batch.parcel.weights.numpy() == 0).all()


def test_baseline_is_the_mean_of_the_other_samples():
    batch = weighted(features_of(2), [[END], [0, END], [0, 0, END]] * 2,
                     np.array([[1., 2., 6.], [0., 3., 3.]]))
    # The longest first: samples 2, 1 and 0 of both images
    np.testing.assert_array_equal(batch.image_of, [0, 1, 0, 1, 0, 1])
    np.testing.assert_allclose(batch.parcel.weights, [
        6 - 1.5, 3 - 1.5, 2 - 3.5, 3 - 1.5, 1 - 4, 0 - 3])


# --- samples --------------------------------------------------------------------------

def test_captions_are_drawn_as_often_as_they_are_probable(exact):
    model, features, captions, _, p, _ = exact
    side = 24
    grid = (np.arange(side) + .5) / side
    uniforms = np.array(list(itertools.product(grid, repeat=STEPS)))[None]
    drawn, = Decoder(model).sample(features, uniforms)
    counts = {tuple(caption): 0 for caption in captions}
    for caption in drawn:
        counts[tuple(caption.words)] += 1
    found = np.array([counts[tuple(caption)] for caption in captions]) / side ** 3
    np.testing.assert_allclose(found, p, atol=1.5 / side)
    assert abs(found - p).mean() < .3 / side


def test_samples_know_their_probability_and_end_at_the_end_token():
    model, features = model_of(), features_of(3)
    drawn = Decoder(model).sample(
        features, np.random.RandomState(0).uniform(size=(3, 5, 9)))
    lengths = set()
    for image, group in enumerate(drawn):
        assert len(group) == 5
        for caption in group:
            assert END not in caption.words[:-1]
            assert caption.words[-1] == END or len(caption.words) == 9
            assert sum(caption.log_probs) == pytest.approx(float(log_p(
                model, features[image:image + 1], caption.words).numpy()), rel=1e-5)
            assert caption.alphas.shape == (len(caption.words), 4)
            lengths.add(len(caption.words))
    assert len(lengths) > 3


def test_samples_that_never_end_are_cut():
    drawn = Decoder(model_of(end=-99.)).sample(features_of(2), np.full((2, 3, 6), .5))
    assert all(len(caption.words) == 6 and END not in caption.words
               for group in drawn for caption in group)


@pytest.fixture
def drawer(tmp_path):
    """A SelfCritical on the small world, without the commands."""
    write_features(str(tmp_path), TRAIN)
    captions = caption_batches(TRAIN, str(tmp_path))
    references = [[VOCABULARY.decode(row[1:]) for row in
                   TRAIN.words[TRAIN.image_of == i]] for i in range(len(TRAIN.images))]
    return SelfCritical(captions, Captioner(SMALL), Rewards(VOCABULARY, references), 3)


def test_samples_of_an_image_do_not_depend_on_the_batch_that_it_is_in(drawer):
    def drawn(order):
        found = {}
        for images, batch in zip(order, drawer.batches(order, seed=(0, 1))):
            for row, weight, image in zip(
                    batch.parcel.words.numpy(), batch.parcel.weights.numpy(),
                    batch.image_of):
                found.setdefault(images[image], []).append(
                    (row[row > 0].tolist(), round(float(weight), 4)))
        return {image: sorted(group) for image, group in found.items()}
    whole = drawn([np.arange(6)])
    assert drawn([np.array([4, 0]), np.array([5, 3, 1, 2])]) == whole
    assert len(whole) == 6 and all(len(group) == 3 for group in whole.values())
    assert len({str(group) for group in whole.values()}) == 6


def words_of(batch):
    return batch.parcel.words.numpy().tolist()


def test_every_epoch_and_every_seed_draws_others(drawer):
    words = [words_of(next(drawer.batches([np.arange(6)], seed=seed)))
             for seed in ((0, 1), (0, 1), (0, 2), (1, 1))]
    assert words[0] == words[1]
    assert words[0] != words[2] != words[3] != words[0]


def test_each_batch_is_drawn_by_the_model_as_it_is_then(drawer):
    images = np.arange(6)
    batches = drawer.batches([images] * 3, seed=(0, 1))
    first, again = next(batches), next(batches)
    assert words_of(first) == words_of(again)
    bias = np.float32([0, 0, 99, 0, 0, 0, 0, 0, 0])  # every caption ends at once
    drawer.decoder.model.b_o.assign(bias)
    assert words_of(next(batches)) == 18 * [[START, END]]


def test_no_sample_is_longer_than_the_longest_caption(drawer):
    bias = np.zeros(9, np.float32)
    bias[END] = -99
    drawer.decoder.model.b_o.assign(bias)
    batch = next(drawer.batches([np.arange(6)], seed=(0, 1)))
    assert (batch.lengths == TRAIN.lengths.max()).all()


# --- runs -----------------------------------------------------------------------------

SELF_CRITICAL = ("--start-from", "a", "--learning-rate", ".01", "--self-critical")


@pytest.fixture
def runs(tmp_path, monkeypatch, capsys):
    runs = Runs(tmp_path, monkeypatch, capsys)
    assert runs("a", 3, "--learning-rate", ".02", "--dropout", "0")[0] == 0
    return runs


def test_epoch_whose_rewards_are_all_equal_is_warned_of(drawer, capsys):
    order = [np.arange(2), np.arange(2, 5)]
    for rewards, warned in ((lambda captions, _: np.full(len(captions), .25), True),
                            (lambda captions, _: np.eye(1, len(captions))[0], False)):
        drawer.rewards = rewards
        list(drawer.batches(order, seed=(0, 1)))
        assert ("earned the same" in capsys.readouterr().err) == warned


def test_training_raises_the_reward_and_logs_it(runs):
    status, out, errors = runs("b", 40, *SELF_CRITICAL)
    assert status == 0, errors
    rewards = runs.arrays("b")["train_reward"]
    assert rewards[-10:].mean() > rewards[:10].mean() + .2
    assert f"epoch 40: training reward {rewards[-1]:.4f}, validation loss" in out
    with open(runs.file("b", "log.csv")) as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train_reward"]) for row in rows] == rewards.tolist()
    assert "train_loss" not in rows[0] and os.path.exists(runs.file("b", "loss.png"))


def test_reward_of_the_log_is_what_the_weights_draw(runs):
    """With fixed weights all epochs sample from one model, with one mean reward."""
    assert runs("b", 5, "--start-from", "a", "--learning-rate", "1e-30",
                "--self-critical", "60")[0] == 0
    rewards = runs.arrays("b")["train_reward"]
    assert rewards.std() > 0 and rewards == pytest.approx(rewards.mean(), rel=.25)


@pytest.mark.parametrize("flags", [("2", "--bleu-reward", "3"), ("--penalty", "1")])
def test_flags_of_self_critical_training_make_other_weights(flags, runs):
    assert runs("b", 1, *SELF_CRITICAL)[0] == runs("c", 1, *SELF_CRITICAL, *flags)[0]
    assert not (runs.arrays("b")["U"] == runs.arrays("c")["U"]).all()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_run_stopped_at_any_batch_goes_on_as_if_never_stopped(number, runs,
                                                              monkeypatch):
    assert runs("whole", 2, *SELF_CRITICAL)[0] == 0
    real, count = train.Trainer.step, []

    def step(self, *arguments):
        count.append(1)
        if len(count) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)
    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "step", step)
        assert runs("parts", 2, *SELF_CRITICAL)[0] == 130
    status, out, errors = runs("parts", 2, *SELF_CRITICAL)
    assert status == 0 and "resuming from" in out, errors
    whole, parts = runs.arrays("whole"), runs.arrays("parts")
    assert sorted(whole) == sorted(parts)
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)


@pytest.mark.parametrize("flags, said", [
    (("--self-critical",), "pass it to --start-from"),
    (("--start-from", "a", "--self-critical", "1"), "at least 2"),
    (("--start-from", "a", "--self-critical", "--dropout", ".3"), "no effect"),
    (("--bleu-reward", "1"), "bleu-reward: has no effect without --self-critical")])
def test_flags_that_do_not_go_together_are_refused(flags, said, runs):
    status, _, errors = runs("b", 1, *flags)
    assert status == 2 and said in errors and "Traceback" not in errors


def test_self_critical_run_is_resumed_as_one_without_its_flags(runs):
    assert runs("b", 1, *SELF_CRITICAL)[0] == 0
    assert runs("b", 2)[0] == 0 == runs("c", 2, *SELF_CRITICAL)[0]
    np.testing.assert_array_equal(runs.arrays("b")["U"], runs.arrays("c")["U"])
    assert len(runs.arrays("b")["train_reward"]) == 2
    assert "self critical" in refusal(runs("b", 3, "--self-critical", "9"))


def test_best_weights_are_part_of_the_way_back_but_of_runs_before_that(runs,
                                                                       monkeypatch):
    assert runs("b", 1, *SELF_CRITICAL)[0] == 0
    start, best, newest = (runs.arrays(*which) for which in (
        ("a", "best"), ("b", "best"), ("b", "newest")))
    np.testing.assert_allclose(best["U"], .6 * start["U"] + .4 * newest["U"], rtol=1e-5,
                               atol=1e-7)
    with monkeypatch.context() as patch:
        patch.setattr(options, "START_SHARE", 0.)
        assert runs("c", 1, *SELF_CRITICAL)[0] == 0
    with open(runs.file("c", "settings.json")) as file:
        settings = json.load(file)
    del settings["start_share"]
    with open(runs.file("c", "settings.json"), "w") as file:
        json.dump(settings, file)
    assert runs("c", 2)[0] == 0
    assert (runs.arrays("c", "best")["U"] != start["U"]).any()
    assert not any("start/" in name for name in runs.arrays("c"))


def test_images_without_references_are_named(runs):
    path = os.path.join("data", "tokens", "references_train.json")
    with open(path, "w") as file:
        file.write('{"0": ["a dog"]}')
    assert "has no references for train/1.jpg" in refusal(runs("b", 1, *SELF_CRITICAL))
