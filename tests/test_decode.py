"""Greedy decoding and beam search against loops, brute force and a table by hand."""
import functools
import itertools

import numpy as np
import pytest

from captioning.decode import Decoder, decode_files
from captioning.tokens import END, PAD, START, UNK
from model import Batch, Captioner, Context, Parcel, Sizes
from runtime.tf import COMPILED_LOOPS_FAIL, tf


SIZES = Sizes(vocabulary=13, features=7, annotation=5, embedding=6, hidden=4,
              attention=3)
TOY = SIZES._replace(vocabulary=7)  # three words, the end token, three barred ones
SIDE, IMAGES = 9, 8


def model_of(sizes=SIZES, seed=20, end=3., **options):
    """A Captioner with large random weights; `end` shifts the end token's logit."""
    model = Captioner(sizes, seed=3, **options)
    random = np.random.RandomState(seed)
    for weight in model.weights.values():
        weight.assign(random.normal(0, 1, weight.shape.as_list()).astype(np.float32))
    bias = model.b_o.numpy().copy()
    bias[END] = end
    model.b_o.assign(bias)
    return model


def features_of(images=IMAGES, dtype=np.float32):
    random = np.random.RandomState(5)
    return random.normal(0, 2, (images, SIDE, SIZES.features)).astype(dtype)


def log_softmax(x):
    x = x.astype(np.float64)
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def words_of(found):
    return [[caption.words for caption in beam] for beam in found]


def beam_search(model, *arguments):
    return Decoder(model).search(*arguments)


def both_ways(model, features, *arguments, **more):
    """What a Decoder returns, compiled and not."""
    decoder = Decoder(model)
    first, again = (decoder.search(features, *arguments, batches=batches, **more)
                    for batches in (1, 2))
    assert words_of(first) == words_of(again)
    for beam, other in zip(first, again):
        for caption, same in zip(beam, other):
            np.testing.assert_allclose(caption.log_probs, same.log_probs, atol=1e-5)
            np.testing.assert_allclose(caption.alphas, same.alphas, atol=1e-5)
    return again


class Walker:
    """The model for one image, one hypothesis at a time: word -> log probabilities."""

    def __init__(self, model, features):
        self.model = model
        self.context = model.encode(tf.constant(features[None]))

    def start(self):
        return self.model.h_0(self.context.a)

    def step(self, h, word):
        Ey, gates = self.model.embed(np.array([word], np.int32))
        h, z, alpha, beta = self.model.step(self.context, h, gates)
        log_p = log_softmax(self.model.deep_output(Ey, h, z).numpy()[0])
        return h, log_p, alpha.numpy()[0]


def naive_greedy(model, features, max_steps):
    """Decode one image by a loop that always takes the likeliest word."""
    walker, word, words = Walker(model, features), START, []
    h = walker.start()
    while word != END and len(words) < max_steps:
        h, log_p, _ = walker.step(h, word)
        log_p[[PAD, START, UNK]] = -np.inf
        word = int(log_p.argmax())
        words.append(word)
    return words


def naive_beam(model, features, width, max_steps):
    """Beam search over lists of hypotheses: [(log probability, words)], best first."""
    walker = Walker(model, features)
    live, ended = [(0., [START], walker.start())], []
    for _ in range(max_steps):
        longer = []
        for total, words, h in live:
            new_h, log_p, _ = walker.step(h, words[-1])
            longer += [(total + log_p[k], words + [k], new_h)
                       for k in range(model.sizes.vocabulary)
                       if k not in (PAD, START, UNK)]
        longer.sort(key=lambda item: -item[0])
        ended += [item[:2] for item in longer[:width] if item[1][-1] == END]
        live = [item for item in longer if item[1][-1] != END][:width]
        if len(ended) >= width or not live:
            break
    ended = sorted(ended, key=lambda item: -item[0])
    cut = [item[:2] for item in live]
    return [(total, words[1:]) for total, words in (ended + cut)[:width]]


def every_sentence(model, features, max_steps):
    """Every possible sentence: [(log probability, words)], in no order."""
    walker, found = Walker(model, features), []
    words = [k for k in range(model.sizes.vocabulary) if k > UNK]
    for length in range(max_steps + 1):
        for sentence in itertools.product(words, repeat=length):
            sentence = list(sentence) + [END] * (length < max_steps)
            h, before, total = walker.start(), START, 0.
            for word in sentence:
                h, log_p, _ = walker.step(h, before)
                total, before = total + log_p[word], word
            found.append((total, sentence))
    return found


# --- greedy ---------------------------------------------------------------------------

