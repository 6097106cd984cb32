"""A teacher for the attention: where in an image the evidence for each word lies.

Likelihood alone gives attention no reason to look at things: every deep cell of a CNN
has seen the whole picture, so a corner serves as well as the dog. The localiser tells
the cells apart. A ridge regression predicts from an image's mean feature vector which
words people use for it. Being linear, its evidence for a word is the mean of the cells'
contributions, (v_i - mean) . c_w, a class activation map (Zhou et al. 2016).

In training each word pulls its attention towards its evidence map by

    lambda_g * sum_t r_t KL(softmax_i(SHARPNESS s_ti) || alpha_t)

s_ti: the evidence of cell i for word t, in standard deviations over whole images.
r_t: how well images predict the word, the correlation of prediction and truth on images
left out of the fit: "dog" (.8) pulls strongly, "man" (.5) less. Words without visual
evidence, such as "a" before "dog", are pulled where the next word with evidence is.
None of this is used in decoding. No boxes are needed, only the captions.

Written to checkpoints/<run>/localiser.npz.
"""
import hashlib
import json
import os
import typing

import numpy as np

from captioning.features import same_network
from captioning.mean_vectors import mean_vectors
from captioning.runs import is_begun
from captioning.tokens import SPECIAL
from model import Term
from runtime import atomic, cli, ranks, watchdog
from runtime.tf import Variable, log, tf

RIDGE = 10.     # the penalty, in units of a channel's mean variance
SHARPNESS = 4.  # of the maps
EVIDENT = .1    # smallest correlation for a word to pull
BLOCK = 1024    # images at a time


class Localiser(typing.NamedTuple):
    """The evidence for the W words that images predict."""
    row_of: np.ndarray     # int32 (K,): a word's row below; the last row for all others
    evidence: np.ndarray   # float32 (W + 1, F): SHARPNESS c_w; the last row is zero
    relevance: np.ndarray  # float32 (W + 1,): r; the last is zero


def localiser_path(folder):
    """The path of a run's localiser."""
    return os.path.join(folder, "localiser.npz")


def fit(means, mentions):
    """Fit a Localiser to images and their words.

    means: float32 (I, F), each image's mean feature vector. mentions: bool (I, K),
    which words occur in its captions.
    """
    I, F = means.shape
    a, Q = means - means.mean(axis=0), None
    if 4 * I < F:  # the same in the space that the images span, which is much smaller
        Q, _ = np.linalg.qr(a.T)                                         # (F, I)
        a = a.dot(Q)
    G = a.T.dot(a) / I
    shrink = RIDGE * np.trace(G) / F + 1e-12
    inverse = np.linalg.inv(G.astype(np.float64) + shrink * np.eye(len(G))).astype("f4")
    rate = mentions.mean(axis=0, dtype=np.float32)
    blocks = [slice(at, at + BLOCK) for at in range(0, I, BLOCK)]
    cross = sum(a[b].T.dot(mentions[b] - rate) for b in blocks) / I
    C = inverse.dot(cross)
    # The leave-one-out predictions, from each image's leverage
    p, pp, py, ss = np.zeros((4, mentions.shape[1]))
    for b in blocks:
        y, leverage = mentions[b] - rate, (a[b].dot(inverse) * a[b]).sum(1) / I
        said = a[b].dot(C)
        left_out = y - (y - said) / (1 - leverage)[:, None]
        p, pp, py = p + left_out.sum(0), pp + (left_out ** 2).sum(0), py + (
            left_out * y).sum(0)
        ss += (said ** 2).sum(0)
    spread = np.sqrt(np.maximum(pp / I - (p / I) ** 2, 0) * rate * (1 - rate))
    relevance = py / I / np.maximum(spread, 1e-12)
    relevance[:len(SPECIAL)] = 0
    words = np.flatnonzero(relevance > EVIDENT)
    row_of = np.full(len(relevance), len(words), np.int32)
    row_of[words] = np.arange(len(words))
    scale = SHARPNESS / np.maximum(np.sqrt(ss / I), 1e-12)
    C = C if Q is None else Q.dot(C)                                     # (F, K)
    return Localiser(row_of, np.vstack([(C * scale).T[words], np.zeros((1, F))])
                     .astype(np.float32),
                     np.append(relevance[words], 0).astype(np.float32))


def fit_to(captions, size, features):
    """Fit a Localiser to a training split's images.

    captions: CaptionBatches. size: K. features: the folder of step 2.
    """
    tokens = captions.tokens
    images = np.unique(tokens.image_of[captions.captions])
    row = np.full(len(captions.paths), -1)
    row[images] = np.arange(len(images))
    mentions = np.zeros((len(images), size), np.bool_)
    for words, length, image in zip(tokens.words, tokens.lengths, tokens.image_of):
        if row[image] >= 0:
            mentions[row[image], words[1:length]] = True
    means = mean_vectors(features, tokens.images[images], "train")
    finite = np.isfinite(means).all(axis=1)  # training reports the others
    return fit(means[finite], mentions[finite])


