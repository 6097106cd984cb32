"""Hard attention: the samples, the gradient against its expectation, and runs."""
import itertools
import json

import numpy as np
import pytest

import model as model_module
from methods import hard_attention
from methods.ensemble import Contexts, Ensemble
from methods.hard_attention import Reinforce, to_come, with_draws
from captioning.batches import tensors
from captioning.models import build, load_run
from model import Batch, Captioner, Parcel, Sizes, drawn, likeliest, loss
from runtime.tf import AdamOptimizer, tf
from test_train import assert_stopping_changes_nothing
from train import Trainer
from worlds import SIZES, TRAIN, Runs, caption_batches, refusal, write_features

L, TINY = 3, Sizes(vocabulary=5, features=4, annotation=3, embedding=2, hidden=3,
                   attention=2)
NUMBERS = np.array(sorted([2, 7, 10, 9], key=lambda i: -TRAIN.lengths[i]))
HARD = ("--attention", "hard")


@pytest.fixture
def runs(tmp_path, monkeypatch, capsys):
    return Runs(tmp_path, monkeypatch, capsys)


def alphas_of(rows, locations, seed=0):
    return np.random.RandomState(seed).dirichlet(np.ones(locations), rows).astype("f4")


# --- what is drawn --------------------------------------------------------------------

def test_locations_are_drawn_with_the_probabilities_of_attention():
    alpha = alphas_of(1, 5)
    numbers = np.random.RandomState(1).random_sample(4000).astype("f4")
    s = drawn(tf.constant(np.repeat(alpha, 4000, 0)), numbers).numpy()
    assert ((s == 0) | (s == 1)).all() and (s.sum(1) == 1).all()
    np.testing.assert_allclose(s.mean(0), alpha[0], atol=.03)
    ends = drawn(tf.constant(np.repeat(alpha, 2, 0)), np.float32([0, .9999999])).numpy()
    assert ends.argmax(1).tolist() == [0, 4]


def test_negative_numbers_give_the_expected_context():
    alpha = alphas_of(4, 6)
    found = drawn(tf.constant(alpha), np.float32([-1, .5, -1, .5])).numpy()
    assert (found[[0, 2]] == alpha[[0, 2]]).all()
    assert (found[[1, 3]].max(1) == 1).all()


def test_model_that_looks_at_the_likeliest_location_has_its_annotation_vector():
    model, looking = Captioner(TINY), Captioner(TINY, look=likeliest)
    features = np.random.RandomState(0).normal(0, 2, (2, L, 4)).astype("f4")
    context = model.encode(tf.constant(features))
    _, gates = model.embed(np.array([1, 2], np.int32))
    h = model.h_0(context.a)
    _, soft, alpha, beta = model.step(context, h, gates)
    _, z, same, _ = looking.step(context, h, gates)
    best = alpha.numpy().argmax(1)
    np.testing.assert_allclose(
        z.numpy(), beta.numpy() * context.a.numpy()[np.arange(2), best], rtol=1e-6)
    assert (same.numpy() == alpha.numpy()).all() and (z.numpy() != soft.numpy()).any()
    both = Ensemble([looking, looking])
    _, (one, _), _, _ = both.step(Contexts((context, context)),
                                  both.h_0([context.a] * 2), (gates, gates))
    np.testing.assert_allclose(one.numpy(), z.numpy())


# --- the gradient ---------------------------------------------------------------------

@pytest.fixture
def forced(monkeypatch):
    """Use a sample's random numbers as its locations."""
    def locations(alpha, numbers):
        return tf.one_hot(tf.cast(numbers, tf.int32), L, dtype=alpha.dtype)
    monkeypatch.setattr(model_module, "drawn", locations)
    monkeypatch.setattr(hard_attention, "drawn", locations)


def world(lengths):
    """A tiny model in float64, and a Batch for it."""
    random = np.random.RandomState(4)
    model = Captioner(TINY, dtype="float64", seed=1)
    for weight in model.weights.values():
        weight.assign(random.normal(0, 1, weight.shape.as_list()))
    words = random.randint(1, 5, (len(lengths), lengths[0] + 1)).astype(np.int32)
    features = tf.constant(random.normal(0, 1, (len(lengths), L, 4)))
    captions = np.arange(len(lengths), dtype=np.int32)
    return model, Batch(Parcel(features, tf.constant(words)),
                        np.array(lengths, np.int32), captions, captions)


