"""How diverse several captions of an image are, and how good the best of them is."""
import collections

import numpy as np
from pycocoevalcap.cider.cider import Cider

from captioning import scores


def diversity(samples, references, training=None):
    """The usual diversity figures of a set of captions: an ordered {what: float}.

    samples: {id: list of N captions}. references: {id: list of captions}. training: see
    scores.habits.

    Distinct n-grams are counted over an image's captions and divided by their words
    (Div-n of Shetty et al. 2017). CIDEr is given for each image's best caption, the
    choice of an oracle (Vijayakumar et al. 2018), and as the mean of all. Also returns
    the name of the tokenizer.
    """
    ids, N = sorted(samples), len(next(iter(samples.values())))
    plain = [[scores.plain(caption) for caption in samples[i]] for i in ids]
    each = []
    for n in range(N):
        made, true, tokenizer = scores.tokenize({i: samples[i][n] for i in ids},
                                                references)
        each.append(100 * np.array(Cider().compute_score(true, made)[1]))
    words = [[caption.split() for caption in group] for group in plain]
    every = [caption for group in plain for caption in group]
    found = collections.OrderedDict([
        ("CIDEr of the best caption", float(np.max(each, axis=0).mean())),
        ("CIDEr of all captions", float(np.mean(each))),
        ("distinct words of an image, %", 100 * distinct(words, 1)),
        ("distinct pairs of words of an image, %", 100 * distinct(words, 2)),
        ("distinct captions of an image, %",
         100 * float(np.mean([len(set(group)) / N for group in plain]))),
        ("distinct captions in all, %", 100 * len(set(every)) / len(every))])
    if training is not None:
        found["captions never seen in training, %"] = 100 * float(np.mean(
            [caption not in training for caption in every]))
    return found, tokenizer


def distinct(groups, n):
    """Distinct n-grams of a group of captions over its words, averaged over groups.

    groups: for each image a list of captions, which are lists of words.
    """
    shares = []
    for group in groups:
        grams = {tuple(words[i:i + n]) for words in group
                 for i in range(len(words) - n + 1)}
        shares.append(len(grams) / max(1, sum(map(len, group))))
    return float(np.mean(shares))
