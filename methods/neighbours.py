"""Find the training images most similar to an image: people's captions of those may fit
it, too (Devlin et al. 2015, "Exploring nearest neighbor approaches for image
captioning").

Similarity is the cosine of mean feature vectors, both minus the training images' mean.
A neighbour's share grows with it:

    share_j ~ exp(10 cos(x, x_j))       among the 60 nearest
"""
import os

import numpy as np

from captioning.features import check_network, feature_path, find_features
from captioning.lineage import training_tokens
from captioning.mean_vectors import mean_vectors
from captioning.tokens import read_images
from runtime import cli

COUNT = 60        # neighbours per image
SHARPNESS = 10.   # factor of the cosine: how much more the nearest count
PIECE = 256       # images at a time


def training_neighbours(run, images, split, features, tokens=None):
    """Find the neighbours of images among those that a Run was trained on.

    images: paths within the data set, with sound features. split: their split.
    features: the folder with their features, also searched for those of the training
    images. tokens: a second folder to search for the run's tokens. Returns int (I, M),
    indices into the run's tokens, and their shares, float64 (I, M). An image is never
    its own neighbour. Raises cli.UserError if the training images or their features no
    longer exist.
    """
    trained = read_images(training_tokens(run, tokens), "train")
    own = run.settings["features"]
    theirs = next((folder for folder in (own, features) if any(
        os.path.exists(feature_path(folder, image)) for image in trained)), own)
    check_network(theirs, run.settings, run.folder)
    files, sound = find_features(theirs, trained, "train")
    there = sound.nonzero()[0]
    if len(there) < len(files):
        cli.warn(f"{len(files) - len(there)} of {len(files)} training images of "
                 f"{run.folder} have no sound features in {theirs} and are nobody's "
                 "neighbours: run extract_features.py again")
    number = {trained[i]: n for n, i in enumerate(there)}
    near, shares = nearest(mean_vectors(features, images, split),
                           mean_vectors(theirs, [trained[i] for i in there], "train"),
                           [number.get(image) for image in images])
    return there[near], shares


def nearest(x, others, itself, count=COUNT):
    """The rows of `others` nearest to each row of x, nearest first.

    x: float (I, F). others: float (N, F). itself: for each row of x its own index in
    `others`, or None. Returns int (I, M) and their shares, float64 (I, M), which sum to
    1; M is the smaller of count and N. Non-finite rows and the row itself get no share.
    """
    finite = np.isfinite(others).all(axis=1)
    centre = others[finite].mean(axis=0)
    others = others - centre
    others[~finite] = 0
    others = _unit(others)
    near, shares = [], []
    for first in range(0, len(x), PIECE):
        cosines = _unit(x[first:first + PIECE] - centre).dot(others.T)
        cosines[:, ~finite] = -np.inf
        for row, own in zip(cosines, itself[first:first + PIECE]):
            if own is not None:
                row[own] = -np.inf
            some = np.argpartition(-row, min(count, len(row)) - 1)[:count]
            some = some[np.argsort(-row[some], kind="mergesort")]
            alike = row[some].astype(np.float64)
            share = np.exp(SHARPNESS * (alike - max(alike[0], -1.)))
            near.append(some)
            shares.append(share / max(share.sum(), 1e-9))
    return np.stack(near), np.stack(shares)


def _unit(x):
    """Normalize the rows of x, in place to save memory."""
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    return x
