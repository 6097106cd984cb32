"""Step 2: cache a CNN's last convolutional layer for every image.

    python extract_features.py --data data                          # ImageNet weights
    python extract_features.py --data data --weights my_weights.h5
    python extract_features.py --data data --weights random         # no download
    python extract_features.py --data data --side 491               # 14 x 14 cells
    python extract_features.py --data data --network efficientnet-lite2

InceptionV3 takes 299 x 299 pixels and outputs (8, 8, 2048): L = 64 annotation vectors
of F = 2048 (section 3.1.1 of the paper, with InceptionV3 in place of VGG).
EfficientNet-Lite2 takes 420 x 420 pixels and outputs (14, 14, 1280); its ImageNet
weights come with the packages that `make env` installs. Features are computed once,
since the CNN is frozen. A second run computes only what is missing.

Several processes can share the images: started by mpirun or srun, or one by one on any
machines that see the same folders, with --shard 1/N to --shard N/N. The features are
byte-identical however the images are shared.

Reads:  <data>/annotations/captions_<split>.json and <data>/<split>/<file name>
Writes: <features>/<split>/<file name>.npy   one image: (rows, columns, channels)
        <features>/extractor.json            which network made them, and their shape
        <features>/calibration.npz           only for --weights random
        <features>/unreadable_<split>.txt    skipped images, with the reason
                                             (of one share: .._I_of_N.txt)
"""
import runtime  # noqa: F401  (first: it reports missing packages)
import argparse
import collections
import concurrent.futures
import errno
import glob
import os

import numpy as np
from tqdm import tqdm

from captioning.caption_files import read_caption_file
from captioning.coco import advice, read_captions, splits
from captioning.features import (calibration_path, feature_path, is_sound,
                                 record_extractor, write_features)
from captioning.networks import NETWORKS, build, record_of
from captioning.pictures import Unreadable, read_square
from runtime import cli, ranks, watchdog
from runtime.tf import (add_precision_flag, device_errors, py_function, start, tf,
                        use_precision)

CALIBRATION_IMAGES = 48


def batches(paths, side, batch_size):
    """Decode pictures in parallel; yield (indices, pixels, errors) of each batch.

    indices: int64 (B,) into paths; pixels: uint8 (B, side, side, 3);
    errors: list of B strings, '' where the picture could be read.
    """
    def load(index):
        try:
            return read_square(paths[int(index)], side), b""
        except Exception as error:  # one that escapes would hang the input pipeline
            return (np.zeros((side, side, 3), np.uint8),
                    (cli.one_line(error) or type(error).__name__).encode("utf-8",
                                                                         "replace"))

    def decode(index):
        pixels, error = py_function(load, [index], [tf.uint8, tf.string])
        pixels.set_shape((side, side, 3))
        error.set_shape(())
        return index, pixels, error

    data = tf.data.Dataset.range(len(paths)).map(decode, os.cpu_count() or 1)
    for index, pixels, errors in data.batch(batch_size).prefetch(2):
        yield index.numpy(), pixels, [e.decode() for e in errors.numpy()]


def extract(split, names, data, features, forward, made, batch_size, share=(0, 1),
            most=1.):
    """Write the missing features of one split, or of a share of it.

    forward, made: the network and its record. share: (i, N): every N-th batch, from the
    i-th on. most: fraction of the images that may be skipped; above it, extraction
    stops at once. Returns a list of (name, error) for the skipped images, and the
    number of images in the share.
    """
    # Batches never change, even if only one image of them is missing: the last digits
    # of its features depend on its place in the batch, so not on where a run stopped.
    groups = [names[i:i + batch_size] for i in range(0, len(names), batch_size)]
    groups = groups[share[0]::share[1]]
    names = [name for group in groups for name in group]
    shape, dtype = tuple(made["shape"]), np.dtype(made["dtype"])
    sound = watchdog.watched((is_sound(feature_path(features, name), shape, dtype)
                              for name in names), "file", features)
    missing = {name for whole, name in zip(sound, names) if not whole}
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
            if not error:
                try:
                    write_features(feature_path(features, name), array)
                except OSError as refusal:
                    if refusal.errno != errno.ENAMETOOLONG:
                        raise
                    error = "its name is too long for a features file"
            if error:
                bad.append((name, error))
        bar.update(len(missing.intersection(names)))

    # A batch is written while the network works on the next one. Whatever ends the
    # loop, a batch handed to the writer is written completely.
    with tqdm(total=len(missing), desc=split, unit="image",
              disable=not todo or share[0] > 0) as bar, \
            concurrent.futures.ThreadPoolExecutor(1) as writer:
        sources, written = [os.path.join(data, name) for name in todo], None
        pictures = batches(sources, made["side"], batch_size) if todo else ()
        for indices, pixels, errors in watchdog.watched(pictures, "batch", split):
            if len(bad) > most * len(names):
                break
            output = np.zeros((len(errors),) + shape, np.float32)
            if not all(errors):
                output = np.array(forward(pixels).numpy())
            if written:
                written.result()
            written = writer.submit(write, [todo[i] for i in indices], output, errors)
        if written:
            written.result()
    return bad, len(names)


