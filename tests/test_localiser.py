"""The localiser: what it finds in images, and how it pulls attention."""
import os

import numpy as np
import pytest

from methods import localiser
from captioning.batches import CaptionBatches, tensors
from captioning.features import SHAPE, feature_path, record_path
from methods.localiser import Guide, Localiser, fit, localiser_path
from captioning.tokens import Vocabulary, write_tokens, write_vocabulary
from model import Predicted, loss
from runtime import atomic
from runtime.atomic import write_json
from runtime.tf import tf
from test_model import LENGTHS, SIDE, SIZES, batch_of, model_of
from worlds import SMALL, TRAIN, VAL, WORDS, Runs, files_of, refusal, write_features

DOG, ALWAYS, NOISE = 4, 5, 6  # words
BIGGER = Vocabulary(WORDS + ["blue", "two"], [0, 9, 9, 0, 5, 4, 3, 2, 1, 1, 1])


@pytest.fixture
def runs(tmp_path, monkeypatch, capsys):
    return Runs(tmp_path, monkeypatch, capsys)


def images_of(count=400, cells=9, channels=8, seed=0):
    """Features (I, L, F), the dog's cell or -1, and mentions: DOG if there is one,
    ALWAYS for every image, and NOISE at random.
    """
    random = np.random.RandomState(seed)
    maps = random.normal(0, .3, (count, cells, channels))
    where = np.where(random.uniform(size=count) < .5,
                     random.randint(0, cells, count), -1)
    maps[where >= 0, where[where >= 0], 2] += 3
    mentions = np.zeros((count, 7), np.bool_)
    mentions[:, DOG], mentions[:, ALWAYS] = where >= 0, True
    mentions[:, NOISE] = random.uniform(size=count) < .5
    return maps.astype(np.float32), where, mentions


def caption_batches_of(tokens, features):
    """CaptionBatches of sound files of any shape."""
    paths = [feature_path(features, image) for image in tokens.images]
    return CaptionBatches(tokens, paths, np.ones(len(paths), bool))


def evidence_of(found, word, maps):
    return maps.dot(found.evidence[found.row_of[word]])


def test_evidence_for_a_word_lies_where_the_thing_is_though_nobody_said_where():
    maps, _, mentions = images_of()
    found = fit(maps.mean(axis=1), mentions)
    new, where, _ = images_of(seed=1)
    peak = evidence_of(found, DOG, new).argmax(axis=1)
    assert (peak == where)[where >= 0].mean() > .95


def test_only_words_that_images_tell_of_have_evidence():
    maps, _, mentions = images_of()
    found = fit(maps.mean(axis=1), mentions)
    none = len(found.relevance) - 1
    assert found.relevance[found.row_of[DOG]] > .6
    assert found.row_of[[0, 1, 2, 3, ALWAYS, NOISE]].tolist() == [none] * 6
    assert found.relevance[none] == 0 and not found.evidence[none].any()


@pytest.mark.parametrize("channels", [8, 200])  # fewer than images, and many more
def test_relevance_is_the_correlation_on_images_left_out(channels, monkeypatch):
    monkeypatch.setattr(localiser, "BLOCK", 7)  # so that sums take several blocks
    maps, _, mentions = images_of(count=40, channels=channels)
    # Otherwise the ridge shrinks all channels alike
    maps *= np.linspace(.3, 3, channels)
    means = maps.mean(axis=1).astype(np.float64)
    found = fit(means.astype(np.float32), mentions)
    centred = means - means.mean(axis=0)
    y = mentions[:, DOG] - mentions[:, DOG].mean()
    variance = centred.T.dot(centred) / 40
    ridge = 10 * np.trace(variance) / channels * np.eye(channels)
    said = []
    for i in range(40):
        rest = np.arange(40) != i
        c = np.linalg.solve(centred[rest].T.dot(centred[rest]) / 40 + ridge,
                            centred[rest].T.dot(y[rest]) / 40)
        said.append(centred[i].dot(c))
    assert found.relevance[found.row_of[DOG]] == pytest.approx(
        np.corrcoef(said, y)[0, 1], abs=1e-3)


