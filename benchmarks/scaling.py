"""How much faster are two processes than one? (needs Horovod: `make horovod`)

    python benchmarks/scaling.py           # about 6 minutes on 2 cores

One process on one core and two processes on two cores take turns, several rounds, each
with one thread for computing: training steps of the size that the defaults have, on
made-up data (bench.py's), dropout on. Two ways to share: each process with 64 captions
a step, so that the batch grows; and 64 captions in all. Beside it stand what one step
sends (the gradients), and how long that takes between two processes of one machine.
"""
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.dirname(HERE), HERE]

import cli  # noqa: E402
import ranks  # noqa: E402
from bench import (SIZES, flops, make_features, make_tokens, ratio,  # noqa: E402
                   seconds)
from model import Captioner  # noqa: E402
from scores import table  # noqa: E402
from tf_runtime import AdamOptimizer, start, tf  # noqa: E402
from train import Captions, Trainer, make_slots  # noqa: E402

IMAGES, BATCHES, SEED = 2000, 12, 5


def worker(captions_of_a_step, folder):
    """Train on some batches, which are shared; process 0 prints a line of JSON."""
    ranks.start()
    start()
    captions = Captions("train", make_tokens(IMAGES, np.random.RandomState(SEED)),
                        folder)
    order = captions.epoch(captions_of_a_step, np.random.RandomState(1))
    owners = captions.deal(order, ranks.size)
    lengths, image_of = captions.tokens.lengths, captions.tokens.image_of
    chosen = [numbers for numbers in order
              if lengths[numbers[0]] == lengths[numbers[-1]]][:BATCHES]
    mine = [numbers[owners[image_of[numbers]] == ranks.rank] for numbers in chosen]
    trainer = Trainer(Captioner(SIZES), AdamOptimizer(1e-3))
    make_slots(trainer.model, trainer.optimizer)
    trainer.shapes = {(len(n), int(lengths[n[0]])) for n in mine}

    def run():
        for numbers, (batch, masks) in zip(chosen, captions.batches(
                mine, lambda n: captions.load_to_train(n, .3, SIZES, 0))):
            trainer.step(batch, masks, int(lengths[numbers].sum()))
        ranks.gather(None)
    run()  # compiles
    took = min(seconds(run) for _ in range(2))
    weights = list(trainer.model.weights.values())
    zeros = [tf.zeros_like(weight) for weight in weights]
    sending = np.median([seconds(lambda: ranks.total(zeros)[0].numpy())
                         for _ in range(20)])
    print("measured " + json.dumps({
        "captions_per_second": sum(map(len, chosen)) / took,
        "step_ms": 1e3 * took / len(chosen), "all_reduce_ms": 1e3 * sending,
        "gradient_mb": sum(4 * int(np.prod(w.shape.as_list())) for w in weights) / 1e6,
        "embedding_mb": 4e-6 * SIZES.vocabulary * SIZES.embedding,
        "embedding_rows_mb": 4e-6 * (SIZES.embedding + 1) * float(
            np.mean([lengths[n].sum() for n in chosen])),
        "gflop_per_step": 1e-9 * float(np.mean([flops(captions.load(n))
                                                for n in chosen]))}), flush=True)


def fullest(processes, random):
    """How much more the fullest share of a batch has than an even one, as Captions.deal
    shares it and by chance: two ratios, means over an epoch of 20,000 images.
    """
    captions = object.__new__(Captions)  # no features are read
    captions.tokens, captions.paths = make_tokens(20000, random), [""] * 20000
    captions.captions = np.arange(len(captions.tokens.lengths))
    order = [numbers for numbers in captions.epoch(64 * processes, random)
             if len(numbers) == 64 * processes]

    def excess(owners):
        words = np.array([np.bincount(owners[captions.tokens.image_of[numbers]],
                                      captions.tokens.lengths[numbers], processes)
                          for numbers in order])
        return (words.max(axis=1) / words.mean(axis=1)).mean()
    return (excess(captions.deal(order, processes)),
            excess(random.randint(processes, size=20000)))


def measure(processes, captions_of_a_step, folder):
    out = subprocess.check_output([
        "mpirun", "--allow-run-as-root", "--bind-to", "core", "-np", str(processes),
        sys.executable, os.path.abspath(__file__), "--worker", str(captions_of_a_step),
        folder])
    line = next(line for line in out.decode().splitlines()
                if line.startswith("measured "))
    return json.loads(line[len("measured "):])


def main():
    args = arguments()
    if args.worker:
        worker(int(args.worker[0]), args.worker[1])
        return
    with tempfile.TemporaryDirectory(prefix="scaling") as folder:
        make_features(folder, IMAGES, np.random.RandomState(SEED))
        rounds = [[measure(1, 64, folder), measure(2, 128, folder),
                   measure(2, 64, folder)] for _ in range(args.rounds)]
    alone, grown, shared = zip(*rounds)

    def speeds(found):
        return [row["captions_per_second"] for row in found]
    rows = [("two processes against one, captions/s", "ratio", "range", "goal")]
    for name, found, goal in (("64 captions a process", grown, "at least 1.7"),
                              ("64 captions in all", shared, "")):
        middle, low, high = ratio(speeds(found), speeds(alone))
        rows.append((name, f"{middle:.2f}", f"{low:.2f} - {high:.2f}", goal))
    table(rows)
    print()
    table([("", "1 process", "2, 64 each", "2, 64 in all")] + [
        (name, *(f"{np.median([row[key] for row in found]):.{digits}f}"
                 for found in (alone, grown, shared)))
        for name, key, digits in (
            ("captions/s", "captions_per_second", 1), ("step, ms", "step_ms", 0),
            ("GFLOP a step", "gflop_per_step", 1),
            ("gradients, MB", "gradient_mb", 1),
            ("all-reduce of them, ms", "all_reduce_ms", 1),
            ("of these the embedding's, MB", "embedding_mb", 1),
            ("only its rows of a step, MB", "embedding_rows_mb", 2))])
    print("\nwords of the fullest share of a batch against those of an even one:")
    random = np.random.RandomState(SEED)
    table([("processes, 64 captions each", "dealt out", "by chance")] + [
        (str(processes), *(f"{value:.3f}" for value in fullest(processes, random)))
        for processes in (2, 8, 64)])


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--rounds", type=cli.number(int, at_least=1), default=3,
                        help="how often each is measured")
    parser.add_argument("--worker", nargs=2, metavar=("CAPTIONS", "FOLDER"),
                        help="one of the processes that are measured")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
