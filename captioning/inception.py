"""InceptionV3 without its classifier: its weights, and the record of which made what.

The network sees 299 x 299 pixels and gives (8, 8, 2048) numbers, the output of its last
convolutional layer ("mixed10").
"""
import hashlib
import json
import os
import socket

import numpy as np
from tqdm import tqdm

from captioning.grid import Grid, even, through
from captioning.pictures import read_square
from runtime import atomic, cli
from runtime.tf import compiled, load_weights, take_no_mask, tf

SIZE = 299            # InceptionV3's input, pixels
GRID = (37.5, 32.)    # pixels: the middle of its first cell, and to the next; grid_of
CENTRE_WEIGHT = 3.    # see random_weights
SPREAD = .3           # of the output of random weights; see calibrate


def record_path(features):
    """The record of the network that made the features in this folder."""
    return os.path.join(features, "extractor.json")


def calibration_path(features):
    """The statistics that untrained weights were calibrated with."""
    return os.path.join(features, "calibration.npz")


def read_image(path):
    """Any picture as the network's input, uint8 (299, 299, 3)."""
    return read_square(path, SIZE)


def inception(weights, images, statistics, seed=0):
    """A function uint8 (B, 299, 299, 3) -> float32 (B, 8, 8, 2048).

    weights: 'imagenet', the path of an .h5 file, or 'random'.
    images: a function of no arguments that gives calibration pictures, uint8
    (N, 299, 299, 3); called only for 'random', and only if there is no `statistics`.
    statistics: the path of `calibration_path`.
    """
    tf.keras.backend.clear_session()  # layer names then start from 1 again
    if weights == "random":
        model = architecture()
        random_weights(model, seed)
        mean, std = calibrate(model, images, statistics)
    else:
        model = trained(weights)
        mean, std = 0., 1.
    network = compiled(fold_batch_norm(model))

    def forward(pixels):
        x = tf.cast(pixels, tf.float32) / 127.5 - 1.
        return (network(x) - mean) / std
    return forward


def architecture(weights=None):
    """Keras's InceptionV3 without its top; weights: 'imagenet', or None."""
    return tf.keras.applications.InceptionV3(include_top=False, weights=weights,
                                             input_shape=(SIZE, SIZE, 3))


def trained(weights):
    """InceptionV3 with ImageNet weights or those of an .h5 file, else UserError."""
    other = ("give the file with --weights PATH.h5, or use untrained weights with "
             "--weights random")
    if weights == "imagenet":
        patience = socket.getdefaulttimeout()
        socket.setdefaulttimeout(60)  # Keras sets none: a dead connection would hang
        try:
            return architecture("imagenet")
        except Exception as error:  # Keras raises bare Exception for a failed download
            raise cli.UserError(f"ImageNet weights could not be downloaded ({error}); "
                                + other)
        finally:
            socket.setdefaulttimeout(patience)
    if not os.path.isfile(weights):
        raise cli.UserError(f"{weights}: no such weights file; " + other)
    model = architecture()
    try:
        load_weights(model, weights)
    except (OSError, ValueError, KeyError) as error:
        said = cli.one_line(error)[:200]  # Keras 3 lists all layers
        raise cli.UserError(f"{weights}: not InceptionV3 weights without top ({said})"
                            "; " + other)
    return model


def random_weights(model, seed):
    """Fill the convolutions with seeded noise, strongest at the middle of each kernel.

    The middle weighs CENTRE_WEIGHT times the rim: a cell of the output then depends
    mostly on its own place in the picture, which is what attention needs.
    """
    random = np.random.RandomState(seed)
    for layer in _in_order(model, tf.keras.layers.Conv2D):
        h, w, c_in, c_out = layer.kernel.shape.as_list()
        y, x = np.ogrid[:h, :w]
        away = np.maximum(abs(y - (h - 1) / 2) / max(1, h - 1),
                          abs(x - (w - 1) / 2) / max(1, w - 1)) * 2  # 0 middle, 1 rim
        kernel = random.randn(h, w, c_in, c_out) * (
            CENTRE_WEIGHT ** (1 - away))[:, :, None, None]
        kernel *= np.sqrt(2 / (kernel ** 2).sum(axis=(0, 1, 2)))  # He et al. 2015
        layer.set_weights([kernel.astype(np.float32)])


