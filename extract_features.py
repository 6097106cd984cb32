"""Step 2: cache InceptionV3's last convolutional layer for every image.

    python extract_features.py --data data                          # ImageNet weights
    python extract_features.py --data data --weights my_weights.h5
    python extract_features.py --data data --weights random         # no download

The network sees 299 x 299 pixels and gives (8, 8, 2048) numbers: L = 64 annotation
vectors of 2048 (section 3.1.1 of the paper, with InceptionV3 in VGG's place). They are
computed once, since the CNN is frozen. Run again, it makes only what is missing.

Several processes share the images: with Horovod, or each started by itself, anywhere
that sees the same folders, as one of N with --shard 1/N to --shard N/N. The features
are the same bytes however they are shared.

Reads:  <data>/annotations/captions_<split>.json and <data>/<split>/<file name>
Writes: <features>/<split>/<file name>.npy   one array an image, (8, 8, 2048)
        <features>/extractor.json            which weights made them
        <features>/calibration.npz           only for --weights random
        <features>/unreadable_<split>.txt    images that were skipped, with the reason
                                             (with --shard: .._I_of_N.txt)
"""
import argparse
import collections
import concurrent.futures
import glob
import hashlib
import json
import os
import socket

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

import atomic
import cli
import ranks
from download_coco import read_captions, read_karpathy, splits
from tf_runtime import (compiled, device_errors, device_name, load_weights,
                        py_function, start, take_no_mask, tf)

SIZE = 299                # InceptionV3's input, pixels
SHAPE = (8, 8, 2048)      # its last convolutional layer, "mixed10"
CALIBRATION_IMAGES = 48
CENTRE_WEIGHT = 3.        # see random_weights
SPREAD = .3               # of the output of random weights; see calibrate
UNREADABLE = (OSError, ValueError, SyntaxError, MemoryError,  # what Pillow raises
              Image.DecompressionBombError)


# --- reading what this step writes ----------------------------------------------------

def feature_path(features, image):
    """Where the features of an image stand; image: its path below the data set."""
    return os.path.join(features, image + ".npy")


def read_features(path):
    """One image's features: an array of shape (8, 8, 2048), float16 or float32.

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
    return array


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


def upright(path):
    """Any picture as a Pillow image in RGB, upright, on white where it is transparent.

    Raises one of UNREADABLE where Pillow cannot read it.
    """
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":  # 16 bits or more, grey
            grey = np.asarray(image, np.float32)
            image = Image.fromarray((grey / (256 if grey.max() > 255 else 1))
                                    .clip(0, 255).astype(np.uint8))
        if image.mode in ("P", "PA", "LA", "RGBA") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return image.convert("RGB")


def read_image(path):
    """Any picture as uint8 (299, 299, 3); see `upright`.

    Stretched, not cropped: the 8 x 8 cells then cover the whole picture.
    """
    return np.asarray(upright(path).resize((SIZE, SIZE), Image.BILINEAR))


# --- the network ----------------------------------------------------------------------

def inception(weights, images, calibration_path, seed=0):
    """A function uint8 (B, 299, 299, 3) -> float32 (B, 8, 8, 2048).

    weights: 'imagenet', the path of an .h5 file, or 'random'.
    images: a function of no arguments that gives calibration pictures, uint8
    (N, 299, 299, 3); called only for 'random' and only if there is no calibration file.
    """
    tf.keras.backend.clear_session()  # layer names then start from 1 again
    if weights == "random":
        model = _architecture()
        random_weights(model, seed)
        mean, std = calibrate(model, images, calibration_path)
    else:
        model = trained(weights)
        mean, std = 0., 1.
    network = compiled(fold_batch_norm(model))

    def forward(pixels):
        x = tf.cast(pixels, tf.float32) / 127.5 - 1.
        return (network(x) - mean) / std
    return forward


def _architecture(weights=None):
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
            return _architecture("imagenet")
        except Exception as error:  # Keras raises bare Exception for a failed download
            raise cli.UserError(f"ImageNet weights could not be downloaded ({error}); "
                                + other)
        finally:
            socket.setdefaulttimeout(patience)
    if not os.path.isfile(weights):
        raise cli.UserError(f"{weights}: no such weights file; " + other)
    model = _architecture()
    try:
        load_weights(model, weights)
    except (OSError, ValueError, KeyError) as error:
        said = cli.one_line(error)[:200]  # Keras 3 lists all layers
        raise cli.UserError(f"{weights}: not InceptionV3 weights without top ({said})"
                            "; " + other)
    return model


def random_weights(model, seed):
    """Fill the convolutions with seeded noise, strongest at the middle of each kernel.

    The middle weighs CENTRE_WEIGHT times the rim: a cell of the output then tells
    mostly of its own place in the picture, which is what attention needs.
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
        sample = tf.constant(images().astype(np.float32) / 127.5 - 1.)
        for norm in norms:
            norm.momentum = 0.  # the moving statistics become those of this one batch
        model(sample, training=True)
        output = np.concatenate([model(sample[i:i + 8], training=False).numpy()
                                 for i in range(0, len(sample.numpy()), 8)])
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


