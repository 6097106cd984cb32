"""InceptionV3 without its classifier, with batch norm folded into its convolutions.

From 299 x 299 pixels it computes (8, 8, 2048), the output of its last convolutional
layer ("mixed10"); from 491 x 491 pixels, 14 x 14 cells.
"""
import contextlib
import os
import socket

import numpy as np
from tqdm import tqdm

from captioning.grid import through
from runtime import atomic, cli, watchdog
from runtime.tf import compiled, load_weights, take_no_mask, tf

SIDE = 299            # of its input, pixels
CHANNELS = 2048
# The layers that change the size: kernel, stride, padding
LAYERS = [(3, 2, "valid"), (3, 1, "valid"), (3, 2, "valid"), (3, 1, "valid"),
          (3, 2, "valid"), (3, 2, "valid"), (3, 2, "valid")]
CENTRE_WEIGHT = 3.    # see random_weights
SPREAD = .3           # of the output of random weights; see calibrate


def inception(weights, side=SIDE, images=None, statistics=None, seed=0):
    """A function uint8 (B, side, side, 3) -> float32 (B, rows, columns, 2048).

    weights: 'imagenet', the path of an .h5 file, or 'random'.
    images: a function without arguments that returns calibration pictures, uint8
    (N, side, side, 3); called only for 'random', and only if the file `statistics` is
    missing. statistics: the `features.calibration_path`.
    """
    tf.keras.backend.clear_session()  # layer names then start from 1 again
    if weights == "random":
        model = architecture(side)
        random_weights(model, seed)
        mean, std = calibrate(model, images, statistics)
    else:
        model = trained(weights, side)
        mean, std = 0., 1.
    network = compiled(fold_batch_norm(model))

    def forward(pixels):
        x = tf.cast(pixels, tf.float32) / 127.5 - 1.
        return (network(x) - mean) / std
    return forward


def architecture(side=SIDE, weights=None):
    """Keras's InceptionV3 without its top; weights: 'imagenet', or None."""
    with contextlib.ExitStack() as stack:
        if weights is None:  # stopped in here, TensorFlow 1 prints a traceback
            stack.enter_context(cli.interrupts_wait())
        return tf.keras.applications.InceptionV3(
            include_top=False, weights=weights, input_shape=(side, side, 3))


def trained(weights, side=SIDE):
    """InceptionV3 with ImageNet weights or those of an .h5 file, else UserError."""
    other = ("give the file with --weights PATH.h5, or use untrained weights with "
             "--weights random")
    if weights == "imagenet":
        patience = socket.getdefaulttimeout()
        socket.setdefaulttimeout(60)  # Keras sets none: a dead connection would hang
        try:
            return architecture(side, "imagenet")
        except Exception as error:  # Keras raises bare Exception for a failed download
            raise cli.UserError(f"ImageNet weights could not be downloaded ({error}); "
                                + other)
        finally:
            socket.setdefaulttimeout(patience)
    if not os.path.isfile(weights):
        raise cli.UserError(f"{weights}: no such weights file; " + other)
    model = architecture(side)
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

    Without this an untrained InceptionV3 outputs nearly the same 1e-3 for every
    picture. The statistics are saved in `path`, so that all pictures see one network.
    Returns the offset and the divisor of the output channels, each float32 (2048,),
    which give them a standard deviation of SPREAD. (With 1, Adam's first steps are too
    large for a sum of 2,048 such numbers, and attention never learns to look.)
    """
    norms = _in_order(model, tf.keras.layers.BatchNormalization)
    if not atomic.exists(path):
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
    except atomic.Damaged:
        raise cli.UserError(f"{path}: damaged; delete its folder and run "
                            "extract_features.py again")


def normalize(model, sample, piece=8):
    """Set every batch norm to the statistics of its input on a sample: float32
    (N, side, side, 3). Returns the model's output on it.

    Layer by layer, `piece` pictures at a time, which avoids gigabytes of memory.
    """
    values = {id(model.inputs[0]): sample}
    layers = watchdog.watched(tqdm(model.layers, desc="calibrate", unit="layer"),
                              "layer", "the network")
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
    """The same network with every batch norm folded into the convolution before it.

    BN(W * x) = (gamma / s) W * x + (beta - gamma mean / s), with s = sqrt(var + eps):
    one pass over the activations less for each of the 94 convolutions, and no moving
    statistics that a graph function could corrupt.
    """
    convolutions = _in_order(model, tf.keras.layers.Conv2D)
    norms = _in_order(model, tf.keras.layers.BatchNormalization)
    if [tuple(map(int, conv.output.shape[1:])) for conv in convolutions] != [
            tuple(map(int, norm.output.shape[1:])) for norm in norms]:
        raise ValueError("batch norm can be folded where one follows each convolution: "
                         f"{model.name} has {len(convolutions)} convolutions and "
                         f"{len(norms)} batch norms")
    config = model.get_config()
    for layer in config["layers"]:
        if layer["class_name"] == "Conv2D":
            layer["config"]["use_bias"] = True
        if layer["class_name"] == "BatchNormalization":
            layer["class_name"] = "Activation"
            layer["config"] = {"name": layer["config"]["name"], "activation": "linear"}
            take_no_mask(layer)
    folded = tf.keras.Model.from_config(config)
    for conv, norm in zip(convolutions, norms):
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


def grid_of(model):
    """`grid.through` for the layers of a model: their kernels, strides and paddings.

    All branches must agree.
    """
    found = {id(model.inputs[0]): (.5, 1., int(model.inputs[0].shape[1]))}
    for layer in model.layers[1:]:
        given = {found[id(tensor)] for tensor in _inputs(layer)}
        if len(given) > 1:
            raise ValueError(f"the branches that meet in {layer.name} do not agree")
        (first, step, side), = given
        kernel = getattr(layer, "kernel_size", getattr(layer, "pool_size", None))
        # None: batch norm, activation, concatenation. 1 x 7 and 7 x 1 are padded alike.
        found[id(layer.output)] = (first, step, side) if kernel is None else through(
            [(kernel[0], layer.strides[0], layer.padding)], side, first, step)
    return found[id(model.outputs[0])]