def sample_images(data, split, names, seed, side):
    """Up to CALIBRATION_IMAGES readable pictures: uint8 (N, side, side, 3)."""
    pictures = []
    for i in np.random.RandomState(seed).permutation(len(names)):
        try:
            pictures.append(read_square(os.path.join(data, names[i]), side))
        except Unreadable:
            continue  # extract() reports it
        if len(pictures) == CALIBRATION_IMAGES:
            break
    if not pictures:
        raise cli.UserError(f"{os.path.join(data, split)}: no readable image to "
                            f"calibrate random weights on; {advice(data, split)}")
    return np.stack(pictures)


def main():
    args = arguments()
    cli.print_heading(2, "extract features")
    features = args.features or os.path.join(args.data, "features")
    share = share_of_process(args.shard)
    names = images_of_splits(args)
    made = record_of(args.network, args.weights, args.side, args.seed, dtype=args.dtype,
                     **({"precision": args.precision} if args.precision else {}))
    with cli.locked(features, suffix(share)):
        look_for_images(args, features, names)
        start()
        use_precision(args.precision)
        with device_errors(args.batch_size):
            extract_splits(args, features, names, made, share)
    if args.features:
        print(f"train.py finds these features with: --features {args.features}")
    cli.next_step("tokenize_captions.py", "--data", args.data,
                  *(("--captions", args.captions) if args.captions else ()))


def look_for_images(args, features, names):
    """Raise cli.UserError if too many images are missing, before any is computed.

    names: {split: paths below args.data}. Images that have features are not needed.
    """
    for split, images in names.items():
        missing = [name for name in images
                   if not os.path.exists(os.path.join(args.data, name))
                   and not os.path.exists(feature_path(features, name))]
        if len(missing) > args.max_bad * len(images):
            raise cli.UserError(
                f"{os.path.join(args.data, missing[0])}: no such file, nor "
                f"{len(missing) - 1} others of the {len(images)} images of {split}; "
                f"{advice(args.data, split)}, choose other --splits, or raise "
                "--max-bad")


def share_of_process(shard):
    """This process's share of the images, (i, N), from --shard or a launcher.

    shard: the flag's (i, N), or None. Raises cli.UserError if both are given.
    """
    launched = cli.launched()
    if launched.count == 1:
        return shard or (0, 1)
    if shard:
        raise cli.UserError("--shard is for processes that are started one by one; "
                            "these share the images by themselves")
    ranks.take_one_gpu(launched.local_rank)
    return launched.rank, launched.count


def images_of_splits(args):
    """{split: its images' paths below args.data}, in order. args: the command's."""
    if args.captions:
        groups = read_caption_file(args.captions, args.data)
        wanted = args.splits or sorted(groups)
        lost = [split for split in wanted if split not in groups]
        if lost:
            raise cli.UserError(f"{args.captions}: has no split {lost[0]} (it has "
                                f"{', '.join(sorted(groups))}); see --splits")
    else:
        wanted = args.splits or splits(args.data)
        groups = {split: read_captions(args.data, split) for split in wanted}
    return collections.OrderedDict(
        (split, [image.path for image in groups[split]]) for split in wanted)


