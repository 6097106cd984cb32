"""Ours beside the same captioner in PyTorch, in turns (`make bench-peers`).

    python -m benchmarks.peers .venv/bin/python .venv-2/bin/python \\
        --torch .venv-torch/bin/python

One process for each TensorFlow, one for PyTorch as it is, one with torch.compile. All
have the same weights, batches and images in memory, and wait while another works. They
must agree first: losses to 1e-4, and captions but for two in a hundred, where two words
are equally probable to the last digits. There is no dropout, so that losses can be
compared. The table has medians and ranges of the ratios, round by round.

The machine must be idle: PyTorch's threads wait for each other, so other programs on
the same cores slow it down far more than TensorFlow.
"""
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

from benchmarks import bench
from captioning.checkpoints import create_optimizer_variables
from captioning.decode import beam_search
from captioning.tokens import END, PAD, START, UNK
from model import Batch, Captioner
from runtime import atomic, cli
from runtime.tf import AdamOptimizer, start, tf
from train import Trainer

HERE = os.path.dirname(os.path.abspath(__file__))
BATCHES, IMAGES, SIZE = 6, 128, 64
BARRED = (PAD, START, UNK, END)  # so that all captions are equally long
# Ratios: what, of whom, against whom, floor. "2" is TensorFlow 2, "1" TensorFlow 1.
FLOORS = (("train", "2", "eager", 1.7), ("train", "2", "compile", 1.),
          ("train", "1", "eager", 1.3), ("greedy", "better", "eager", 1.3))
TITLES = {"train": "training, captions/s", "greedy": "greedy decoding, images/s"}


def make_data(folder):
    """Write weights and data that all read: weights.npz, data.npz."""
    random = np.random.RandomState(0)
    tokens = bench.make_tokens(2000, random)
    lengths = tokens.lengths
    order = np.argsort(lengths, kind="mergesort")
    data = {"batches": BATCHES, "steps": bench.DECODED_WORDS,
            "barred": np.array(BARRED), "images":
            random.random_sample((IMAGES, 64, 2048)).astype("f2")}
    for i, place in enumerate(np.linspace(.1, .9, BATCHES)):
        first = int(place * len(order))
        numbers = order[first:first + SIZE][::-1]
        data[f"lengths{i}"] = lengths[numbers]
        data[f"words{i}"] = tokens.words[numbers, :lengths[numbers[0]] + 1]
        data[f"features{i}"] = random.random_sample((SIZE, 64, 2048)).astype("f2")
    np.savez(os.path.join(folder, "data.npz"), **data)
    weights = {name: weight.numpy() for name, weight in
               Captioner(bench.SIZES).weights.items()}
    np.savez(os.path.join(folder, "weights.npz"), **weights)


class Ours:
    """Answers the same commands as peer_torch.py, with this project's model."""

    def __init__(self, folder):
        with np.load(os.path.join(folder, "data.npz"), allow_pickle=False) as file:
            self.data = {name: file[name] for name in file.files}
        self.model, self.decoder = Captioner(bench.SIZES), Captioner(bench.SIZES)
        self.trainer = Trainer(self.model, AdamOptimizer(1e-3))
        create_optimizer_variables(self.model, self.trainer.optimizer)
        each = np.arange(SIZE, dtype=np.int32)
        self.batches = [Batch(self.data[f"features{i}"], each,
                              self.data[f"words{i}"], self.data[f"lengths{i}"])
                        for i in range(BATCHES)]
        # As in an epoch of COCO, in which each length has hundreds of batches
        self.trainer.shapes = {(SIZE, int(batch.lengths[0])) for batch in self.batches}

    def name(self):
        return f"TensorFlow {tf.__version__}"

    def losses(self):
        return [float(self.trainer.reduced_gradients(
            batch, int(batch.lengths.sum()))[1].numpy()) for batch in self.batches]

    def decode(self, width):
        images, found = self.data["images"], []
        for i in range(0, len(images), SIZE):
            found += beam_search(self.decoder, images[i:i + SIZE], width,
                                 bench.DECODED_WORDS, forbidden=BARRED)
        return [beam[0].words for beam in found]

    def captions(self):
        return self.decode(1)

    def train(self):
        return bench.seconds(lambda: [self.trainer.step(batch, int(batch.lengths.sum()))
                                      for batch in self.batches])

    def greedy(self):
        return bench.seconds(lambda: self.decode(1))

    def beam(self):
        return bench.seconds(lambda: self.decode(3))