@pytest.mark.parametrize("channels", [8, 200])
def test_evidence_is_that_of_the_ridge_and_spreads_by_four(channels):
    maps, _, mentions = images_of(count=40, channels=channels)
    means = maps.mean(axis=1)
    found = fit(means, mentions)
    a = means - means.mean(axis=0)
    variance = a.T.dot(a) / 40
    ridge = 10 * np.trace(variance) / channels * np.eye(channels)
    c = np.linalg.solve(variance + ridge,
                        a.T.dot(mentions[:, DOG] - mentions[:, DOG].mean()))
    np.testing.assert_allclose(found.evidence[found.row_of[DOG]],
                               4 * c / a.dot(c).std(), rtol=1e-3, atol=1e-4)
    assert evidence_of(found, DOG, means).std() == pytest.approx(4, rel=1e-3)


def test_word_that_images_tell_little_of_has_evidence():
    """It follows DOG for a third of the images, and chance for the others."""
    maps, _, mentions = images_of()
    chance = np.random.RandomState(5).uniform(size=(2, len(maps)))
    mentions[:, NOISE] = np.where(chance[0] < .65, chance[1] < .5, mentions[:, DOG])
    found = fit(maps.mean(axis=1), mentions)
    assert .15 < found.relevance[found.row_of[NOISE]] < .45


def test_image_that_is_not_finite_is_left_out_of_the_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(localiser, "EVIDENT", -1)  # random images are weak evidence
    write_features(str(tmp_path), TRAIN, (2, 3, 5))
    write_json(record_path(str(tmp_path)), SMALL)
    captions = caption_batches_of(TRAIN, str(tmp_path))
    path = captions.paths[3]
    array = np.load(path)
    array[1, 2, 3] = np.inf
    np.save(path, array)
    found = localiser.fit_to(captions, 9, str(tmp_path))
    captions.captions = np.flatnonzero(TRAIN.image_of != 3)
    for one, other in zip(found, localiser.fit_to(captions, 9, str(tmp_path))):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert np.isfinite(found.evidence).all()


def test_images_that_are_all_the_same_tell_of_nothing():
    found = fit(np.ones((5, 8), np.float32), np.ones((5, 7), np.bool_))
    assert len(found.relevance) == 1 and np.isfinite(found.evidence).all()


# --- the pull -------------------------------------------------------------------------

def localiser_of(words=(4, 7, 9)):
    random = np.random.RandomState(8)
    row_of = np.full(SIZES.vocabulary, len(words), np.int32)
    row_of[list(words)] = np.arange(len(words))
    evidence = random.normal(size=(len(words), SIZES.features))
    return Localiser(row_of, np.vstack([evidence, np.zeros((1, SIZES.features))]),
                     np.append(random.uniform(.2, .9, len(words)), 0))


def predicted(alphas):
    return Predicted(None, None, alphas)


def pull(found, batch, alphas):
    """The guide's term by loops; alphas: C arrays (k_t, L)."""
    total = 0.
    for b, length in enumerate(batch.lengths):
        targets = batch.parcel.words[b, 1:length + 1]
        for t in range(length):
            later = [w for w in targets[t:] if found.relevance[found.row_of[w]] > 0]
            if later:  # the word's own evidence, else the next word's that has some
                row = found.row_of[later[0]]
                s = batch.parcel.features[batch.image_of[b]].dot(found.evidence[row])
                seen = np.exp(s) / np.exp(s).sum()
                total += found.relevance[row] * (
                    seen * (np.log(seen) - np.log(alphas[t][b]))).sum()
    return total


@pytest.mark.parametrize("lengths, image_of", [
    (LENGTHS, [1, 0, 1]), ((4, 4), [0, 1])])  # captions with and without shared images
def test_pull_is_that_of_plain_loops(lengths, image_of):
    batch = batch_of(lengths=np.array(lengths))._replace(
        image_of=np.array(image_of, np.int32))
    batch.parcel.words[0, 2], batch.parcel.words[1, 1] = 7, 9
    model, found = model_of(), localiser_of()
    alphas = model.teacher_forcing(tensors(batch))[2]
    value = Guide(2., found, "float64")(tensors(batch), predicted(alphas))
    expected = 2 * pull(found, batch, [alpha.numpy() for alpha in alphas])
    assert expected > .1
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-5)


def test_loss_grows_by_the_pull_and_its_cross_entropy_does_not():
    batch, guide = batch_of(), Guide(3., localiser_of(), "float64")
    batch.parcel.words[0, 1] = 4
    model = model_of()
    total, plain, N = loss(model, tensors(batch), [guide])
    alphas = model.teacher_forcing(tensors(batch))[2]
    np.testing.assert_allclose((total - plain).numpy() * N,
                               guide(tensors(batch), predicted(alphas)).numpy(),
                               rtol=1e-9)
    assert plain.numpy() == loss(model, tensors(batch))[1].numpy()


