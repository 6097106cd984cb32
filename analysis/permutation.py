"""Would another attention map have written the same word?

What a word's step predicts with other weights on the annotation vectors:

    permuted  alpha's own weights, shuffled over the cells (Jain and Wallace 2019,
              "Attention is not Explanation", section 4.2.1)
    even      1 / L on each cell (the baseline of Wiegreffe and Pinter 2019, "Attention
              is not not Explanation", section 3.2; they train a model so, here weights
              trained with attention decode so)

As Jain and Wallace do, in one prediction at a time: the steps before keep their alpha,
and so their states. Hard attention has one-hot weights: a random cell, or the mean of
all, in place of the likeliest. The models of an ensemble share the permutations.
"""
import os
import zlib

import numpy as np

from captioning.bootstrap import means
from captioning.tokens import START
from runtime.tf import tf

PERMUTATIONS = 10  # for each word
REPLACED = (("permuted", "permuted over the cells"), ("even", "even over the cells"))
FIGURES = ("fall", "distance")


def random_for(image, seed):
    """The RandomState of an image's permutations: the same for every run.

    image: its path, of which the file's name counts. seed: of the command.
    """
    return np.random.RandomState([seed, zlib.crc32(os.path.basename(image).encode())])


def instead(look, orders):
    """A function for Captioner.step's `look` on 2 + P rows of one word: the model's own
    weights, those in P other orders, and even ones.

    look: the model's own, a tuple for an Ensemble. orders: int (P, L).
    """
    if isinstance(look, tuple):
        return tuple(instead(each, orders) for each in look)

    def weights(alpha):
        own = (look(alpha) if look else alpha).numpy()[0]                 # (L,)
        even = np.full_like(own, 1 / len(own))
        return tf.constant(np.vstack([own, own[orders], even]))
    return weights


def replace_alpha(model, features, words, random):
    """What the words of a caption lose with other weights: (T, REPLACED, FIGURES).

    The fall of the word's log p in nats, the mean over the permutations; and the total
    variation distance between p of all words before and after, sum |p - p'| / 2, the
    median over the permutations, as Jain and Wallace do.

    features: (L, F) of the image. words: int32 (T,), all of them are given to the
    decoder. random: from `random_for`.
    """
    rows, found, before = PERMUTATIONS + 2, [], START
    context = model.encode(tf.constant(features[None]))
    h = model.h_0(context.a)
    context = context.take(np.zeros(rows, np.int32))
    for word in words:
        orders = np.array([random.permutation(len(features))
                           for _ in range(PERMUTATIONS)])
        Ey, gates = model.embed(np.full(rows, before, np.int32))
        # Each row begins with the state that the model's own weights have led to
        h, z, _, _ = model.step(context, tf.tile(h[:1], (rows, 1)), gates,
                                look=instead(model.look, orders))
        log_p = tf.nn.log_softmax(model.deep_output(Ey, h, z)).numpy()    # (rows, K)
        falls = log_p[0, word] - log_p[1:, word]
        p = np.exp(log_p, dtype=np.float64)
        distances = np.abs(p[1:] - p[0]).sum(axis=1) / 2
        found.append(((falls[:-1].mean(), np.median(distances[:-1])),
                      (falls[-1], distances[-1])))
        before = word
    return np.array(found, np.float64)


def summarize_replaced(replaced, seed):
    """{'permuted', 'even': {'fall', 'distance': [mean, low, high]}}, intervals over
    images. replaced: from `replace_alpha`, for each image its words.
    """
    columns = len(REPLACED) * len(FIGURES)
    found = means([rows.reshape(len(rows), columns) for rows in replaced], seed)
    found = found.reshape(3, len(REPLACED), len(FIGURES))
    return {what: {figure: [round(float(value), 4) for value in found[:, i, j]]
                   for j, figure in enumerate(FIGURES)}
            for i, (what, _) in enumerate(REPLACED)}
