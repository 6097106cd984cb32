"""Label smoothing (Szegedy et al. 2016, section 7): a share s of each target is spread
uniformly over the vocabulary, so that the model never becomes certain of one word.

With labels (1 - s) onehot + s / K, -log p becomes

    (1 - s) (-log p) + s mean_k(-log p_k)
        = -log p + s (logsumexp_k(logits) - mean_k(logits) + log p)
"""
from model import Term
from runtime.tf import log, tf


class LabelSmoothing(Term):
    """The difference that smoothed labels make to the cross-entropy."""

    def __init__(self, share):
        """share: s."""
        self.share = share

    def __call__(self, batch, predicted):
        logits = predicted.logits
        # Not tf.reduce_logsumexp, whose gradient fails inside 1.10's compiled functions
        highest = tf.stop_gradient(tf.reduce_max(logits, 1))               # (N,)
        logsumexp = log(tf.reduce_sum(tf.exp(
            logits - tf.expand_dims(highest, 1)), 1)) + highest            # (N,)
        return self.share * tf.reduce_sum(logsumexp - predicted.surprisal
                                          - tf.reduce_mean(logits, 1))
