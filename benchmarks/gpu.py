"""How fast is it on this machine's GPU? Takes about five minutes.

    python -m benchmarks.gpu                      # with TensorFlow 2
    python -m benchmarks.gpu --torch python3      # and the same in PyTorch

Training, decoding and InceptionV3, each run eagerly, compiled by TensorFlow, and
compiled by XLA, in float32, TF32 and mixed precision. (XLA takes a minute to compile a
training step of one shape, so it gets only the smallest batch.) Then what feeds the
GPU: reading pictures, reading features, and copying them over. Weights and data are
random and in memory, except where reading is measured. Rates are medians over steps
that end when Python has read a result. Without a GPU everything is small, and the
figures mean nothing.

Writes: benchmarks/results/gpu.json and gpu.png (--out: another folder)
"""
import collections
import functools
import json
import os
import re
import subprocess
import tempfile
import time

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import extract_features
from benchmarks import bench
from captioning import inception
from captioning.checkpoints import create_optimizer_variables
from captioning.decode import Decoder
from captioning.networks import record_of
from model import Batch, Captioner, Parcel
from runtime import atomic, cli, drawing
from runtime.tf import (AdamOptimizer, compiled, device_name, peak_gpu_memory, start,
                        tf, use)
from train import Trainer

HERE = os.path.dirname(os.path.abspath(__file__))
WORDS = 12  # per caption, including the end token
WAYS = (("eager", "float32"), ("eager", "tf32"), ("compiled", "float32"),
        ("compiled", "tf32"), ("compiled", "mixed"), ("XLA", "tf32"))
BARRED = (0, 1, 2, 3)  # START, PAD, UNK and END: all captions are equally long
UNITS = {"training": "captions/s", "greedy": "images/s", "beam 3": "images/s",
         "InceptionV3": "images/s"}


class Scale:
    """How much is measured."""

    def __init__(self, small):
        self.batches = (4,) if small else (64, 256, 1024)
        self.images = (2,) if small else (64, 256)
        self.pictures = (2,) if small else (64, 256)
        self.files = 8 if small else 1024
        self.seconds = .05 if small else .7
        self.warm_up = 1 if small else 3


def rate(work, items, scale):
    """Items per second: the median over calls of `work`, each of `items` items.

    Calls it for scale.seconds, and at least three times.
    """
    for _ in range(scale.warm_up):
        work()
    times, begin = [], time.time()
    while len(times) < 3 or time.time() - begin < scale.seconds:
        times.append(bench.seconds(work))
    return items / float(np.median(times))


def training(B, scale, how):
    """Captions/s of whole training steps on B captions, with features in memory."""
    random = np.random.RandomState(0)
    trainer = Trainer(Captioner(bench.SIZES), AdamOptimizer(1e-3))
    create_optimizer_variables(trainer.model, trainer.optimizer)
    lengths, each = np.full(B, WORDS, np.int32), np.arange(B, dtype=np.int32)
    batches = [Batch(Parcel(random.random_sample((B, 64, 2048)).astype("f2"),
                            random.randint(4, bench.SIZES.vocabulary, (B, WORDS + 1)
                                           ).astype(np.int32)), lengths, each, each)
               for _ in range(2)]
    if how != "eager":
        trainer.compile_for({(B, WORDS): 2})
    return rate(lambda: [trainer.step(batch, B * WORDS) for batch in batches],
                2 * B, scale)


