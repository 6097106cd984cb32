"""How do versions of TensorFlow compare in speed on this machine?

    python -m benchmarks.versions .venv/bin/python .venv-2/bin/python

Each given Python runs once per round, so that other load on the machine affects all of
them alike. The table gives the median of every rate, and the median and range of its
ratio to the first Python's in the same round.
"""
import json
import subprocess
import tempfile

import numpy as np

from benchmarks import bench
from captioning import inception
from captioning.checkpoints import create_optimizer_variables
from captioning.decode import Decoder, decode_files
from captioning.features import feature_path
from model import Captioner
from runtime import cli
from runtime.tf import AdamOptimizer, compiled, start, tf
from train import Trainer


def training(folder, steps=15):
    """Captions/s of training on full batches of captions with 11 words."""
    random = np.random.RandomState(0)
    tokens = bench.make_tokens(1000, random)
    bench.make_features(folder, 1000, random)
    captions = bench.caption_batches(tokens, folder)
    numbers = np.flatnonzero(tokens.lengths == 12)[:64]
    trainer = Trainer(Captioner(bench.SIZES), AdamOptimizer(1e-3))
    trainer.compile_for({(64, 12): 1})
    create_optimizer_variables(trainer.model, trainer.optimizer)
    batch = captions.load(numbers, dropout=.5, sizes=bench.SIZES, seed=(0,))
    words = int(batch.lengths.sum())
    for _ in range(3):  # the first one compiles
        trainer.step(batch, words)
    return 64 * steps / bench.seconds(lambda: [trainer.step(batch, words)
                                               for _ in range(steps)])


def decoding(folder, images=128):
    """Images/s of greedy decoding, 12 words each, from the features of `training`."""
    model = Captioner(bench.SIZES)
    decoder = Decoder(model)
    bench.barred(model)
    paths = [feature_path(folder, f"train/{i}.jpg")
             for i in range(images)]

    def run():
        decode_files(decoder, paths, 64, quiet=True, width=1,
                     max_steps=bench.DECODED_WORDS)
    run()
    return images / bench.seconds(run)


def forward(batches=3):
    """Images/s of InceptionV3 without its batch norms, 16 images at a time."""
    plain = inception.architecture()
    inception.random_weights(plain, 0)
    network = compiled(inception.fold_batch_norm(plain))
    pixels = tf.constant(np.random.RandomState(0).uniform(
        -1, 1, (16, 299, 299, 3)).astype(np.float32))
    network(pixels).numpy()
    return 16 * batches / bench.seconds(lambda: [network(pixels).numpy()
                                                 for _ in range(batches)])


def measure():
    """Print the rates of this process's TensorFlow as JSON, on the last line."""
    start()
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        rates = [("training, captions/s", training(folder)),
                 ("greedy decoding, images/s", decoding(folder)),
                 ("InceptionV3, images/s", forward()),
                 ("matrix product, GFLOP/s", max(
                     bench.matrix_product() for _ in range(3)) / 1e9)]
    print(json.dumps([tf.__version__, rates]))


def main():
    args = arguments()
    if not args.pythons:
        measure()
        return
    names, found = [None] * len(args.pythons), [[] for _ in args.pythons]
    for number in range(args.rounds):
        for i, python in enumerate(args.pythons):
            print(f"round {number + 1} of {args.rounds}: {python}", flush=True)
            out = subprocess.check_output([python, "-m", "benchmarks.versions"])
            version, rates = json.loads(out.decode().splitlines()[-1])
            names[i] = f"{version} ({python})"
            found[i].append(dict(rates))
    rows = [("", "TensorFlow", "median", "ratio", "range")]
    for rate in found[0][0]:
        first = [values[rate] for values in found[0]]
        for name, measured in zip(names, found):
            mine = [values[rate] for values in measured]
            middle, low, high = bench.ratio(mine, first)
            rows.append((rate, name, f"{np.median(mine):.1f}", f"{middle:.2f}",
                         f"{low:.2f} - {high:.2f}"))
    print()
    cli.table(rows)


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("pythons", nargs="*", metavar="PYTHON",
                        help="interpreters with TensorFlow; none: measure this one's")
    parser.add_argument("--rounds", type=cli.number(int, at_least=1), default=3,
                        help="how often to run each Python")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
