"""Free-running decoding: the model sees its own previous word, state and image only.

Greedy decoding is beam search of width 1: the most probable word at every step.
"""
import os
import typing
import zlib

import numpy as np
from tqdm import tqdm

from captioning.features import read_features
from captioning.tokens import END, PAD, START, UNK
from runtime import cli, watchdog
from runtime.tf import tf


class Caption(typing.NamedTuple):
    """One generated caption of T steps, the end token's among them."""
    words: typing.List[int]  # the last is END unless the caption was cut at max_steps
    log_probs: np.ndarray    # float32 (T,): log p of each word, given those before it
    alphas: np.ndarray       # float32 (T, L): where the model looked for each word
    betas: np.ndarray        # float32 (T,): the gate; None in a model without a gate


class Node(typing.NamedTuple):
    """One word of a hypothesis."""
    parent: typing.Any       # Node of the word before; None at the start
    word: int
    log_prob: float
    alpha: np.ndarray
    beta: float


def beam_search(model, features, width=1, max_steps=50, length_power=0.,
                forbidden=(PAD, START, UNK)):
    """Caption many images at once.

    features: float16 or float32 (I, L, F). width: hypotheses an image. max_steps:
    words, the end token among them, after which a caption is cut. length_power:
    hypotheses are compared by their log probability / T ** length_power.
    forbidden: words that are never emitted.

    Where a hypothesis ends, the next best takes its place, until `width` of them have
    ended. Returns a list of I lists of Captions, best first: `width` of them, or
    fewer where there are not so many sentences. Those that did not end come last.
    """
    K = model.sizes.vocabulary
    context = model.encode(tf.constant(features))
    h = model.h_0(context.a)
    images = range(len(features))                 # those still searched for
    ended = [[] for _ in images]                  # (score, Node) of each image
    beams = [[(0., None)] for _ in images]        # (log probability, Node): w an image
    words = np.full(len(images), START, np.int32)
    barred = np.zeros(K, np.float32)
    barred[list(forbidden)] = -np.inf

    for T in range(1, max_steps + 1):
        w = len(beams[0])
        Ey, gates = model.embed(words)
        h, z, alpha, beta = model.step(context, h, gates)
        log_p = tf.nn.log_softmax(model.deep_output(Ey, h, z)) + barred   # (I w, K)
        before = np.array([[p for p, _ in beam] for beam in beams], np.float32)
        total = tf.reshape(log_p + before.reshape(-1, 1), (-1, w * K))
        scores, flat = (x.numpy() for x in tf.nn.top_k(total, min(2 * width, w * K)))
        parents, chosen = flat // K, flat % K
        alpha = np.array(alpha.numpy()).reshape(len(images), w, -1)
        beta = beta if beta is None else np.array(beta.numpy()).reshape(-1, w)

        unfinished, new_beams, rows = [], [], []
        for i, image in enumerate(images):
            live, from_rows = [], []
            for rank in np.flatnonzero(np.isfinite(scores[i])):
                score, parent = scores[i, rank], parents[i, rank]
                node = Node(beams[i][parent][1], int(chosen[i, rank]),
                            score - before[i, parent], alpha[i, parent],
                            beta if beta is None else beta[i, parent])
                if node.word != END and len(live) < width:
                    live.append((score, node))
                    from_rows.append(i * w + parent)
                elif node.word == END and rank < width:
                    ended[image].append((score / T ** length_power, node))
            if live and T == max_steps:
                ended[image] += _cut(live, width - len(ended[image]), T ** length_power)
            elif live and len(ended[image]) < width:
                while len(live) < width:          # every image has the same w
                    live.append((-np.inf, None))
                    from_rows.append(i * w)
                unfinished.append(image)
                new_beams.append(live)
                rows += from_rows
        if not unfinished:
            break
        if rows != list(range(len(rows))) or len(rows) != h.shape[0]:
            context = context.take(rows)
            h = tf.gather(h, rows)
        images, beams = unfinished, new_beams
        words = np.array([PAD if node is None else node.word
                          for beam in beams for _, node in beam], np.int32)
    return [[_caption(node) for _, node in
             sorted(found, key=lambda item: (item[1].word != END, -item[0]))][:width]
            for found in ended]


