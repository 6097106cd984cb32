"""What a word loses with alpha permuted over the cells, or even."""
import numpy as np
import pytest

from analysis.permutation import (PERMUTATIONS, random_for, replace_alpha,
                                  summarize_replaced)
from captioning.tokens import START
from methods.ensemble import Ensemble
from model import Captioner, likeliest
from test_model import SIDE, SIZES, model_of, sigmoid

WORDS = np.array([7, 4, 9, 4, 2], np.int32)
PERMUTED, EVEN = 0, 1
FALL, DISTANCE = 0, 1


def features_of(dtype="float64"):
    return np.random.RandomState(2).normal(0, 2, (SIDE, SIZES.features)).astype(dtype)


def naive(model, features, image, seed):
    """The same by loops over words, weights and cells: (T, 2, 2)."""
    w = {name: weight.numpy() for name, weight in model.weights.items()}
    n, random, found, before = SIZES.hidden, random_for(image, seed), [], START
    a = np.maximum(0, features.dot(w["W_v"]) + w["b_v"])
    state = np.zeros(n)
    if model.initial_state == "mean":
        state = np.tanh(a.mean(0).dot(w["W_h0"]) + w["b_h0"])

    def step(weights):
        z = sum(weight * a_i for weight, a_i in zip(weights, a))
        if model.gate:
            z = z * sigmoid(state.dot(w["W_beta"]) + w["b_beta"])
        h = state if model.recurrent else np.zeros(n)
        x, s = Ey.dot(w["W_E"]) + z.dot(w["W_z"]) + w["b_g"], h.dot(w["U"])
        r, u = sigmoid(x[:n] + s[:n]), sigmoid(x[n:2 * n] + s[n:2 * n])
        h = u * h + (1 - u) * np.tanh(x[2 * n:] + r * s[2 * n:])
        o = np.exp((Ey + h.dot(w["L_h"]) + z.dot(w["L_z"])).dot(w["L_o"]) + w["b_o"])
        return h, o / o.sum()
    for word in WORDS:
        Ey = w["E"][before]
        query = state.dot(w["W_2"]) + (Ey.dot(w["W_y"]) if model.word_query else 0)
        e = np.array([w["V"][:, 0].dot(np.tanh(a_i.dot(w["W_1"]) + w["b_1"] + query))
                      for a_i in a])
        own = np.exp(e) / np.exp(e).sum()
        if model.look:
            own = (np.arange(SIDE) == own.argmax()).astype(float)
        after, p = step(own)
        others = []
        for _ in range(PERMUTATIONS):
            order = random.permutation(SIDE)
            others.append(step([own[cell] for cell in order])[1])
        even = step([1 / SIDE] * SIDE)[1]
        found.append((
            (np.mean([np.log(p[word] / q[word]) for q in others]),
             np.median([np.abs(p - q).sum() / 2 for q in others])),
            (np.log(p[word] / even[word]), np.abs(p - even).sum() / 2)))
        state, before = after, word  # what was replaced leaves no trace
    return np.array(found)


@pytest.mark.parametrize("options", [
    {}, {"gate": False}, {"initial_state": "zeros"}, {"recurrent": False},
    {"word_query": True}, {"look": likeliest}])
def test_falls_and_distances_are_those_of_naive_loops(options):
    model, features = model_of(**options), features_of()
    found = replace_alpha(model, features, WORDS, random_for("val/1.jpg", 3))
    assert found.shape == (len(WORDS), 2, 2)
    np.testing.assert_allclose(found, naive(model, features, "val/1.jpg", 3),
                               atol=1e-10)
    assert np.abs(found).min() > 1e-4


@pytest.mark.parametrize("dtype, tolerance", [
    ("float64", 0), ("float32", 1e-6)])  # some rows round differently in float32
def test_alpha_that_is_even_already_loses_nothing(dtype, tolerance):
    model = model_of(dtype)
    model.V.assign(np.zeros((SIZES.attention, 1), dtype))
    found = replace_alpha(model, features_of(dtype), WORDS, random_for("1.jpg", 0))
    assert np.abs(found).max() <= tolerance


def test_word_that_attention_decides_loses_it():
    """One cell shows word 7, and has all of alpha."""
    model, cell, features = Captioner(SIZES, gate=False), 5, np.zeros((SIDE, 7), "f4")
    for weight in model.weights.values():
        weight.assign(np.zeros(weight.shape.as_list(), "f4"))
    for name, at, value in (("W_v", (0, 0), 1), ("W_1", (0, 0), 9), ("V", (0, 0), 30),
                            ("L_z", (0, 0), 1), ("L_o", (0, 7), 10)):
        array = np.zeros(model.weights[name].shape.as_list(), "f4")
        array[at] = value
        model.weights[name].assign(array)
    features[cell, 0] = 1
    found, = replace_alpha(model, features, np.array([7]), random_for("1.jpg", 0))
    random = random_for("1.jpg", 0)
    stays = np.array([random.permutation(SIDE)[cell] == cell
                      for _ in range(PERMUTATIONS)])
    assert 0 < stays.mean() < .5 or not stays.any()

    def p_of(logit):
        return np.exp(logit) / (np.exp(logit) + SIZES.vocabulary - 1)
    np.testing.assert_allclose(found[EVEN], (np.log(p_of(10) / p_of(10 / SIDE)),
                                             p_of(10) - p_of(10 / SIDE)), rtol=1e-5)
    np.testing.assert_allclose(
        found[PERMUTED], ((1 - stays.mean()) * np.log(p_of(10) / p_of(0)),
                          p_of(10) - p_of(0)), rtol=1e-5)
    assert found.min() > .7 and found[:, FALL].min() > 1.5


def test_permutations_depend_on_seed_and_image_alone():
    model, features = model_of(), features_of()

    def found(image, seed, words=WORDS):
        return replace_alpha(model, features, words, random_for(image, seed))
    one = found("val/1.jpg", 0)
    assert (one == found("elsewhere/1.jpg", 0)).all()
    assert (one[:3] == found("val/1.jpg", 0, WORDS[:3])).all()
    for other in (found("val/1.jpg", 1), found("val/2.jpg", 0)):
        assert (one[:, PERMUTED] != other[:, PERMUTED]).all()
        assert (one[:, EVEN] == other[:, EVEN]).all()


def test_models_of_an_ensemble_look_each_in_its_own_way():
    soft, hard = model_of("float32"), model_of("float32", look=likeliest)
    features = features_of("float32")

    def found(model):
        return replace_alpha(model, features, WORDS, random_for("1.jpg", 0))
    assert np.abs(found(soft) - found(hard)).max() > .1
    for model in (soft, hard):
        np.testing.assert_allclose(found(Ensemble([model, model])), found(model),
                                   atol=1e-5)
    # Of the first word p is the mean of theirs, and the same for both with even weights
    falls = [found(model)[0, EVEN, FALL] for model in (soft, hard)]
    assert abs(falls[0] - falls[1]) > .01
    assert found(Ensemble([soft, hard]))[0, EVEN, FALL] == pytest.approx(
        np.log(np.exp(falls).mean()), abs=1e-5)


def test_figures_are_means_over_words_with_intervals_over_images():
    replaced = [np.arange(8.).reshape(2, 2, 2), np.arange(12., 16).reshape(1, 2, 2)]
    found = summarize_replaced(replaced, 0)
    assert found["permuted"]["fall"] == [round((0 + 4 + 12) / 3, 4), 2, 12]
    assert found["even"]["distance"] == [round((3 + 7 + 15) / 3, 4), 5, 15]
