"""This captioner against the same one in PyTorch (`make bench-peers`).

    python -m benchmarks.peers .venv/bin/python .venv-2/bin/python \\
        --torch .venv-torch/bin/python

Runs one process per TensorFlow, one with eager PyTorch, and one with torch.compile. All
hold the same weights, batches and images in memory, and wait while another works. First
they must agree: in losses to 1e-4, and in 98 % of the captions; the rest may differ
where two words tie to the last digits. There is no dropout, so that losses can be
compared. The table gives medians and ranges of each round's ratios.

It also has ratios within this project: beam search against greedy decoding, a training
step against its matrix products alone, and a self-critical step against a
teacher-forced one with the same number of captions and words. Decoding is compiled as
for the 5,000 images of COCO's val. `--cells 196` measures EfficientNet-Lite2's grid of
14 x 14 cells in place of InceptionV3's 8 x 8.

The machine must be idle: PyTorch's threads wait for each other, so other programs on
the same cores slow it down far more than TensorFlow.
"""
import json
import os
import subprocess
import sys
import tempfile
from unittest import mock

import numpy as np

from benchmarks import bench
from captioning import inception
from captioning.batches import CaptionBatches, tensors
from captioning.checkpoints import create_optimizer_variables
from captioning.decode import Decoder
from methods.rewards import Rewards
from methods.self_critical import SelfCritical
from captioning.tokens import END, PAD, START, UNK, Vocabulary
from model import Batch, Captioner, Parcel
from runtime import atomic, cli
from runtime.tf import AdamOptimizer, compiled, start, tf
from train import Trainer

HERE = os.path.dirname(os.path.abspath(__file__))
BATCHES, IMAGES, SIZE = 6, 128, 64
CHANNELS = {64: 2048, 196: 1280}  # of the features, by the number of cells
BARRED = (PAD, START, UNK, END)  # so that all captions are equally long
SAMPLES, SAMPLED_WORDS = 5, 13  # per image; the most per sample, 9 on average
PICTURES = 16                   # for InceptionV3
# What is timed: the number of items, and which peers do it: TensorFlow "1" and "2",
# "eager" PyTorch, and PyTorch with a compiled loss, "compile"
WORK = {"train": (SIZE * BATCHES, ("1", "2", "eager", "compile")),
        "products": (SIZE * BATCHES, ("1", "2")),
        "self_critical": (SIZE * SAMPLES, ("1", "2")),
        "greedy": (IMAGES, ("1", "2", "eager")), "beam3": (IMAGES, ("1", "2")),
        "beam5": (IMAGES, ("1", "2")), "beam20": (IMAGES, ("1", "2")),
        "inception": (PICTURES, ("1", "2", "eager"))}
TITLES = {"train": "training, captions/s", "greedy": "greedy decoding, images/s",
          "products": "matrix products of training, captions/s",
          "self_critical": "self-critical training, captions/s",
          "beam3": "beam 3, images/s", "beam5": "beam 5, images/s",
          "beam20": "beam 20, images/s", "inception": "InceptionV3, images/s"}
# What is compiled, by the command that first needs it (`losses` has gradients, too)
COMPILED = {"losses": f"compiling a training step of {BATCHES} lengths, s",
            "captions": "compiling greedy decoding, s"}
# Against PyTorch: what, which of ours, against which of theirs, at least
FLOORS = (("train", "2", "eager", 1.2), ("train", "2", "compile", 1.2),
          ("train", "1", "eager", 1.), ("greedy", "better", "eager", 1.5),
          ("inception", "2", "eager", 1.))
# Ours against ours, for both TensorFlows: title, numerator, denominator, goal
OWN = (("beam 3, time against greedy", "greedy", "beam3", ("at most", 1.9)),
       ("beam 5, time against greedy", "greedy", "beam5", ("at most", 3.)),
       ("beam 20, time against greedy", "greedy", "beam20", ("at most", 12.)),
       ("training step, against its matrix products alone", "train", "products",
        ("at least", .75)),
       ("self-critical step, time against teacher-forced ones", "train",
        "self_critical", ("at most", 1.6)))