def prepare(folder, captions, settings):
    """Read a run's Localiser, or fit and write it.

    It is also fitted again if the file is of other words, features or captions, which
    happens when a training without a checkpoint is begun again with them. captions:
    CaptionBatches of the training split. settings: the run's. Raises cli.UserError if
    the file is damaged.
    """
    found = None
    if ranks.rank == 0:
        of = {"vocabulary": settings["vocabulary_digest"],
              "network": settings["extractor"], "captions": digest_of(captions.tokens),
              "channels": settings["sizes"]["features"]}
        if not is_of(folder, of):
            atomic.write_arrays(localiser_path(folder), compress=True, arrays=dict(
                fit_to(captions, settings["sizes"]["vocabulary"],
                       settings["features"])._asdict(),
                of=np.array(json.dumps(of))))
        found = read_localiser(folder)
    else:
        watchdog.waits_for(None)  # for rank 0, which is watched
    if ranks.size == 1:
        return found
    row_of, relevance, channels = ranks.from_first(found and (
        found.row_of.tolist(), found.relevance.tolist(), found.evidence.shape[1]))
    evidence = Variable(found.evidence if found else np.zeros(
        (len(relevance), channels), np.float32), name="evidence")
    ranks.copy_first([evidence])
    return Localiser(np.array(row_of, np.int32), evidence.numpy(),
                     np.array(relevance, np.float32))


def digest_of(tokens):
    """SHA-256 of the images and captions of Tokens."""
    content = hashlib.sha256("\n".join(tokens.images.tolist()).encode("utf-8"))
    for array in (tokens.words, tokens.image_of):
        content.update(np.ascontiguousarray(array))
    return content.hexdigest()


def is_of(folder, wanted):
    """Whether a run's folder has a localiser of `wanted`, the record by `prepare`.

    Those of earlier releases have no record: they count if the run has a checkpoint.
    Raises cli.UserError if it is damaged.
    """
    try:
        with atomic.load_arrays(localiser_path(folder)) as arrays:
            if "of" not in arrays.files:
                return is_begun(folder)
            of = json.loads(str(arrays["of"]))
            return same_network(of.pop("network"), wanted["network"]) and (
                dict(of, network=wanted["network"]) == wanted)
    except FileNotFoundError:
        return False
    except atomic.Damaged as error:
        raise damaged(folder) from error


def damaged(folder):
    """The cli.UserError for a damaged localiser."""
    return cli.UserError(f"{localiser_path(folder)}: damaged; delete it, and it is "
                         "made again")


def read_localiser(folder):
    """The Localiser in a run's folder. Raises cli.UserError if it is damaged."""
    try:
        with atomic.load_arrays(localiser_path(folder)) as arrays:
            return Localiser(**{name: arrays[name] for name in Localiser._fields})
    except atomic.Damaged as error:
        raise damaged(folder) from error


class Guide(Term):
    """The term that pulls attention towards the localiser's maps."""

    def __init__(self, weight, localiser=None, dtype="float32"):
        """weight: lambda_g. localiser: if None, `prepare` reads or fits it."""
        self.weight, self.dtype = weight, dtype
        if localiser:
            self.follow_evidence(localiser)

    def prepare(self, folder, captions, settings):
        """Read the run's Localiser, or fit it; see the function `prepare`."""
        self.follow_evidence(prepare(folder, captions, settings))

    def follow_evidence(self, localiser):
        """Use this Localiser as the teacher."""
        self.row_of = tf.constant(localiser.row_of)
        self.none = len(localiser.relevance) - 1
        self.evidence = tf.constant(localiser.evidence.astype(self.dtype))
        self.relevance = tf.constant(localiser.relevance.astype(self.dtype))

    def next_rows(self, words):
        """The row of each word, or of the next word that has evidence: (B, C) int32."""
        rows = tf.unstack(tf.gather(self.row_of, words), axis=1)
        for t in reversed(range(len(rows) - 1)):
            rows[t] = tf.where(tf.equal(rows[t], self.none), rows[t + 1], rows[t])
        return tf.stack(rows, 1)

    def maps(self, features, rows):
        """Evidence maps: features (B, L, F), words' rows int32 (B, C) -> (B, C, L)."""
        return tf.nn.softmax(tf.matmul(tf.gather(self.evidence, rows), features,
                                       transpose_b=True))

    def __call__(self, batch, predicted):
        """The sum over the batch's words, a scalar tensor."""
        alphas = predicted.alphas
        features = tf.cast(batch.parcel.features, self.evidence.dtype)
        if not np.array_equal(batch.image_of, np.arange(int(features.shape[0]))):
            features = tf.gather(features, batch.image_of)
        rows = self.next_rows(batch.parcel.words[:, 1:])                       # (B, C)
        maps = tf.transpose(self.maps(features, rows), (1, 0, 2))       # (C, B, L)
        relevance = tf.transpose(tf.gather(self.relevance, rows))       # (C, B)
        maps, relevance = (  # of the N real words
            tf.concat([x[t, :alpha.shape[0]] for t, alpha in enumerate(alphas)], 0)
            for x in (maps, relevance))
        divergence = tf.reduce_sum(
            maps * (log(maps + 1e-9) - log(tf.concat(alphas, 0) + 1e-9)), axis=1)
        return self.weight * tf.reduce_sum(relevance * divergence)
