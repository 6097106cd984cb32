"""Free-running decoding: the model sees its own previous word, state and image only.

Greedy decoding is beam search of width 1: the most probable word at every step.
"""
import functools
import os
import typing
import zlib

import numpy as np
from tqdm import tqdm

from captioning.batches import read_ahead, uniforms_of
from captioning.features import read_features
from captioning.tokens import END, PAD, START, UNK
from runtime import cli, watchdog
from runtime.tf import compiled, tf


class Caption(typing.NamedTuple):
    """One generated caption of T steps, the end token's among them."""
    words: typing.List[int]  # the last is END unless the caption was cut at max_steps
    log_probs: np.ndarray    # float32 (T,): log p of each word, given those before it
    alphas: np.ndarray       # float32 (T, L): where the model looked for each word
    betas: np.ndarray        # float32 (T,): the gate; None in a model without a gate


class Step(typing.NamedTuple):
    """One word of all hypotheses, w of each image that was still computed."""
    row_of: np.ndarray     # int (I,): the row of an image in the arrays below
    alphas: np.ndarray     # (rows, w, L): where each hypothesis looked for its word
    betas: np.ndarray      # (rows, w); None in a model without a gate
    parents: np.ndarray    # int (rows, width): whom each of the next goes on from
    words: np.ndarray      # int (rows, width): the word that it adds
    log_probs: np.ndarray  # (rows, width)


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
    I, K = int(features.shape[0]), model.sizes.vocabulary
    context = model.encode(tf.convert_to_tensor(features))
    h = model.h_0(context.a)
    barred = np.zeros(K, np.float32)
    barred[list(forbidden)] = -np.inf
    barred = tf.constant(barred)
    images = np.arange(I)                  # of each row; w hypotheses a row
    words = np.full((I, 1), START)
    scores = np.zeros((I, 1), np.float32)  # log probabilities; -inf: no hypothesis
    steps, ended, count = [], [], np.zeros(I, int)

    for T in range(1, max_steps + 1):
        w = words.shape[1]
        h, alpha, beta, best, flat = compiled_for(model, expand)(
            context, h, tf.constant(words.ravel().astype("i4")), tf.constant(scores),
            barred, min(2 * width, w * K))
        best, parents, chosen = best.numpy(), flat.numpy() // K, flat.numpy() % K
        there, ends = np.isfinite(best), chosen == END
        log_probs = best - np.where(
            there, scores[np.arange(len(images))[:, None], parents], 0)
        place = np.cumsum(there & ~ends, axis=1) - 1
        live = there & ~ends & (place < width)
        end = there & ends & (np.arange(best.shape[1]) < width)
        count += np.bincount(images, end.sum(axis=1), I).astype(int)
        going = live.any(axis=1) & (count[images] < width)
        if T == max_steps:                 # the best of those that go on are cut
            end |= live & (place < (width - count[images])[:, None])
            going[:] = False
        row, rank = np.nonzero(end)
        ended.append(np.rec.fromarrays(
            [images[row], np.full(len(row), T), best[row, rank] / T ** length_power,
             parents[row, rank], chosen[row, rank], log_probs[row, rank]],
            names="image,length,score,parent,word,log_prob"))

        row, rank = np.nonzero(live & going[:, None])
        slot = row, place[row, rank]
        added = [np.full((len(images), width), nothing) for nothing in
                 (0, PAD, np.float32(0), np.float32(-np.inf))]
        for array, values in zip(added, (parents, chosen, log_probs, best)):
            array[slot] = values[row, rank]
        parents, words, log_probs, scores = added
        row_of = np.zeros(I, int)
        row_of[images] = np.arange(len(images))
        steps.append(Step(row_of, alpha.numpy().reshape(len(images), w, -1),
                          beta if beta is None else beta.numpy().reshape(-1, w),
                          parents, words, log_probs))
        if not going.any():
            break
        kept = worth_computing(going, I)
        if len(kept) < len(images) or w < width:
            context = context.take(np.repeat(kept * w, width))
        h = tf.gather(h, (kept[:, None] * w + parents[kept]).ravel())
        images, words, scores = images[kept], words[kept], scores[kept]
    return best_captions(np.concatenate(ended).view(np.recarray), steps, I, width)


