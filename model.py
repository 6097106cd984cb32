"""The model of Show, Attend and Tell (Xu et al. 2015), and its loss.

The letters are the paper's:

    B  captions in a batch            m  size of a word embedding          (512)
    I  different images in a batch    n  size of the decoder's state h     (512)
    L  locations of an image  (64)    K  words in the vocabulary
    F  features of the CNN  (2048)    C  length of the longest caption, END included
    D  size of an annotation vector   A  size of the attention's hidden layer (512)
       after the encoder     (512)    N  real words in a batch, padding not counted

    a  annotation vectors (L, D)      y  words        alpha  attention weights
    h  the decoder's state            E  embeddings   beta   gate on the context
    z  context vector (z-hat in the paper)

`Captioner.step` decodes one word. Training (`Captioner.teacher_forcing`), greedy
decoding and beam search (captioning/decode.py) all go through it. `naive` in
tests/test_model.py is the same model in plain loops, one number at a time.
"""
import collections
import functools
import typing

import numpy as np

from runtime.tf import Variable, tf


class Sizes(typing.NamedTuple):
    """The model's sizes, ints."""
    vocabulary: int  # K
    features: int    # F
    annotation: int  # D
    embedding: int   # m
    hidden: int      # n
    attention: int   # A


class Masks(typing.NamedTuple):
    """Dropout factors, 0 or 1 / (1 - rate), float32 (section 4.3); None: no dropout."""
    a: typing.Any = None   # (I, 1, D): an image loses a channel at all locations
    Ey: typing.Any = None  # (N, m): on the embeddings of the previous words
    o: typing.Any = None   # (N, m): on the deep output before its last layer


class Parcel(typing.NamedTuple):
    """A batch's tensors, or arrays: one argument of a compiled training step."""
    features: typing.Any         # float16 or float32 (I, L, F): of the CNN
    words: typing.Any            # int32 (B, C + 1): START, words, END, padding
    masks: Masks = Masks()
    told: typing.Any = None      # int32 (B, C + 1): the decoder's inputs; None: `words`
    draws: typing.Any = None     # float32 (N,): for hard attention, see `drawn`
    weights: typing.Any = None   # float (B,): on the captions' cross-entropies


class Batch(typing.NamedTuple):
    """What the model trains on: a parcel of tensors, and numpy arrays that shape the
    computation and are constants of a compiled step.
    """
    parcel: Parcel
    lengths: np.ndarray   # int32 (B,), longest first: words to predict, END included
    image_of: np.ndarray  # int32 (B,): which of the I images each caption belongs to
    numbers: np.ndarray   # int (B,): the captions' numbers in their split

    def replacing(self, **tensors):
        """This Batch with some tensors of its parcel replaced."""
        return self._replace(parcel=self.parcel._replace(**tensors))


class Predicted(typing.NamedTuple):
    """Predictions for a batch's N real words, ordered by step, then by caption."""
    logits: typing.Any      # (N, K)
    surprisal: typing.Any   # (N,): -log p of the true words, in nats
    alphas: typing.List     # C tensors (k_t, L), see Captioner.teacher_forcing


class Context(typing.NamedTuple):
    """Encoded images.

    The keys have locations first: adding a query (B, A) to L contiguous blocks takes a
    third of the time.
    """
    a: typing.Any     # (B, L, D): annotation vectors
    keys: typing.Any  # (L, B, A): a W_1 + b_1, for the attention

    def take(self, rows):
        """The Context of these captions or images; rows: int32 (B,)."""
        return Context(tf.gather(self.a, rows), tf.gather(self.keys, rows, axis=1))

    def first(self, k):
        """The Context of the first k."""
        return Context(self.a[:k], self.keys[:, :k])


