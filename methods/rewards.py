"""The reward of a sampled caption: CIDEr-D against its image's references, optionally
with BLEU-4 and METEOR's F-mean.

CIDEr-D is that of Vedantam et al. 2015 and of the COCO tools: n-grams of 1 to 4 words,
weighted by inverse document frequency over images, clipped, with a Gaussian penalty on
the difference of lengths. The end token counts as a word (as in Rennie et al. 2017):
otherwise a caption that stops at "with a" would lose nothing. Document frequencies are
counted on the references given here, anew in every process: no file on disk could
belong to other data.

METEOR's F-mean (Denkowski & Lavie 2014) matches equal words only, without stems and
synonyms and without the penalty for word order, which CIDEr-D and BLEU-4 cover. Unlike
these it rewards length: recall counts almost six times as much as precision.
"""
import copy
import typing

import numpy as np

from captioning.scores import N_GRAMS, OPEN, bleu
from captioning.tokens import END, PAD, START, UNK, split_words

SIGMA = 6.   # words, of the Gaussian
SCALE = 10.  # of CIDEr-D
SHIFT = 32   # caption << SHIFT | n-gram: both in one number
IDS = (1 << SHIFT) - 1
# METEOR 1.5 for English: the weights of recall and of content words, and the function
# words
RECALL, CONTENT = .85, .75
FUNCTION = OPEN | set("is are was be been being has have had do does there this these "
                      "those he she it they him her them his hers its their who which "
                      "what where when some other each no not so up down out off"
                      .split())


class Grams(typing.NamedTuple):
    """The n-grams of some captions, for one n."""
    keys: np.ndarray     # int64 (E,), sorted: caption << SHIFT | n-gram
    counts: np.ndarray   # int64 (E,): how often it occurs in the caption
    weights: np.ndarray  # float64 (E,): counts * log(images / images that have it)
    norms: np.ndarray    # float64 (captions,): length of each caption's vector
    highest: int         # largest number of an n-gram; -1: no n-grams


