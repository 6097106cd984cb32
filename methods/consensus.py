"""Choose from a beam not the most probable caption, but the one most similar to other
plausible captions (minimum Bayes risk decoding, Kumar & Byrne 2004).

Among candidates y, choose

    argmax_y  sum_y' q(y') r(y, y')

with r = CIDEr-D + 3 F-mean (methods/rewards.py). A caption that resembles many others
is rarely wrong in every word. The y' are

- the beam's own captions, q ~ exp(log p(y') / T' ** power) (`by_consensus`), or
- people's captions of the most similar training images, q growing with that similarity
  (`by_neighbours`; Devlin et al. 2015). These ignore the image itself, so the model's
  score of y is added: log p(y) / (2 T ** power).

N-gram weights come from the training references; the image's own references are never
used.
"""
import numpy as np
from tqdm import tqdm

from captioning.lineage import training_tokens
from captioning.tokens import read_references, read_tokens
from methods.rewards import Rewards
from runtime import watchdog

F_MEAN = 3.  # weight of METEOR's F-mean (0 to 1), added to CIDEr-D (0 to 10)
OWN = .5     # weight of log p(y) / T ** power, added to the neighbours' reward
PIECE = 64   # images at a time; 20 captions against 300 are 6,000 pairs per image


def training_rewards(run, *elsewhere):
    """Rewards against the training references of a Run, in the order of its tokens.

    elsewhere: see `training_tokens`. Raises cli.UserError if they are missing or
    damaged.
    """
    folder = training_tokens(run, *elsewhere)
    references = read_references(folder, "train")
    return Rewards(run.vocabulary, [references.get(str(i), []) for i in
                                    read_tokens(folder, "train").image_ids],
                   meteor=F_MEAN)


def by_consensus(beams, rewards, length_power=0.):
    """Reorder each beam by similarity to its other captions, highest first.

    beams: non-empty lists of Captions. length_power: that of the beam search. Returns
    lists of the same Captions.
    """
    def earned(captions, counts, piece):
        q = [_probabilities(beam, length_power) for beam in beams[piece]]
        return rewards.among(captions, counts, np.concatenate(q))
    return _in_order(beams, earned)


def by_neighbours(beams, rewards, images, shares, length_power=0.):
    """Reorder each beam by similarity to people's captions of similar images.

    beams, length_power: see `by_consensus`. rewards: from `training_rewards`. images,
    shares: each beam's similar images, from methods.neighbours.
    """
    def earned(captions, counts, piece):
        own = [_scores(beam, length_power) for beam in beams[piece]]
        return OWN * np.concatenate(own) + rewards.expected(
            captions, *(np.repeat(x[piece], counts, axis=0) for x in (images, shares)))
    return _in_order(beams, earned)


def _in_order(beams, earned):
    """Sort each beam's captions by reward, highest first.

    earned: a function from the captions of some beams (word indices), the number of
    captions in each beam, and the slice of these beams, to rewards, float (captions,).
    """
    ordered = []
    with tqdm(total=len(beams), desc="consensus", unit="image") as bar:
        for first in watchdog.watched(range(0, len(beams), PIECE), "piece",
                                      "the consensus"):
            piece = slice(first, first + PIECE)
            some = beams[piece]
            counts = np.array([len(beam) for beam in some])
            values = earned([caption.words for beam in some for caption in beam],
                            counts, piece)
            for beam, own in zip(some, np.split(values, np.cumsum(counts)[:-1])):
                ordered.append([beam[i] for i in np.argsort(-own, kind="mergesort")])
            bar.update(len(some))
    return ordered


def _scores(beam, length_power):
    """The beam search scores of one image's Captions, float64."""
    return np.array([caption.log_probs.sum() / len(caption.words) ** length_power
                     for caption in beam], np.float64)


def _probabilities(beam, length_power):
    """q of one image's Captions, float64."""
    scores = _scores(beam, length_power)
    q = np.exp(scores - scores.max())
    return q / q.sum()