def calibrate(model, images, path):
    """Set every batch norm to sample pictures' statistics; standardise the output.

    Without this an untrained InceptionV3 answers every picture with nearly the same
    1e-3. The statistics are kept in `path`, so that all pictures meet one network.
    Returns what to subtract from the output channels and to divide them by, each
    float32 (2048,): their standard deviation is SPREAD then. (With 1, Adam's first
    steps are too large for a sum of 2,048 such numbers, and attention stays blind.)
    """
    norms = _in_order(model, tf.keras.layers.BatchNormalization)
    if not os.path.exists(path):
        output = normalize(model, images().astype(np.float32) / 127.5 - 1.)
        arrays = {"mean": output.mean(axis=(0, 1, 2)),
                  "std": (output.std(axis=(0, 1, 2)) + 1e-6) / SPREAD}
        for i, norm in enumerate(norms):
            arrays[f"moving_mean_{i}"] = np.array(norm.moving_mean.numpy())
            arrays[f"moving_variance_{i}"] = np.array(norm.moving_variance.numpy())
        atomic.write_arrays(path, arrays)
    try:
        with atomic.load_arrays(path) as arrays:
            for i, norm in enumerate(norms):
                norm.moving_mean.assign(arrays[f"moving_mean_{i}"])
                norm.moving_variance.assign(arrays[f"moving_variance_{i}"])
            return arrays["mean"], arrays["std"]
    except atomic.DAMAGED:
        raise cli.UserError(f"{path}: damaged; delete its folder and run "
                            "extract_features.py again")


def normalize(model, sample, piece=8):
    """Set every batch norm to the statistics of its input on a sample: float32
    (N, 299, 299, 3). Returns the model's output on it, float32 (N, 8, 8, 2048).

    Layer by layer, `piece` pictures at a time, so that gigabytes are never needed.
    """
    values = {id(model.inputs[0]): sample}
    layers = tqdm(model.layers, desc="calibrate", unit="layer")
    for at, layer in enumerate(layers):
        if isinstance(layer, tf.keras.layers.InputLayer):
            continue
        given = [values[id(tensor)] for tensor in _inputs(layer)]
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            mean = given[0].mean(axis=(0, 1, 2), dtype=np.float64)
            layer.moving_mean.assign(mean.astype(np.float32))
            layer.moving_variance.assign(given[0].var(
                axis=(0, 1, 2), dtype=np.float64).astype(np.float32))
        pieces = []
        for i in range(0, len(sample), piece):
            x = [tf.constant(value[i:i + piece]) for value in given]
            pieces.append(np.array(layer(x if len(x) > 1 else x[0]).numpy()))
        values[id(layer.output)] = np.concatenate(pieces)
        needed = {id(tensor) for later in model.layers[at + 1:]
                  for tensor in _inputs(later)} | {id(model.outputs[0])}
        values = {key: value for key, value in values.items() if key in needed}
    return values[id(model.outputs[0])]


def _inputs(layer):
    return layer.input if isinstance(layer.input, (list, tuple)) else [layer.input]


def fold_batch_norm(model):
    """The same network with every batch norm multiplied into the convolution before it.

    BN(W * x) = (gamma / s) W * x + (beta - gamma mean / s), with s = sqrt(var + eps):
    one pass over the activations less for each of the 94 convolutions, and no moving
    statistics that a graph function could spoil.
    """
    config = model.get_config()
    for layer in config["layers"]:
        if layer["class_name"] == "Conv2D":
            layer["config"]["use_bias"] = True
        if layer["class_name"] == "BatchNormalization":
            layer["class_name"] = "Activation"
            layer["config"] = {"name": layer["config"]["name"], "activation": "linear"}
            take_no_mask(layer)
    folded = tf.keras.Model.from_config(config)
    pairs = zip(_in_order(model, tf.keras.layers.Conv2D),
                _in_order(model, tf.keras.layers.BatchNormalization))
    for conv, norm in pairs:
        gamma = norm.gamma.numpy() if norm.scale else 1.
        scale = gamma / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
        bias = norm.beta.numpy() - norm.moving_mean.numpy() * scale
        folded.get_layer(conv.name).set_weights([conv.kernel.numpy() * scale, bias])
    return folded


def _in_order(model, kind):
    """The model's layers of one kind in the order in which they were built.

    model.layers is sorted by depth; the number in Keras's automatic names is not.
    """
    def built(layer):
        tail = layer.name.rsplit("_", 1)[-1]
        return int(tail) if tail.isdigit() else 0
    return sorted((layer for layer in model.layers if isinstance(layer, kind)),
                  key=built)


