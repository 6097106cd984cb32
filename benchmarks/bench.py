"""How fast is it? Ratios measured side by side in one process (`make bench`).

    python -m benchmarks.bench             # about 7 minutes on 2 cores
    python -m benchmarks.bench --only train decode

This code and the published design (published.py) take turns for several rounds; the
table gives medians and ranges. The limits of the machine (a matrix product, the forward
pass of InceptionV3, the disk) are measured in the same minutes. The data are synthetic:
random features, captions with COCO's lengths (mean 10.45 words, longest 49). Both
designs run with this project's memory settings (runtime/tf.py).

Writes, if everything was measured: benchmarks/results/bench.json and bench.png
"""
import collections
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import extract_features
import tokenize_captions
from benchmarks.data import (SIZES, VOCABULARY, caption_batches, flops,
                             lengths_like_coco, make_features, make_picture,
                             make_tokens)
from benchmarks.published import Published, extract as published_extract
from benchmarks.timing import (alternate, matrix_product, peak_memory, ratio,
                               seconds)
from captioning import inception
from captioning.checkpoints import create_optimizer_variables
from captioning.coco import Image as CocoImage
from captioning.decode import Decoder, decode_files
from captioning.features import feature_path, read_features
from captioning.networks import build, record_of
from captioning.pictures import read_square
from captioning.tokens import END, write_tokens
from model import Captioner
from runtime import atomic, cli
from runtime.tf import AdamOptimizer, compiled, device_name, start, tf
from train import Trainer

HERE = os.path.dirname(os.path.abspath(__file__))
DECODED_WORDS = 12        # per image; the end token is barred in both designs
EVALUATED = 5000          # images of COCO's val: peers.py and gpu.py compile for them
FLOORS = collections.OrderedDict((
    ("training, captions/s, against the published design", (12, "at least")),
    ("training, FLOP/s, against a matrix product", (.6, "at least")),
    ("first batch, time against an ordinary one", (20, "at most")),
    ("greedy decoding, images/s, against one at a time", (12, "at least")),
    ("beam 3, time against greedy", (3.5, "at most")),
    ("extraction, images/s, against the published loop", (1.3, "at least")),
    ("extraction against InceptionV3's forward pass", (.9, "at least")),
    ("extraction of EfficientNet-Lite2, 14 x 14, against InceptionV3's",
     (.8, "at least")),
    ("peak memory of training, 6,000 images against 600", (1.1, "at most")),
    ("peak memory of training, 6,000 images, GB", (3, "at most")),
    ("input pipeline alone, captions/s, against training", (3, "at least")),
    ("tokenizing COCO's captions, time against split and count", (8, "at most")),
    ("peak memory of tokenizing, GB", (2, "at most"))))


def barred(model):
    """Bar the end token, in place, so that every caption has the most words allowed."""
    bias = model.b_o.numpy().copy()
    bias[END] = -1e9
    model.b_o.assign(bias)