@pytest.mark.parametrize("options", [{}, {"gate": False}, {"initial_state": "zeros"}])
def test_width_one_is_greedy_for_a_batch_and_for_one_image_at_a_time(options):
    model, features = model_of(**options), features_of()
    expected = [naive_greedy(model, f, 12) for f in features]
    assert len({len(words) for words in expected}) > 1  # they end at different steps
    assert len(set(map(tuple, expected))) > 3
    together = both_ways(model, features, 1, 12)
    alone = [beam_search(model, f[None], 1, 12)[0] for f in features]
    assert [[c.words for c in found] for found in together] == [[w] for w in expected]
    assert [[c.words for c in found] for found in alone] == [[w] for w in expected]
    for (a,), (b,) in zip(together, alone):
        np.testing.assert_allclose(a.log_probs, b.log_probs, atol=1e-5)
        np.testing.assert_allclose(a.alphas, b.alphas, atol=1e-5)


def test_order_of_the_images_does_not_matter():
    model, features = model_of(), features_of()
    forward = [c[0].words for c in beam_search(model, features, 2, 8)]
    backward = [c[0].words for c in beam_search(model, features[::-1].copy(), 2, 8)]
    assert forward == backward[::-1] != backward


def test_float16_features_are_decoded():
    model, features = model_of(), features_of(dtype=np.float16)
    assert [c[0].words for c in beam_search(model, features, 1, 8)] == [
        naive_greedy(model, f, 8) for f in features]


# --- beam -----------------------------------------------------------------------------

@pytest.mark.parametrize("width", [2, 3, 5])
@pytest.mark.parametrize("end", [-1., 2.])
def test_beam_is_that_of_a_search_over_lists_of_hypotheses(width, end):
    model, features = model_of(end=end), features_of()
    found = both_ways(model, features, width, 6)
    for captions, f in zip(found, features):
        expected = naive_beam(model, f, width, 6)
        assert [c.words for c in captions] == [words for _, words in expected]
        np.testing.assert_allclose([c.log_probs.sum() for c in captions],
                                   [total for total, _ in expected], atol=1e-4)


@pytest.mark.parametrize("length_power", [0., .7, 1.])
def test_beam_as_wide_as_the_space_finds_every_sentence_best_first(length_power):
    model, features = model_of(TOY, end=-1.), features_of(3)
    found = beam_search(model, features, 200, 4, length_power)
    for captions, f in zip(found, features):
        expected = every_sentence(model, f, 4)
        assert len(expected) == 1 + 3 + 9 + 27 + 81
        # Whole sentences first, then those cut after four words
        expected.sort(key=lambda item: (
            item[1][-1] != END, -item[0] / len(item[1]) ** length_power))
        assert [c.words for c in captions] == [words for _, words in expected]
        np.testing.assert_allclose([c.log_probs.sum() for c in captions],
                                   [total for total, _ in expected], atol=1e-4)


def test_length_power_changes_which_sentence_is_best():
    model, features = model_of(TOY, end=-1.), features_of(6)
    first, second = ([c[0].words for c in beam_search(model, features, 200, 4, power)]
                     for power in (0., 1.))
    assert first != second
    assert sum(map(len, first)) < sum(map(len, second))


def test_whole_space_never_loses_against_greedy_and_sometimes_wins():
    model, features = model_of(TOY), features_of()
    better = 0
    for (greedy,), best in zip(beam_search(model, features, 1, 5),
                               beam_search(model, features, 500, 5)):
        if greedy.words[-1] == END:
            gain = best[0].log_probs.sum() - greedy.log_probs.sum()
            assert gain > -1e-5
            better += gain > 1e-3
    assert better  # otherwise this seed shows nothing


# --- what comes out -------------------------------------------------------------------

@pytest.mark.parametrize("width", [1, 4])
def test_padding_start_and_unk_are_never_emitted_however_probable(width):
    model = model_of()
    bias = model.b_o.numpy().copy()
    bias[[PAD, START, UNK]] = 50.
    model.b_o.assign(bias)
    for captions in beam_search(model, features_of(), width, 8):
        for caption in captions:
            assert not {PAD, START, UNK} & set(caption.words)
            assert END not in caption.words[:-1]
            assert np.isfinite(caption.log_probs).all()


def test_other_words_can_be_forbidden():
    model, features = model_of(), features_of()
    word = beam_search(model, features, 1, 8)[0][0].words[0]
    for found in both_ways(model, features, 2, 8, forbidden=(PAD, START, UNK, word)):
        assert all(word not in caption.words for caption in found)
    model.b_o.assign(np.array([90. * (k == UNK) for k in range(13)], np.float32))
    assert beam_search(model, features, 1, 8, 0., ())[0][0].words == [UNK] * 8


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("max_steps", [1, 5])
def test_captions_that_never_end_are_cut_and_returned(width, max_steps):
    model = model_of(end=-100.)
    found = both_ways(model, features_of(), width, max_steps)
    for captions, f in zip(found, features_of()):
        assert len(captions) == width
        assert [len(c.words) for c in captions] == [max_steps] * width
        assert all(END not in c.words for c in captions)
        totals = [c.log_probs.sum() for c in captions]
        assert totals == sorted(totals, reverse=True)
        if width == 1:
            assert captions[0].words == naive_greedy(model, f, max_steps)