def decoding(width):
    """A function that measures images/s of beam search of this width."""
    def measure(images, scale, how):
        decoder = Decoder(Captioner(bench.SIZES), compile=how != "eager")
        features = np.random.RandomState(0).random_sample(
            (images, 64, 2048)).astype("f2")
        return rate(lambda: decoder.search(
            features, width, WORDS, forbidden=BARRED,
            batches=bench.EVALUATED // images), images, scale)
    return measure


def forward(B, scale, how):
    """Images/s of InceptionV3 from pixels in memory to features in memory."""
    network = inception_network(how)
    pixels = np.random.RandomState(0).randint(0, 256, (B, 299, 299, 3)).astype(np.uint8)
    return rate(lambda: network(pixels).numpy(), B, scale)


@functools.lru_cache(maxsize=None)
def folded_inception():
    """InceptionV3 with random weights, without its batch norms."""
    plain = inception.architecture()
    inception.random_weights(plain, 0)
    return inception.fold_batch_norm(plain)


def inception_network(how):
    """A function from pixels, uint8 (B, 299, 299, 3), to a tensor of features."""
    folded = folded_inception()

    def network(pixels):
        return folded(tf.cast(pixels, tf.float32) / 127.5 - 1.)
    network = network if how == "eager" else compiled(network)
    return lambda pixels: network(tf.constant(pixels))


WORK = collections.OrderedDict((
    ("training", (training, "batches")), ("greedy", (decoding(1), "images")),
    ("beam 3", (decoding(3), "images")), ("InceptionV3", (forward, "pictures"))))


def measure(scale):
    """Rows of the table, dicts: what, how, precision, batch, rate, GPU gigabytes."""
    rows = []
    for how, precision in WAYS:
        if hasattr(tf, "function"):
            use(precision, xla=how == "XLA")
        elif how == "XLA" or precision != "float32":
            continue
        for what, (work, sizes) in WORK.items():
            batches = getattr(scale, sizes)
            for batch in batches[:1] if how == "XLA" else batches:
                peak_gpu_memory()
                begin = time.time()
                speed = work(batch, scale, how)
                memory = peak_gpu_memory()
                rows.append({"what": what, "how": how, "precision": precision,
                             "batch": batch, "rate": round(speed, 1),
                             "gigabytes": memory and round(memory, 2)})
                print(f"{what}, batch {batch}, {how}, {precision}: {speed:.0f} "
                      f"{UNITS[what]} ({time.time() - begin:.0f} s)", flush=True)
    if hasattr(tf, "function"):
        use()
    return rows


def feeding(scale):
    """Rates of what feeds the GPU: {name: figure}."""
    rates = {}
    B, random = scale.batches[-1], np.random.RandomState(0)
    features = random.random_sample((B, 64, 2048)).astype("f2")
    rates["features copied to the GPU, GB/s"] = rate(
        lambda: float(tf.reduce_sum(tf.constant(features)[0, 0]).numpy()),
        features.nbytes / 1e9, scale)
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        bench.make_features(folder, 1000, random)
        captions = bench.caption_batches(bench.make_tokens(1000, random), folder)
        order = captions.epoch(64, np.random.RandomState(1))
        order = order[:max(1, 5 * scale.files // 64)]
        count = sum(map(len, order))
        rates["features read and batched, captions/s"] = rate(
            lambda: [batch.parcel for batch in captions.batches(order)], count, scale)
        os.makedirs(os.path.join(folder, "pictures"))
        names = [f"pictures/{i}.jpg" for i in range(scale.files)]
        for i, name in enumerate(names):
            path = os.path.join(folder, name)
            if i >= 64:
                os.link(os.path.join(folder, names[i % 64]), path)
            else:
                bench.make_picture(path, random)
        B = scale.pictures[-1]
        rates["pictures read, images/s"] = len(names) / bench.seconds(
            lambda: list(extract_features.batches(
                [os.path.join(folder, name) for name in names], inception.SIDE, B)))
        network = inception_network("compiled")
        made = record_of("inception-v3", "random", dtype="float16")
        network(np.zeros((B, 299, 299, 3), np.uint8))
        rates["pictures to features files, images/s"] = len(names) / bench.seconds(
            lambda: extract_features.extract(
                "pictures", names, folder, os.path.join(folder, "features"), network,
                made, B))
    return rates


def in_pytorch(python, small):
    """Rows of the same table for PyTorch: runs gpu_torch.py with this interpreter."""
    command = [python, os.path.join(HERE, "gpu_torch.py"), "small" if small else "full"]
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        np.savez(os.path.join(folder, "weights.npz"), **{
            name: weight.numpy() for name, weight in
            Captioner(bench.SIZES).weights.items()})
        process = subprocess.run(command + [folder], stdout=subprocess.PIPE,
                                 universal_newlines=True)
    if process.returncode:
        raise cli.UserError(f"{' '.join(command)}: ended with status "
                            f"{process.returncode}; its last lines are above")
    return json.loads(process.stdout.splitlines()[-1])


def draw(rows, title, path):
    """Draw the rates of the smallest and largest batches, a panel per kind of work."""
    with drawing.defaults():
        figure = Figure(figsize=(12, 8.5))
        canvas = FigureCanvasAgg(figure)
        for place, (what, unit) in enumerate(UNITS.items(), 1):
            axes = figure.add_subplot(2, 2, place)
            mine = [row for row in rows if row["what"] == what]
            sizes = sorted({row["batch"] for row in mine})
            ways = list(collections.OrderedDict.fromkeys(
                (row["how"], row["precision"]) for row in mine))
            for size, shift, shade in zip((sizes[0], sizes[-1])[:len(sizes)],
                                          (-.2, .2), (.55, 1.)):
                some = [row for row in mine if row["batch"] == size]
                y = [ways.index((row["how"], row["precision"])) + shift for row in some]
                axes.barh(y, [row["rate"] for row in some], .38, alpha=shade, color=[
                    "#7f7f7f" if "PyTorch" in row["how"] else "#2a6f97"
                    for row in some])
                for place_of, row in zip(y, some):
                    axes.text(row["rate"], place_of, f" {row['rate']:,.0f}",
                              va="center", fontsize=7)
            axes.set_yticks(range(len(ways)))
            axes.set_yticklabels([", ".join(way) for way in ways], fontsize=8)
            axes.invert_yaxis()
            axes.set_xlim(0, 1.15 * max(row["rate"] for row in mine))
            axes.tick_params(axis="x", labelsize=8)
            axes.set_title(f"{what}, {unit}, batches of "
                           + " and ".join(map(str, sorted({sizes[0], sizes[-1]}))),
                           fontsize=10, loc="left")
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        figure.suptitle(title, fontsize=11)
        figure.tight_layout(rect=(0, 0, 1, .96))
        with atomic.writing(path) as file:
            canvas.print_figure(file, dpi=150, format="png")


def main():
    args = arguments()
    start()
    device = device_name()
    small = not device.startswith("GPU")
    if small:
        cli.warn("no GPU is visible: everything is small, the figures mean nothing")
    scale = Scale(small)
    rows = measure(scale)
    feeds = feeding(scale)
    if args.torch:
        rows += in_pytorch(args.torch, small)
    print(f"\nTensorFlow {tf.__version__} on {device}, {os.cpu_count()} cores\n")
    cli.table([("", "batch", "computed", "precision", "per second", "GB")] + [
        (row["what"], str(row["batch"]), row["how"], row["precision"],
         f"{row['rate']:,.0f}", "" if row["gigabytes"] is None
         else f"{row['gigabytes']:.1f}") for row in rows])
    print()
    cli.table([("", "")] + [(name, f"{value:,.1f}") for name, value in feeds.items()])
    os.makedirs(args.out, exist_ok=True)
    atomic.write_json(os.path.join(args.out, "gpu.json"), {
        "device": device, "cores": os.cpu_count(), "tensorflow": tf.__version__,
        "rows": rows, "feeding": {name: round(value, 2)
                                  for name, value in feeds.items()}})
    card = re.search("name: ([^,]+)", device)
    draw(rows, f"{card.group(1) if card else device}, TensorFlow {tf.__version__}",
         os.path.join(args.out, "gpu.png"))
    print(f"\nwritten: {os.path.join(args.out, 'gpu.json')} and gpu.png")


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter with torch")
    parser.add_argument("--out", default=os.path.join(HERE, "results"),
                        help="folder for the results")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