def bench_train(folder, rows):
    random = np.random.RandomState(0)
    tokens = make_tokens(2000, random)
    make_features(folder, 2000, random)
    captions = caption_batches(tokens, folder)
    trainer = Trainer(Captioner(SIZES), AdamOptimizer(1e-3))
    create_optimizer_variables(trainer.model, trainer.optimizer)
    published = Published(SIZES.vocabulary)
    order = captions.epoch(64, np.random.RandomState(1))
    whole = [numbers for numbers in order if len(numbers) == 64]
    trainer.compile_for(captions.shapes(order))

    dropout = dict(dropout=.5, sizes=SIZES, seed=(0,))

    def step(batch):
        trainer.step(batch, int(batch.lengths.sum()))
    # Compile what an epoch would, and time a new process's first batch
    first = captions.load(next(
        numbers for numbers in whole
        if tokens.lengths[numbers[0]] == 12 == tokens.lengths[numbers[-1]]), **dropout)
    first_batch = seconds(lambda: step(first))
    ordinary = np.median([seconds(lambda: step(first)) for _ in range(5)])
    rows["first batch, time against an ordinary one"] = (first_batch / ordinary,) * 3
    shapes = {}
    for numbers in whole:
        shapes.setdefault(tuple(sorted(set(tokens.lengths[numbers]))), numbers)
    for batch in captions.batches(list(shapes.values()), **dropout):
        step(batch)

    place = [0]

    def ours(batches=10):
        chosen = [whole[(place[0] + i) % len(whole)] for i in range(batches)]
        place[0] += batches
        work = sum(flops(captions.load(numbers)) for numbers in chosen)
        took = seconds(lambda: [step(batch)
                                for batch in captions.batches(chosen, **dropout)])
        return 64 * batches / took, work / took

    def theirs():
        numbers = whole[place[0] % len(whole)]
        images = tokens.image_of[numbers]

        def published_step():
            maps = np.stack([read_features(captions.paths[i])
                             for i in images])
            published.train_step(maps, tokens.words[numbers])
        return 64 / seconds(published_step)

    def pipeline(batches=60):
        chosen = [whole[i % len(whole)] for i in range(batches)]
        return 64 * batches / seconds(
            lambda: [None for _ in captions.batches(chosen, **dropout)])

    mine, product, others, read = alternate(ours, matrix_product, theirs, pipeline)
    speeds = [speed for speed, _ in mine]
    rows["training, captions/s, against the published design"] = ratio(speeds, others)
    rows["training, FLOP/s, against a matrix product"] = ratio(
        [work for _, work in mine], product)
    rows["input pipeline alone, captions/s, against training"] = ratio(read, speeds)
    return {"training captions/s": np.median(speeds),
            "published design captions/s": np.median(others),
            "matrix product GFLOP/s": np.median(product) / 1e9,
            "input pipeline captions/s": np.median(read)}


def bench_decode(folder, rows):
    random = np.random.RandomState(1)
    make_features(folder, 256, random)
    paths = [feature_path(folder, f"train/{i}.jpg")
             for i in range(256)]
    model, published = Captioner(SIZES), Published(SIZES.vocabulary)
    decoder = Decoder(model)
    barred(model)
    maps = [read_features(path) for path in paths]
    published.decode(maps[0], 1)
    bias = published.fc2.bias.numpy().copy()
    bias[END] = -1e9
    published.fc2.bias.assign(bias)

    def ours(width):
        return len(paths) / seconds(lambda: decode_files(
            decoder, paths, 64, quiet=True, width=width, max_steps=DECODED_WORDS))

    def theirs(images=4):
        return images / seconds(lambda: [published.decode(m, DECODED_WORDS)
                                         for m in maps[:images]])

    assert len(decoder.search(maps[0][None], 1, DECODED_WORDS)[0][0].words) == (
        DECODED_WORDS) == len(published.decode(maps[0], DECODED_WORDS)[0])
    greedy, beam, others = alternate(lambda: ours(1), lambda: ours(3), theirs)
    rows["greedy decoding, images/s, against one at a time"] = ratio(greedy, others)
    rows["beam 3, time against greedy"] = ratio(greedy, beam)
    return {"greedy images/s": np.median(greedy), "beam 3 images/s": np.median(beam),
            "published design, decoded images/s": np.median(others)}