class Rewards:
    """The references of a split, as n-gram vectors that are computed once."""
    in_expectation = False  # METEOR's F-mean: the mean over references, not the best

    def __init__(self, vocabulary, references, bleu=0., meteor=0.):
        """references: a list of captions for each image, as people wrote them. bleu,
        meteor: weights of BLEU-4 and METEOR's F-mean (0 to 1), which are added to
        CIDEr-D (0 to 10).
        """
        self.bleu, self.meteor = bleu, meteor
        new_words = {}  # not in the vocabulary; a sampled UNK matches none of them
        captions = [_encode(caption, vocabulary, new_words)
                    for group in references for caption in group]
        self.words = len(vocabulary) + len(new_words)
        self.worth = np.full(self.words, CONTENT)       # of each word, in the F-mean
        self.worth[[vocabulary.word_index[word] for word in FUNCTION
                    if word in vocabulary.word_index]] = 1 - CONTENT
        self.worth[[PAD, START, END]] = 0
        counts = np.array([len(group) for group in references], np.int64)
        self.unseen = np.log(max(1, (counts > 0).sum()))  # weight of a new n-gram
        self.tables, self.rarity = {}, {}
        self._refer_to(captions, counts, 1 / np.repeat(counts, counts), learn=True)

    def _refer_to(self, captions, counts, shares, learn=False):
        """Take these captions, lists of word indices, as the references.

        counts: int (images,), the number of captions of each image, in order. shares:
        float (captions,), each caption's weight among those of its image. learn:
        whether document frequencies are counted on them.
        """
        image_of = np.repeat(np.arange(len(counts)), counts)
        self.count, self.shares, self.grams = counts, shares, {}
        self.first = np.cumsum(counts) - counts         # an image's first one's number
        self.lengths = np.array([len(caption) for caption in captions], np.int64)
        for n, rows, ids in self._n_grams(captions, learn):
            if learn:
                pairs = np.unique(image_of[rows] << SHIFT | ids)
                images = np.bincount(pairs & IDS, minlength=self._known(n))
                self.rarity[n] = self.unseen - np.log(np.maximum(1, images))
            self.grams[n] = self._vectors(n, rows, ids, len(captions))
        self.worths = self._worths(self.grams[1], len(captions))

    def among(self, captions, counts, shares):
        """Expected reward against the image's other captions, float64 (S,).

        The arguments are those of `_refer_to`. METEOR is averaged over references, not
        that of the best one. N-grams keep their weights. Without BLEU.
        """
        others = self._expecting()
        others._refer_to(captions, counts, shares)
        return others(captions, np.repeat(np.arange(len(counts)), counts))

    def expected(self, captions, images, shares):
        """Expected reward of each caption over several images, float64 (S,).

        captions: see `__call__`. images: int (S, M), which ones. shares: float (S, M),
        their probabilities. Without BLEU.
        """
        return self._expecting()._earned(captions, images, shares)

    def _expecting(self):
        """A copy of these Rewards that computes expectations."""
        expecting = copy.copy(self)
        expecting.bleu, expecting.in_expectation = 0., True
        return expecting

    def __call__(self, captions, images):
        """The reward of each caption, float64 (S,).

        captions: list of S lists of word indices, with END if they ended. images: int
        (S,), each caption's image, which must have references.
        """
        images = np.asarray(images)[:, None]
        return self._earned(captions, images, np.ones(images.shape))

    def _pairs(self, images, shares):
        """Pair each caption with the references of its images, P pairs: the number of
        pairs of each caption (S,), and each pair's reference number and share (P,).
        """
        count = self.count[images]
        sizes = count.ravel()
        starts = self.first[images].ravel() - (np.cumsum(sizes) - sizes)
        reference = np.repeat(starts, sizes) + np.arange(sizes.sum())
        share = np.repeat(np.ravel(shares), sizes) * self.shares[reference]
        return count.sum(axis=1), reference, share

    def _earned(self, captions, images, shares):
        """The rewards of captions; the arguments are those of `expected`."""
        lengths = np.array([len(caption) for caption in captions], np.int64)
        count, reference, share = self._pairs(images, shares)
        caption_of = np.repeat(np.arange(len(captions)), count)
        first_pair = np.cumsum(count) - count
        similar = np.zeros(len(reference))
        right = np.zeros((len(captions), len(N_GRAMS)))            # n-grams, for BLEU
        for n, rows, ids in self._n_grams(captions):
            made, true = self._vectors(n, rows, ids, len(captions)), self.grams[n]
            gram, pair, at = self._shared(n, made.keys, count, first_pair, reference)
            products = true.weights[at] * np.minimum(made.weights[gram],
                                                     true.weights[at])
            norms = made.norms[caption_of] * true.norms[reference]
            similar += (np.bincount(pair, products, minlength=len(reference))
                        / np.where(norms > 0, norms, 1)) / len(N_GRAMS)
            if self.meteor and n == 1:
                both = np.minimum(made.counts[gram], true.counts[at])
                both = np.bincount(pair, both * self.worth[made.keys[gram] & IDS],
                                   len(reference))
                f_mean = both / np.maximum(1e-9, RECALL * self.worths[reference] + (
                    1 - RECALL) * self._worths(made, len(captions))[caption_of])
            if self.bleu:
                most = np.zeros(len(made.keys), np.int64)  # in any one reference
                np.maximum.at(most, gram, true.counts[at])
                right[:, n - 1] = np.bincount(
                    made.keys >> SHIFT, np.minimum(made.counts, most), len(captions))
        apart = lengths[caption_of] - self.lengths[reference]
        similar *= np.exp(-apart ** 2 / (2 * SIGMA ** 2))
        reward = SCALE * np.bincount(caption_of, similar * share, len(captions))
        if self.bleu:
            closest = np.lexsort((self.lengths[reference], abs(apart), caption_of))
            parts = [lengths, self.lengths[reference[closest[first_pair]]]]
            parts += [np.maximum(0, lengths - n + 1) for n in N_GRAMS]
            counts = np.concatenate([np.stack(parts, axis=1), right], axis=1)
            reward += self.bleu * bleu(counts)[:, -1] / 100
        if self.meteor and self.in_expectation:
            reward += self.meteor * np.bincount(caption_of, f_mean * share,
                                                len(captions))
        elif self.meteor:
            best = np.zeros(len(captions))
            np.maximum.at(best, caption_of, f_mean)
            reward += self.meteor * best
        return reward

    def _worths(self, grams, captions):
        """The total weight of each caption's words in the F-mean, (captions,)."""
        return np.bincount(grams.keys >> SHIFT,
                           grams.counts * self.worth[grams.keys & IDS], captions)

    def _n_grams(self, captions, learn=False):
        """Yield n, rows and ids for n = 1 to 4: each n-gram's caption, and its number
        among the references' n-grams, or a higher one if they lack it. learn: these
        captions are the references.

        An n-gram is looked up by the number of its first n - 1 words and its last word.
        """
        lengths = [len(caption) for caption in captions]
        flat = np.concatenate(captions).astype(np.int64)
        rows, ends = np.repeat(np.arange(len(captions)), lengths), np.cumsum(lengths)
        starts, ids = np.arange(len(flat)), flat
        for n in N_GRAMS:
            if n > 1:
                whole = starts + n <= ends[rows[starts]]
                starts, ids = starts[whole], ids[whole]
                keys = ids * self.words + flat[starts + n - 1]
                if learn:
                    self.tables[n] = np.unique(keys)
                at, found = _find(self.tables[n], keys)
                _, new = np.unique(keys[~found], return_inverse=True)
                ids = at
                ids[~found] = self._known(n) + new
            yield n, rows[starts], ids

    def _known(self, n):
        """The number of known n-grams."""
        return self.words if n == 1 else len(self.tables[n])

    def _vectors(self, n, rows, ids, captions):
        """The Grams of captions; captions: their number."""
        keys, counts = np.unique(rows << SHIFT | ids, return_counts=True)
        ids, known = keys & IDS, self._known(n)
        rarity = np.append(self.rarity[n], self.unseen)[np.minimum(ids, known)]
        weights = counts * rarity
        norms = np.sqrt(np.bincount(keys >> SHIFT, weights ** 2, captions))
        return Grams(keys, counts, weights, norms, ids.max() if len(ids) else -1)

    def _shared(self, n, keys, count, first_pair, reference):
        """Match the n-grams of captions and references: three int arrays, an n-gram's
        index in the captions' Grams, in the pairs, and in the references' Grams.
        """
        numbers = np.flatnonzero(keys & IDS <= self.grams[n].highest)
        caption = keys[numbers] >> SHIFT
        times = count[caption]
        gram = np.repeat(numbers, times)
        nth = np.arange(len(gram)) - np.repeat(np.cumsum(times) - times, times)
        pair = np.repeat(first_pair[caption], times) + nth
        at, found = _find(self.grams[n].keys, reference[pair] << SHIFT
                          | keys[gram] & IDS)
        return gram[found], pair[found], at[found]


def _encode(caption, vocabulary, new_words):
    """A reference's words as numbers, with END; new words are added to new_words."""
    numbers = vocabulary.encode(split_words(caption))
    if UNK in numbers:
        numbers = [vocabulary.word_index.get(word)
                   or new_words.setdefault(word, len(vocabulary) + len(new_words))
                   for word in split_words(caption)]
    return numbers + [END]


def _find(table, keys):
    """Search keys in a sorted table: their positions, and whether they are in it."""
    at = np.searchsorted(table, keys)
    found = at < len(table)
    found[found] = table[at[found]] == keys[found]
    return at, found