def looks(lengths):
    """Every way the N words of a batch can look: arrays of locations (N,)."""
    return [np.array(s, float)
            for s in itertools.product(range(L), repeat=sum(lengths))]


def estimates(model, batch, lengths, b):
    """p(s) and the gradient's estimate for each s: (S,), (S, all weights)."""
    reinforce = Reinforce(1., 0., "float64")
    reinforce.baseline.assign(b)
    p, found = [], []
    for s in looks(lengths):
        with tf.GradientTape() as tape:
            whole = batch.replacing(draws=tf.constant(s))
            total, _, N = loss(model, whole, [reinforce])
        gradients = tape.gradient(total, list(model.weights.values()))
        found.append(np.concatenate([flat(g) for g in gradients]) * -N)
        alpha = tf.concat(model.teacher_forcing(whole)[2], 0).numpy()
        p.append(alpha[np.arange(len(s)), s.astype(int)].prod())
    return np.array(p), np.array(found)


def flat(gradient):
    return tf.convert_to_tensor(gradient).numpy().ravel()


@pytest.mark.parametrize("lengths", [(3,), (2, 1)])
def test_the_estimates_expectation_is_the_gradient_of_the_expectation(lengths, forced):
    model, batch = world(lengths)
    weights = list(model.weights.values())
    with tf.GradientTape() as tape:
        expectation = 0.
        for s in looks(lengths):
            logits, targets, alphas = model.teacher_forcing(
                batch.replacing(draws=tf.constant(s)))
            p = tf.reduce_prod(tf.reduce_sum(
                tf.concat(alphas, 0) * tf.one_hot(s.astype(int), L, dtype=tf.float64),
                1))
            expectation += p * -tf.reduce_sum(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels=targets,
                                                               logits=logits))
    exact = np.concatenate([flat(g) for g in tape.gradient(expectation, weights)])
    assert np.abs(exact).max() > .1
    for b in (0., -1.7):
        p, found = estimates(model, batch, lengths, b)
        assert abs(p.sum() - 1) < 1e-9 and p.max() < .9
        np.testing.assert_allclose(p @ found, exact, atol=1e-6)


def test_the_baseline_lowers_the_variance(forced):
    lengths = (3,)
    model, batch = world(lengths)
    mean = -loss(model, batch)[1].numpy()  # about a word's reward
    variances = []
    for b in (0., mean):
        p, found = estimates(model, batch, lengths, b)
        variances.append((p @ (found - p @ found) ** 2).sum())
    assert variances[1] < .8 * variances[0]


def test_entropy_is_added_where_locations_are_drawn(forced):
    model, batch = world((2, 1))
    draws = tf.constant([0., 1., 2.], tf.float64)
    values = [loss(model, batch.replacing(draws=draws),
                   [Reinforce(0., weight, "float64")])[0].numpy()
              for weight in (0., .5)]
    alpha = tf.concat(model.teacher_forcing(batch.replacing(draws=draws))[2], 0).numpy()
    H = -(alpha * np.log(alpha)).sum()
    np.testing.assert_allclose(values[0] - values[1], .5 * H / 3, atol=1e-7)


def test_a_location_is_judged_by_its_word_and_those_after_it():
    values, k = np.float32([1, 2, 3, 10, 20, 100]), [3, 2, 1]
    assert to_come(tf.constant(values), k).numpy().tolist() == [111, 22, 3, 110, 20,
                                                                100]


def test_b_follows_log_p():
    reinforce = Reinforce(1., 0.)
    reinforce.follow(4.)
    assert reinforce.baseline.numpy() == -4
    reinforce.follow(2.)
    np.testing.assert_allclose(reinforce.baseline.numpy(), -3.8)


# --- batches --------------------------------------------------------------------------