def serve(folder):
    """Answer commands from stdin, a line of JSON each."""
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
        """Its answer. Raises cli.UserError where the process has ended."""
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
    """Raise cli.UserError where losses or captions are not those of the first peer."""
    first, *others = peers
    losses, captions = first("losses"), first("captions")
    for peer in others:
        apart = float(np.abs(np.subtract(peer("losses"), losses)).max())
        differ = sum(a != b for a, b in zip(peer("captions"), captions))
        if not (apart < 1e-4 and differ <= .02 * IMAGES):
            raise cli.UserError(f"{peer.name} and {first.name} are not the same model: "
                                f"losses differ by {apart:.2g}, captions of {differ} "
                                f"of {IMAGES} images")
        print(f"{peer.name} agrees with {first.name}: losses to {apart:.1g}, "
              f"{IMAGES - differ} of {IMAGES} captions", flush=True)


def measure(peers, rounds):
    """{(key of the peer, what): rates of the rounds}; the first round is left out."""
    work, found = {"train": SIZE * BATCHES, "greedy": IMAGES, "beam": IMAGES}, {}
    for number in range(rounds + 1):
        print(f"round {number} of {rounds}" if number else "warming up", flush=True)
        for what, items in work.items():
            for peer in peers:
                if what == "beam" and peer.key in ("eager", "compile"):
                    continue
                if what == "greedy" and peer.key == "compile":
                    continue  # only the loss is compiled
                rate = items / peer(what)
                if number:
                    found.setdefault((peer.key, what), []).append(rate)
    return found


def rows_of(found):
    """The table's rows: ratios against their floors, then beam search's time."""
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
    for key in ("1", "2"):
        if (key, "beam") in found:
            add(f"beam 3, time against greedy, TensorFlow {key}", found[key, "greedy"],
                found[key, "beam"], "at most 2.2", lambda ratio: ratio <= 2.2)
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
        make_data(folder)
        peers = []
        for python in args.pythons:
            peer = Peer("", [python, "-m", "benchmarks.peers", "--serve", folder])
            peer.key = peer.name.split()[1].split(".")[0]
            peers.append(peer)
        peers += [Peer(how, [args.torch, os.path.join(HERE, "peer_torch.py"), folder,
                             how]) for how in ("eager", "compile")]
        check(peers)
        found = measure(peers, args.rounds)
        for peer in peers:
            peer.end()
    names = {peer.key: peer.name for peer in peers}
    print()
    cli.table(rows_of(found))
    print()
    cli.table([("", "", "median")] + [
        (names[key], TITLES.get(what, "beam 3, images/s"), f"{np.median(rates):.1f}")
        for (key, what), rates in sorted(found.items(), key=lambda item: item[0][1])])
    path = os.path.join(HERE, "results", "peers.json")
    atomic.write_json(path, {f"{names[key]}: {what}": [round(rate, 2) for rate in rates]
                             for (key, what), rates in found.items()})
    print(f"\nwritten: {path}")


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("pythons", nargs="*", metavar="PYTHON",
                        help="interpreters with TensorFlow 1 and 2")
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter with torch")
    parser.add_argument("--rounds", type=cli.number(int, at_least=1), default=5)
    parser.add_argument("--serve", metavar="FOLDER", help="be one of the processes")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