class Captioner:
    """Encoder, attention and decoder. `weights` has all weights by name."""

    def __init__(self, sizes, gate=True, initial_state="mean", recurrent=True, seed=0,
                 dtype="float32", word_query=False, look=None):
        """sizes: Sizes. gate: whether beta (section 4.2.1) scales the context vector.
        initial_state: 'mean' (h_0 from the mean annotation vector, section 3.1.2) or
        'zeros'. recurrent: whether the GRU receives the state; without it only the
        attention does, the best-known fault of the published tutorial, for comparison.
        seed: of the initial weights, which are the same on every machine. word_query:
        whether attention also knows the previous word, which h_{t-1} has not seen yet.
        look: maps alpha (B, L) to the weights of z (B, L), as `likeliest` does; None:
        alpha itself, the expected context of soft attention (section 4.2). The alpha
        that is returned stays the same.
        """
        self.sizes, self.gate, self.initial_state = sizes, gate, initial_state
        self.recurrent, self.word_query, self.look = recurrent, word_query, look
        K, F, D, m, n, A = sizes
        shapes = [
            ("W_v", (F, D)), ("b_v", (D,)),               # encoder
            ("W_1", (D, A)), ("b_1", (A,)),               # attention: locations
            ("W_2", (n, A)), ("V", (A, 1)),               # attention: state, score
            ("E", (K, m)),                                # embeddings
            ("W_E", (m, 3 * n)), ("W_z", (D, 3 * n)),     # GRU: word, context
            ("U", (n, 3 * n)), ("b_g", (3 * n,)),         # GRU: state, bias
            ("L_h", (n, m)), ("L_z", (D, m)),             # deep output
            ("L_o", (m, K)), ("b_o", (K,))]
        if initial_state == "mean":
            shapes += [("W_h0", (D, n)), ("b_h0", (n,))]
        if gate:
            shapes += [("W_beta", (n, 1)), ("b_beta", (1,))]
        if word_query:
            shapes += [("W_y", (m, A))]                   # attention: previous word
        random = np.random.RandomState(seed)
        self.weights = collections.OrderedDict(
            (name, Variable(_initial(name, shape, random).astype(dtype), name=name))
            for name, shape in shapes)
        for name, variable in self.weights.items():
            setattr(self, name, variable)

    # --- encoder ---------------------------------------------------------------------

    def encode(self, features, mask=None):
        """CNN features (I, L, F), float16 or float32 -> Context of I images.

        mask: dropout factors on a, see Masks.

        A fully connected layer with ReLU gives the annotation vectors a_1..a_L (section
        3.1.1). The attention's `keys` are the same for every word: computed once here.
        """
        L, F = features.shape.as_list()[1:]
        assert F == self.sizes.features, (F, self.sizes.features)
        v = tf.reshape(tf.cast(features, self.W_v.dtype.base_dtype), (-1, F))
        a = tf.nn.relu(tf.matmul(v, self.W_v) + self.b_v)                 # (I * L, D)
        a = tf.reshape(a, (-1, L, self.sizes.annotation))                 # (I, L, D)
        by_location = tf.reshape(tf.transpose(a, (1, 0, 2)), (-1, a.shape[2]))
        keys = tf.matmul(by_location, self.W_1) + self.b_1                # (L * I, A)
        keys = tf.reshape(keys, (L, -1, self.sizes.attention))
        return Context(_drop(a, mask), keys)  # dropout spares the keys

    def h_0(self, a):
        """The decoder's initial state (B, n) from annotation vectors a (B, L, D).

        f_init of section 3.1.2, a layer on their mean; or zeros, as in the tutorial.
        """
        if self.initial_state == "zeros":
            return tf.zeros((a.shape[0], self.sizes.hidden), a.dtype)
        return tf.tanh(tf.matmul(tf.reduce_mean(a, axis=1), self.W_h0) + self.b_h0)

    # --- decoder ---------------------------------------------------------------------

    def embed(self, words, mask=None):
        """Previous words, int32 (B,) -> E y (B, m) and its contributions to the step:
        to the GRU's gates (B, 3n), and with word_query also to the query (B, 3n + A).

        mask: dropout factors on E y, see Masks.
        Nothing here depends on the state: training does it for all words at once.
        """
        Ey = _drop(tf.gather(self.E, words), mask)
        gates = tf.matmul(Ey, self.W_E) + self.b_g
        if self.word_query:
            gates = tf.concat([gates, tf.matmul(Ey, self.W_y)], 1)
        return Ey, gates

    def attend(self, context, query, keep=None):
        """Bahdanau attention: Context of B, query (B, A) -> alpha (B, L).

        keep: (B, L), 1 where attention is allowed, else 0; None: everywhere.

        e_i = V . tanh(W_1 a_i + query),  alpha = softmax(e)            (eqs. 4 and 5)
        """
        L, B, A = context.keys.shape.as_list()
        hidden = tf.tanh(context.keys + query)                            # (L, B, A)
        e = tf.matmul(tf.reshape(hidden, (L * B, A)), self.V)             # (L * B, 1)
        e = tf.transpose(tf.reshape(e, (L, B)))                           # (B, L)
        return tf.nn.softmax(e if keep is None else e - 1e9 * (1 - keep))

    def step(self, context, h, word_gates, keep=None, look=None):
        """Decode one word: the only place where the decoder is computed.

        context: Context of B captions. h: (B, n), the previous state. word_gates: from
        `embed`. keep: see `attend`. look: replaces the model's own. Returns h (B, n),
        z (B, D), alpha (B, L), beta (B, 1) or None.
        """
        query = tf.matmul(h, self.W_2)                                    # (B, A)
        if self.word_query:  # query = W_2 h_{t-1} + W_y E y_{t-1}
            n, A = self.sizes.hidden, self.sizes.attention
            word_gates, word = tf.split(word_gates, [3 * n, A], 1)
            query += word
        alpha = self.attend(context, query, keep)                         # (B, L)
        # z = sum_i alpha_i a_i (eq. 13), or with hard attention sum_i s_i a_i (eq. 8)
        look = look or self.look
        s = look(alpha) if look else alpha                                # (B, L)
        z = tf.squeeze(tf.matmul(tf.expand_dims(s, 1), context.a), 1)     # (B, D)
        beta = None
        if self.gate:  # beta = sigmoid(f_beta(h_{t-1})), section 4.2.1
            beta = tf.sigmoid(tf.matmul(h, self.W_beta) + self.b_beta)    # (B, 1)
            z = beta * z
        # The GRU (Cho et al. 2014, the reset gate after U as in cuDNN) in place of
        # the paper's LSTM, with x = [E y, z] and the previous state h:
        #     r = sigmoid(W_r x + U_r h)            u = sigmoid(W_u x + U_u h)
        #     c = tanh(W_c x + r * (U_c h))         h <- (1 - u) * c + u * h
        if not self.recurrent:
            h = tf.zeros_like(h)
        x = word_gates + tf.matmul(z, self.W_z)                           # (B, 3n)
        s = tf.matmul(h, self.U)                                          # (B, 3n)
        (x_r, x_u, x_c), (s_r, s_u, s_c) = tf.split(x, 3, 1), tf.split(s, 3, 1)
        r, u = tf.sigmoid(x_r + s_r), tf.sigmoid(x_u + s_u)
        c = tf.tanh(x_c + r * s_c)
        h = c + u * (h - c)                                               # (B, n)
        return h, z, alpha, beta

    def deep_output(self, Ey, h, z, mask=None):
        """Logits (N, K) of N words: L_o (E y + L_h h + L_z z), equation 7.

        mask: dropout factors on the sum, see Masks.
        """
        o = Ey + tf.matmul(h, self.L_h) + tf.matmul(z, self.L_z)          # (N, m)
        return tf.matmul(_drop(o, mask), self.L_o) + self.b_o

    def teacher_forcing(self, batch):
        """Predict each real word of a Batch from the true words before it.

        Returns logits (N, K), targets int32 (N,) and alphas: C tensors (k_t, L), where
        k_t captions have a word at step t. The N words are ordered by step, then by
        caption: nothing is computed for padding, and the output layer, most of the
        work, is one product for all words.
        """
        Ey, h, z, targets, alphas = self.unroll(batch)
        return self.deep_output(Ey, h, z, batch.parcel.masks.o), targets, alphas

    def unroll(self, batch):
        """Decode a Batch's true words, up to the deep output: E y (N, m), h (N, n),
        z (N, D), and targets and alphas as `teacher_forcing` returns them.
        """
        inputs, targets, k = real_words(batch)
        features, _, masks, _, draws, _ = batch.parcel
        context = self.encode(features, masks.a)
        if not np.array_equal(batch.image_of, np.arange(int(context.a.shape[0]))):
            context = context.take(batch.image_of)
        h = self.h_0(context.a)
        Ey, gates = self.embed(inputs, masks.Ey)
        draws = [None] * len(k) if draws is None else tf.split(draws, k)
        hs, zs, alphas = [], [], []
        for gates_t, u, k_t in zip(tf.split(gates, k), draws, k):
            # Captions that have ended leave a quarter of the batch at a time: copying
            # the context takes longer than decoding a few captions too many
            if k_t <= .75 * int(h.shape[0]):
                context, h = context.first(k_t), h[:k_t]
            ended = int(h.shape[0]) - k_t
            look = u if u is None else functools.partial(
                drawn, numbers=_pad(u, ended, -1))
            h, z, alpha, _ = self.step(context, h, _pad(gates_t, ended), look=look)
            for values, kept in zip((h, z, alpha), (hs, zs, alphas)):
                kept.append(values[:k_t] if ended else values)
        return Ey, tf.concat(hs, 0), tf.concat(zs, 0), targets, alphas


