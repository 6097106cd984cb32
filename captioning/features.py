"""Image features on disk: one .npy per image, the CNN's last convolutional layer, and
beside them a record of the network that made them.

    <features>/<split>/<file name>.npy   (rows, columns, channels), float16 or float32
    <features>/extractor.json            network, weights, side of its input, shape...
    <features>/calibration.npz           statistics of untrained weights
"""
import errno
import hashlib
import json
import os

import numpy as np

from captioning.grid import Axis, Grid, even
from runtime import atomic, cli, watchdog

# InceptionV3's output at 299 pixels; for folders and runs that record no shape
SHAPE = (8, 8, 2048)
EARLIER = {"network": "inception-v3", "side": 299, "shape": list(SHAPE),
           "grid": [37.5, 32.]}


def feature_path(features, image):
    """The path of an image's features; image: its path below the data set."""
    return os.path.join(features, image + ".npy")


def write_features(path, array):
    """Write one image's features, (rows, columns, channels), complete or not at all."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with atomic.writing(path) as file:
        np.save(file, array)


def read_features(path, shape=None):
    """One image's features as annotation vectors (L, F), float16 or float32.

    shape: the required (rows, columns, channels); None: any, for paths that
    `find_features` has checked. Raises cli.UserError if the file is missing, truncated
    or of another kind.
    """
    try:
        with atomic.telling_apart(path):
            array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise cli.UserError(f"{path}: no such features; run extract_features.py")
    except atomic.Damaged as error:
        raise cli.UserError(f"{path}: not a whole .npy file ({error}); delete it and "
                            "run extract_features.py again")
    if (array.ndim != 3 or array.dtype not in (np.float16, np.float32)
            or shape and array.shape != tuple(shape)):
        expected = tuple(shape) if shape else "(rows, columns, channels)"
        raise cli.UserError(
            f"{path}: {array.dtype} {array.shape} instead of float16 or float32 "
            f"{expected}; delete it and run extract_features.py again")
    return array.reshape(-1, array.shape[-1])


def read_maps(paths):
    """The features of some images, (I, L, F). Raises cli.UserError where a file is
    missing, damaged or not finite.
    """
    maps = np.stack([read_features(path) for path in paths])
    for path, values in zip(paths, maps):
        if not np.isfinite(values).all():
            raise cli.UserError(f"{path}: its features are not finite; delete it and "
                                "run extract_features.py again")
    return maps


def is_sound(path, shape, dtype=None):
    """Whether `path` is a complete features file of this shape (by header and length).

    dtype: the required one; None: float16 or float32. Raises OSError, naming the file,
    if the disk fails.
    """
    try:
        with atomic.telling_apart(path):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            fits = (array.shape == tuple(shape)
                    and array.dtype in (np.float16, np.float32))
    except (FileNotFoundError, NotADirectoryError, atomic.Damaged):
        return False
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False
    return fits and dtype in (None, array.dtype)


def find_features(features, images, split):
    """Find the features of these images: their paths, and which files are sound.

    features: the folder of step 2. images: their paths below the data set. split: their
    split's name. Returns a list of str and a bool array. Raises cli.UserError if none
    has the shape given by the folder's record.
    """
    paths = [feature_path(features, str(image)) for image in images]
    shape = shape_of(features)
    sound = np.array(list(watchdog.watched(
        (is_sound(path, shape) for path in paths), "file", features)), bool)
    if not sound.any():
        there = next(filter(os.path.exists, paths), None)
        if there is None:
            raise cli.UserError(f"{features}: no features of the images in {split}.npz;"
                                " run extract_features.py")
        raise cli.UserError(
            f"{there}: is not a features file of shape {shape}, which {features} "
            f"should have, nor is that of any other image in {split}.npz; "
            + (f"name the shape in {record_path(features)}" if read_record(features)
               is None else "delete that folder and run extract_features.py again"))
    return paths, sound


# --- the record -----------------------------------------------------------------------

def record_path(features):
    """The path of the record of the network that made the features in this folder."""
    return os.path.join(features, "extractor.json")


def calibration_path(features):
    """The path of the statistics that untrained weights were calibrated with."""
    return os.path.join(features, "calibration.npz")


def read_record(features):
    """Which network made the features in this folder: a dict for JSON.

    For untrained weights it includes the digest of their calibration. Fields missing
    in earlier releases are filled in. None if there is no record: another program made
    the features. Raises cli.UserError if it is damaged.
    """
    path = record_path(features)
    try:
        with atomic.reading(path) as file:
            made = completed(json.load(file))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise cli.UserError(f"{path}: damaged, so the network that made these features "
                            "is unknown; choose another folder with --features, or "
                            "delete this one")
    if made["weights"] == "random" and atomic.exists(calibration_path(features)):
        made["calibration"] = digest(calibration_path(features))["digest"]
    return made


def completed(made):
    """A record with missing fields filled in. Raises ValueError, KeyError or TypeError
    if it is invalid.
    """
    if "network" in made:  # another program's may leave these out
        made = dict({"weights": "", "seed": 0}, **made)
    made = dict(EARLIER, **made)
    made["weights"], made["seed"] = str(made["weights"]), int(made["seed"])
    rows, columns, channels = made["shape"]
    if not all(type(count) is int and count > 0 for count in (rows, columns, channels)):
        raise ValueError(made["shape"])
    grid_of(made)
    return made


def shape_of(features):
    """The shape (rows, columns, channels) of a folder's files, from its record."""
    return tuple((read_record(features) or EARLIER)["shape"])