def extract_splits(args, features, names, made, share):
    """Extract the features of all splits, or of a share (i, N) of them.

    names: {split: paths below args.data}. made: the network's record.
    """
    if args.weights == "random":
        print("untrained weights: for trying things out, not for results")
    with watchdog.watching(args.hang_minutes):
        watchdog.waits_for(None)  # another process, or a download, may take long
        forward = network(args.data, features, names, made)
    for split in names:
        with watchdog.watching(args.hang_minutes):
            bad, count = extract(split, names[split], args.data, features, forward,
                                 made, args.batch_size, share, args.max_bad)
        cli.left_out(unreadable_path(features, split, suffix(share)),
                     [f"{name}\t{error}" for name, error in bad], count, args.max_bad,
                     f"images of {split}", "fix them or raise --max-bad")
        if share == (0, 1):  # the list just written replaces those of earlier shares
            for old in glob.glob(unreadable_path(glob.escape(features),
                                                 glob.escape(split), "_*_of_*")):
                os.remove(old)
        print(f"{split}: features of {count - len(bad)} images in {features}, each "
              f"{tuple(made['shape'])} {made['dtype']}")


def network(data, features, names, made):
    """Build the network of the record `made`; the first process records it.

    names: {split: paths below data}.
    """
    split = next((split for split in names if names[split]), next(iter(names)))
    calibration = calibration_path(features)

    def built():
        return build(made, lambda: sample_images(
            data, split, names[split], made["seed"], made["side"]), calibration)
    # Shares may start at the same time: the first one writes what all have in common.
    with cli.locked(features, "_network", wait=True):
        new = record_extractor(features, made)
        try:
            if new or made["weights"] == "random" and not os.path.exists(calibration):
                return built()
        except BaseException:  # no network: leave the folder to other weights
            if new and not os.path.exists(calibration):
                os.remove(new)
            raise
    return built()


def suffix(share):
    """File-name suffix of share (i, N): _<i + 1>_of_<N>; '' if there is one share."""
    return "" if share[1] == 1 else "_{}_of_{}".format(share[0] + 1, share[1])


def unreadable_path(features, split, suffix=""):
    """The list of a split's skipped images; suffix: of a share."""
    return os.path.join(features, f"unreadable_{split}{suffix}.txt")


def shard(text):
    """An argparse type: 'I/N' -> (I - 1, N)."""
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 1/4, the first of four")
    return int(number) - 1, int(count)


def arguments():
    parser = cli.parser(__doc__)
    parser.always("--data", default="data", help="data set in COCO's layout")
    parser.always("--features", otherwise="<data>/features", help="folder to write")
    parser.always("--splits", nargs="+", otherwise="all that have captions",
                  help="which splits")
    parser.always("--captions", "--karpathy", metavar="FILE",
                  help="take the images of a table of captions or of Karpathy's split "
                       "file, not those of <data>/annotations")
    parser.always("--network", choices=sorted(NETWORKS), default="inception-v3",
                  help="the CNN")
    parser.always("--side", type=cli.number(int, at_least=75, at_most=4096),
                  otherwise="299 for 8 x 8 of inception-v3, 420 for 14 x 14 of "
                            "efficientnet-lite2",
                  help="side of the network's input in pixels, which determines the "
                       "number of cells")
    parser.always("--weights", default="imagenet",
                  help="imagenet, random (inception-v3 alone), or the path of a file: "
                       ".h5 for inception-v3, .pth for efficientnet-lite2")
    parser.always("--dtype", choices=("float16", "float32"), default="float16",
                  help="on disk; float16 takes half the space (256 KB an image at 8 x "
                       "8 x 2,048)")
    parser.always("--batch-size", type=cli.positive, default=16,
                  help="images a forward pass")
    parser.always("--shard", type=shard, metavar="I/N",
                  help="only the I-th of N shares of the images; other processes make "
                       "the rest")
    parser.always("--max-bad", type=cli.share, default=.05,
                  help="share of unreadable images tolerated")
    parser.add_argument("--seed", needs="--weights random", type=cli.seed, default=0,
                        help="of the random weights")
    add_precision_flag(parser)
    watchdog.add_flag(parser)
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