def likeliest(alpha):
    """The likeliest location of each row, one-hot: alpha (B, L) -> (B, L)."""
    return tf.one_hot(tf.argmax(alpha, 1), alpha.shape[1], dtype=alpha.dtype)


def drawn(alpha, numbers):
    """Sample one location s per row with the probabilities alpha (B, L), one-hot.

    numbers: (B,), uniform in [0, 1); where one is negative, the row is alpha itself.
    No gradient flows through the samples. Returns (B, L).
    """
    numbers = tf.cast(tf.expand_dims(numbers, 1), alpha.dtype)            # (B, 1)
    below = tf.cumsum(alpha, 1) <= numbers                                # (B, L)
    s = tf.minimum(tf.reduce_sum(tf.cast(below, tf.int32), 1), alpha.shape[1] - 1)
    s = tf.one_hot(s, alpha.shape[1], dtype=alpha.dtype)
    is_drawn = tf.cast(numbers >= 0, alpha.dtype)                         # (B, 1)
    return is_drawn * s + (1 - is_drawn) * alpha


def real_words(batch):
    """The words of a Batch without padding, ordered by step, then by caption.

    Returns inputs int32 (N,), the previous words; targets int32 (N,), the words; and k,
    a list of C ints: how many captions have a word at each step.
    """
    lengths = np.asarray(batch.lengths)
    assert (np.diff(lengths) <= 0).all(), "captions must come longest first"
    k = [int((lengths > t).sum()) for t in range(lengths[0])]
    words, told = batch.parcel.words, batch.parcel.told
    columns = int(words.shape[1])
    places = np.concatenate([np.arange(k_t) * columns + t for t, k_t in enumerate(k)])
    inputs = tf.gather(tf.reshape(words if told is None else told, (-1,)), places)
    return inputs, tf.gather(tf.reshape(words, (-1,)), places + 1), k


