"""Several captions of one image, and several models for one caption."""
import json
import os
import shutil

import numpy as np
import pytest

from captioning.decode import Decoder, draw
from captioning.diversity import distinct, diversity
from methods.ensemble import Ensemble
from captioning.tokens import END, PAD, START, UNK, Vocabulary, write_vocabulary
from runtime.tf import tf
from test_decode import (SIZES, Walker, beam_search, both_ways, features_of,
                         model_of, words_of)
from worlds import COMMANDS, refused

MODELS = [dict(), dict(sizes=SIZES._replace(hidden=6, annotation=3, attention=8),
                       seed=4), dict(seed=9, gate=False, initial_state="zeros")]


# --- ensembles ------------------------------------------------------------------------

@pytest.fixture(scope="module")
def models():
    return [model_of(**options) for options in MODELS]


def mean_p(walkers, states, word):
    """Each model's next state, the mean probabilities, and the mean attention."""
    states, log_p, alphas = zip(*(walker.step(h, word)
                                  for walker, h in zip(walkers, states)))
    return states, np.mean(np.exp(log_p), axis=0), np.mean(alphas, axis=0)


@pytest.mark.parametrize("width", [1, 3])
def test_ensemble_writes_with_the_mean_of_the_probabilities(width, models):
    features = features_of()
    found = both_ways(Ensemble(models), features, width, 8)
    for image, beam in enumerate(found):
        walkers = [Walker(model, features[image]) for model in models]
        assert len(beam) == width
        for caption in beam:
            states, before = [walker.start() for walker in walkers], START
            for t, word in enumerate(caption.words):
                states, p, alpha = mean_p(walkers, states, before)
                assert caption.log_probs[t] == pytest.approx(np.log(p[word]), abs=1e-4)
                np.testing.assert_allclose(caption.alphas[t], alpha, atol=1e-5)
                p[[PAD, START, UNK]] = 0
                if width == 1:
                    assert word == p.argmax()
                before = word


def test_gate_of_an_ensemble_is_the_mean_of_those_that_have_one(models):
    features, words = tf.constant(features_of()), np.full(8, 5, np.int32)
    betas = []
    for model in models:
        context = model.encode(features)
        h, (_, gates) = model.h_0(context.a), model.embed(words)
        betas.append(model.step(context, h, gates)[3])
    together = Ensemble(models)
    context = together.encode(features)
    Ey, gates = together.embed(words)
    beta = together.step(context, together.h_0(context.a), gates)[3]
    first, second, none = betas
    assert none is None and abs(first - second).numpy().max() > .1
    np.testing.assert_allclose(beta.numpy(), (first + second).numpy() / 2, rtol=1e-5)


def test_ensemble_of_one_model_twice_is_that_model(models):
    one, twice = (beam_search(model, features_of(), 3, 8)
                  for model in (models[0], Ensemble([models[0]] * 2)))
    for beam, other in zip(one, twice):
        assert [c.words for c in beam] == [c.words for c in other]
        for caption, same in zip(beam, other):
            np.testing.assert_allclose(caption.betas, same.betas, atol=1e-6)


def test_ensemble_is_sampled_too(models):
    uniforms = np.random.RandomState(0).uniform(size=(8, 2, 6))
    decoder = Decoder(Ensemble(models))
    drawn, again = (words_of(decoder.sample(features_of(), uniforms, batches=batches))
                    for batches in (1, 2))
    assert drawn == again
    assert len({tuple(words) for group in drawn for words in group}) > 4


# --- samples --------------------------------------------------------------------------

def test_words_are_drawn_by_their_probability_and_rare_ones_left_out():
    p = np.array([[.1, .4, .2, .3]])
    grid = (np.arange(1000) + .5) / 1000
    for top_p, expected in ((1., [100, 400, 200, 300]), (.95, [100, 400, 200, 300]),
                            (.85, [0, 444, 222, 333]), (.5, [0, 571, 0, 429]),
                            (.35, [0, 1000, 0, 0]), (1e-9, [0, 1000, 0, 0])):
        found = np.bincount(draw(
            np.repeat(p, 1000, axis=0), grid, top_p).numpy(), minlength=4)
        assert abs(found - expected).max() <= 1, top_p


def test_largest_number_draws_no_word_that_is_not_there():
    p = np.array([[.5, .5, 0.], [0., 0., 1.]])
    for top_p in (1., .6):
        assert draw(p, np.array([np.nextafter(1, 0), 0.]), top_p).numpy().tolist() == [
            1, 2]


def test_cold_samples_are_the_greedy_captions_and_hot_ones_differ():
    model, features = model_of(), features_of()
    uniforms = np.random.RandomState(0).uniform(size=(8, 6, 7))
    barred = (PAD, START, UNK)
    greedy = [beam[0].words for beam in beam_search(model, features, 1, 7)]
    cold, plain, hot = (words_of(Decoder(model).sample(
        features, uniforms, temperature, forbidden=barred))
        for temperature in (1e-3, 1., 5.))
    assert cold == [[words] * 6 for words in greedy]
    kinds = [len({tuple(words) for group in found for words in group})
             for found in (cold, plain, hot)]
    assert kinds[0] < kinds[1] < kinds[2]


@pytest.mark.parametrize("top_p", [1., .8])
def test_compiled_samples_are_those_that_are_not(top_p):
    uniforms = np.random.RandomState(1).uniform(size=(8, 5, 9))
    decoder = Decoder(model_of(gate=False))
    found, again = (decoder.sample(features_of(), uniforms, 2., top_p, batches=batches)
                    for batches in (1, 2))
    assert words_of(found) == words_of(again)
    for group, others in zip(found, again):
        for caption, other in zip(group, others):
            assert caption.betas is other.betas is None
            np.testing.assert_allclose(caption.log_probs, other.log_probs, atol=1e-5)