def expand(model, context, h, words, scores, barred, count):
    """The best words to go on with, w hypotheses an image.

    context: Context of them. h: (I * w, n), their states. words: int32 (I * w,), the
    last of each. scores: (I, w), their log probabilities. barred: (K,), added to those
    of the words. Returns h, alpha and beta of `step`, and the `count` best sums
    (I, count) and where each is in (I, w * K).
    """
    h, logits, alpha, beta = next_word(model, context, h, words)
    log_p = tf.nn.log_softmax(logits) + barred                        # (I * w, K)
    sums = tf.reshape(scores, (-1, 1)) + log_p
    best, flat = tf.nn.top_k(tf.reshape(sums, (scores.shape[0], -1)), count)
    return h, alpha, beta, best, flat


def next_word(model, context, h, words):
    """One step of the decoder: h (B, n), logits (B, K), alpha (B, L), beta (B, 1)."""
    Ey, gates = model.embed(words)
    h, z, alpha, beta = model.step(context, h, gates)
    return h, model.deep_output(Ey, h, z), alpha, beta


def compiled_for(model, function):
    """`function` of this model, compiled once for each shape; the model keeps it.

    Not where the model says `compilable = False`.
    """
    kept = vars(model).setdefault("compiled", {})
    if function not in kept:
        kept[function] = functools.partial(function, model)
        if getattr(model, "compilable", True):
            kept[function] = compiled(kept[function])
    return kept[function]


