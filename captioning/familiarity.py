"""Whether a picture resembles those that a run was trained on.

A model captions any picture, and its words do not show when it has seen nothing like
it. So the picture's mean feature vector, normalized, is compared with those of training
images: its residual after projection onto their KEPT principal axes is large where the
picture has what they lack. The residuals of validation images, which were not trained
on either, give the usual range.

Features also depend on sharpness: where the training images were smaller than the
network's input, and so enlarged, any sharp picture would look strange (and get a worse
caption). It is first reduced to their size.

    checkpoints/<run>/familiarity.npz   the axes, usual residuals, and the images' size
"""
import contextlib
import os
import typing

import numpy as np

from captioning.mean_vectors import mean_vectors
from captioning.pictures import side_of
from captioning.runs import is_begun
from runtime import atomic, cli

KEPT = 32         # principal axes
SAMPLE = 2000     # training images used, at most; half as many for validation
SIZED = 200       # images whose size is read
FEWEST = 40       # validation images needed to estimate what one in 20 exceeds
LIMIT = .95       # pictures stranger than this share of them are marked
REMARK = "unlike the training pictures: do not trust this caption"


class Familiarity(typing.NamedTuple):
    """What is usual: the training images' mean and axes, and validation residuals."""
    mean: np.ndarray   # (F,)
    axes: np.ndarray   # (KEPT, F), orthonormal
    usual: np.ndarray  # (V,): `remains` of validation images, sorted
    pixels: int = 0    # side of a square with a training image's area; 0: unknown

    def strangeness(self, means):
        """Mean feature vectors (B, F) -> float (B,): for each, the share of validation
        images that are less strange.
        """
        return np.searchsorted(self.usual, remains(means, self.mean, self.axes)
                               ) / len(self.usual)


def remains(means, mean, axes):
    """Squared residuals of mean feature vectors (B, F) after projection: (B,)."""
    apart = _unit(means) - mean
    return (apart ** 2).sum(axis=1) - (apart.dot(axes.T) ** 2).sum(axis=1)


def _unit(means):
    means = np.asarray(means, np.float32)
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


def fit(train, val):
    """Fit a Familiarity to mean feature vectors: train (I, F), val (V, F)."""
    train = _unit(train)
    mean = train.mean(axis=0)
    axes = np.linalg.svd(train - mean, full_matrices=False)[2][:KEPT]
    # Rounded as they are saved, so that the usual residuals match
    mean, axes = (array.astype(np.float16).astype(np.float32) for array in (mean, axes))
    return Familiarity(mean, axes, np.sort(remains(val, mean, axes)))


def familiarity_path(folder):
    """The path of a run's Familiarity."""
    return os.path.join(folder, "familiarity.npz")


def prepare(folder, data, features, splits):
    """Fit and write a run's Familiarity, unless a run that has begun already has one:
    one from a training that died before its first checkpoint may be of other images.

    folder: the run's. data: of the images. features: of step 2. splits: {'train',
    'val': CaptionBatches}. With too few images, nothing is written.
    """
    if is_begun(folder) and atomic.exists(familiarity_path(folder)):
        return
    with contextlib.suppress(FileNotFoundError):
        os.remove(familiarity_path(folder))
    means = []
    for name, most in (("train", SAMPLE), ("val", SAMPLE // 2)):
        captions = splits[name]
        there = np.unique(captions.tokens.image_of[captions.captions])
        found = mean_vectors(features, sample(captions.tokens.images[there].tolist(),
                                              most), name)
        means.append(found[np.isfinite(found).all(axis=1)])
    if len(means[0]) < 2 * KEPT or len(means[1]) < FEWEST:
        return
    images = sample(splits["train"].tokens.images.tolist(), SIZED)
    sides = [side_of(os.path.join(data, image)) for image in images]
    sides = [side for side in sides if side]
    write(folder, fit(*means)._replace(pixels=int(np.median(sides or [0]))))


def write(folder, found):
    """Write a Familiarity into a run's folder, for `read_familiarity`."""
    atomic.write_arrays(familiarity_path(folder), {
        "mean": found.mean.astype(np.float16), "axes": found.axes.astype(np.float16),
        "usual": found.usual.astype(np.float32), "pixels": np.array(found.pixels)},
        compress=True)


def sample(items, most):
    """A random sample of `most` items, always the same, in their order."""
    chosen = np.random.RandomState(0).permutation(len(items))[:most]
    return [items[i] for i in sorted(chosen)]


def read_familiarity(folder):
    """The Familiarity of a run; None if it has none, as in earlier releases. Raises
    cli.UserError if it is damaged.
    """
    path = familiarity_path(folder)
    try:
        with atomic.load_arrays(path) as arrays:
            found = Familiarity(*(arrays[name].astype(np.float32)
                                  for name in ("mean", "axes", "usual")),
                                pixels=int(arrays["pixels"]))
            if not (found.axes.ndim == 2 and found.axes.shape[1:] == found.mean.shape
                    and found.usual.ndim == 1 and len(found.usual)
                    and all(np.isfinite(array).all() for array in found[:3])):
                raise ValueError
        return found
    except FileNotFoundError:
        return None
    except atomic.Damaged:
        raise cli.UserError(f"{path}: damaged; delete it, and captions come without a "
                            "remark on unusual pictures")
