"""CIDEr-D, BLEU-4 and METEOR's F-mean, against plain loops and the COCO tools."""
import collections
import itertools
import math

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider

from captioning.tokens import END, PAD, START, UNK, Vocabulary
from methods.rewards import Rewards

WORDS = ["a", "dog", "cat", "red", "on", "with", "grass", "runs", "the"]
VOCABULARY = Vocabulary(WORDS, [0] * (len(WORDS) + 4))
REFERENCES = [["a dog runs on the grass", "The red dog, on grass.", "a dog"],
              ["a cat with a cat", "a red cat with a zebra"],
              ["the zebra"],
              ["a dog runs on the red grass", "a a a a dog", "cat", "the zebra runs"]]
# For each image: good, repetitive, cut, long, one word, empty, and with words that no
# reference has
SAMPLES = [["a dog runs on the grass", "a a a dog dog", "red dog on grass", "cat",
            "a dog runs on the grass with a red cat on the grass with a cat runs", ""]
           ] * 4


def indices(text, ended=True):
    return VOCABULARY.encode(text.split()) + ([END] if ended else [])


def samples():
    """Captions as word indices, ended, cut, and with special tokens; their images."""
    found = [(indices(text), image) for image, group in enumerate(SAMPLES)
             for text in group]
    found += [(indices("a dog runs on", False), 0), (indices("a", False), 3),
              ([UNK, UNK, UNK, END], 2), ([UNK, END], 1), ([PAD, START, 5, END], 0)]
    return [words for words, _ in found], np.array([image for _, image in found])


# --- a plain loop ---------------------------------------------------------------------

def text_of(words, image):
    """Words as the loops compare them: a sampled UNK matches no reference."""
    return [f"{VOCABULARY.index_word[i]}!" if i in (PAD, START, UNK)
            else VOCABULARY.index_word[i] for i in words]


def reference_words(caption):
    return [word.strip(",.") for word in caption.lower().split()] + ["<end>"]


def grams(words, n):
    return collections.Counter(tuple(words[i:i + n]) for i in range(len(words) - n + 1))


def naive_cider_d(words, image):
    having = collections.Counter(
        gram for group in REFERENCES for gram in
        {gram for caption in group for n in (1, 2, 3, 4)
         for gram in grams(reference_words(caption), n)})

    def vector(words, n):
        return {gram: count * (math.log(len(REFERENCES))
                               - math.log(max(1, having[gram])))
                for gram, count in grams(words, n).items()}
    total = 0.
    for caption in REFERENCES[image]:
        other = reference_words(caption)
        for n in (1, 2, 3, 4):
            g, h = vector(words, n), vector(other, n)
            norms = math.sqrt(sum(x ** 2 for x in g.values())
                              * sum(x ** 2 for x in h.values()))
            dot = sum(min(g[gram], h.get(gram, 0)) * h.get(gram, 0) for gram in g)
            if norms:
                total += dot / norms * math.exp(-(len(words) - len(other)) ** 2 / 72)
    return 10 * total / 4 / len(REFERENCES[image])


def test_cider_d_is_that_of_a_plain_loop():
    captions, images = samples()
    found = Rewards(VOCABULARY, REFERENCES)(captions, images)
    expected = [naive_cider_d(text_of(words, i), i)
                for words, i in zip(captions, images)]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert max(expected) > 2 and min(expected) == 0


def test_cider_d_of_drawn_captions_is_that_of_a_plain_loop():
    random = np.random.RandomState(4)
    captions = [list(random.choice([3, 4, 5, 6, 7, 12], random.randint(0, 9))) + [END]
                for _ in range(300)]
    images = random.randint(4, size=300)
    expected = [naive_cider_d(text_of(words, i), i)
                for words, i in zip(captions, images)]
    np.testing.assert_allclose(Rewards(VOCABULARY, REFERENCES)(captions, images),
                               expected, rtol=1e-12, atol=1e-12)


# --- the COCO tools -------------------------------------------------------------------

def coco_tools(scorer, candidates):
    """A COCO tool's score of one caption per image; the end counts as a word."""
    true = {i: [" ".join(reference_words(caption)) for caption in group]
            for i, group in enumerate(REFERENCES)}
    made = {i: [" ".join(text_of(words, i))] for i, words in enumerate(candidates)}
    return scorer.compute_score(true, made)[1]


@pytest.mark.parametrize("column", range(6))
def test_cider_d_is_that_of_the_coco_tools(column):
    candidates = [indices(group[column]) for group in SAMPLES]
    found = Rewards(VOCABULARY, REFERENCES)(candidates, np.arange(4))
    np.testing.assert_allclose(found, coco_tools(Cider(), candidates), rtol=1e-9,
                               atol=1e-12)


@pytest.mark.parametrize("column", range(6))
def test_bleu_4_is_that_of_the_coco_tools(column, capsys):
    candidates = [indices(group[column]) for group in SAMPLES]
    cider = Rewards(VOCABULARY, REFERENCES)(candidates, np.arange(4))
    both = Rewards(VOCABULARY, REFERENCES, bleu=2.)(candidates, np.arange(4))
    expected = coco_tools(Bleu(4), candidates)[3]
    np.testing.assert_allclose((both - cider) / 2, expected, rtol=1e-6, atol=1e-9)


# --- METEOR's F-mean ------------------------------------------------------------------

