"""Hard attention (section 4.1): each word looks at one location, which is drawn.

z = a_s with s drawn from alpha. What the locations of a caption are worth cannot be
had by backpropagation; their log probabilities follow what the words earn instead
(REINFORCE, Williams 1992):

    d log p(y | s, a) + lambda_r (log p(y | s, a) - b) d log p(s | a) + lambda_e d H[s]

b is a moving average of log p. Two things differ from the paper, and change nothing
that is expected, only its variance: b counts words, since our batches have captions of
one length, and a location is judged by its own word and those after it, as it changes
no other. A share of the captions has the expected context in place of what is drawn, as
in the paper. It is best begun from a run with soft attention.
"""
import numpy as np

from model import Term, drawn
from runtime.tf import Variable, log, tf


class Reinforce(Term):
    """What drawn locations add to the loss."""

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
    """Of each word the sum of the values of its caption from it on: (N,) -> (N,).

    The words are ordered by step, then by caption; k: captions that have each step.
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

    share: of the captions that have the expected context. seed: a tuple of ints. The
    numbers depend on it and the caption only.
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
