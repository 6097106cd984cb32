"""Mean annotation vectors of images, which several methods use.

    <features>/means_<split>.npz   those computed so far, and the state of their files

The features of COCO's training images are 29 GB: they are read for this only once, on
first use. Files that have changed since, by size or time, are read again, and all of
them if the folder's network has changed.
"""
import contextlib
import json
import os
import typing

import numpy as np
from tqdm import tqdm

from captioning.features import feature_path, read_features, read_record, shape_of
from runtime import atomic, cli, watchdog
from runtime.ahead import read_ahead


class Kept(typing.NamedTuple):
    """The content of the file, for N images."""
    images: np.ndarray  # str (N,): paths below the data set
    stamps: np.ndarray  # int64 (N, 2): `stamp_of` their feature files
    means: np.ndarray   # float32 (N, F)


def means_path(features, split):
    """The path of a split's mean vectors in a folder of features."""
    return os.path.join(features, f"means_{split}.npz")


def mean_vectors(features, images, split):
    """The mean annotation vector of each image, float32 (I, F).

    features: the folder of step 2. images: paths below the data set, with sound
    features. split: its name, for the file's. Raises cli.UserError if features are
    missing or damaged. Nothing is saved if the folder cannot be written.
    """
    images = np.array([str(image) for image in images])
    paths = [feature_path(features, image) for image in images]
    watchdog.waits_for(None)  # another process may be computing them
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(cli.locked(features, f"_{split}", wait=True,
                                           name="means"))
            can_be_kept = True
        except OSError:
            can_be_kept = False
        stamps = np.array(list(watchdog.watched(map(stamp_of, paths), "file",
                                                features)), np.int64)
        kept = read_means(features, split)
        found = np.empty((len(images), shape_of(features)[-1]), np.float32)
        rows = rows_of(kept, images, stamps)
        missing = np.flatnonzero(rows < 0)
        found[rows >= 0] = kept.means[rows[rows >= 0]]
        computed = watchdog.watched(
            tqdm(read_ahead(mean_vector, [paths[i] for i in missing]),
                 desc=f"mean vectors of {split}", unit="image", total=len(missing),
                 disable=not len(missing)), "image", split)
        for mean, i in zip(computed, missing):
            found[i] = mean
        if len(missing) and can_be_kept:
            write_means(features, split, Kept(images, stamps, found), kept)
    return found


def mean_vector(path):
    """The mean of one image's annotation vectors, float32 (F,); see `read_features`."""
    return read_features(path).mean(axis=0, dtype=np.float32)


def stamp_of(path):
    """A file's (size, modification time in ns), to notice changes; (-1, -1): no file.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):  # reported where it is read
        return -1, -1
    return status.st_size, status.st_mtime_ns


def rows_of(kept, images, stamps):
    """The row in Kept of each image whose file is unchanged, else -1: int (I,)."""
    number = {image: row for row, image in enumerate(kept.images.tolist())}
    rows = np.array([number.get(image, -1) for image in images.tolist()], int)
    there = rows >= 0
    rows[there] = np.where((kept.stamps[rows[there]] == stamps[there]).all(axis=1),
                           rows[there], -1)
    return rows


def read_means(features, split):
    """The Kept of a split, for the network in the folder's record.

    Empty if the file is of another network, damaged, missing or not readable for us.
    Raises OSError if the disk fails.
    """
    channels, made = shape_of(features)[-1], read_record(features)
    nothing = Kept(np.zeros(0, "U1"), np.zeros((0, 2), np.int64),
                   np.zeros((0, channels), np.float32))
    try:
        with atomic.load_arrays(means_path(features, split)) as arrays:
            if json.loads(str(arrays["of"])) != made:
                return nothing
            kept = Kept(*(arrays[name] for name in Kept._fields))
            N = len(kept.images)
            if (kept.images.shape, kept.stamps.shape, kept.means.shape) != (
                    (N,), (N, 2), (N, channels)) or kept.means.dtype != np.float32:
                raise ValueError
        return kept
    except (FileNotFoundError, PermissionError, atomic.Damaged):
        return nothing


def write_means(features, split, new, kept):
    """Save new vectors, and those already Kept for other, unchanged images."""
    path, now = means_path(features, split), set(new.images.tolist())
    others = [row for row, image in enumerate(kept.images.tolist()) if image not in now
              and stamp_of(feature_path(features, image)) == tuple(kept.stamps[row])]
    if others:
        new = Kept(*(np.concatenate([array, old[others]])
                     for array, old in zip(new, kept)))
    try:
        atomic.write_arrays(path, dict(new._asdict(), of=np.array(json.dumps(
            read_record(features)))))
    except OSError as error:
        cli.warn(f"{path}: cannot be kept ({error.strerror}), so features are read "
                 "again next time")