def test_sentence_that_ended_stands_before_a_more_probable_one_that_was_cut():
    found = beam_search(model_of(end=-3.), features_of(), 40, 2)
    for captions in found:
        complete = [c.words[-1] == END for c in captions]
        assert complete == sorted(complete, reverse=True) and complete[0]
        assert not complete[-1]
    assert any(captions[0].log_probs.sum() < max(c.log_probs.sum() for c in captions)
               for captions in found)


def test_beam_wider_than_there_are_sentences_returns_them_all():
    model = model_of(TOY)
    found = beam_search(model, features_of(2), 50, 1)
    assert [sorted(c.words for c in captions) for captions in found] == [
        [[END], [4], [5], [6]]] * 2
    only_the_end = beam_search(model_of(SIZES._replace(vocabulary=4)),
                               features_of(2), 3, 6)
    assert [[c.words for c in captions] for captions in only_the_end] == [[[END]]] * 2


@pytest.mark.parametrize("width, end", [(1, 0.), (4, 0.), (3, -100.)])
def test_log_probs_are_those_of_teacher_forcing(width, end):
    model, features = model_of(end=end), features_of()
    for image, captions in enumerate(beam_search(model, features, width, 6)):
        for caption in captions:
            T = len(caption.words)
            batch = Batch(Parcel(tf.constant(features[image:image + 1]),
                                 np.array([[START] + caption.words], np.int32)),
                          np.array([T]), np.array([0]), np.array([0]))
            logits, targets, alphas = model.teacher_forcing(batch)
            targets = targets.numpy().tolist()
            assert targets == caption.words
            expected = [log_softmax(row)[word]
                        for row, word in zip(logits.numpy(), targets)]
            np.testing.assert_allclose(caption.log_probs, expected, atol=1e-4)
            np.testing.assert_allclose(
                caption.alphas, np.concatenate([a.numpy() for a in alphas]), atol=1e-5)


@pytest.mark.parametrize("width", [1, 3])
def test_alphas_are_one_distribution_a_word_and_betas_a_number(width):
    for captions in beam_search(model_of(), features_of(), width, 8):
        for caption in captions:
            T = len(caption.words)
            assert caption.alphas.shape == (T, SIDE)
            assert caption.alphas.dtype == caption.log_probs.dtype == np.float32
            np.testing.assert_allclose(caption.alphas.sum(1), 1, rtol=1e-5)
            assert (caption.alphas >= 0).all() and caption.log_probs.shape == (T,)
            assert caption.betas.shape == (T,)
            assert ((caption.betas > 0) & (caption.betas < 1)).all()


def test_model_without_a_gate_has_no_betas():
    found = both_ways(model_of(gate=False), features_of(2), 3, 8)
    assert all(caption.betas is None for captions in found for caption in captions)


# --- a table by hand ------------------------------------------------------------------

A, B, C = 4, 5, 6
TABLES = [  # for each image: {word: {next word: probability}}
    {START: {A: .5, B: .4, END: .1},
     A: {B: .4, C: .35, END: .25},
     B: {END: .9, C: .1},
     C: {END: 1.}},
    {START: {END: .6, A: .4},
     A: {END: .7, B: .3},
     B: {END: 1.}},
    {START: {UNK: .9, C: .1},
     C: {A: .5, PAD: .3, END: .2},
     A: {END: .25, START: .75}}]


class Table:
    """A stand-in for a Captioner: the state h is the image, Ey the previous word."""
    sizes = TOY

    def encode(self, features):
        return Context(features, tf.transpose(features, (1, 0, 2)))

    def h_0(self, a):
        return a[:, 0, :1]

    def embed(self, words):
        return words, words

    def step(self, context, h, words):
        assert context.a.shape[0] == h.shape[0] == words.shape[0]
        alpha = tf.one_hot(words, SIDE)                           # "looks" at the word
        return h, context.a[:, 0], alpha, h / 10

    def deep_output(self, Ey, h, z):
        table = np.zeros((len(TABLES), TOY.vocabulary, TOY.vocabulary), np.float32)
        for image, rows in enumerate(TABLES):
            for word, nexts in rows.items():
                assert abs(sum(nexts.values()) - 1) < 1e-9
                for following, p in nexts.items():
                    table[image, word, following] = p
        table[table.sum(2) == 0] = 1 / TOY.vocabulary  # words never asked for
        with np.errstate(divide="ignore"):
            table = tf.constant(np.log(table))
        # State and context must have followed the same hypothesis
        lost = tf.where(tf.equal(h[:, 0], z[:, 0]), tf.zeros_like(h[:, 0]),
                        np.nan * h[:, 0])
        return lost[:, None] + tf.gather_nd(table, tf.stack(
            [tf.cast(h[:, 0], tf.int32), Ey], 1))


