"""Features of images on disk: one .npy an image, the CNN's last convolutional layer."""
import os

import numpy as np

from runtime import atomic, cli, watchdog

SHAPE = (8, 8, 2048)  # of a file: the cells of the picture, and their channels


def feature_path(features, image):
    """Where the features of an image are; image: its path below the data set."""
    return os.path.join(features, image + ".npy")


def write_features(path, array):
    """Write one image's features, (8, 8, 2048), complete or not at all."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with atomic.writing(path) as file:
        np.save(file, array)


def read_features(path):
    """One image's features as annotation vectors (L, F), float16 or float32.

    Raises cli.UserError where it is missing, cut short or of another shape or type.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise cli.UserError(f"{path}: no such features; run extract_features.py")
    except atomic.DAMAGED as error:
        raise cli.UserError(f"{path}: not a whole .npy file ({error}); delete it and "
                            "run extract_features.py again")
    if array.shape != SHAPE or array.dtype not in (np.float16, np.float32):
        raise cli.UserError(
            f"{path}: {array.dtype} {array.shape} instead of float16 or float32 "
            f"{SHAPE}; delete it and run extract_features.py again")
    return array.reshape(-1, SHAPE[-1])


def is_sound(path, dtype=None):
    """Whether `path` is a whole features file (by header and length).

    dtype: which it must have; None: float16 or float32.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        fits = array.shape == SHAPE and array.dtype in (np.float16, np.float32)
    except atomic.DAMAGED:
        return False
    return fits and dtype in (None, array.dtype)


def find_features(features, images, split):
    """Where the features of these images are, and which of the files are sound.

    features: the folder of step 2. images: their paths below the data set. split: their
    split's name. Returns a list of str and a bool array. Raises cli.UserError where
    there are none.
    """
    paths = [feature_path(features, str(image)) for image in images]
    sound = np.array(list(watchdog.watched(map(is_sound, paths), "file", features)),
                     bool)
    if not sound.any():
        raise cli.UserError(f"{features}: no features of the images in {split}.npz; "
                            "run extract_features.py")
    return paths, sound
