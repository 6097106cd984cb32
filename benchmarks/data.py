"""Synthetic data for the benchmarks: random features, captions of COCO's lengths."""
import os

import numpy as np
from PIL import Image

from captioning.batches import CaptionBatches
from captioning.features import SHAPE, feature_path
from captioning.tokens import END, START, Tokens
from model import Sizes

VOCABULARY, LONGEST, MEAN = 5000, 49, 10.45
SIZES = Sizes(vocabulary=VOCABULARY + 4, features=2048, annotation=256, embedding=256,
              hidden=512, attention=512)


def lengths_like_coco(count, random):
    """Lengths of `count` captions in words: mean 10.45, at least 8, one of 49."""
    lengths = 8 + random.poisson(MEAN - 8, count)
    lengths[random.randint(count)] = LONGEST
    return lengths


def make_tokens(images, random):
    """Random Tokens, five captions per image."""
    lengths = lengths_like_coco(5 * images, random).astype(np.int32) + 1
    words = np.zeros((5 * images, LONGEST + 2), np.int32)
    for row, n in zip(words, lengths):
        row[:n + 1] = np.r_[START, random.randint(4, SIZES.vocabulary, n - 1), END]
    return Tokens(words, lengths, np.repeat(np.arange(images, dtype=np.int32), 5),
                  np.array([f"train/{i}.jpg" for i in range(images)]),
                  np.array([str(i) for i in range(images)]), "", np.ones(images, bool))


def make_features(folder, images, random, files=100):
    """Write random features of `images` images: `files` files, the rest links to them.
    """
    os.makedirs(os.path.join(folder, "train"))
    for i in range(images):
        path = feature_path(folder, f"train/{i}.jpg")
        if i < files:
            np.save(path, random.random_sample(SHAPE).astype("f2"))
        else:
            os.link(feature_path(folder, f"train/{i % files}.jpg"),
                    path)


def make_picture(path, random):
    """Write a JPEG about the size of COCO's, in pixels and in bytes."""
    small = random.randint(0, 256, (48, 64, 3)).astype(np.uint8)
    Image.fromarray(small).resize((640, 480), Image.BICUBIC).save(path, quality=95)


def caption_batches(tokens, folder):
    """CaptionBatches of tokens; every image has features."""
    paths = [feature_path(folder, str(image)) for image in tokens.images]
    return CaptionBatches(tokens, paths, np.ones(len(paths), bool))


def flops(batch):
    """Floating point operations of the matrix products in one training step.

    Forward and backward, without a gradient with respect to the features. Everything
    else (tanh, softmax, Adam) is not counted.
    """
    K, F, D, m, n, A = SIZES
    I, L, _ = batch.parcel.features.shape
    rows, N = I * L, int(batch.lengths.sum())
    encoder = 2 * rows * F * D * 2                 # forward, gradient of W_v
    keys = 2 * rows * D * A * 3
    word = 2 * (m * 3 * n + D * 3 * n + n * 3 * n + n * A + n * m + D * m + m * K) * 3
    attention = 2 * L * (A + D) * 3
    return encoder + keys + N * (word + attention)
