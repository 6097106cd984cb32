"""Free-running decoding: the model sees its own previous word, state and image only.

Greedy decoding is beam search of width 1: the most probable word at every step. So is a
sample, but that its words are drawn.
"""
import os
import typing
import zlib

import numpy as np
from tqdm import tqdm

from captioning.batches import read_ahead, uniforms_of
from captioning.features import read_maps
from captioning.tokens import END, PAD, START, UNK
from runtime import cli, watchdog
from runtime.tf import XLA, compiled, tf


WORTH_XLA = 20000  # hypotheses: XLA compiles for seconds, and makes each word cheaper


class Caption(typing.NamedTuple):
    """One generated caption of T steps, the end token's among them."""
    words: typing.List[int]  # the last is END unless the caption was cut at max_steps
    log_probs: np.ndarray    # float32 (T,): log p of each word, given those before it
    alphas: np.ndarray       # float32 (T, L): where the model looked for each word
    betas: np.ndarray        # float32 (T,): the gate; None in a model without a gate


class Rule(typing.NamedTuple):
    """How words are chosen."""
    width: int               # hypotheses of an image
    max_steps: int           # words after which a caption is cut
    barred: typing.Any       # (K,): -inf for words that are never chosen, else 0
    drawn: bool = False      # with State.uniforms, and these: see `Decoder.sample`
    temperature: float = 1.
    top_p: float = 1.

    def choose(self, logits, state, t):
        """The best C sentences with one word more, of w hypotheses of each of R images.

        logits: (R * w, K), of the word after t others. state: the State before it.
        Returns their scores (R, C), -inf where there are fewer, and where each is in
        (R, w * K).
        """
        (R, w), K = state.scores.shape.as_list(), int(logits.shape[1])
        barred = tf.cast(self.barred, logits.dtype)
        if self.drawn:
            p = tf.nn.softmax(logits / self.temperature + barred)
            words = draw(p, tf.gather(state.uniforms, t, axis=1), self.top_p)[:, None]
            return pick(p, words), words
        sums = tf.reshape(state.scores, (-1, 1)) + (tf.nn.log_softmax(logits) + barred)
        C = 2 * self.width  # at least half of them do not end
        best, flat = tf.nn.top_k(tf.reshape(sums, (R, w * K)), min(C, w * K))
        missing = [[0, 0], [0, C - min(C, w * K)]]
        return tf.pad(best, missing, constant_values=-np.inf), tf.pad(flat, missing)


class State(typing.NamedTuple):
    """What the next word of R images depends on, w hypotheses each."""
    h: typing.Any         # (R, w, n)
    words: typing.Any     # int32 (R, w): the last of each
    scores: typing.Any    # (R, w): the log probability of each; -inf: there is none
    count: typing.Any     # int32 (R,): hypotheses that have ended
    going: typing.Any     # bool (R,): whether more are looked for
    uniforms: typing.Any  # float64 (R, max_steps), or (R, 0): no word is drawn


class Step(typing.NamedTuple):
    """What is kept of a word of R images; of several, with an axis more in front."""
    scores: typing.Any  # (R, C), of Rule.choose
    flat: typing.Any    # int32 (R, C), of Rule.choose
    done: typing.Any    # bool (R, C): it is a caption
    ranks: typing.Any   # int32 (R, width): which of the C each hypothesis is then
    alphas: typing.Any  # (R, w, L): where each hypothesis before them looked
    betas: typing.Any   # (R, w); (R, 0) in a model without a gate