def test_words_that_are_forbidden_are_never_drawn():
    uniforms = np.random.RandomState(0).uniform(size=(8, 20, 7))
    barred = (PAD, START, UNK, END, 5)
    drawn = Decoder(model_of()).sample(features_of(), uniforms, 9., forbidden=barred)
    words = {word for group in drawn for c in group for word in c.words}
    assert not words & set(barred) and len(words) == SIZES.vocabulary - 5


# --- how different they are -----------------------------------------------------------

def test_diversity_by_hand():
    assert distinct([[["a", "dog"], ["a", "cat"]], [["a"], ["a"]]], 1) == (.75 + .5) / 2
    assert distinct([[["a", "dog"], ["a", "dog"]], [["a"], ["a"]]], 2) == 1 / 8
    references = {"1": ["a red dog runs", "the dog"], "2": ["a blue cat sits there"],
                  "3": ["one two three four"]}
    samples = {"1": ["a red dog runs", "a cat"], "2": ["a blue cat sits there"] * 2,
               "3": ["two", "four"]}
    found, _ = diversity(samples, references, {"a cat"})
    assert found["distinct captions of an image, %"] == pytest.approx(250 / 3)
    assert found["distinct captions in all, %"] == pytest.approx(500 / 6)
    assert found["captions never seen in training, %"] == pytest.approx(500 / 6)
    assert found["CIDEr of the best caption"] > found["CIDEr of all captions"] > 0
    best, _ = diversity({i: [group[0]] for i, group in samples.items()}, references)
    for name in ("CIDEr of the best caption", "CIDEr of all captions"):
        assert best[name] == pytest.approx(found["CIDEr of the best caption"])


# --- the command ----------------------------------------------------------------------

def test_command_draws_captions_and_tells_how_different_they_are(world, capsys):
    found = []
    for seed in ("1", "1", "2"):
        assert world("evaluate.py", "--run", "a", "--sample", "3:" + seed,
                     "--temperature", "2", "--top-p", ".9", "--max-steps", "6") == 0
        with open("checkpoints/a/samples_val.json") as file:
            found.append(json.load(file))
    out = capsys.readouterr().out
    assert "3 captions of each of 4 images of val" in out
    first, again, other = found
    assert first == again and first["captions"] != other["captions"]
    assert len(first["captions"]) == 4
    assert all(len(group) == 3 for group in first["captions"].values())
    assert f"{other['diversity']['CIDEr of the best caption']:.2f}" in out
    assert first["temperature"] == 2 and first["top_p"] == .9


def test_samples_of_an_image_do_not_depend_on_the_other_images(world):
    flags = ("evaluate.py", "--run", "a", "--sample", "2", "--max-steps", "5")
    found = []
    for batch_size in ("1", "3"):
        assert world(*flags, "--batch-size", batch_size) == 0
        with open("checkpoints/a/samples_val.json") as file:
            found.append(json.load(file)["captions"])
    os.remove("data/features/val/" + sorted(os.listdir("data/features/val"))[0])
    assert world(*flags) == 0
    with open("checkpoints/a/samples_val.json") as file:
        fewer = json.load(file)["captions"]
    assert found[0] == found[1] and len(fewer) == 3
    assert all(found[0][i] == captions for i, captions in fewer.items())


def test_command_scores_an_ensemble_under_a_name_of_its_own(world, capsys):
    assert world("evaluate.py", "--run", "a") == 0
    before = world.files()
    shutil.copytree("checkpoints/a", "checkpoints/b")
    assert world("evaluate.py", "--ensemble", "a", "b", "--compare", "a") == 0
    out = capsys.readouterr().out
    assert "--run a --split val_with_b" in out and "a with b minus a on" in out
    after = world.files()
    assert all(after[path] == digest for path, digest in before.items())
    for path in ("attention_{}.npz", "scores_{}.json", "captions_{}_a_results.json"):
        assert os.path.exists("checkpoints/a/" + path.format("val_with_b"))
    texts = []
    for name in ("val", "val_with_b"):  # one model twice
        with open(f"checkpoints/a/captions_{name}_a_results.json") as file:
            texts.append(json.load(file))
    assert texts[0] == texts[1]
    assert world("plot_attention.py", "--run", "a", "--split", "val_with_b",
                 "--count", "1") == 0


def other_words():
    shutil.copytree("checkpoints/a", "checkpoints/b")
    with np.load("checkpoints/b/best.npz") as file:
        words = len(file["b_o"]) - 4
    write_vocabulary("checkpoints/b", Vocabulary([f"w{i}" for i in range(words)],
                                                 [0] * (words + 4)))


@pytest.mark.parametrize("flags, spoil, words", [
    (("--ensemble", "a", "nobody"), None, "nobody/settings.json: no such run"),
    (("--ensemble", "a", "b"), other_words, "has another vocabulary than")])
def test_runs_that_cannot_write_together_are_refused(flags, spoil, words, world, capsys,
                                                     monkeypatch):
    monkeypatch.setitem(COMMANDS, "evaluate.py", ())  # without --run
    if spoil:
        spoil()
    assert words in refused(world, capsys, "evaluate.py", *flags)


@pytest.mark.parametrize("flags, words", [
    (("--sample", "0"), "at least 1"), (("--top-p", "0"), "above 0"),
    (("--temperature", "0"), "above 0"),
    (("--sample", "2", "--beam", "3"), "--beam: has no effect with --sample"),
    (("--compare", "b", "--sample", "2"), "--compare: has no effect with --sample")])
def test_what_cannot_be_is_refused(flags, words, world, capsys):
    assert words in refused(world, capsys, "evaluate.py", *flags)