def table_search(images, width, max_steps=9):
    features = np.zeros((len(images), SIDE, 1), np.float32)
    features[:, 0, 0] = images
    return [[(c.words, round(float(np.exp(c.log_probs.sum())), 5)) for c in captions]
            for captions in both_ways(Table(), features, width, max_steps)]


GREEDY = [[([A, B, END], .18)], [([END], .6)], [([C, A, END], .0125)]]
WIDTH_2 = [[([B, END], .36), ([A, B, END], .18)],
           [([END], .6), ([A, END], .28)],
           [([C, END], .02), ([C, A, END], .0125)]]


@pytest.mark.parametrize("images", [[0, 1, 2], [2, 1, 0], [1], [0, 0, 2, 1, 2]])
def test_table_by_hand_gives_the_sentences_by_hand(images):
    assert table_search(images, 1) == [GREEDY[i] for i in images]
    assert table_search(images, 2) == [WIDTH_2[i] for i in images]


def test_table_cut_after_two_words():
    assert table_search([0, 1, 2], 1, 2) == [
        [([A, B], .2)], [([END], .6)], [([C, A], .05)]]
    assert table_search([0], 3, 2) == [[([B, END], .36), ([END], .1), ([A, B], .2)]]


def test_alphas_and_betas_follow_the_hypothesis_they_belong_to():
    features = np.zeros((2, SIDE, 1), np.float32)
    features[:, 0, 0] = [0, 1]
    found = beam_search(Table(), features, 2, 9)
    for image, captions in enumerate(found):
        for caption in captions:
            # The table "looks" at the previous word, whatever its row in the beam
            assert caption.alphas.argmax(1).tolist() == [START] + caption.words[:-1]
            np.testing.assert_allclose(caption.betas, image / 10)


# --- how it is computed ---------------------------------------------------------------

class Watched(Captioner):
    """A Captioner that records the number of hypotheses in each step, and of each step
    that was compiled.
    """
    computed, compiled = (), ()

    def step(self, context, *rest, **more):
        rows = (int(context.a.shape[0]),)
        if tf.executing_eagerly():
            self.computed += rows
        else:
            self.compiled += rows
        return super().step(context, *rest, **more)


def watched(**options):
    model = model_of(**options)
    model.__class__ = Watched
    return model


@pytest.mark.parametrize("images", [40, 10, 2, 1])
def test_images_that_have_ended_drop_out_a_quarter_of_all_at_a_time(images):
    model = watched(end=1.)
    lengths = [len(beam[0].words) for beam in Decoder(model).search(
        features_of(images), 1, 12)]
    quarter, expected = -(-images // 4), []
    for t in range(max(lengths)):
        going = sum(length > t for length in lengths)
        expected.append(min(images, -(-going // quarter) * quarter))
    assert list(model.computed) == expected and model.compiled == ()
    assert images < 10 or len(set(expected)) > 2


@pytest.mark.skipif(COMPILED_LOOPS_FAIL, reason="not compiled with 1.9")
def test_each_number_of_rows_is_compiled_once_for_many_batches():
    model, features = watched(end=1.), features_of(40)
    decoder = Decoder(model)
    found = [words_of(decoder.search(features, 2, 12, batches=3)) for _ in range(3)]
    assert found[0] == found[1] == found[2]
    assert 2 <= len(model.compiled) == len(set(model.compiled)) <= 4
    # The first word, with one hypothesis per image, is not worth compiling
    assert model.computed == (40,) * 3 and max(model.compiled) == 80


@pytest.mark.parametrize("decoder, batches", [(Decoder, 1), (
    functools.partial(Decoder, compile=False), 9)])
def test_nothing_is_compiled_for_one_batch_or_where_it_cannot_be(decoder, batches):
    model = watched()
    decoder(model).search(features_of(), 2, 8, batches=batches)
    assert model.compiled == () and len(model.computed) > 2


@pytest.mark.skipif(COMPILED_LOOPS_FAIL, reason="not compiled with 1.9")
def test_whole_batches_of_files_are_compiled_and_the_rest_is_not(tmp_path):
    model, features, paths = watched(), features_of(7), []
    for i, maps in enumerate(features):
        paths.append(str(tmp_path / f"{i}.npy"))
        np.save(paths[-1], maps.reshape(3, 3, 7))
    found = decode_files(Decoder(model), paths, 3, quiet=True, max_steps=8)
    assert words_of(found) == words_of(Decoder(model).search(features, 1, 8))
    model.computed = model.compiled = ()
    decode_files(Decoder(model), paths, 3, quiet=True, max_steps=8)
    assert set(model.computed) == {1} and max(model.compiled) == 3