def make_data(folder, cells):
    """Write the weights and data that all peers read: weights.npz, data.npz.

    cells: of an image's features, a key of CHANNELS.
    """
    random, channels = np.random.RandomState(0), CHANNELS[cells]
    tokens = bench.make_tokens(2000, random)
    lengths = tokens.lengths
    order = np.argsort(lengths, kind="mergesort")
    data = {"batches": BATCHES, "steps": bench.DECODED_WORDS,
            "barred": np.array(BARRED), "images":
            random.random_sample((IMAGES, cells, channels)).astype("f2")}
    for i, place in enumerate(np.linspace(.1, .9, BATCHES)):
        first = int(place * len(order))
        numbers = order[first:first + SIZE][::-1]
        data[f"lengths{i}"] = lengths[numbers]
        data[f"words{i}"] = tokens.words[numbers, :lengths[numbers[0]] + 1]
        data[f"features{i}"] = random.random_sample(
            (SIZE, cells, channels)).astype("f2")
    np.savez(os.path.join(folder, "data.npz"), **data)
    weights = {name: weight.numpy() for name, weight in
               Captioner(sizes_of(channels)).weights.items()}
    np.savez(os.path.join(folder, "weights.npz"), **weights)


def sizes_of(channels):
    """The model's Sizes for features of so many channels."""
    return bench.SIZES._replace(features=channels)