def bench_extract(folder, rows, images=48):
    random = np.random.RandomState(2)
    os.makedirs(os.path.join(folder, "train"))
    names = [f"train/{i}.jpg" for i in range(images)]
    for name in names:
        make_picture(os.path.join(folder, name), random)
    paths = [os.path.join(folder, name) for name in names]
    targets = [os.path.join(folder, f"{i}.npy") for i in range(images)]
    plain = inception.architecture()
    inception.random_weights(plain, 0)
    folded = compiled(inception.fold_batch_norm(plain))
    pixels = np.stack([read_square(path, inception.SIDE) for path in paths[:16]])
    scaled = tf.constant(pixels.astype(np.float32) / 127.5 - 1)

    def network(x):
        return folded(tf.cast(x, tf.float32) / 127.5 - 1.)

    def step_2(made, network):
        features = os.path.join(folder, "features")
        shutil.rmtree(features, ignore_errors=True)
        return images / seconds(lambda: extract_features.extract(
            "train", names, folder, features, network, made, 16))

    def ours():
        return step_2(record_of("inception-v3", "random", dtype="float16"), network)

    lite2 = record_of("efficientnet-lite2", "imagenet", dtype="float16")
    lite2_network = build(lite2)

    def theirs():
        return images / seconds(lambda: published_extract(plain, paths, targets))

    def forward():
        return images / seconds(lambda: [folded(scaled).numpy()
                                         for _ in range(images // 16)])

    mine, others, limit, small = alternate(
        ours, theirs, forward, lambda: step_2(lite2, lite2_network), rounds=3)
    rows["extraction of EfficientNet-Lite2, 14 x 14, against InceptionV3's"] = ratio(
        small, mine)
    rows["extraction, images/s, against the published loop"] = ratio(mine, others)
    rows["extraction against InceptionV3's forward pass"] = ratio(mine, limit)
    return {"extraction images/s": np.median(mine),
            "published loop images/s": np.median(others),
            "EfficientNet-Lite2 extraction images/s": np.median(small),
            "InceptionV3 forward images/s": np.median(limit)}


def bench_memory(folder, rows):
    random = np.random.RandomState(3)
    make_features(folder, 6000, random)
    peaks = [[float(subprocess.check_output(
        [sys.executable, "-m", "benchmarks.bench", "--train-on", str(images),
         folder]).split()[-1]) for images in (6000, 600)]]
    many, few = zip(*peaks)
    rows["peak memory of training, 6,000 images against 600"] = ratio(many, few)
    rows["peak memory of training, 6,000 images, GB"] = (
        np.median(many), min(many), max(many))
    return {"peak GB, 600 images": np.median(few)}


def train_on(images, folder):
    """Train on 100 batches from `images` images; print the peak memory in GB."""
    start()
    random = np.random.RandomState(0)
    captions = caption_batches(make_tokens(images, random), folder)
    trainer = Trainer(Captioner(SIZES), AdamOptimizer(1e-3))
    create_optimizer_variables(trainer.model, trainer.optimizer)
    order = [numbers for epoch in range(3)
             for numbers in captions.epoch(64, np.random.RandomState(epoch))]
    trainer.compile_for(captions.shapes(order[:len(order) // 3]))
    for batch in captions.batches(order[:100], dropout=.5, sizes=SIZES, seed=(0,)):
        trainer.step(batch, int(batch.lengths.sum()))
    print(peak_memory())


def bench_tokenize(folder, rows, captions=414113):
    out = subprocess.check_output([sys.executable, "-m", "benchmarks.bench",
                                   "--tokenize", str(captions), folder])
    pairs = [tuple(map(float, line.split()[1:])) for line in out.decode().splitlines()
             if line.startswith("tokenized")]
    mine, plain, peak = zip(*pairs)
    rows["tokenizing COCO's captions, time against split and count"] = ratio(mine,
                                                                             plain)
    rows["peak memory of tokenizing, GB"] = (max(peak),) * 3
    return {"tokenizing, s": np.median(mine), "split and count, s": np.median(plain)}


def tokenize_so_many(count, folder):
    """Time tokenizing `count` captions, and a bare lower, split and count.

    Prints both in seconds and the peak memory in GB, a line per round.
    """
    random = np.random.RandomState(4)
    names = [f"word{i}" for i in range(29500)]  # as many as COCO has, by Zipf's law
    sampled = np.minimum(random.zipf(1.25, 12 * count), 29500) - 1
    texts, at = [], 0
    for n in lengths_like_coco(count, random):
        texts.append(" ".join(names[i] for i in sampled[at:at + n]).capitalize() + ".")
        at += n
    images = [CocoImage(i, f"{i}.jpg", texts[5 * i:5 * i + 5], "train")
              for i in range(-(-count // 5))]

    def ours():
        split = tokenize_captions.split_captions(images, "train")
        vocabulary = tokenize_captions.build_vocabulary(
            tokenize_captions.count_words(split), count, VOCABULARY)
        tokens, _ = tokenize_captions.tokenize(images, split, "train", vocabulary, 100)
        write_tokens(folder, "train", tokens)

    def plain():
        counter = collections.Counter()
        for text in texts:
            counter.update(text.lower().split())

    for mine, bare in zip(*alternate(lambda: seconds(ours), lambda: seconds(plain),
                                     rounds=3)):
        print("tokenized", mine, bare, peak_memory())


# --- reporting ------------------------------------------------------------------------

def draw(found, path):
    """Draw how far each ratio is beyond its floor, as bars; the line is the floor."""
    names = [name for name in FLOORS if name in found]
    figure = Figure(figsize=(7.5, .42 * len(names) + .9))
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot(111)
    for y, name in enumerate(reversed(names)):
        floor, kind = FLOORS[name]
        middle, low, high = (v / floor if kind == "at least" else floor / v
                             for v in found[name])
        good = middle >= 1
        axes.barh(y, middle, color="#4477aa" if good else "#ee6677", height=.6)
        axes.plot(sorted((low, high)), (y, y), color="black", linewidth=1)
        axes.text(max(middle, low, high) * 1.06, y, f"{found[name][0]:.2f}"
                  f" ({kind} {floor:g})", va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlim(.5, 60)
    axes.set_xticks([.5, 1, 2, 5, 10, 20])
    axes.set_xticklabels(["0.5", "1", "2", "5", "10", "20"])
    axes.set_yticks(range(len(names)))
    axes.set_yticklabels(list(reversed(names)), fontsize=8)
    axes.set_xlabel("times better than the goal", fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    with atomic.writing(path) as file:
        canvas.print_figure(file, dpi=150, format="png")


BENCHES = collections.OrderedDict((
    ("train", bench_train), ("decode", bench_decode), ("extract", bench_extract),
    ("memory", bench_memory), ("tokenize", bench_tokenize)))


def main():
    args = arguments()
    if args.train_on:
        train_on(int(args.train_on[0]), args.train_on[1])
        return
    if args.tokenize:
        tokenize_so_many(int(args.tokenize[0]), args.tokenize[1])
        return
    start()
    found, rates = {}, {}
    for name in args.only:
        print(f"measuring: {name}", flush=True)
        with tempfile.TemporaryDirectory(prefix="bench") as folder:
            rates.update(BENCHES[name](folder, found))
    rows = [("", "ratio", "range", "goal")]
    for name, (floor, kind) in FLOORS.items():
        if name in found:
            middle, low, high = found[name]
            met = middle >= floor if kind == "at least" else middle <= floor
            spread = f"{low:.2f} - {high:.2f}" if low < high else "measured once"
            rows.append((name, f"{middle:.2f}", spread,
                         f"{kind} {floor:g}" + ("" if met else "  NOT REACHED")))
    print(f"\nTensorFlow {tf.__version__} on {device_name()}, {os.cpu_count()} cores\n")
    cli.table(rows)
    print()
    cli.table([("", "")] + [(name, f"{value:.1f}") for name, value in rates.items()])
    if set(args.only) == set(BENCHES):
        folder = os.path.join(HERE, "results")
        os.makedirs(folder, exist_ok=True)
        atomic.write_json(os.path.join(folder, "bench.json"), {
            "ratios": {name: dict(zip(("median", "lowest", "highest"),
                                      map(float, values)))
                       for name, values in found.items()},
            "rates": {name: round(float(value), 2) for name, value in rates.items()},
            "tensorflow": tf.__version__, "device": device_name(),
            "cores": os.cpu_count()})
        draw(found, os.path.join(folder, "bench.png"))
        print(f"\nwritten: {os.path.join(folder, 'bench.json')} and bench.png")


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(BENCHES),
                        default=list(BENCHES), help="what to measure")
    parser.add_argument("--train-on", nargs=2, metavar=("IMAGES", "FOLDER"),
                        help="part of measuring memory, in a process of its own")
    parser.add_argument("--tokenize", nargs=2, metavar=("CAPTIONS", "FOLDER"),
                        help="part of measuring tokenizing, likewise")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