def test_attention_that_follows_the_evidence_is_not_pulled():
    batch, found = batch_of(lengths=np.array([1])), localiser_of()
    batch.parcel.words[0, 1] = 9
    s = batch.parcel.features[1].dot(found.evidence[found.row_of[9]])
    seen = tf.constant((np.exp(s) / np.exp(s).sum())[None])
    guide = Guide(1., found, "float64")
    assert abs(guide(tensors(batch), predicted([seen])).numpy()) < 1e-7
    even = tf.constant(np.full((1, SIDE), 1 / SIDE))
    assert guide(tensors(batch), predicted([even])).numpy() > .01


# --- in training ----------------------------------------------------------------------

def test_guided_run_keeps_its_localiser_and_resumes_bit_for_bit(runs, monkeypatch):
    monkeypatch.setattr(localiser, "EVIDENT", -1)  # random images are weak evidence
    for run, epochs in (("whole", (2,)), ("halves", (1, 2))):
        for count in epochs:
            assert runs(run, count, "--guidance", "2")[0] == 0
    one, other = runs.arrays("whole"), runs.arrays("halves")
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    assert runs("plain", 2, "--guidance", "0")[0] == 0
    assert (one["V"] != runs.arrays("plain")["V"]).any()


def without_checkpoints(runs, run):
    """As if training had died before its first checkpoint."""
    for name in ("newest", "previous", "best"):
        os.remove(runs.file(run, name + ".npz"))


def other_words(runs):
    write_vocabulary("data/tokens", BIGGER)
    for name, tokens in (("train", TRAIN), ("val", VAL)):
        write_tokens("data/tokens", name, tokens._replace(vocabulary=BIGGER.digest()))


def other_captions(runs):
    write_tokens("data/tokens", "train", TRAIN._replace(image_of=TRAIN.image_of[::-1]))


def other_network(runs):
    write_json(record_path(runs.features), {"weights": "a.h5", "digest": "1",
                                            "seed": 0})
    for name in TRAIN.images:
        path = feature_path(runs.features, name)
        os.remove(path)
        np.save(path, np.random.uniform(0, 2, SHAPE).astype("f2"))


@pytest.mark.parametrize("change", [other_words, other_captions, other_network])
def test_localiser_of_a_training_that_died_early_does_not_teach_another(change, runs,
                                                                        monkeypatch):
    monkeypatch.setattr(localiser, "EVIDENT", -1)
    assert runs("a", 1, "--guidance", "1")[0] == 0
    before = files_of("checkpoints/a")["localiser.npz"]
    without_checkpoints(runs, "a")
    assert runs("a", 1, "--guidance", "1")[0] == 0  # same data, same localiser
    assert files_of("checkpoints/a")["localiser.npz"] == before
    without_checkpoints(runs, "a")
    change(runs)
    for run in ("a", "fresh"):
        assert runs(run, 1, "--guidance", "1")[0] == 0
    after = files_of("checkpoints/a")["localiser.npz"]
    assert after != before and after == files_of("checkpoints/fresh")["localiser.npz"]


@pytest.mark.parametrize("begun", [True, False])
def test_localiser_of_an_earlier_release_belongs_to_a_run_that_has_begun(begun, runs):
    assert runs("a", 1, "--guidance", "1")[0] == 0
    path = localiser_path("checkpoints/a")
    with np.load(path) as arrays:
        atomic.write_arrays(path, {name: arrays[name] for name in arrays.files
                                   if name != "of"})
    before = files_of("checkpoints/a")["localiser.npz"]
    if not begun:
        without_checkpoints(runs, "a")
    assert runs("a", 2, "--guidance", "1")[0] == 0
    assert (files_of("checkpoints/a")["localiser.npz"] == before) == begun


def test_damaged_localiser_is_refused_in_one_line(runs):
    assert runs("a", 1, "--guidance", "1")[0] == 0
    with open(localiser_path("checkpoints/a"), "w") as file:
        file.write("no archive")
    assert "localiser.npz: damaged; delete it" in refusal(runs("a", 2, "--guidance",
                                                               "1"))