class Ours:
    """Answers the same commands as peer_torch.py, with this project's model."""

    def __init__(self, folder):
        with np.load(os.path.join(folder, "data.npz"), allow_pickle=False) as file:
            self.data = {name: file[name] for name in file.files}
        sizes = sizes_of(self.data["images"].shape[-1])
        self.model, self.decoder = Captioner(sizes), Decoder(Captioner(sizes))
        self.trainer = Trainer(self.model, AdamOptimizer(1e-3))
        create_optimizer_variables(self.model, self.trainer.optimizer)
        each = np.arange(SIZE, dtype=np.int32)
        self.batches = [
            Batch(Parcel(self.data[f"features{i}"], self.data[f"words{i}"]),
                  self.data[f"lengths{i}"], each, each) for i in range(BATCHES)]
        # As in an epoch of COCO, which has hundreds of batches of each length
        self.trainer.compile_for({(SIZE, int(batch.lengths[0])): 300
                                  for batch in self.batches})
        self.shapes = [products_of(self.model, batch) for batch in self.batches]
        self.self_critical_trainer = Trainer(Captioner(sizes), AdamOptimizer(5e-5))
        create_optimizer_variables(self.self_critical_trainer.model,
                                   self.self_critical_trainer.optimizer)
        self.sampling = sampling(self.self_critical_trainer.model)
        self.network = None

    def name(self):
        return f"TensorFlow {tf.__version__}"

    def losses(self):
        return [float(self.trainer.reduced_gradients(
            batch, int(batch.lengths.sum()))[1].numpy()) for batch in self.batches]

    def decode(self, width):
        images, beams = self.data["images"], []
        for i in range(0, len(images), SIZE):
            beams += self.decoder.search(images[i:i + SIZE], width,
                                         bench.DECODED_WORDS, forbidden=BARRED,
                                         batches=bench.EVALUATED // SIZE)
        return [beam[0].words for beam in beams]

    def captions(self):
        return self.decode(1)

    def train(self):
        return bench.seconds(lambda: [self.trainer.step(batch, int(batch.lengths.sum()))
                                      for batch in self.batches])

    def greedy(self):
        return bench.seconds(lambda: self.decode(1))

    def beam3(self):
        return bench.seconds(lambda: self.decode(3))

    def beam5(self):
        return bench.seconds(lambda: self.decode(5))

    def beam20(self):
        return bench.seconds(lambda: self.decode(20))

    def products(self):
        return bench.seconds(lambda: [multiply(shapes) for shapes in self.shapes])

    def self_critical(self):
        """Seconds per step, scaled to the mean caption length of the other batches."""
        trainer, words = self.self_critical_trainer, []

        def step():
            batch, *_ = self.sampling.draw(np.arange(SIZE), self.data["images"][:SIZE],
                                           (0,), bench.EVALUATED // SIZE)
            words.append(batch.lengths.mean())
            trainer.step(batch, SIZE * SAMPLES)
        usual = np.mean([batch.lengths.mean() for batch in self.batches])
        return bench.seconds(step) * usual / words[0]

    def inception(self):
        if self.network is None:
            plain = inception.architecture()
            inception.random_weights(plain, 0)
            folded = compiled(inception.fold_batch_norm(plain))
            pixels = tf.constant(np.random.RandomState(0).uniform(
                -1., 1., (PICTURES, 299, 299, 3)).astype("f4"))
            self.network = lambda: folded(pixels).numpy()
            self.network()
        return bench.seconds(self.network)


def products_of(model, batch):
    """Record the shapes of the forward pass's matrix products: (left, right) pairs.

    In the backward pass each has two more products; the first, of the features, one.
    """
    shapes, matmul = [], tf.matmul

    def recorded(a, b):
        shapes.append((tuple(a.shape.as_list()), tuple(b.shape.as_list())))
        return matmul(a, b)
    with mock.patch.object(tf, "matmul", recorded):
        model.teacher_forcing(tensors(batch))
    return shapes


def multiply(shapes):
    """Compute the products of `products_of` on ones, forward and backward."""
    ones, last = {}, None

    def some(shape):
        if shape not in ones:
            ones[shape] = tf.ones(shape)
        return ones[shape]
    for number, (a, b) in enumerate(shapes):
        out = some(a[:-1] + b[-1:])
        last = tf.matmul(some(a), some(b))
        if number:  # the gradient of a, which the features do not need
            last = tf.matmul(out, some(b), transpose_b=True)
        last = tf.matmul(some(a), out, transpose_a=True)  # the gradient of b
    return last.numpy()


def sampling(model):
    """A SelfCritical on random captions; its samples have 1 to SAMPLED_WORDS words."""
    bias = model.b_o.numpy()
    bias[END] = np.log(bench.SIZES.vocabulary / 16)  # once in 16 words
    model.b_o.assign(bias)
    vocabulary = Vocabulary([f"w{i}" for i in range(bench.SIZES.vocabulary - 4)],
                            [0] * bench.SIZES.vocabulary)
    tokens = bench.make_tokens(2000, np.random.RandomState(0))
    references = [[] for _ in tokens.images]
    for words, length, image in zip(tokens.words, tokens.lengths, tokens.image_of):
        references[image].append(vocabulary.decode(words[1:length]))
    captions = CaptionBatches(tokens, list(tokens.images),
                              np.ones(len(tokens.images), np.bool_))
    batches = SelfCritical(captions, model, Rewards(vocabulary, references), SAMPLES)
    batches.steps = SAMPLED_WORDS
    return batches


def serve(folder):
    """Answer commands from stdin, one line of JSON each."""
    out, sys.stdout = sys.stdout, sys.stderr
    start()
    answers = Ours(folder)
    for line in sys.stdin:
        print(json.dumps(getattr(answers, line.strip())()), file=out, flush=True)


class Peer:
    """A process that answers commands."""

    def __init__(self, key, command):
        self.key = key
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, universal_newlines=True)
        self.name = self("name")

    def __call__(self, command):
        """Send a command; returns the answer. Raises cli.UserError if it has ended."""
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (ValueError, BrokenPipeError):
            raise cli.UserError(f"{' '.join(self.process.args)}: ended while it was "
                                f"asked for {command}; its last lines are above")

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def check(peers):
    """Raise cli.UserError if losses or captions differ from the first peer's.

    Returns how long each was compiling, {(peer's key, title): seconds}: the time of the
    first losses and captions beyond that of the second.
    """
    compiling, first = {}, None
    for peer in peers:
        answers = {}
        for what, title in COMPILED.items():
            took = [bench.seconds(lambda: answers.update({what: peer(what)}))
                    for _ in range(2)]
            compiling[peer.key, title] = max(0., took[0] - took[1])
        first = first or answers
        apart = float(np.abs(np.subtract(answers["losses"], first["losses"])).max())
        differ = sum(a != b for a, b in zip(answers["captions"], first["captions"]))
        if not (apart < 1e-4 and differ <= .02 * IMAGES):
            raise cli.UserError(f"{peer.name} and {peers[0].name} are not the same "
                                f"model: losses differ by {apart:.2g}, captions of "
                                f"{differ} of {IMAGES} images")
        if peer is not peers[0]:
            print(f"{peer.name} agrees with {peers[0].name}: losses to {apart:.1g}, "
                  f"{IMAGES - differ} of {IMAGES} captions", flush=True)
    return compiling


def measure(peers, rounds):
    """Time all peers: {(peer's key, what): rates by round}, after a warm-up round."""
    found = {}
    for number in range(rounds + 1):
        print(f"round {number} of {rounds}" if number else "warming up", flush=True)
        for what, (items, keys) in WORK.items():
            for peer in peers:
                took = peer(what) if peer.key in keys else None
                if number and took:  # None without torchvision
                    found.setdefault((peer.key, what), []).append(items / took)
    return found


def rows_of(found):
    """The table's rows: ratios to PyTorch, then those within this project."""
    rows = [("", "ratio", "range", "goal")]

    def add(title, above, below, goal, met):
        middle, low, high = bench.ratio(above, below)
        rows.append((title, f"{middle:.2f}", f"{low:.2f} - {high:.2f}",
                     goal + ("" if met(middle) else "  NOT REACHED")))
    for what, whose, other, floor in FLOORS:
        mine = [key for key in ("1", "2") if (key, what) in found]
        if whose == "better":
            whose = max(mine, key=lambda key: np.median(found[key, what]))
        if whose in mine and (other, what) in found:
            add(f"{TITLES[what]}, ours with TensorFlow {whose} against PyTorch {other}",
                found[whose, what], found[other, what], f"at least {floor:g}",
                lambda ratio, floor=floor: ratio >= floor)
    for title, above, below, (goal, limit) in OWN:
        for key in ("1", "2"):
            if (key, below) in found:
                add(f"{title}, TensorFlow {key}", found[key, above], found[key, below],
                    f"{goal} {limit:g}", lambda ratio, goal=goal, limit=limit: (
                        ratio <= limit if goal == "at most" else ratio >= limit))
    return rows


def main():
    args = arguments()
    if args.serve:
        serve(args.serve)
        return
    if not args.pythons or not args.torch:
        raise cli.UserError("name the Pythons with TensorFlow, and --torch PYTHON; "
                            "make bench-peers does")
    start()
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        make_data(folder, args.cells)
        peers = []
        for python in args.pythons:
            peer = Peer("", [python, "-m", "benchmarks.peers", "--serve", folder])
            peer.key = peer.name.split()[1].split(".")[0]
            peers.append(peer)
        peers += [Peer(how, [args.torch, os.path.join(HERE, "peer_torch.py"), folder,
                             how]) for how in ("eager", "compile")]
        compiling = check(peers)
        found = measure(peers, args.rounds)
        for peer in peers:
            peer.end()
    names = {peer.key: peer.name for peer in peers}
    print()
    cli.table(rows_of(found))
    print()
    rates = sorted(found.items(), key=lambda item: item[0][1])
    cli.table([("", "", "median")] + [
        (names[key], TITLES[what], f"{np.median(some):.1f}")
        for (key, what), some in rates] + [
        (names[key], title, f"{took:.1f}") for (key, title), took in compiling.items()])
    name = "peers.json" if args.cells == 64 else f"peers_{args.cells}.json"
    path = os.path.join(HERE, "results", name)
    atomic.write_json(path, {f"{names[key]}: {what}": np.round(some, 2).tolist()
                             for (key, what), some in {**found, **compiling}.items()})
    print(f"\nwritten: {path}")


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("pythons", nargs="*", metavar="PYTHON",
                        help="interpreters with TensorFlow 1 and 2")
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter with torch")
    parser.add_argument("--cells", type=int, choices=sorted(CHANNELS), default=64,
                        help="of an image's features")
    parser.add_argument("--rounds", type=cli.number(int, at_least=1), default=5)
    parser.add_argument("--serve", metavar="FOLDER", help="be one of the processes")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