def draws_of(captions, numbers, share):
    batch = tensors(captions.load(numbers))
    drawn, = with_draws([batch], share, (0, 1))
    return drawn.parcel.draws.numpy(), batch


def test_what_a_caption_draws_does_not_depend_on_its_batch(tmp_path):
    write_features(str(tmp_path), TRAIN)
    captions = caption_batches(TRAIN, str(tmp_path))
    together, batch = draws_of(captions, NUMBERS, .5)
    row = np.concatenate([np.flatnonzero(batch.lengths > t)
                          for t in range(batch.lengths[0])])
    assert len(together) == batch.lengths.sum()
    for i, number in enumerate(NUMBERS):
        alone, _ = draws_of(captions, np.array([number]), .5)
        assert (together[row == i] == alone).all()
        assert (alone >= 0).all() or (alone == -1).all()
    assert len({number for number in together if number >= 0}) > 4
    assert (draws_of(captions, NUMBERS, 1.)[0] == -1).all()
    assert (draws_of(captions, NUMBERS, 0.)[0] >= 0).all()


def test_processes_together_have_the_gradient_of_one_and_compiled_or_not(tmp_path):
    write_features(str(tmp_path), TRAIN)
    captions = caption_batches(TRAIN, str(tmp_path))
    same = np.flatnonzero(TRAIN.lengths == 4)
    numbers = same[:2]

    def gradients(numbers, shapes=()):
        draws, batch = draws_of(captions, numbers, 0.)
        reinforce = Reinforce(1., .1)
        reinforce.baseline.assign(-2.)
        trainer = Trainer(Captioner(SIZES), AdamOptimizer(.1), [reinforce])
        trainer.compile_for(dict.fromkeys(shapes, 1))
        found = trainer.reduced_gradients(batch.replacing(draws=draws), 8)
        assert bool(trainer.gradients.compiled) == bool(shapes)
        return found
    whole = gradients(numbers)
    halves = zip(gradients(numbers[:1]), gradients(numbers[1:]))
    for a, (b, c), d in zip(whole, halves, gradients(numbers, [(2, 4)])):
        np.testing.assert_allclose(a.numpy(), (b + c).numpy(), atol=1e-6)
        np.testing.assert_allclose(a.numpy(), d.numpy(), atol=1e-6)


# --- runs -----------------------------------------------------------------------------

def test_run_that_was_stopped_inside_an_epoch_is_the_run_that_was_not(runs,
                                                                      monkeypatch):
    flags = HARD + ("--learning-rate", ".02")
    assert_stopping_changes_nothing(runs, monkeypatch, *flags)
    baselines = []
    for run in ("whole", "parts"):
        with np.load(runs.file(run, "newest.npz")) as file:
            baselines.append(file["optimizer/baseline"])
    assert baselines[0] == baselines[1] < 0


def test_it_begins_from_a_soft_run_and_looks_at_one_location(runs):
    assert runs("a", 2)[0] == 0
    assert runs("b", 1, *HARD, "--start-from", "a")[0] == 0
    assert load_run("a").model.look is None
    run = load_run("b")
    assert run.model.look is likeliest
    assert [run.settings[key] for key in ("expected", "reinforce", "entropy")] == [
        .5, 1., .002]
    assert build({key: value for key, value in run.settings.items()
                  if key != "attention"}).look is None  # as earlier releases


def test_run_of_an_earlier_release_does_not_become_hard(runs):
    assert runs("a", 1)[0] == 0
    with open(runs.file("a", "settings.json")) as file:
        settings = json.load(file)
    for key in ("attention", "expected", "reinforce", "entropy"):
        del settings[key]
    with open(runs.file("a", "settings.json"), "w") as file:
        json.dump(settings, file)
    assert "attention" in refusal(runs("a", 2, *HARD))
    assert runs("a", 2)[0] == 0


@pytest.mark.parametrize("flags, line", [
    (("--expected", ".2"), "unrecognized arguments: --expected"),
    (HARD + ("--start-from", "a", "--self-critical"), "leave one of the two out")])
def test_flags_that_do_not_go_together_are_refused(runs, flags, line):
    assert line in refusal(runs("b", 1, *flags))