def read_record(features):
    """Which network made the features in this folder: a dict, as JSON takes it.

    For untrained weights with the digest of their calibration. None where there is no
    record: another program made them. Raises cli.UserError where it is damaged.
    """
    path = record_path(features)
    try:
        with open(path, encoding="utf-8") as file:
            made = json.load(file)
        made["weights"], made["seed"] = str(made["weights"]), int(made["seed"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise cli.UserError(f"{path}: damaged, so the network that made these features "
                            "is unknown; choose another folder with --features, or "
                            "delete this one")
    if made["weights"] == "random" and os.path.exists(calibration_path(features)):
        made["calibration"] = digest(calibration_path(features))["digest"]
    return made


def grid_of(model):
    """The middle of the model's first cell and the distance to the next, in pixels.

    By kernel, stride and padding of its layers; all branches must agree.
    """
    found = {id(model.inputs[0]): (.5, 1.)}
    for layer in model.layers[1:]:
        given = {found[id(tensor)] for tensor in _inputs(layer)}
        if len(given) > 1:
            raise ValueError(f"the branches that meet in {layer.name} do not agree")
        kernel = getattr(layer, "kernel_size", getattr(layer, "pool_size", None))
        if kernel is None:  # batch norm, activation, concatenation
            found[id(layer.output)], = given
        else:  # 1 x 7 and 7 x 1 are padded alike
            found[id(layer.output)] = through(
                [(kernel[0], layer.strides[0], layer.padding)], *given.pop())
    return found[id(model.outputs[0])]


def cells(made, side):
    """The Grid of features by their record; evenly spread cells where there is none.

    made: of `read_record`. side: cells along the picture's side.
    """
    if made is None or side != 8:
        return even(side)
    input_side = made.get("side", SIZE)
    return Grid(*(pixels / input_side for pixels in made.get("grid", GRID)))


def same_network(one, other):
    """Whether two records are of one network; a file of weights counts by content."""
    if one is None or other is None:
        return one is other
    passed = {"dtype", "precision", "grid", "side",
              "weights" if "digest" in one and "digest" in other else "digest"}
    if "calibration" not in one or "calibration" not in other:
        passed.add("calibration")  # as a record has none before it is calibrated
    return all(one.get(key) == other.get(key) for key in {*one, *other} - passed)


def describe_network(made):
    """A record in words, for a message."""
    return json.dumps(made, sort_keys=True) if made else "a program that left no record"


def check_network(features, settings, run):
    """Raise cli.UserError where other features are in the folder than a run knows.

    settings: the run's; those of the first releases do not say, and all will do. run:
    its name or folder.
    """
    if "extractor" not in settings:
        return
    made, there = settings["extractor"], read_record(features)
    if not same_network(made, there):
        raise cli.UserError(
            f"{features}: holds features of {describe_network(there)}, but {run} was "
            f"trained on features of {describe_network(made)}; give those with "
            "--features, or train another run")


def extractor(made, calibration):
    """The network of a record, for one's own pictures: the function of `inception`.

    made: of `read_record`. calibration: the path of its statistics. Raises
    cli.UserError where the network cannot be had.
    """
    if made is None:
        raise cli.UserError(f"{os.path.dirname(calibration)}: no extractor.json says "
                            "which network made these features; a picture of one's own "
                            "needs extract_features.py's")
    if made.get("digest", "") not in ("", digest(made["weights"]).get("digest", "")):
        raise cli.UserError(f"{made['weights']}: missing, or no longer the file that "
                            "made the features; put that file back")
    if made["weights"] == "random" and not os.path.exists(calibration):
        raise cli.UserError(f"{calibration}: missing; run extract_features.py again")
    return inception(made["weights"], None, calibration, int(made["seed"]))


def keep_calibration(features, folder):
    """Copy the statistics of untrained weights beside a run, if there are any."""
    source = calibration_path(features)
    if os.path.exists(source):
        with open(source, "rb") as old, atomic.writing(
                calibration_path(folder)) as new:
            new.write(old.read())


def digest(weights):
    """{'digest': SHA-256} of an .h5 file of weights; {} for 'imagenet' and 'random'."""
    if not os.path.isfile(weights):
        return {}
    found = hashlib.sha256()
    with open(weights, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            found.update(block)
    return {"digest": found.hexdigest()}


def record_extractor(features, made):
    """Record which network fills this folder; refuse to mix two in one folder.

    made: a dict for JSON. Returns the record's path if it is new, else None. A file of
    weights is known by what is in it, not by its name.
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
