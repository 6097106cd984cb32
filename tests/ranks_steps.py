"""A few training steps under mpirun; writes losses and gradients to argv[1].

The shares are uneven on purpose: rank 0 has most images, and in some batches a process
has none.
"""
import hashlib
import os
import sys
import tempfile

import numpy as np

import train
from captioning.batches import CaptionBatches, tensors
from captioning.checkpoints import create_optimizer_variables
from captioning.features import SHAPE, feature_path
from model import Captioner, DoublyStochastic, Masks, Sizes
from runtime import ranks
from runtime.atomic import write_arrays
from runtime.tf import start
from worlds import VOCABULARY, caption_batches, tokens_of

SIZES = Sizes(vocabulary=len(VOCABULARY), features=2048, annotation=9, embedding=9,
              hidden=11, attention=13)
TOKENS = tokens_of("train", [(5, 2, 3), (4, 4), (1, 5), (3, 3, 2), (7,), (2, 6)])


def plan(processes):
    """The batches, and the rank that owns each image."""
    captions = CaptionBatches(TOKENS, [""] * 6, np.ones(6, bool))
    order = captions.epoch(4, np.random.RandomState(3))
    owners = np.array([0, 0, 0, min(1, processes - 1), processes - 1, 0])
    return order, owners


def write_features(folder):
    """Write small features, so that attention is neither saturated nor uniform."""
    random = np.random.RandomState(6)
    os.makedirs(os.path.join(folder, "train"))
    for name in TOKENS.images:
        np.save(feature_path(folder, name),
                random.uniform(0, .3, SHAPE).astype(np.float16))


def main(path):
    ranks.start()
    start()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        write_features(folder)
        for dtype, penalty, dropout, compiled in (
                ("float64", 0, 0, 0), ("float64", .7, .5, 1), ("float32", .7, .5, 1)):
            captions = caption_batches(TOKENS, folder)
            order, owners = plan(ranks.size)
            # Each process starts with other weights; rank 0's must win
            model = Captioner(SIZES, seed=1 + ranks.rank, dtype=dtype)
            optimizer = train.OPTIMIZERS["adam"](.01)
            create_optimizer_variables(model, optimizer)
            ranks.copy_first(list(model.weights.values()))
            trainer = train.Trainer(model, optimizer, [DoublyStochastic(penalty)],
                                    clip=.5)
            first = [weight.numpy() for weight in model.weights.values()]
            mine = [n[owners[TOKENS.image_of[n]] == ranks.rank] for n in order]
            if compiled:
                trainer.compile_for({(len(n), int(TOKENS.lengths[n[0]])): 1
                                     for n in mine if len(n)})
            for i, numbers in enumerate(order):
                batch = captions.load(mine[i], dropout, SIZES, (5,))
                if batch and dropout:
                    batch = batch.replacing(masks=Masks(*(
                        mask.astype(dtype) for mask in batch.parcel.masks)))
                batch = batch and tensors(batch)
                N = int(TOKENS.lengths[numbers].sum())
                label = f"{dtype}_{dropout}_{i}"
                loss, cross_entropy, *gradients = trainer.reduced_gradients(batch, N)
                found["loss_" + label] = loss.numpy()
                found["cross_entropy_" + label] = cross_entropy.numpy()
                for name, gradient in zip(model.weights, gradients):
                    found[f"gradient_{label}_{name}"] = np.array(gradient.numpy())
                trainer.step(batch, N)
                weights = [w.numpy().tobytes() for w in model.weights.values()]
                digest = hashlib.md5(b"".join(weights)).hexdigest()
                assert len(set(ranks.gather(digest))) == 1, "the weights part"
                if dtype == "float32":
                    # Adam takes full steps even on gradients that are mere rounding.
                    # Restoring the weights compares single steps, not the whole path.
                    for weight, value in zip(model.weights.values(), first):
                        weight.assign(value)
    if ranks.rank == 0:
        write_arrays(path, found)


if __name__ == "__main__":
    main(sys.argv[1])
