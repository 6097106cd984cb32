"""The consensus of a beam, against a plain loop and by hand."""
import math

import numpy as np
import pytest

from methods import consensus
from methods.consensus import by_consensus, by_neighbours
from captioning.decode import Caption
from methods.rewards import Rewards
from test_rewards import (REFERENCES, VOCABULARY, grams, indices, reference_words,
                          text_of)


def caption(text, log_prob, ended=True):
    """A Caption of these words, with their total log probability."""
    words = indices(text, ended)
    return Caption(words, np.full(len(words), log_prob / len(words), np.float32),
                   np.zeros((len(words), 4), np.float32), None)


BEAMS = [[caption("the cat", -1), caption("a dog runs on the grass", -1.1),
          caption("a dog runs on grass", -1.2), caption("a red dog on the grass", -2)],
         [caption("a cat", -.1), caption("a cat runs", -3, ended=False)],
         [caption("red red grass the", -1), caption("a red red grass", -1.5),
          caption("the red red grass", -1.4), caption("", -2)]]


def likeness(one, other):
    """CIDEr-D of one caption against another, with n-gram weights from references."""
    def images_that_have(gram, n):
        return sum(any(gram in grams(reference_words(caption), n) for caption in group)
                   for group in REFERENCES)

    def vector(words, n):
        return {gram: times * math.log(len(REFERENCES)
                                       / max(1, images_that_have(gram, n)))
                for gram, times in grams(words, n).items()}
    total, (a, b) = 0., (text_of(c.words, 0) for c in (one, other))
    for n in (1, 2, 3, 4):
        g, h = vector(a, n), vector(b, n)
        norms = math.sqrt(sum(x ** 2 for x in g.values())
                          * sum(x ** 2 for x in h.values()))
        if norms:
            total += sum(min(x, h.get(k, 0)) * h.get(k, 0)
                         for k, x in g.items()) / norms
    return total / 4 * 10 * math.exp(-(len(a) - len(b)) ** 2 / 72)


def f_mean(one, other):
    a, b = (sorted(text_of(caption.words, 0)) for caption in (one, other))
    a, b = ({word: a_or_b.count(word) * (.25 if word in ("a", "on", "with", "the") else
                                         .75) for word in a_or_b if word != "<end>"}
            for a_or_b in (a, b))
    both = sum(min(a[word], b[word]) for word in a if word in b)
    return both and both / (.85 * sum(b.values()) + .15 * sum(a.values()))


@pytest.mark.parametrize("power", [0., 1.])
@pytest.mark.parametrize("meteor", [0., 3.])
def test_likeness_is_that_of_a_plain_loop(power, meteor):
    rewards = Rewards(VOCABULARY, REFERENCES, bleu=1., meteor=meteor)
    for beam in BEAMS:
        q = np.exp([c.log_probs.sum() / len(c.words) ** power for c in beam])
        q /= q.sum()
        expected = [sum(q_j * (likeness(one, other) + meteor * f_mean(one, other))
                        for q_j, other in zip(q, beam)) for one in beam]
        found = rewards.among([c.words for c in beam], np.array([len(beam)]), q)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
        order = [beam[i] for i in np.argsort(-np.array(expected), kind="mergesort")]
        [again] = by_consensus([beam], rewards, power)
        assert [c.words for c in again] == [c.words for c in order]


def test_caption_that_others_resemble_comes_before_a_more_probable_one():
    [beam] = by_consensus(BEAMS[:1], Rewards(VOCABULARY, REFERENCES))
    assert [VOCABULARY.decode(c.words) for c in beam] == [
        "a dog runs on the grass", "a dog runs on grass", "a red dog on the grass",
        "the cat"]
    assert beam[0] is BEAMS[0][1]  # with its own attention and probabilities


def test_caption_that_has_nearly_all_probability_stays_first():
    beam = [BEAMS[0][0]] + [c._replace(log_probs=c.log_probs - 9) for c in BEAMS[0][1:]]
    [again] = by_consensus([beam], Rewards(VOCABULARY, REFERENCES))
    assert again[0] is beam[0]


def test_caption_that_people_gave_similar_images_comes_first():
    rewards = Rewards(VOCABULARY, REFERENCES, meteor=3.)
    dogs, cats = np.array([[0, 3]]), np.array([[1, 2]])
    [beam] = by_neighbours(BEAMS[:1], rewards, dogs, np.array([[.7, .3]]))
    assert VOCABULARY.decode(beam[0].words) == "a dog runs on the grass"
    assert beam[0] is BEAMS[0][1]  # with its own attention and probabilities
    beams = [[caption("a dog runs", -1), caption("a cat with a cat", -3)]] * 2
    images, shares = np.concatenate([cats, dogs]), np.array([[.9, .1], [.5, .5]])
    found = by_neighbours(beams, rewards, images, shares)
    assert [VOCABULARY.decode(beam[0].words) for beam in found] == [
        "a cat with a cat", "a dog runs"]


@pytest.mark.parametrize("power", [0., 1.])
def test_what_the_model_thinks_counts_half_beside_the_neighbours(power):
    rewards, [beam] = Rewards(VOCABULARY, REFERENCES), BEAMS[:1]
    images, shares = np.array([[3, 1]]), np.array([[.6, .4]])
    [found] = by_neighbours([beam], rewards, images, shares, power)
    value = {id(c): .6 * rewards([c.words], [3])[0] + .4 * rewards([c.words], [1])[0]
             + c.log_probs.sum() / len(c.words) ** power / 2 for c in beam}
    assert [value[id(c)] for c in found] == sorted(value.values(), reverse=True)


@pytest.mark.parametrize("reorder", [
    by_consensus,
    lambda beams, rewards: by_neighbours(beams, rewards, np.array(
        [[0, 1], [1, 2], [3, 0]]), np.array([[.5, .5], [.9, .1], [.2, .8]]))])
def test_images_do_not_depend_on_each_other(reorder, monkeypatch):
    rewards = Rewards(VOCABULARY, REFERENCES)
    together = reorder(BEAMS, rewards)
    assert [sorted(map(id, beam)) for beam in together] == [
        sorted(map(id, beam)) for beam in BEAMS]
    monkeypatch.setattr(consensus, "PIECE", 1)
    for one, other in zip(together, reorder(BEAMS, rewards)):
        assert list(map(id, one)) == list(map(id, other))


def test_rewards_are_the_same_afterwards():
    rewards = Rewards(VOCABULARY, REFERENCES)
    before = rewards([indices("a dog runs on grass")], [0])
    by_consensus(BEAMS, rewards)
    np.testing.assert_array_equal(rewards([indices("a dog runs on grass")], [0]),
                                  before)
