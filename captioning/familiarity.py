"""Whether a picture is like those that a run was trained on.

A model says something of any picture, and nothing in its words tells that it has never
seen the like. The mean feature vector of a picture, of length one, is compared with
those of training images: what their KEPT principal axes leave of it is large where the
picture has what they have not. How large is usual, images of validation tell, which
were not trained on either.

Features tell of sharpness, too: where the training images were smaller than the
network's input, and so enlarged, any sharp picture would be strange (and its caption
worse). It is first made as small as they were.

    checkpoints/<run>/familiarity.npz   the axes, what is usual, and the images' size
"""
import contextlib
import os
import typing

import numpy as np

from captioning.features import mean_vector
from captioning.pictures import side_of
from captioning.runs import is_begun
from runtime import atomic, cli, watchdog

KEPT = 32         # principal axes
SAMPLE = 2000     # images of training, at most; half as many of validation
SIZED = 200       # images whose size is looked at
FEWEST = 40       # images of validation: below that nothing can be said of one in 20
LIMIT = .95       # a picture is marked that is stranger than this share of them
REMARK = "unlike the training pictures: do not trust this caption"


class Familiarity(typing.NamedTuple):
    """What is usual: the mean of training images, their axes, validation's remains."""
    mean: np.ndarray   # (F,)
    axes: np.ndarray   # (KEPT, F), orthonormal
    usual: np.ndarray  # (V,): `remains` of validation images, sorted
    pixels: int = 0    # side of a square as large as training images; 0: not known

    def strangeness(self, means):
        """Mean feature vectors (B, F) -> the share of validation images that are less
        strange than each, float (B,).
        """
        return np.searchsorted(self.usual, remains(means, self.mean, self.axes)
                               ) / len(self.usual)


def remains(means, mean, axes):
    """What the axes leave of mean feature vectors (B, F), squared: (B,)."""
    apart = _unit(means) - mean
    return (apart ** 2).sum(axis=1) - (apart.dot(axes.T) ** 2).sum(axis=1)


def _unit(means):
    means = np.asarray(means, np.float32)
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


def fit(train, val):
    """The Familiarity of mean feature vectors of images: (I, F) and (V, F)."""
    train = _unit(train)
    mean = train.mean(axis=0)
    axes = np.linalg.svd(train - mean, full_matrices=False)[2][:KEPT]
    # As they are written, so that what is usual is usual for them
    mean, axes = (array.astype(np.float16).astype(np.float32) for array in (mean, axes))
    return Familiarity(mean, axes, np.sort(remains(val, mean, axes)))


def familiarity_path(folder):
    """Where a run's folder says what its training images are like."""
    return os.path.join(folder, "familiarity.npz")


def prepare(folder, data, splits):
    """Write what a run's images are like, for `read_familiarity`, unless it is there:
    that of a training that died before its first checkpoint may be of other images.

    folder: the run's. data: of the images. splits: {'train', 'val': CaptionBatches}.
    Where there are too few images to tell, nothing is written.
    """
    if is_begun(folder) and atomic.exists(familiarity_path(folder)):
        return
    with contextlib.suppress(FileNotFoundError):
        os.remove(familiarity_path(folder))
    means = []
    for name, most in (("train", SAMPLE), ("val", SAMPLE // 2)):
        captions = splits[name]
        there = np.unique(captions.tokens.image_of[captions.captions])
        paths = sample([captions.paths[i] for i in there], most)
        found = [mean_vector(path) for path in
                 watchdog.watched(paths, "image", f"a sample of {name}")]
        means.append(np.array([mean for mean in found if np.isfinite(mean).all()]))
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
    """So many of the items, drawn at random, always the same, in their order."""
    chosen = np.random.RandomState(0).permutation(len(items))[:most]
    return [items[i] for i in sorted(chosen)]


def read_familiarity(folder):
    """The Familiarity of a run's folder; None where it has none, as those of earlier
    releases. Raises cli.UserError where it is damaged.
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