def sample(model, features, uniforms, temperature=1., top_p=1., forbidden=()):
    """Draw captions from the model's own probabilities, word by word.

    features: float16 or float32 (I, L, F). uniforms: float (I, S, T), at least 0 and
    below 1: the same numbers draw the same S captions of each image, of T words at
    most. temperature: divides the logits. top_p: only the most probable words that
    reach this share together are drawn (Holtzman et al. 2020). forbidden: words that
    are never drawn. Returns a list of I lists of S Captions.
    """
    I, S, T = uniforms.shape
    uniforms = uniforms.reshape(I * S, T)
    context = model.encode(tf.constant(features)).take(np.repeat(np.arange(I), S))
    h = model.h_0(context.a)
    barred = np.zeros(model.sizes.vocabulary)
    barred[list(forbidden)] = -np.inf
    nodes = [None] * (I * S)
    rows = np.arange(I * S)                       # the samples that are computed
    words = np.full(I * S, START, np.int32)
    for t in range(T):
        live = words != END
        if not live.any():
            break
        if live.mean() < .75:                     # dropping them is a copy of the rest
            kept = np.flatnonzero(live)
            context, h = context.take(kept), tf.gather(h, kept)
            rows, words, live = rows[kept], words[kept], live[kept]
        Ey, gates = model.embed(words)
        h, z, alpha, beta = model.step(context, h, gates)
        p = tf.nn.softmax(model.deep_output(Ey, h, z) / temperature + barred.astype(
            h.dtype.as_numpy_dtype)).numpy()      # (rows, K)
        drawn = draw(p, uniforms[rows, t], top_p)
        alpha = np.array(alpha.numpy())
        beta = beta if beta is None else np.array(beta.numpy()).ravel()
        for i in np.flatnonzero(live):
            nodes[rows[i]] = Node(nodes[rows[i]], int(drawn[i]), np.log(p[i, drawn[i]]),
                                  alpha[i], beta if beta is None else beta[i])
        words = np.where(live, drawn, END).astype(np.int32)
    captions = [_caption(node) for node in nodes]
    return [captions[i * S:(i + 1) * S] for i in range(I)]


def draw(p, uniforms, top_p=1.):
    """A word from each row of probabilities (B, K), by the number (B,) of that row.

    top_p: see `sample`. Returns int (B,).
    """
    order = None
    if top_p < 1:
        order = np.argsort(-p, axis=1, kind="mergesort")
        p = p[np.arange(len(p))[:, None], order]
        before = np.cumsum(p, axis=1) - p
        p = np.where(before < top_p, p, 0)
    shares = np.cumsum(p, axis=1, dtype=np.float64)
    drawn = (shares <= uniforms[:, None] * shares[:, -1:]).sum(axis=1)
    return drawn if order is None else order[np.arange(len(order)), drawn]


def decode_files(model, paths, batch_size, quiet=False, **search):
    """For each features file the Captions of its beam, best first, in order.

    search: the arguments of `beam_search`. Images of a batch are decoded side by side.
    Raises cli.UserError where a file is missing, damaged or not finite.
    """
    found = []
    with tqdm(total=len(paths), desc="decode", unit="image", disable=quiet) as bar:
        groups = [paths[i:i + batch_size] for i in range(0, len(paths), batch_size)]
        for maps in watchdog.watched(map(read_maps, groups), "batch", "the images"):
            found += beam_search(model, maps, **search)
            bar.update(len(maps))
    return found


def sample_files(model, paths, batch_size, count, max_steps, seed, **drawing):
    """For each features file a list of `count` Captions that are drawn, in order.

    drawing: the last arguments of `sample`. What is drawn of an image depends on the
    seed and the name of its file, not on the other images. Raises as `decode_files`.
    """
    found = []
    with tqdm(total=len(paths), desc="sample", unit="image") as bar:
        groups = [paths[i:i + batch_size] for i in range(0, len(paths), batch_size)]
        for maps, some in zip(watchdog.watched(map(read_maps, groups), "batch",
                                               "the samples"), groups):
            uniforms = np.stack([np.random.RandomState(
                [seed, zlib.crc32(os.path.basename(path).encode())]).random_sample(
                    (count, max_steps)) for path in some])
            found += sample(model, maps, uniforms, **drawing)
            bar.update(len(some))
    return found


def read_maps(paths):
    """The features of some images, (I, L, F). Raises cli.UserError where a file is
    missing, damaged or not finite.
    """
    maps = np.stack([read_features(path) for path in paths])
    for path, values in zip(paths, maps):
        if not np.isfinite(values).all():
            raise cli.UserError(f"{path}: its features are not finite; delete it and "
                                "run extract_features.py again")
    return maps


def _cut(live, count, divisor):
    """The best hypotheses that max_steps ended, to fill up the list."""
    return [(score / divisor, node) for score, node in live[:max(0, count)]]


def _caption(node):
    """Follow the parents back to the first word."""
    nodes = []
    while node is not None:
        nodes.append(node)
        node = node.parent
    nodes.reverse()
    return Caption([n.word for n in nodes],
                   np.array([n.log_prob for n in nodes], np.float32),
                   np.stack([n.alpha for n in nodes]),
                   None if nodes[0].beta is None else
                   np.array([n.beta for n in nodes], np.float32))
