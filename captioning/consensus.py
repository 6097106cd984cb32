"""Which caption of a beam to keep: in place of the most probable the one that is most
like the others, weighted by how probable they are (minimum Bayes risk decoding, Kumar &
Byrne 2004).

Among candidates y with the probabilities q that beam search gives them, it is

    argmax_y  sum_y' q(y') r(y, y'),     q ~ exp(log p(y') / T' ** power)

with r = CIDEr-D + 3 F-mean (captioning/rewards.py). A caption that many others resemble
is rarely wrong in all its words. How rare an n-gram is, the training references tell;
no reference of the image is looked at.
"""
import numpy as np

from captioning.rewards import Rewards
from captioning.tokens import read_references

F_MEAN = 3.  # beside CIDEr-D (0 to 10): weight of METEOR's F-mean (0 to 1)
PIECE = 256  # images at a time: a beam of 20 has 400 pairs an image


def training_rewards(run):
    """Rewards with the training references of a Run, to know which words are rare.

    Raises cli.UserError where they are missing or damaged.
    """
    references = read_references(run.settings["tokens"], "train")
    return Rewards(run.vocabulary, list(references.values()), meteor=F_MEAN)


def by_consensus(beams, rewards, length_power=0.):
    """Beams in a new order: first the caption that is most like its others.

    beams: lists of Captions, at least one each. rewards: Rewards. length_power:
    that of the beam search. Returns lists of the same Captions.
    """
    found = []
    for first in range(0, len(beams), PIECE):
        some = beams[first:first + PIECE]
        shares = np.concatenate([_probabilities(beam, length_power) for beam in some])
        counts = np.array([len(beam) for beam in some])
        earned = rewards.among([caption.words for beam in some for caption in beam],
                               counts, shares)
        for beam, values in zip(some, np.split(earned, np.cumsum(counts)[:-1])):
            found.append([beam[i] for i in np.argsort(-values, kind="mergesort")])
    return found


def _probabilities(beam, length_power):
    """q of each Caption of one image, float64."""
    scores = np.array([caption.log_probs.sum() / len(caption.words) ** length_power
                       for caption in beam], np.float64)
    q = np.exp(scores - scores.max())
    return q / q.sum()
