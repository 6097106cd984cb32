"""Scheduled sampling: some of the previous words are the model's own."""

import numpy as np
import pytest

from captioning.batches import tensors
from captioning.decode import draw
from methods.scheduled_sampling import OwnWords
from model import Captioner, real_words
from runtime.tf import tf
from test_train import assert_stopping_changes_nothing
from worlds import SIZES, TRAIN, Runs, caption_batches, write_features

NUMBERS = np.array(sorted([2, 7, 10, 9], key=lambda i: -TRAIN.lengths[i]))


@pytest.fixture
def batch(tmp_path):
    write_features(str(tmp_path), TRAIN)
    return caption_batches(TRAIN, str(tmp_path)).load(NUMBERS)


@pytest.fixture
def runs(tmp_path, monkeypatch, capsys):
    return Runs(tmp_path, monkeypatch, capsys)


def uniforms_of(batch, seed=0):
    B, columns = batch.parcel.words.shape
    return np.random.RandomState(seed).random_sample((B, columns - 1, 2))


def test_without_a_share_the_true_words_are_told(batch):
    found = OwnWords(Captioner(SIZES)).inputs(batch, uniforms_of(batch), 0.)
    assert (found == batch.parcel.words).all()


def test_all_words_are_those_that_the_model_draws_after_the_true_ones(batch, tmp_path):
    """Without dropout, even in training."""
    batch = caption_batches(TRAIN, str(tmp_path)).load(NUMBERS, .5, SIZES, (0, 1))
    assert len(set(batch.lengths)) > 1 and batch.parcel.masks.Ey is not None
    model, uniforms = Captioner(SIZES), uniforms_of(batch)
    found = OwnWords(model).inputs(batch, uniforms, 1.)
    assert (found[:, 0] == batch.parcel.words[:, 0]).all()
    for row, length in enumerate(batch.lengths):  # caption by caption
        image = batch.parcel.features[batch.image_of[row]][None]
        context = model.encode(tf.constant(image))
        h = model.h_0(context.a)
        for t in range(length):
            Ey, gates = model.embed(batch.parcel.words[row:row + 1, t])
            h, z, _, _ = model.step(context, h, gates)
            p = tf.nn.softmax(model.deep_output(Ey, h, z)).numpy()
            assert found[row, t + 1] == int(draw(p, uniforms[row:row + 1, t, 0])[0])
    assert (found != batch.parcel.words).any()


def test_so_many_words_are_the_models_own(batch):
    model, uniforms = Captioner(SIZES), uniforms_of(batch)
    whole, some = (OwnWords(model).inputs(batch, uniforms, share)
                   for share in (1., .4))
    own = uniforms[:, :, 1] < .4
    assert (some[:, 1:] == np.where(own, whole[:, 1:], batch.parcel.words[:, 1:])).all()
    assert (some != whole).any() and (some != batch.parcel.words).any()


def test_inputs_are_what_is_told_and_targets_are_the_true_words(batch):
    other = batch.replacing(told=batch.parcel.words + 1)
    for found, true, more in zip(real_words(other)[:2], real_words(batch)[:2], (1, 0)):
        assert (found.numpy() == true.numpy() + more).all()


def test_what_is_drawn_of_a_caption_does_not_depend_on_its_batch(batch, tmp_path):
    captions, model = caption_batches(TRAIN, str(tmp_path)), Captioner(SIZES)

    def drawn(numbers):
        found, = OwnWords(model)([tensors(captions.load(numbers))], [.7], (0, 1))
        return found.parcel.told.numpy()
    for row, number in enumerate(NUMBERS):
        length = TRAIN.lengths[number]
        assert (drawn(NUMBERS)[row, :length + 1]
                == drawn(np.array([number]))[0, :length + 1]).all()


def test_compiled_pass_gives_the_same_words(tmp_path):
    write_features(str(tmp_path), TRAIN)
    captions, model = caption_batches(TRAIN, str(tmp_path)), Captioner(SIZES)
    same = np.flatnonzero(TRAIN.lengths == 4)  # captions of one length
    batch = captions.load(same, .5, SIZES, (0, 1))
    eager, fast = OwnWords(model), OwnWords(model)
    fast.compile_for({(len(same), 4): 1})
    for seed in (0, 1):
        uniforms = uniforms_of(batch, seed)
        found = fast.inputs(batch, uniforms, .6)
        assert (found == eager.inputs(batch, uniforms, .6)).all()
        assert (found != batch.parcel.words).any()
    assert fast.unroll.compiled and not eager.unroll.compiled


def test_run_that_was_stopped_inside_an_epoch_is_the_run_that_was_not(runs,
                                                                      monkeypatch):
    flags = ("--scheduled-sampling", ".8", "--learning-rate", ".02")
    assert_stopping_changes_nothing(runs, monkeypatch, *flags)
