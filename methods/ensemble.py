"""Caption with several models together: the mean of their word probabilities."""
import typing

import numpy as np

from captioning.models import load_run
from model import Context
from runtime import cli
from runtime.tf import tf


def read_members(names, checkpoint="best", look=None):
    """Load the runs of an ensemble: a list of LoadedRuns.

    look: a key of LOOKING, how z is computed; None: as each run was trained. Raises
    cli.UserError if their vocabularies differ.
    """
    runs = [load_run(name, checkpoint, look=look) for name in names]
    for run in runs:
        if run.vocabulary.digest() != runs[0].vocabulary.digest():
            raise cli.UserError(f"{run.folder}: has another vocabulary than "
                                f"{runs[0].folder}; an ensemble needs runs on the same "
                                "tokens")
    return runs


def together(runs):
    """Join LoadedRuns into one: the first, with an Ensemble of all their models."""
    if len(runs) == 1:
        return runs[0]
    return runs[0]._replace(model=Ensemble([run.model for run in runs]))


class Contexts(typing.NamedTuple):
    """The Contexts of the same images, one per model."""
    each: typing.Tuple[Context, ...]

    @property
    def a(self):
        """The annotation vectors, a list with one tensor per model."""
        return [context.a for context in self.each]

    def take(self, rows):
        """See Context.take."""
        return Contexts(tuple(context.take(rows) for context in self.each))


class Ensemble:
    """Models with one vocabulary, behind the methods of Captioner that decoding calls.

    h is the models' states concatenated; alpha and beta are means over the models;
    everything else is a list with one entry per model.
    """

    def __init__(self, models):
        self.models, self.sizes = models, models[0].sizes

    @property
    def look(self):
        """The look of each model, a tuple; see Captioner."""
        return tuple(model.look for model in self.models)

    def encode(self, features):
        """See Captioner.encode."""
        return Contexts(tuple(model.encode(features) for model in self.models))

    def h_0(self, a):
        """See Captioner.h_0."""
        return tf.concat([model.h_0(own) for model, own in zip(self.models, a)], 1)

    def embed(self, words):
        """See Captioner.embed."""
        return zip(*(model.embed(words) for model in self.models))

    def step(self, context, h, gates, keep=None, look=None):
        """See Captioner.step; beta is the mean over the models that have a gate.

        look: one for each model, or None.
        """
        hs = tf.split(h, [model.sizes.hidden for model in self.models], 1)
        h, z, alpha, beta = zip(*(
            model.step(*own, keep, its) for model, own, its in
            zip(self.models, zip(context.each, hs, gates), look or self.look)))
        beta = [b for b in beta if b is not None]
        return (tf.concat(h, 1), z, tf.add_n(alpha) / len(alpha),
                tf.add_n(beta) / len(beta) if beta else None)

    def deep_output(self, Ey, h, z):
        """The log of the mean probability of each word, (N, K)."""
        hs = tf.split(h, [model.sizes.hidden for model in self.models], 1)
        log_p = [tf.nn.log_softmax(model.deep_output(*own))
                 for model, own in zip(self.models, zip(Ey, hs, z))]
        return tf.reduce_logsumexp(tf.stack(log_p), 0) - np.float32(np.log(len(log_p)))