def grid_of(made):
    """The Grid of a record's cells.

    The record's 'grid' is the middle of the first cell and the distance to the next, in
    pixels of the input's side; a pair of these if rows and columns differ.
    """
    rows, columns, _ = made["shape"]
    axes = made["grid"] if np.ndim(made["grid"]) == 2 else [made["grid"]] * 2
    (y, dy), (x, dx) = ([pixels / made["side"] for pixels in axis] for axis in axes)
    return Grid(Axis(y, dy, rows), Axis(x, dx, columns))


def cells_of(settings, locations):
    """The Grid that a run with these settings attends to; locations: L of its maps.

    Cells that tile the picture if no record says where they lie. Raises cli.UserError
    if the number of cells differs between the maps and the run.
    """
    made = settings.get("extractor")
    if "extractor" not in settings:  # a run of the first releases
        made = read_record(settings.get("features") or ".")
    rows, columns, _ = settings.get("shape") or dict(EARLIER, **made or {})["shape"]
    if rows * columns != locations:
        raise cli.UserError(f"{settings.get('run')}: its decoded captions have maps of "
                            f"{locations} cells, where the run has {rows} x {columns}; "
                            "run evaluate.py again")
    return grid_of(dict(EARLIER, **made)) if made else even(rows, columns)


def same_network(one, other):
    """Whether two records describe one network; weights files compare by content."""
    if one is None or other is None:
        return one is other
    one, other = dict(EARLIER, **one), dict(EARLIER, **other)
    passed = {"dtype", "precision", "grid",
              "weights" if "digest" in one and "digest" in other else "digest"}
    if "calibration" not in one or "calibration" not in other:
        passed.add("calibration")  # missing until the network has been calibrated
    return all(one.get(key) == other.get(key) for key in {*one, *other} - passed)


def describe_network(made):
    """A record as text, for a message."""
    return json.dumps(made, sort_keys=True) if made else "a program that left no record"


def check_network(features, settings, run):
    """Raise cli.UserError if a folder's features are not from the run's network.

    settings: the run's; those of the first releases record no network, and any features
    of the right shape will do. run: its name or folder.
    """
    there = read_record(features)
    made = settings.get("extractor", there)
    if not same_network(made, there):
        raise cli.UserError(
            f"{features}: holds features of {describe_network(there)}, but {run} was "
            f"trained on features of {describe_network(made)}; give those with "
            "--features, or train another run")


def record_extractor(features, made):
    """Record which network fills this folder; refuse to mix two in one folder.

    made: a dict for JSON. Returns the record's path if it is new, else None. Weights
    files are identified by content, not by name.
    """
    path = record_path(features)
    before = read_record(features)
    if before is None:
        atomic.write_json(path, made)
        return path
    if not same_network(before, made) or any(before.get(key) != made.get(key)
                                             for key in ("dtype", "precision")):
        raise cli.UserError(
            f"{features}: holds features made with {describe_network(before)}; choose "
            "another folder with --features, or delete this one")
    return None


def keep_calibration(features, folder):
    """Copy the statistics of untrained weights into a run's folder, if any exist."""
    source = calibration_path(features)
    if atomic.exists(source):
        with atomic.reading(source, "rb") as old:
            content = old.read()
        with atomic.writing(calibration_path(folder)) as new:
            new.write(content)


def digest(weights):
    """{'digest': SHA-256} of a weights file; {} if it is not a file."""
    if not os.path.isfile(weights):
        return {}
    content = hashlib.sha256()
    with atomic.reading(weights, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            content.update(block)
    return {"digest": content.hexdigest()}