# --- the run --------------------------------------------------------------------------

def batches(paths, batch_size):
    """Yield (indices, pixels, errors): up to batch_size pictures, decoded side by side.

    indices: int64 (B,) into paths; pixels: uint8 (B, 299, 299, 3);
    errors: list of B strings, '' where the picture could be read.
    """
    def load(index):
        try:
            return read_image(paths[int(index)]), b""
        except UNREADABLE as error:
            return np.zeros((SIZE, SIZE, 3), np.uint8), cli.one_line(error).encode()

    def decode(index):
        pixels, error = py_function(load, [index], [tf.uint8, tf.string])
        pixels.set_shape((SIZE, SIZE, 3))
        error.set_shape(())
        return index, pixels, error

    data = tf.data.Dataset.range(len(paths)).map(decode, os.cpu_count() or 1)
    for index, pixels, errors in data.batch(batch_size).prefetch(2):
        yield index.numpy(), pixels, [e.decode() for e in errors.numpy()]


def extract(split, names, data, features, forward, batch_size, dtype, part=(0, 1)):
    """Write the missing features of one split, or of a part of it.

    part: (i, N): only every N-th batch, from the i-th on. Returns (name, error) of
    each image that was skipped, and how many images the part has.
    """
    # Always the same batches, if only for one image of them: the last digits of its
    # features depend on its place in a batch, and shall not on where a run was stopped.
    groups = [names[i:i + batch_size] for i in range(0, len(names), batch_size)]
    groups = groups[part[0]::part[1]]
    names = [name for group in groups for name in group]
    paths = {name: feature_path(features, name) for name in names}
    missing = {name for name in names if not is_sound(paths[name], dtype)}
    if len(missing) < len(names):
        print(f"{split}: {len(names) - len(missing)} of {len(names)} images are done")
    todo = [name for group in groups if not missing.isdisjoint(group) for name in group]
    bad = []

    def write(names, output, errors):
        for name, array, error in zip(names, output.astype(dtype), errors):
            if name not in missing:
                continue
            if not error and not np.isfinite(array).all():
                error = f"its features are not finite in {dtype}"
            if error:
                bad.append((name, error))
            else:
                os.makedirs(os.path.dirname(paths[name]), exist_ok=True)
                with atomic.writing(paths[name]) as file:
                    np.save(file, array)
        bar.update(len(missing.intersection(names)))

    # The disk is waited for while the network works on the next batch. Whatever ends
    # the loop, a batch that was handed over is written to its end.
    with tqdm(total=len(missing), desc=split, unit="image",
              disable=not todo or ranks.rank > 0) as bar, \
            concurrent.futures.ThreadPoolExecutor(1) as writer:
        sources, written = [os.path.join(data, name) for name in todo], None
        for indices, pixels, errors in batches(sources, batch_size) if todo else ():
            output = np.array(forward(pixels).numpy())
            if written:
                written.result()
            written = writer.submit(write, [todo[i] for i in indices], output, errors)
        if written:
            written.result()
    return bad, len(names)