def loss(model, batch, terms=()):
    """Cross-entropy of one Batch plus other terms, in nats per real word.

        L = (-log p(y | a) + sum of the terms) / N

    summed over the captions and their N real words: padding is left out.
    terms: `Term`s. Returns (L, cross-entropy / N, N): two scalar tensors and an int.
    """
    logits, targets, alphas = model.teacher_forcing(batch)
    N = int(np.sum(batch.lengths))
    surprisal = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=targets,
                                                               logits=logits)
    nats = surprisal
    if batch.parcel.weights is not None:
        weights = tf.cast(batch.parcel.weights, logits.dtype)
        nats *= tf.concat([weights[:alpha.shape[0]] for alpha in alphas], 0)
    cross_entropy = tf.reduce_sum(nats) / N
    total, predicted = cross_entropy, Predicted(logits, surprisal, alphas)
    for term in terms:
        total += term(batch, predicted) / N
    return total, cross_entropy, N


class Term:
    """One term of the loss."""
    variables = {}  # {name: Variable} that checkpoints keep

    def prepare(self, folder, captions, settings):
        """Called once before training, when the model has its weights.

        folder, settings: the run's. captions: its training CaptionBatches.
        """

    def __call__(self, batch, predicted):
        """The sum over the batch's words, a scalar tensor. predicted: Predicted."""
        raise NotImplementedError

    def follow(self, cross_entropy):
        """Called after each training step. cross_entropy: of that step, nats a word."""


class DoublyStochastic(Term):
    """Encourage attention to visit every location (eq. 14):
    lambda * sum_i (1 - sum_t alpha_ti)^2.
    """

    def __init__(self, penalty):
        """penalty: lambda."""
        self.penalty = penalty

    def __call__(self, batch, predicted):
        alphas, B = predicted.alphas, len(batch.lengths)
        looked = tf.zeros((B, alphas[0].shape[1]), alphas[0].dtype)  # sum_t alpha_ti
        for alpha in alphas:
            looked += _pad(alpha, B - int(alpha.shape[0]))       # captions that ended
        return self.penalty * tf.reduce_sum((1 - looked) ** 2)


def _drop(x, mask):
    return x if mask is None else x * mask


def _pad(x, rows, value=0):
    """x with so many more rows of this value."""
    if not rows:
        return x
    return tf.pad(x, [[0, rows]] + [[0, 0]] * (len(x.shape) - 1), constant_values=value)


def _initial(name, shape, random):
    """Initial weights: Glorot uniform; embeddings uniform +-0.05; biases zero."""
    if name.startswith("b_"):
        return np.zeros(shape)
    if name == "E":
        return random.uniform(-.05, .05, shape)
    # The gates' matrices lie side by side: the fan-out is that of a single one.
    fan_out = shape[1] // 3 if name in ("W_E", "W_z", "U") else shape[1]
    limit = np.sqrt(6. / (shape[0] + fan_out))
    return random.uniform(-limit, limit, shape)