def naive_f_mean(words, image, references=None):
    function, best = {"a", "on", "with", "the"}, 0.

    def weight(word):
        return .25 if word in function else .75
    made = collections.Counter(word for word in words if word not in
                               ("<end>", "<pad>!", "<start>!"))
    for caption in references or REFERENCES[image]:
        true = collections.Counter(reference_words(caption)[:-1])
        size, total, both = (sum(weight(word) * count for word, count in bag.items())
                             for bag in (made, true, made & true))
        if both:
            precision, recall = both / size, both / total
            best = max(best, precision * recall / (.85 * precision + .15 * recall))
    return best


def f_means(captions, images, references=REFERENCES):
    plain, more = (Rewards(VOCABULARY, references, meteor=weight)(captions, images)
                   for weight in (0., 2.))
    return (more - plain) / 2


def test_f_mean_is_that_of_a_plain_loop():
    captions, images = samples()
    random = np.random.RandomState(5)
    captions += [list(random.choice([3, 4, 5, 6, 7, 8, 9, 12], random.randint(0, 9)))
                 + [END] for _ in range(300)]
    images = np.concatenate([images, random.randint(4, size=300)])
    expected = [naive_f_mean(text_of(words, i), i)
                for words, i in zip(captions, images)]
    np.testing.assert_allclose(f_means(captions, images), expected, rtol=1e-9,
                               atol=1e-12)
    assert max(expected) == 1 and min(expected) == 0 and len(set(expected)) > 50


def test_expectation_over_images_is_that_of_a_plain_loop():
    captions, images = samples()
    random = np.random.RandomState(6)
    several = np.stack([images, (images + 1) % 4, random.randint(4, size=len(images))],
                       axis=1)
    shares = random.dirichlet([1, 1, 1], len(images))
    found = Rewards(VOCABULARY, REFERENCES, bleu=1., meteor=2.).expected(
        captions, several, shares)
    expected = []
    for words, own, share in zip(captions, several, shares):
        total = 0.
        for image, part in zip(own, share):
            words_there = text_of(words, image)
            each = [naive_f_mean(words_there, image, [caption])
                    for caption in REFERENCES[image]]
            total += part * (naive_cider_d(words_there, image) + 2 * np.mean(each))
        expected.append(total)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert max(expected) > 1 and min(expected) == 0


@pytest.mark.parametrize("word", ["is", "are", "a", "of", "there", "which", "her",
                                  "behind", "not"])
def test_words_without_content_count_a_third_in_the_f_mean(word):
    words = Vocabulary([word, "dog"], [0] * 6)
    plain, more = (Rewards(words, [[f"{word} dog"], ["dog"]], meteor=weight)(
        [[4, END]], [0])[0] for weight in (0., 1.))
    assert more - plain == pytest.approx(.25 / (.85 * 1 + .15 * .25))


def test_f_mean_pays_for_what_a_reference_says_more():
    """By hand: of "a dog runs on grass", worth 2.75 in total, 2 match, or 1."""
    found = f_means([indices("dog runs on a"), indices("a dog")], [0, 0],
                    [["a dog runs on grass"]])
    np.testing.assert_allclose(found, [2 / (.85 * 2.75 + .15 * 2),
                                       1 / (.85 * 2.75 + .15 * 1)])


# --- what it is for -------------------------------------------------------------------

def test_end_where_no_reference_ends_costs_and_where_one_ends_it_pays():
    reward = Rewards(VOCABULARY, REFERENCES)
    for text, pays in (("a dog", True), ("a dog runs on the grass", True),
                       ("a dog runs on the", False), ("a dog runs on", False)):
        ended, cut = reward([indices(text), indices(text, ended=False)], [0, 0])
        assert (ended > cut) == pays, text


def test_unk_earns_nothing_even_where_a_reference_has_a_word_out_of_the_vocabulary():
    assert "zebra" in REFERENCES[2][0] and "zebra" not in WORDS
    reward = Rewards(VOCABULARY, REFERENCES)
    unknown, known = reward([[UNK], indices("the", ended=False)], [2, 2])
    assert unknown == 0 < known


def test_rewards_do_not_depend_on_what_is_scored_beside_them():
    captions, images = samples()
    reward = Rewards(VOCABULARY, REFERENCES, bleu=1., meteor=1.)
    together = reward(captions, images)
    alone = [reward([words], [i])[0] for words, i in zip(captions, images)]
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    np.testing.assert_array_equal(together, reward(captions, images))


def test_image_without_references_counts_for_nothing():
    plain = Rewards(VOCABULARY, REFERENCES)
    more = Rewards(VOCABULARY, REFERENCES[:2] + [[]] + REFERENCES[2:])
    captions, images = samples()
    np.testing.assert_allclose(more(captions, images + (images > 1)),
                               plain(captions, images))


def test_other_references_give_other_weights():
    """A stale image count from other data would go unnoticed."""
    one, other = (Rewards(VOCABULARY, references)([indices("a dog")], [0])[0]
                  for references in (REFERENCES, REFERENCES + [["a dog"]] * 3))
    assert other < one


def test_every_word_of_a_long_list_of_captions_is_told_from_the_others():
    """The numbers of n-grams must not collide."""
    many = [" ".join(words) for words in itertools.product(WORDS, repeat=4)]
    reward = Rewards(VOCABULARY, [[caption] for caption in many])
    found = reward([indices(caption) for caption in many], np.arange(len(many)))
    np.testing.assert_allclose(found, 10)
    assert (reward([indices(caption) for caption in many],
                   (np.arange(len(many)) + 1) % len(many)) < 9).all()
