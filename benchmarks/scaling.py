"""How much faster are two processes than one? Needs `make horovod` or `make mpi`.

    python -m benchmarks.scaling                # about 6 minutes on 2 cores
    .venv-2/bin/python -m benchmarks.scaling    # with TensorFlow 2

One process on one core and two on two cores take turns for several rounds, each with
one computing thread: training steps with m = D = 256 and n = A = 512, on random data,
with dropout. The batch is 64 captions per process, so that it grows, or 64 in total.
Also measured: how many bytes a step sends (the gradients), and how long that takes
between two processes on one machine.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np

from benchmarks.bench import (SIZES, caption_batches, flops, make_features, make_tokens,
                              ratio, seconds)
from captioning.batches import CaptionBatches
from captioning.checkpoints import create_optimizer_variables
from model import Captioner
from runtime import cli, ranks
from runtime.tf import AdamOptimizer, start, tf
from train import Trainer

IMAGES, BATCHES, SEED = 2000, 12, 5


def worker(captions_of_a_step, folder):
    """Train on a few batches, shared by all ranks; rank 0 prints a line of JSON."""
    ranks.start()
    start()
    captions = caption_batches(make_tokens(IMAGES, np.random.RandomState(SEED)), folder)
    order = captions.epoch(captions_of_a_step, np.random.RandomState(1))
    owners = captions.assign_images(order, ranks.size)
    lengths, image_of = captions.tokens.lengths, captions.tokens.image_of
    chosen = [numbers for numbers in order
              if lengths[numbers[0]] == lengths[numbers[-1]]][:BATCHES]
    mine = [numbers[owners[image_of[numbers]] == ranks.rank] for numbers in chosen]
    trainer = Trainer(Captioner(SIZES), AdamOptimizer(1e-3))
    create_optimizer_variables(trainer.model, trainer.optimizer)
    trainer.compile_for({(len(n), int(lengths[n[0]])): 1 for n in mine})

    def run():
        for numbers, batch in zip(chosen, captions.batches(
                mine, dropout=.3, sizes=SIZES, seed=(0,))):
            trainer.step(batch, int(lengths[numbers].sum()))
            ranks.any_of(False)  # as train_epoch votes on stopping
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
    """How uneven the shares of a batch are: words of the largest over the mean.

    Two ratios, means over an epoch of 20,000 images: with CaptionBatches.assign_images,
    and by chance.
    """
    captions = CaptionBatches(make_tokens(20000, random), [""] * 20000,
                              np.ones(20000, bool))  # no features are read
    order = [numbers for numbers in captions.epoch(64 * processes, random)
             if len(numbers) == 64 * processes]

    def excess(owners):
        words = np.array([np.bincount(owners[captions.tokens.image_of[numbers]],
                                      captions.tokens.lengths[numbers], processes)
                          for numbers in order])
        return (words.max(axis=1) / words.mean(axis=1)).mean()
    return (excess(captions.assign_images(order, processes)),
            excess(random.randint(processes, size=20000)))


def measure(processes, captions_of_a_step, folder):
    mpirun = shutil.which("mpirun", path=os.pathsep.join(  # `make mpi` brings its own
        [os.path.dirname(sys.executable), os.environ.get("PATH", "")]))
    if mpirun is None:
        raise cli.UserError("there is no mpirun; run `make horovod` or `make mpi`")
    out = subprocess.check_output([
        mpirun, "--allow-run-as-root", "--bind-to", "core", "-np", str(processes),
        sys.executable, "-m", "benchmarks.scaling", "--worker", str(captions_of_a_step),
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
    rows = [("two processes over one, captions/s", "ratio", "range", "goal")]
    for name, found, goal in (("64 captions per process", grown, "at least 1.7"),
                              ("64 captions in total", shared, "")):
        middle, low, high = ratio(speeds(found), speeds(alone))
        rows.append((name, f"{middle:.2f}", f"{low:.2f} - {high:.2f}", goal))
    cli.table(rows)
    print()
    cli.table([("", "1 process", "2, 64 each", "2, 64 in total")] + [
        (name, *(f"{np.median([row[key] for row in found]):.{digits}f}"
                 for found in (alone, grown, shared)))
        for name, key, digits in (
            ("captions/s", "captions_per_second", 1), ("step, ms", "step_ms", 0),
            ("GFLOP per step", "gflop_per_step", 1),
            ("gradients, MB", "gradient_mb", 1),
            ("their all-reduce, ms", "all_reduce_ms", 1),
            ("gradient of the embedding, MB", "embedding_mb", 1),
            ("only its rows used in a step, MB", "embedding_rows_mb", 2))])
    print("\nwords of a batch's largest share over those of an even one:")
    random = np.random.RandomState(SEED)
    cli.table([("processes, 64 captions each", "dealt out", "by chance")] + [
        (str(processes), *(f"{value:.3f}" for value in fullest(processes, random)))
        for processes in (2, 8, 64)])


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--rounds", type=cli.number(int, at_least=1), default=3,
                        help="how often to measure each")
    parser.add_argument("--worker", nargs=2, metavar=("CAPTIONS", "FOLDER"),
                        help="be one of the measured processes")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