def sample_images(data, split, names, seed):
    """Up to CALIBRATION_IMAGES readable pictures: uint8 (N, 299, 299, 3)."""
    pictures = []
    for i in np.random.RandomState(seed).permutation(len(names)):
        try:
            pictures.append(read_image(os.path.join(data, names[i])))
        except UNREADABLE:
            continue  # extract() reports it
        if len(pictures) == CALIBRATION_IMAGES:
            break
    if not pictures:
        raise cli.UserError(f"{os.path.join(data, split)}: no readable image to "
                            "calibrate random weights on; run download_coco.py again")
    return np.stack(pictures)


def extractor(features):
    """The network that made the features in this folder, for one's own pictures.

    Returns the function of `inception`. Raises cli.UserError where the folder has no
    extractor.json, or its features were made by another program.
    """
    path = os.path.join(features, "extractor.json")
    try:
        with open(path, encoding="utf-8") as file:
            made = json.load(file)
        weights, seed = str(made["weights"]), int(made["seed"])
    except (OSError, ValueError, KeyError, TypeError):
        raise cli.UserError(f"{path}: does not say which network made these features; "
                            "a picture of one's own needs extract_features.py's")
    if made.get("digest", "") not in ("", digest(weights).get("digest", "")):
        raise cli.UserError(f"{weights}: missing, or no longer the file that made "
                            f"{features}; put that file back")
    calibration = os.path.join(features, "calibration.npz")
    if weights == "random" and not os.path.exists(calibration):
        raise cli.UserError(f"{calibration}: missing; run extract_features.py again")
    return inception(weights, None, calibration, seed)


