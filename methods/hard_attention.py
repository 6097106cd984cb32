"""Hard attention (section 4.1): each word looks at one location, which is sampled.

z = a_s with s sampled from alpha. Sampling cannot be differentiated, so the gradient of
a location's log probability is weighted by the reward of the words instead (REINFORCE,
Williams 1992):

    d log p(y | s, a) + lambda_r (log p(y | s, a) - b) d log p(s | a) + lambda_e d H[s]

b is a moving average of log p. Two details differ from the paper, and change only the
variance of the gradient, not its expectation: b is per word, since our batches have
captions of one length, and a location is rewarded by its own word and those after it,
since it affects no others. As in the paper, a share of the captions uses the expected
context instead of a sample. Best started from a run with soft attention.
"""
import numpy as np

from model import Term, drawn
from runtime.tf import Variable, log, tf


class Reinforce(Term):
    """The REINFORCE and entropy terms of sampled locations."""

    def __init__(self, reinforce, entropy, dtype="float32"):
        """reinforce: lambda_r. entropy: lambda_e."""
        self.reinforce, self.entropy = reinforce, entropy
        # b, in nats a word; 0 before the first step
        self.baseline = Variable(np.zeros((), dtype), trainable=False, name="baseline")
        self.variables = {"baseline": self.baseline}

    def __call__(self, batch, predicted):
        """The sum over the batch's words, a scalar tensor."""
        surprisal, draws = predicted.surprisal, batch.parcel.draws
        k = [int(alpha.shape[0]) for alpha in predicted.alphas]
        is_drawn = tf.cast(draws >= 0, surprisal.dtype)                       # (N,)
        earned = tf.stop_gradient(to_come(-surprisal - self.baseline, k))     # (N,)
        alpha = tf.concat(predicted.alphas, 0)                                # (N, L)
        s = drawn(tf.stop_gradient(alpha), draws)                             # (N, L)
        log_p = log(tf.reduce_sum(s * alpha, 1) + 1e-9)                       # (N,)
        H = -tf.reduce_sum(alpha * log(alpha + 1e-9), 1)                      # (N,)
        return -tf.reduce_sum(is_drawn * (self.reinforce * earned * log_p
                                          + self.entropy * H))

    def follow(self, cross_entropy):
        """Move b after a step. cross_entropy: of all processes, in nats a word."""
        b = float(self.baseline.numpy())
        self.baseline.assign(.9 * b - .1 * cross_entropy if b else -cross_entropy)


def reinforce(args):
    """The Reinforce of a command of train.py; None with soft attention."""
    if args.attention == "hard":
        return Reinforce(args.reinforce, args.entropy)


def to_come(values, k):
    """Reward-to-go of each word, its caption's values summed from there: (N,) -> (N,).

    The words are ordered by step, then by caption; k: number of captions at each step.
    """
    later, found = None, []
    for value in reversed(tf.split(values, k)):
        if later is not None:
            missing = int(value.shape[0]) - int(later.shape[0])
            value += tf.pad(later, [[0, missing]]) if missing else later
        later = value
        found.append(value)
    return tf.concat(found[::-1], 0)


def with_draws(batches, share, seed):
    """Yield each Batch with its `draws`.

    share: fraction of the captions with the expected context. seed: a tuple of ints.
    The numbers depend only on it and the caption.
    """
    random = np.random.RandomState(0)
    for batch in batches:
        if batch is not None:
            C = batch.lengths[0]
            draws = np.empty((C, len(batch.numbers)), np.float32)
            for i, number in enumerate(batch.numbers):
                random.seed([*seed, 4, number])
                expected = random.random_sample() < share
                draws[:, i] = -1 if expected else random.random_sample(C)
            draws = draws[np.arange(C)[:, None] < batch.lengths]
            batch = batch.replacing(draws=tf.constant(draws))
        yield batch