def worth_computing(going, most):
    """The rows to compute: int array. going: bool (rows,). most: rows at first.

    Those that have ended drop out a quarter of all at a time, since each number of rows
    is compiled anew.
    """
    quarter = -(-most // 4)
    size = min(len(going), -(-int(going.sum()) // quarter) * quarter)
    return np.sort(np.argsort(~going, kind="mergesort")[:size])


def best_captions(ended, steps, count, width):
    """Lists of Captions of so many images: the `width` best of each.

    ended: what beam_search notes of each. steps: its Steps.
    """
    ended = ended[np.lexsort((-ended.score, ended.word != END, ended.image))]
    first = np.searchsorted(ended.image, np.arange(count))
    ended = ended[np.arange(len(ended)) - first[ended.image] < width]
    N, longest = len(ended), len(steps)
    words = np.zeros((N, longest), int)
    log_probs = np.zeros((N, longest), np.float32)
    alphas = np.zeros((N, longest, steps[0].alphas.shape[2]), steps[0].alphas.dtype)
    betas = None if steps[0].betas is None else np.zeros((N, longest), np.float32)
    parent = np.zeros(N, int)
    for t in range(longest - 1, -1, -1):   # from the last word to the first
        step, row = steps[t], steps[t].row_of[ended.image]
        last, inner = ended.length == t + 1, ended.length > t + 1
        for array, at_end, before in ((words, ended.word, step.words),
                                      (log_probs, ended.log_prob, step.log_probs)):
            array[:, t] = np.where(last, at_end, before[row, parent])
        parent = np.where(last, ended.parent,
                          np.where(inner, step.parents[row, parent], 0))
        alphas[:, t] = step.alphas[row, parent]
        if betas is not None:
            betas[:, t] = step.betas[row, parent]
    found = [[] for _ in range(count)]
    for i, (image, T) in enumerate(zip(ended.image, ended.length)):
        found[image].append(Caption(words[i, :T].tolist(), log_probs[i, :T],
                                    alphas[i, :T], betas if betas is None
                                    else betas[i, :T]))
    return found


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
    context = model.encode(tf.convert_to_tensor(features))
    context = context.take(np.repeat(np.arange(I), S))
    h = model.h_0(context.a)
    barred = np.zeros(model.sizes.vocabulary)
    barred[list(forbidden)] = -np.inf
    barred = tf.constant(barred.astype(h.dtype.as_numpy_dtype))
    rows = np.arange(I * S)                       # the samples that are computed
    words = np.full(I * S, START, np.int32)
    found, lengths = [], np.zeros(I * S, int)
    for t in range(T):
        h, p, alpha, beta = compiled_for(model, probabilities)(
            context, h, tf.constant(words), barred, float(temperature))
        p, live = p.numpy(), words != END
        words = np.where(live, draw(p, uniforms[rows, t], top_p), END).astype(np.int32)
        lengths[rows[live]] += 1
        chances = np.where(live, p[np.arange(len(p)), words], p.dtype.type(1))
        found.append((rows, words, np.log(chances), alpha.numpy(),
                      beta if beta is None else beta.numpy().ravel()))
        going = words != END
        if not going.any():
            break
        kept = worth_computing(going, I * S)
        if len(kept) < len(rows):
            context, h = context.take(kept), tf.gather(h, kept)
            rows, words = rows[kept], words[kept]
    return drawn_captions(found, lengths, S)


def probabilities(model, context, h, words, barred, temperature):
    """h (B, n), p (B, K) of the next word, alpha (B, L), beta (B, 1); see `sample`."""
    h, logits, alpha, beta = next_word(model, context, h, words)
    return h, tf.nn.softmax(logits / temperature + barred), alpha, beta


def drawn_captions(found, lengths, S):
    """Lists of S Captions. found: of each step the rows that were computed, and their
    words, log probabilities, alphas and betas. lengths: int (I * S,).
    """
    table = [None if found[0][at] is None else np.zeros(
        (len(lengths), len(found)) + found[0][at].shape[1:], found[0][at].dtype)
        for at in range(1, 5)]
    for t, (rows, *values) in enumerate(found):
        for array, some in zip(table, values):
            if array is not None:
                array[rows, t] = some
    captions = [Caption(row[0].tolist(), *row[1:]) for row in (
        [None if array is None else array[i, :T] for array in table]
        for i, T in enumerate(lengths))]
    return [captions[i:i + S] for i in range(0, len(captions), S)]


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
        for maps in watchdog.watched(read_ahead(read_maps, groups), "batch",
                                     "the images"):
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
        for maps, some in zip(watchdog.watched(read_ahead(read_maps, groups), "batch",
                                               "the samples"), groups):
            uniforms = uniforms_of([[seed, zlib.crc32(os.path.basename(path).encode())]
                                    for path in some], (count, max_steps))
            found += sample(model, maps, uniforms, **drawing)
            bar.update(len(some))
    return found


def was_cut(caption):
    """Whether a Caption was cut at max_steps: it has no end."""
    return caption.words[-1] != END


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


def sample_and_seed(text):
    """An argparse type: '5' or '5:1', how many captions an image and the seed."""
    count, _, seed = text.partition(":")
    return cli.positive(count), cli.seed(seed or "0")


def add_flags(parser):
    """Flags about how captions are searched or drawn."""
    parser.add_argument("--beam", without="--sample", type=cli.positive, default=1,
                        help="width of the beam search; 1 is greedy")
    parser.add_argument("--length-power", needs="--beam", without="--sample",
                        type=cli.number(float, at_least=0), default=0.,
                        help="hypotheses are compared by their log probability / "
                             "words ** this; 0: by the probability itself")
    parser.always("--max-steps", type=cli.positive, default=50,
                  help="words after which a caption is cut")
    parser.add_argument("--n-best", without="--sample", type=cli.positive, metavar="N",
                        help="also write the N best captions of the beam and their "
                             "log probabilities")
    parser.always("--sample", type=sample_and_seed, metavar="N[:SEED]",
                  help="draw N captions of each image by their probability, and report "
                       "their diversity; another seed than 0 draws others")
    parser.add_argument("--temperature", needs="--sample",
                        type=cli.number(float, above=0), default=1.,
                        help="divides the logits")
    parser.add_argument("--top-p", needs="--sample",
                        type=cli.number(float, above=0, at_most=1), default=1.,
                        help="draw among the most probable words that have this share "
                             "together")