def digest(weights):
    """{'digest': SHA-256} of an .h5 file of weights; {} for 'imagenet' and 'random'."""
    if not os.path.isfile(weights):
        return {}
    found = hashlib.sha256()
    with open(weights, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            found.update(block)
    return {"digest": found.hexdigest()}


def claim(features, made):
    """Record which network fills this folder; refuse to mix two in one folder.

    Returns whether the record is a new one. A file of weights is known by what is in
    it, not by its name.
    """
    path = os.path.join(features, "extractor.json")
    new = not os.path.exists(path)
    if not new:
        try:
            with open(path, encoding="utf-8") as file:
                before = json.load(file)
            if not isinstance(before, dict):
                raise ValueError
        except ValueError:
            raise cli.UserError(f"{path}: damaged, so nobody knows which network made "
                                "these features; choose another folder with "
                                "--features, or delete this one")
        passed = "weights" if "digest" in made and "digest" in before else "digest"
        if any(before.get(key) != made.get(key) for key in {*before, *made} - {passed}):
            raise cli.UserError(
                f"{features}: holds features made with {json.dumps(before)}; choose "
                "another folder with --features, or delete this one")
    else:
        atomic.write_json(path, made)
    return new


def main():
    ranks.start()
    args = arguments()
    if cli.restarted(args.restarts, args.last_on_cpu):
        return
    cli.introduce(2, "extract features")
    features = args.features or os.path.join(args.data, "features")
    if args.karpathy:
        groups = read_karpathy(args.karpathy, args.data)
        wanted = args.splits or sorted(groups)
        lost = [split for split in wanted if split not in groups]
        if lost:
            raise cli.UserError(f"{args.karpathy}: has no split {lost[0]} (it has "
                                f"{', '.join(sorted(groups))}); see --splits")
    else:
        wanted = args.splits or splits(args.data)
        groups = {split: read_captions(args.data, split) for split in wanted}
    names = collections.OrderedDict(
        (split, [image.path for image in groups[split]]) for split in wanted)
    if args.shard and ranks.size > 1:
        raise cli.UserError("--shard is for processes that are started one by one; "
                            "these share the images by themselves")
    start()
    ranks.same_devices(device_name())
    with ranks.alone(features, shard_suffix(args)), \
            device_errors(args.batch_size, restarts=ranks.size == 1):
        extract_splits(args, features, names)
    cli.next_step("python", "tokenize_captions.py", "--data", args.data,
                  *(("--karpathy", args.karpathy) if args.karpathy else ()))


def extract_splits(args, features, names):
    """Make the features of all splits; names: {split: paths below args.data}."""
    if args.weights == "random":
        print("untrained weights: for trying things out, not for results")
    if ranks.rank == 0:
        forward = network(args, features, names)
    ranks.gather(None)  # weights are downloaded, or calibrated, by the first one only
    if ranks.rank:
        forward = network(args, features, names)
    part, suffix = args.shard or (ranks.rank, ranks.size), shard_suffix(args)
    for split in names:
        bad, count = extract(split, names[split], args.data, features, forward,
                             args.batch_size, np.dtype(args.dtype), part)
        bad = [row for rows in ranks.gather(bad) for row in rows]
        count = sum(ranks.gather(count))
        if ranks.rank == 0:
            list_unreadable(features, split, suffix, bad, count)
        if len(bad) > args.max_bad * count:
            raise cli.UserError(
                f"{unreadable_path(features, split, suffix)}: {len(bad)} of {count} "
                f"images could not be used, more than --max-bad {args.max_bad:g} "
                "allows; mend them or raise it")
        print(f"{split}: features of {count - len(bad)} images in {features}, each "
              f"{SHAPE} {args.dtype}")


def network(args, features, names):
    """`inception` for this folder, which process 0 claims for its weights."""
    split = next(iter(names))
    calibration = os.path.join(features, "calibration.npz")

    def build():
        return inception(args.weights, lambda: sample_images(
            args.data, split, names[split], args.seed), calibration, args.seed)
    if ranks.rank == 0:
        # Shards come at the same time: the first of them makes what is of all.
        with cli.alone(features, "_network", wait=True):
            new = claim(features, dict(digest(args.weights), weights=args.weights,
                                       seed=args.seed, dtype=args.dtype))
            try:
                if new or args.weights == "random" and not os.path.exists(calibration):
                    return build()
            except BaseException:  # no network: leave the folder to other weights
                if new and not os.path.exists(calibration):
                    os.remove(os.path.join(features, "extractor.json"))
                raise
    return build()


def shard_suffix(args):
    """What tells the files of this shard from those of others; '' without --shard."""
    return "_{}_of_{}".format(args.shard[0] + 1, args.shard[1]) if args.shard else ""


def unreadable_path(features, split, suffix=""):
    """The list of a split's images that were skipped; suffix: of a shard."""
    return os.path.join(features, f"unreadable_{split}{suffix}.txt")


def list_unreadable(features, split, suffix, bad, count):
    """Write the list of (name, error) of `count` images; remove what it replaces."""
    path = unreadable_path(features, split, suffix)
    if bad:
        with atomic.writing(path, "w", encoding="utf-8") as file:
            file.writelines(f"{name}\t{error}\n" for name, error in bad)
        cli.warn(f"{split}: {len(bad)} of {count} images skipped, listed in {path}")
    elif os.path.exists(path):
        os.remove(path)
    if not suffix:  # all images were looked at, those of former shards too
        for old in glob.glob(unreadable_path(glob.escape(features), glob.escape(split),
                                             "_*_of_*")):
            os.remove(old)


def shard(text):
    """An argparse type: 'I/N' -> (I - 1, N)."""
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 1/4, the first of four")
    return int(number) - 1, int(count)


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--data", default="data", help="data set in COCO's layout")
    parser.add_argument("--features", help="folder to write (default: <data>/features)")
    parser.add_argument("--splits", nargs="+", help="default: all that have captions")
    parser.add_argument("--karpathy", metavar="FILE",
                        help="take the images of Karpathy's split file, not those of "
                             "<data>/annotations")
    parser.add_argument("--weights", default="imagenet",
                        help="imagenet, random, or the path of an .h5 file")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16",
                        help="on disk; float16 takes half the space (256 KB an image)")
    parser.add_argument("--batch-size", type=cli.number(int, at_least=1), default=16,
                        help="images a forward pass")
    parser.add_argument("--shard", type=shard, metavar="I/N",
                        help="only the I-th of N shares of the images; other machines "
                             "make the others (default: all images)")
    parser.add_argument("--max-bad", type=cli.number(float, at_least=0, at_most=1),
                        default=.05, help="share of unreadable images tolerated")
    parser.add_argument("--seed", type=cli.seed, default=0,
                        help="of --weights random")
    cli.add_restarts(parser)
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
