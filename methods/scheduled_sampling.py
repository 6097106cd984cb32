"""Scheduled sampling (Bengio et al. 2015): during training, some of the previous words
are the model's own, so that it learns to recover from its own mistakes.

In two passes (Mihaylova & Martins 2019): the first predicts every word from the true
ones before it, and samples a word from each prediction; the second, which is trained,
gets some of these as inputs instead of the true ones. So all words of a batch are still
computed at once. Targets stay the true words.
"""
import numpy as np

from captioning.batches import tensors, uniforms_of
from captioning.decode import draw
from model import Masks
from runtime.tf import tf


def told(model, batch, uniforms, share):
    """The decoder's inputs, in place of a Batch's words: int32 (B, C + 1).

    model: the Captioner. uniforms: float (B, C, 2), at least 0 and below 1: for each
    word one that draws the model's, and one that takes it where it is below `share`.
    """
    plain = tensors(batch.replacing(masks=Masks()))
    logits, _, alphas = model.teacher_forcing(plain)
    p = tf.nn.softmax(logits).numpy()                                   # (N, K)
    words, first = np.array(batch.parcel.words), 0
    for t, k in enumerate(int(alpha.shape[0]) for alpha in alphas):
        drawn = draw(p[first:first + k], uniforms[:k, t, 0])
        own = uniforms[:k, t, 1] < share
        words[:k, t + 1] = np.where(own, drawn, words[:k, t + 1])
        first += k
    return words


def with_own_words(batches, model, shares, seed):
    """Yield each Batch with its `told`, by the model as it is when that is asked for.

    shares: of each batch. seed: a tuple of ints. What is drawn depends on it, the
    caption and the weights only.
    """
    for batch, share in zip(batches, shares):
        if batch is not None:
            uniforms = uniforms_of([[*seed, 3, number] for number in batch.numbers],
                                   (batch.lengths[0], 2))
            batch = batch.replacing(
                told=tf.constant(told(model, batch, uniforms, share)))
        yield batch
