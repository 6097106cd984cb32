"""Scheduled sampling (Bengio et al. 2015): during training, some of the previous words
are the model's own, so that it learns to recover from its own mistakes.

In two passes (Mihaylova & Martins 2019): the first predicts every word from the true
ones before it, and samples a word from some of these predictions; the second, which is
trained, gets these as inputs in place of the true ones. So all words of a batch are
still computed at once. Targets stay the true words.
"""
import numpy as np

from captioning.batches import PerShape, tensors, uniforms_of
from captioning.decode import draw
from model import Masks
from runtime.tf import tf


class OwnWords:
    """Replaces some of the decoder's inputs by words that the model predicts."""

    def __init__(self, model):
        """model: the Captioner that is trained."""
        self.model, self.unroll = model, PerShape(model.unroll)

    def compile_for(self, shapes):
        """Compile the first pass for these shapes, see CaptionBatches.shapes."""
        self.unroll.compile_for(shapes)

    def __call__(self, batches, shares, seed):
        """Yield each Batch with its `told`, by the model as it is at that moment.

        shares: of the words to replace, one for each batch. seed: a tuple of ints. What
        is sampled depends on it, the caption and the weights only.
        """
        for batch, share in zip(batches, shares):
            if batch is not None:
                uniforms = uniforms_of([[*seed, 3, number] for number in batch.numbers],
                                       (batch.lengths[0], 2))
                batch = batch.replacing(
                    told=tf.constant(self.inputs(batch, uniforms, share)))
            yield batch

    def inputs(self, batch, uniforms, share):
        """The decoder's inputs, int32 (B, C + 1): the Batch's words or the model's.

        uniforms: float (B, C, 2), at least 0 and below 1: for each word one that
        samples the model's, and one that takes it where it is below `share`.
        """
        lengths, words = batch.lengths, np.array(batch.parcel.words)
        steps, captions = np.nonzero(np.arange(lengths[0])[:, None] < lengths)
        own = np.flatnonzero(uniforms[captions, steps, 1] < share)
        if own.size:  # the output layer, most of the work, is computed for these only
            plain = tensors(batch.replacing(masks=Masks(), told=None))
            Ey, h, z = (tf.gather(x, own) for x in self.unroll(plain)[:3])
            captions, steps = captions[own], steps[own]
            p = tf.nn.softmax(self.model.deep_output(Ey, h, z))
            words[captions, steps + 1] = draw(p, uniforms[captions, steps, 0])
        return words
