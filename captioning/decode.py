"""Free-running decoding: the model sees only its own previous word, state and image.

Greedy decoding is beam search of width 1: the most probable word at every step.
Sampling also keeps one hypothesis, but draws its words at random.
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
from runtime.tf import COMPILED_LOOPS_FAIL, XLA, compiled, tf


# Locations of all hypotheses: below this, XLA's compilation costs more than it saves
XLA_LOCATIONS = 800000


class Caption(typing.NamedTuple):
    """One generated caption of T words, including the end token."""
    words: typing.List[int]  # the last is END unless the caption was cut at max_steps
    log_probs: np.ndarray    # float32 (T,): log p of each word, given those before it
    alphas: np.ndarray       # float32 (T, L): where the model looked for each word
    betas: np.ndarray        # float32 (T,): the gate; None in a model without a gate


class Rule(typing.NamedTuple):
    """How words are chosen."""
    width: int               # hypotheses per image
    max_steps: int           # words after which a caption is cut
    barred: typing.Any       # (K,): -inf for words that are never chosen, else 0
    sampled: bool = False    # with State.uniforms and the next two: `Decoder.sample`
    temperature: float = 1.
    top_p: float = 1.

    def choose(self, logits, state, t):
        """The C best one-word extensions of the w hypotheses of R images.

        logits: (R * w, K), for the word after t others. state: the State before it.
        Returns their scores (R, C), padded with -inf, and their indices in (R, w * K).
        """
        (R, w), K = state.scores.shape.as_list(), int(logits.shape[1])
        barred = tf.cast(self.barred, logits.dtype)
        if self.sampled:
            # The shape is lost on TensorFlow where XLA made the logits, and it warns
            logits = tf.reshape(logits, (R * w, K))
            p = tf.nn.softmax(logits / self.temperature + barred)
            words = draw(p, tf.gather(state.uniforms, t, axis=1), self.top_p)[:, None]
            return pick(p, words), words
        sums = tf.reshape(state.scores, (-1, 1)) + (tf.nn.log_softmax(logits) + barred)
        C = 2 * self.width  # at most half of them end
        best, flat = tf.nn.top_k(tf.reshape(sums, (R, w * K)), min(C, w * K))
        missing = [[0, 0], [0, C - min(C, w * K)]]
        return tf.pad(best, missing, constant_values=-np.inf), tf.pad(flat, missing)


class State(typing.NamedTuple):
    """What the next word depends on, for R images of w hypotheses each."""
    h: typing.Any         # (R, w, n)
    words: typing.Any     # int32 (R, w): the last word
    scores: typing.Any    # (R, w): log probability; -inf where there is no hypothesis
    count: typing.Any     # int32 (R,): hypotheses that have ended
    going: typing.Any     # bool (R,): whether the search continues
    uniforms: typing.Any  # float64 (R, max_steps); (R, 0) if nothing is sampled


class Step(typing.NamedTuple):
    """The record of one word of R images; of several words with a leading axis."""
    scores: typing.Any  # (R, C), from Rule.choose
    flat: typing.Any    # int32 (R, C), from Rule.choose
    done: typing.Any    # bool (R, C): whether it is a finished caption
    ranks: typing.Any   # int32 (R, width): which of the C continue as hypotheses
    alphas: typing.Any  # (R, w, L): attention of the hypotheses they extend
    betas: typing.Any   # their gates (R, w); (R, 0) in a model without a gate


class Decoder:
    """Writes captions with a model."""

    def __init__(self, model, compile=True):
        """model: a Captioner or a look-alike. compile: whether it may be compiled."""
        self.model, self.compile = model, compile and not COMPILED_LOOPS_FAIL
        self.go_on = compiled(self._go_on)
        self.step_by_xla = compiled(self._step, xla=True)

    def search(self, features, width=1, max_steps=50, length_power=0.,
               forbidden=(PAD, START, UNK), batches=1):
        """Caption many images at once by beam search.

        features: float16 or float32 (I, L, F). width: hypotheses per image. max_steps:
        words, including the end token, after which a caption is cut. length_power:
        hypotheses are compared by their log probability / T ** length_power.
        forbidden: words that are never emitted. batches: the number of batches of this
        shape to expect; from two on the search is compiled.

        When a hypothesis ends, the next best takes its place, until `width` of them
        have ended. Returns a list of I lists of at most `width` Captions, best first;
        those that were cut come last.
        """
        none = np.zeros((int(features.shape[0]), 1, 0))
        return self._decode(features, none, forbidden, batches, length_power,
                            width=width, max_steps=max_steps)

    def sample(self, features, uniforms, temperature=1., top_p=1., forbidden=(),
               batches=1):
        """Sample captions from the model's own probabilities, word by word.

        features: float16 or float32 (I, L, F). uniforms: float (I, S, T) in [0, 1), a
        random number for each word of S captions per image, T words long at most; the
        same numbers give the same captions. temperature: divides the logits. top_p:
        sample only from the most probable words that together reach this probability
        (Holtzman et al. 2020). forbidden: words that are never sampled. batches: see
        `search`. Returns a list of I lists of S Captions.
        """
        S, T = uniforms.shape[1:]
        beams = self._decode(features, uniforms, forbidden, batches, 0., width=1,
                             max_steps=T, sampled=True, temperature=temperature,
                             top_p=top_p)
        return [sum(beams[i:i + S], []) for i in range(0, len(beams), S)]

    def _decode(self, features, uniforms, forbidden, batches, length_power, **rule):
        """Decode I images S times each: I * S lists of Captions.

        uniforms: (I, S, ...), see State. rule: fields of Rule. Finished rows are
        dropped a quarter of the batch at a time, since each new batch size is compiled
        anew.
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
        rows, w, t, chunks = np.arange(count), 1, tf.constant(0), []
        quarter, go_on, xla = -(-count // 4), self._go_on, False
        if self.compile and batches > 1:
            locations = batches * count * rule.width * int(features.shape[1])
            go_on, xla = self.go_on, locations >= XLA_LOCATIONS
        if rule.width > 1:  # each image starts with one hypothesis
            state, kept = self._word(context, state, rule, t)
            chunks.append((rows, [values.numpy()[None] for values in kept]))
            t += 1
        while True:
            going = state.going.numpy()
            if not going.any():
                return captions_of(chunks, rule, count, length_power)
            quarters = -(-int(going.sum()) // quarter)
            chosen = np.sort(np.argsort(~going, kind="mergesort")[:quarters * quarter])
            if len(chosen) < len(rows) or w < rule.width:
                context = context.take(np.repeat(chosen * w, rule.width))
                state = State(*(tf.gather(values, chosen) for values in state))
                rows, w = rows[chosen], rule.width
            t, state, kept = go_on(context, state, rule, t,
                                   tf.constant((quarters - 1) * quarter), XLA and xla)
            chunks.append((rows, [values.numpy() for values in kept]))

    def _go_on(self, context, state, rule, t, enough, xla):
        """Decode from word t on until at most `enough` rows are unfinished.

        xla: whether XLA compiles the model's steps. Returns the new t, the State, and
        the Step of these words.
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
        """Decode the word after t others: the State after it, and its Step."""
        (R, w, n), width = state.h.shape.as_list(), rule.width
        h, logits, alpha, beta = (self.step_by_xla if xla else self._step)(
            context, tf.reshape(state.h, (R * w, n)), tf.reshape(state.words, (R * w,)))
        scores, flat = rule.choose(logits, state, t)                      # (R, C)
        K, C = int(logits.shape[1]), int(scores.shape[1])
        # At the last step every hypothesis ends; captions_of ranks cut ones last
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
        """One step of the model for B hypotheses: h, logits, alpha and beta."""
        Ey, gates = self.model.embed(words)
        h, z, alpha, beta = self.model.step(context, h, gates)
        return h, self.model.deep_output(Ey, h, z), alpha, beta


def pick(x, places):
    """The values of each row of x (R, C) at its indices `places` (R, k)."""
    R, C = x.shape.as_list()
    return tf.gather(tf.reshape(x, (R * C,)),
                     places + C * np.arange(R, dtype=np.int32)[:, None])


def draw(p, uniforms, top_p=1.):
    """Sample a word from each row of p (B, K) by inverting its cumulative sum.

    uniforms: float64 (B,) in [0, 1). top_p: see `Decoder.sample`. Returns int32 (B,).
    """
    order = None
    if top_p < 1:
        p, order = tf.nn.top_k(p, p.shape[1])
        p *= tf.cast(tf.cumsum(p, 1) - p < top_p, p.dtype)
    shares = tf.cumsum(tf.cast(p, tf.float64), 1)
    below = shares <= uniforms[:, None] * shares[:, -1:]
    drawn = tf.reduce_sum(tf.cast(below, tf.int32), 1)
    return drawn if order is None else pick(order, drawn[:, None])[:, 0]


def captions_of(chunks, rule, count, length_power):
    """The rule.width best Captions of each image, as `count` lists.

    chunks: in order of time, pairs of int (R,), the images still being decoded, and
    the Step of the next words, as numpy arrays.
    """
    K, t, T = int(rule.barred.shape[0]), 0, sum(len(steps[0]) for _, steps in chunks)
    kept = Step(*(np.zeros((T, count) + values.shape[2:], values.dtype)
                  for values in chunks[-1][1]))
    for rows, steps in chunks:
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
            np.log(score) if rule.sampled else np.append(score[:1], np.diff(score)),
            alphas[:T, n], betas if betas is None else betas[:T, n]))
    return captions


def decode_files(decoder, paths, batch_size, quiet=False, **search):
    """Beam search on features files, in batches: a list of Captions per file.

    search: arguments of `Decoder.search`. Raises cli.UserError if a file is missing,
    damaged or not finite.
    """
    return [beam for _, maps, batches in _read_batches(paths, batch_size, "decode",
                                                       "the images", quiet)
            for beam in decoder.search(maps, batches=batches, **search)]


def sample_files(decoder, paths, batch_size, count, max_steps, seed, **options):
    """Sample `count` Captions for each features file: a list of lists.

    options: further arguments of `Decoder.sample`. The samples depend on the seed and
    the file's name, not on the other files. Raises what `decode_files` raises.
    """
    samples = []
    for some, maps, batches in _read_batches(paths, batch_size, "sample",
                                             "the samples"):
        uniforms = uniforms_of([[seed, zlib.crc32(os.path.basename(path).encode())]
                                for path in some], (count, max_steps))
        samples += decoder.sample(maps, uniforms, batches=batches, **options)
    return samples


def _read_batches(paths, batch_size, title, waiting_for, quiet=False):
    """Yield a batch's paths, its features, and how many batches have its size."""
    groups = [paths[i:i + batch_size] for i in range(0, len(paths), batch_size)]
    with tqdm(total=len(paths), desc=title, unit="image", disable=quiet) as bar:
        for some, maps in zip(groups, watchdog.watched(
                read_ahead(read_maps, groups), "batch", waiting_for)):
            whole = len(some) == batch_size
            yield some, maps, len(paths) // batch_size if whole else 1
            bar.update(len(some))


def was_cut(caption):
    """Whether a Caption was cut at max_steps, and so lacks the end token."""
    return caption.words[-1] != END


def sample_and_seed(text):
    """An argparse type: captions per image and the seed, '5' or '5:1'."""
    count, _, seed = text.partition(":")
    return cli.positive(count), cli.seed(seed or "0")


def add_flags(parser):
    """Flags of beam search and sampling."""
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
                  help="sample N captions per image from the model's probabilities, "
                       "and report their diversity; without SEED the seed is 0")
    parser.add_argument("--temperature", needs="--sample",
                        type=cli.number(float, above=0), default=1.,
                        help="divides the logits")
    parser.add_argument("--top-p", needs="--sample",
                        type=cli.number(float, above=0, at_most=1), default=1.,
                        help="sample only from the most probable words that together "
                             "reach this probability")