class Decoder:
    """Writes captions with a model."""

    def __init__(self, model, compile=True):
        """model: a Captioner, or what has its methods. compile: whether it can be."""
        self.model, self.compile = model, compile
        self.go_on = compiled(self._go_on)
        self.step_by_xla = compiled(self._step, xla=True)

    def search(self, features, width=1, max_steps=50, length_power=0.,
               forbidden=(PAD, START, UNK), batches=1):
        """Caption many images at once by beam search.

        features: float16 or float32 (I, L, F). width: hypotheses an image. max_steps:
        words, the end token among them, after which a caption is cut. length_power:
        hypotheses are compared by their log probability / T ** length_power.
        forbidden: words that are never emitted. batches: how many of this shape come,
        at least; from two on what computes them is compiled.

        Where a hypothesis ends, the next best takes its place, until `width` of them
        have ended. Returns a list of I lists of Captions, best first: `width` of them,
        or fewer where there are not so many sentences. Those that did not end come
        last.
        """
        none = np.zeros((int(features.shape[0]), 1, 0))
        return self._decode(features, none, forbidden, batches, length_power,
                            width=width, max_steps=max_steps)

    def sample(self, features, uniforms, temperature=1., top_p=1., forbidden=(),
               batches=1):
        """Draw captions from the model's own probabilities, word by word.

        features: float16 or float32 (I, L, F). uniforms: float (I, S, T), at least 0
        and below 1: the same numbers draw the same S captions of each image, of T words
        at most. temperature: divides the logits. top_p: only the most probable words
        that reach this share together are drawn (Holtzman et al. 2020). forbidden:
        words that are never drawn. batches: see `search`. Returns a list of I lists of
        S Captions.
        """
        S, T = uniforms.shape[1:]
        found = self._decode(features, uniforms, forbidden, batches, 0., width=1,
                             max_steps=T, drawn=True, temperature=temperature,
                             top_p=top_p)
        return [sum(found[i:i + S], []) for i in range(0, len(found), S)]

    def _decode(self, features, uniforms, forbidden, batches, length_power, **rule):
        """The Captions of each image, or of each of its samples: lists.

        uniforms: those of State, (I, S, ...) for S captions of an image. rule: fields
        of Rule. What has ended drops out a quarter of all rows at a time, since each
        number of rows is compiled anew.
        """
        barred = np.zeros(self.model.sizes.vocabulary, np.float32)
        barred[list(forbidden)] = -np.inf
        rule = Rule(barred=tf.constant(barred), **rule)
        images, each, _ = uniforms.shape
        context = self.model.encode(tf.convert_to_tensor(features))
        if each > 1:
            context = context.take(np.repeat(np.arange(images), each))
        h = self.model.h_0(context.a)
        count, n = h.shape.as_list()
        state = State(tf.reshape(h, (count, 1, n)), tf.fill((count, 1), START),
                      tf.zeros((count, 1), h.dtype), tf.zeros(count, tf.int32),
                      tf.fill([count], True), tf.constant(uniforms.reshape(count, -1)))
        rows, w, t, found = np.arange(count), 1, tf.constant(0), []
        quarter, go_on, xla = -(-count // 4), self._go_on, False
        if self.compile and batches > 1:
            go_on, xla = self.go_on, batches * count * rule.width >= WORTH_XLA
        if rule.width > 1:  # at first there is one hypothesis of each image
            state, kept = self._word(context, state, rule, t)
            found.append((rows, [values.numpy()[None] for values in kept]))
            t += 1
        while True:
            going = state.going.numpy()
            if not going.any():
                return captions_of(found, rule, count, length_power)
            quarters = -(-int(going.sum()) // quarter)
            chosen = np.sort(np.argsort(~going, kind="mergesort")[:quarters * quarter])
            if len(chosen) < len(rows) or w < rule.width:
                context = context.take(np.repeat(chosen * w, rule.width))
                state = State(*(tf.gather(values, chosen) for values in state))
                rows, w = rows[chosen], rule.width
            t, state, kept = go_on(context, state, rule, t,
                                   tf.constant((quarters - 1) * quarter), XLA and xla)
            found.append((rows, [values.numpy() for values in kept]))

    def _go_on(self, context, state, rule, t, enough, xla):
        """The words after t, until `enough` rows or fewer go on: how many words there
        are by then, State, Step. xla: whether it computes the model's steps.
        """
        value, index = state.h.dtype, tf.int32

        def more(n, state, arrays):
            state, kept = self._word(context, state, rule, t + n, xla)
            return n + 1, state, [array.write(n, values)
                                  for array, values in zip(arrays, kept)]
        n, state, arrays = tf.while_loop(
            lambda n, state, _: tf.reduce_sum(tf.cast(state.going, index)) > enough,
            more, (tf.constant(0), state, [
                tf.TensorArray(dtype, 0, dynamic_size=True)
                for dtype in (value, index, tf.bool, index, value, value)]))
        return t + n, state, Step(*(array.stack() for array in arrays))

    def _word(self, context, state, rule, t, xla=False):
        """The word after t others: the State after it, and its Step."""
        (R, w, n), width = state.h.shape.as_list(), rule.width
        h, logits, alpha, beta = (self.step_by_xla if xla else self._step)(
            context, tf.reshape(state.h, (R * w, n)), tf.reshape(state.words, (R * w,)))
        scores, flat = rule.choose(logits, state, t)                      # (R, C)
        K, C = int(logits.shape[1]), int(scores.shape[1])
        # In the last step all end: captions_of takes those that were cut last
        ends = tf.equal(flat % K, END) | tf.equal(t + 1, rule.max_steps)
        done = (ends & (scores > -np.inf) & (np.arange(C) < width)
                & state.going[:, None])
        count = state.count + tf.reduce_sum(tf.cast(done, tf.int32), 1)
        none = tf.fill((R, C), scores.dtype.as_numpy_dtype(-np.inf))
        best, ranks = tf.nn.top_k(tf.where(ends, none, scores), width)    # (R, width)
        going = state.going & (best[:, 0] > -np.inf) & (count < width)
        goes_on = pick(flat, ranks)
        parents = goes_on // K + w * np.arange(R, dtype=np.int32)[:, None]
        alpha = tf.reshape(alpha, (R, w, int(alpha.shape[1])))
        beta = tf.zeros((R, 0), h.dtype) if beta is None else tf.reshape(beta, (R, w))
        return (State(tf.gather(h, parents), goes_on % K, best, count, going,
                      state.uniforms), Step(scores, flat, done, ranks, alpha, beta))

    def _step(self, context, h, words):
        """The model's word of B hypotheses after these: h, logits, alpha and beta."""
        Ey, gates = self.model.embed(words)
        h, z, alpha, beta = self.model.step(context, h, gates)
        return h, self.model.deep_output(Ey, h, z), alpha, beta


def pick(x, places):
    """Of each row of x (R, C) the values at these places (R, k)."""
    R, C = x.shape.as_list()
    return tf.gather(tf.reshape(x, (R * C,)),
                     places + C * np.arange(R, dtype=np.int32)[:, None])


def draw(p, uniforms, top_p=1.):
    """A word from each row of probabilities (B, K), by the number (B,) of that row.

    uniforms: float64. top_p: see `Decoder.sample`. Returns int32 (B,).
    """
    order = None
    if top_p < 1:
        p, order = tf.nn.top_k(p, p.shape[1])
        p *= tf.cast(tf.cumsum(p, 1) - p < top_p, p.dtype)
    shares = tf.cumsum(tf.cast(p, tf.float64), 1)
    below = shares <= uniforms[:, None] * shares[:, -1:]
    drawn = tf.reduce_sum(tf.cast(below, tf.int32), 1)
    return drawn if order is None else pick(order, drawn[:, None])[:, 0]


def captions_of(found, rule, count, length_power):
    """Lists of Captions of so many images: the rule.width best of each.

    found: which images the Steps of some words are of, numpy arrays, word by word.
    """
    K, t, T = int(rule.barred.shape[0]), 0, sum(len(steps[0]) for _, steps in found)
    kept = Step(*(np.zeros((T, count) + values.shape[2:], values.dtype)
                  for values in found[-1][1]))
    for rows, steps in found:
        for table, values in zip(kept, steps):
            table[t:t + len(values), rows] = values
        t += len(steps[0])
    t, image, rank = np.nonzero(kept.done)
    scores = kept.scores[t, image, rank] / ((t + 1) ** length_power).astype("f4")
    is_cut = kept.flat[t, image, rank] % K != END
    order = np.lexsort((-scores, is_cut, image))
    first = np.searchsorted(image[order], image[order])
    order = order[np.arange(len(order)) - first < rule.width]
    length, image, rank = t[order] + 1, image[order], rank[order]

    words, ranks, parents = np.zeros((3, T, len(image)), int)
    parent, each, captions = 0, np.arange(T)[:, None], [[] for _ in range(count)]
    for t in range(T - 1, -1, -1):  # from the last word to the first
        ranks[t] = np.where(length == t + 1, rank, kept.ranks[t, image, parent])
        parent, words[t] = np.divmod(kept.flat[t, image, ranks[t]], K)
        parents[t] = parent
    scores, alphas = kept.scores[each, image, ranks], kept.alphas[each, image, parents]
    betas = kept.betas[each, image, parents] if kept.betas.size else None
    for n, (i, T) in enumerate(zip(image, length)):
        score = scores[:T, n]
        captions[i].append(Caption(
            words[:T, n].tolist(),
            np.log(score) if rule.drawn else np.append(score[:1], np.diff(score)),
            alphas[:T, n], betas if betas is None else betas[:T, n]))
    return captions


def decode_files(decoder, paths, batch_size, quiet=False, **search):
    """For each features file the Captions of its beam, best first, in order.

    search: the arguments of `Decoder.search`. Images of a batch are decoded side by
    side. Raises cli.UserError where a file is missing, damaged or not finite.
    """
    return [beam for _, maps, batches in _read_batches(paths, batch_size, "decode",
                                                       "the images", quiet)
            for beam in decoder.search(maps, batches=batches, **search)]


def sample_files(decoder, paths, batch_size, count, max_steps, seed, **drawing):
    """For each features file a list of `count` Captions that are drawn, in order.

    drawing: the last arguments of `Decoder.sample`. What is drawn of an image depends
    on the seed and the name of its file, not on the others. Raises as `decode_files`.
    """
    found = []
    for some, maps, batches in _read_batches(paths, batch_size, "sample",
                                             "the samples"):
        uniforms = uniforms_of([[seed, zlib.crc32(os.path.basename(path).encode())]
                                for path in some], (count, max_steps))
        found += decoder.sample(maps, uniforms, batches=batches, **drawing)
    return found


def _read_batches(paths, batch_size, title, waiting_for, quiet=False):
    """Yield some paths, their features, and how many batches have as many."""
    groups = [paths[i:i + batch_size] for i in range(0, len(paths), batch_size)]
    with tqdm(total=len(paths), desc=title, unit="image", disable=quiet) as bar:
        for some, maps in zip(groups, watchdog.watched(
                read_ahead(read_maps, groups), "batch", waiting_for)):
            whole = len(some) == batch_size
            yield some, maps, len(paths) // batch_size if whole else 1
            bar.update(len(some))


def was_cut(caption):
    """Whether a Caption was cut at max_steps: it has no end."""
    return caption.words[-1] != END


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
