"""The model against naive numpy, numeric gradients and required properties."""
import collections

import numpy as np
import pytest

from captioning.batches import tensors
from model import Batch, Captioner, DoublyStochastic, Masks, Parcel, Sizes, loss
from runtime.tf import AdamOptimizer, tf
from train import Trainer


# All sizes differ, so that a swapped axis cannot pass.
SIZES = Sizes(vocabulary=13, features=7, annotation=5, embedding=6, hidden=4,
              attention=3)
SIDE, IMAGES = 9, 2
LENGTHS = np.array([5, 3, 2], np.int32)
IMAGE_OF = np.array([1, 0, 1, 1, 0], np.int32)


def model_of(dtype="float64", **options):
    model = Captioner(SIZES, seed=3, dtype=dtype, **options)
    random = np.random.RandomState(4)
    for weight in model.weights.values():  # larger than initial ones: no flat spots
        weight.assign(random.normal(0, .5, weight.shape.as_list()).astype(dtype))
    return model


def batch_of(dtype="float64", lengths=LENGTHS):
    random = np.random.RandomState(5)
    words = np.zeros((len(lengths), lengths[0] + 1), np.int32)
    for row, length in zip(words, lengths):
        row[:length + 1] = [1] + list(random.randint(3, 13, length - 1)) + [2]
    maps = random.normal(size=(IMAGES, SIDE, SIZES.features)).astype(dtype)
    return Batch(Parcel(maps, words), np.asarray(lengths, np.int32),
                 IMAGE_OF[:len(lengths)], np.arange(len(lengths)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def naive(model, batch, penalty=0.):
    """The loss by loops over captions, words and locations: (total, cross-entropy)."""
    features, words, masks, *_ = batch.parcel
    if masks.a is None:
        masks = Masks(*np.ones((3, IMAGES + batch.lengths.sum(), 1, 1)))
    # the index of each word, ordered by step, then by caption
    place = {(caption, t): i for i, (t, caption) in enumerate(
        (t, caption) for t in range(batch.lengths[0])
        for caption in range(len(batch.lengths)) if batch.lengths[caption] > t)}
    w = {name: weight.numpy() for name, weight in model.weights.items()}
    n = SIZES.hidden
    nats = doubly = 0.
    for caption in range(len(batch.lengths)):
        v = features[batch.image_of[caption]]
        seen = np.maximum(0, v.dot(w["W_v"]) + w["b_v"])
        a = seen * masks.a[batch.image_of[caption]]
        h = np.zeros(n)
        if model.initial_state == "mean":
            h = np.tanh(a.mean(0).dot(w["W_h0"]) + w["b_h0"])
        looked = np.zeros(SIDE)
        for t in range(batch.lengths[caption]):
            i = place[caption, t]
            Ey = w["E"][words[caption, t]] * masks.Ey[i].ravel()
            query = h.dot(w["W_2"])
            if model.word_query:
                query = query + Ey.dot(w["W_y"])
            e = np.array([w["V"][:, 0].dot(np.tanh(
                a_i.dot(w["W_1"]) + w["b_1"] + query)) for a_i in seen])
            alpha = np.exp(e) / np.exp(e).sum()
            looked += alpha
            z = sum(alpha_i * a_i for alpha_i, a_i in zip(alpha, a))
            if model.gate:
                z = z * sigmoid(h.dot(w["W_beta"]) + w["b_beta"])
            x = Ey.dot(w["W_E"]) + z.dot(w["W_z"]) + w["b_g"]
            if not model.recurrent:
                h = np.zeros(n)
            s = h.dot(w["U"])
            r = sigmoid(x[:n] + s[:n])
            u = sigmoid(x[n:2 * n] + s[n:2 * n])
            h = u * h + (1 - u) * np.tanh(x[2 * n:] + r * s[2 * n:])
            o = (Ey + h.dot(w["L_h"]) + z.dot(w["L_z"])) * masks.o[i].ravel()
            o = o.dot(w["L_o"]) + w["b_o"]
            nats -= o[words[caption, t + 1]] - np.log(np.exp(o).sum())
        doubly += ((1 - looked) ** 2).sum()
    N = batch.lengths.sum()
    return (nats + penalty * doubly) / N, nats / N


def test_attention_kept_from_locations_is_renormalised_over_the_others():
    model, keep = model_of(), np.ones((1, SIDE))
    keep[0, [2, 5]] = 0
    context = model.encode(tf.constant(batch_of().parcel.features[:1]))
    h = model.h_0(context.a)
    _, gates = model.embed(np.array([1]))
    alpha = model.step(context, h, gates)[2].numpy()
    kept = model.step(context, h, gates, tf.constant(keep))[2].numpy()
    np.testing.assert_allclose(kept, alpha * keep / (alpha * keep).sum(), atol=1e-12)


def gradients_of(model, batch, penalty):
    variables = list(model.weights.values())
    with tf.GradientTape() as tape:
        total, _, _ = loss(model, tensors(batch), [DoublyStochastic(penalty)])
    return dict(zip(model.weights, (tf.convert_to_tensor(g).numpy() for g in
                                    tape.gradient(total, variables))))


@pytest.mark.parametrize("options", [{}, {"gate": False}, {"initial_state": "zeros"},
                                     {"recurrent": False}, {"word_query": True}])
@pytest.mark.parametrize("lengths", [(5, 3, 2), (5, 4, 4, 4, 1), (4, 4, 4), (1,)])
def test_loss_is_that_of_naive_loops(options, lengths):
    model, batch = model_of(**options), batch_of(lengths=np.array(lengths))
    total, cross_entropy, N = loss(model, tensors(batch), [DoublyStochastic(.7)])
    assert N == sum(lengths)
    np.testing.assert_allclose((total.numpy(), cross_entropy.numpy()),
                               naive(model, batch, .7), rtol=1e-8)


def test_captions_with_locations_drawn_do_not_touch_those_beside_them():
    model, batch = model_of(), batch_of(lengths=np.array([5, 4, 4, 4, 1]))
    lengths, words = batch.lengths, batch.parcel.words
    draws = np.random.RandomState(8).uniform(size=(5, 5))  # by step and caption
    is_word = np.arange(5)[:, None] < lengths

    def nats(batch, draws):
        _, value, N = loss(model, tensors(batch.replacing(draws=draws)))
        return value.numpy() * N
    alone = [nats(Batch(Parcel(batch.parcel.features, words[[i], :lengths[i] + 1]),
                        lengths[[i]], batch.image_of[[i]], np.array([i])),
                  draws[:lengths[i], i]) for i in range(5)]
    np.testing.assert_allclose(nats(batch, draws[is_word]), sum(alone), rtol=1e-12)
    assert abs(nats(batch, 1 - draws[is_word]) - sum(alone)) > 1e-3


@pytest.mark.parametrize("lengths", [(5, 3, 2), (5, 4, 4, 4, 1), (4, 4, 4)])
def test_loss_with_dropout_is_that_of_naive_loops(lengths):
    model, batch = model_of(), batch_of(lengths=np.array(lengths))
    random, N = np.random.RandomState(7), sum(lengths)
    shapes = (IMAGES, 1, SIZES.annotation), (N, SIZES.embedding), (N, SIZES.embedding)
    batch = batch.replacing(masks=Masks(*(2. * random.randint(0, 2, shape)
                                          for shape in shapes)))
    total, cross_entropy, _ = loss(model, tensors(batch), [DoublyStochastic(.7)])
    np.testing.assert_allclose((total.numpy(), cross_entropy.numpy()),
                               naive(model, batch, .7), rtol=1e-8)
    for name in Masks._fields:  # all three matter
        masks = batch.parcel.masks
        none = np.ones_like(getattr(masks, name))
        other = tensors(batch.replacing(masks=masks._replace(**{name: none})))
        assert abs(loss(model, other, [DoublyStochastic(.7)])[0].numpy()
                   / total.numpy() - 1) > 1e-4


def test_float32_loss_agrees_with_float64_loops():
    batch = batch_of("float32")
    total, _, _ = loss(model_of("float32"), tensors(batch), [DoublyStochastic(.7)])
    assert abs(float(total.numpy()) / naive(model_of(), batch, .7)[0] - 1) < 1e-4


def test_gradients_are_the_numeric_ones():
    model, batch = model_of(), batch_of()
    gradients = gradients_of(model, batch, penalty=.7)
    random = np.random.RandomState(6)
    for name, weight in model.weights.items():
        value = weight.numpy().copy()
        for _ in range(3):
            place = tuple(random.randint(side) for side in value.shape)
            both = []
            for step in (1e-5, -1e-5):
                moved = value.copy()
                moved[place] += step
                weight.assign(moved)
                both.append(naive(model, batch, .7)[0])
            weight.assign(value)
            numeric = (both[0] - both[1]) / 2e-5
            assert abs(gradients[name][place] - numeric) < 1e-7, (name, place)


def plain_gradients(model, batch, penalty):
    """The gradients of a loss computed one caption and one word at a time."""
    n, w = SIZES.hidden, model
    with tf.GradientTape() as tape:
        nats = doubly = 0.
        for caption, length in enumerate(batch.lengths):
            v = tf.constant(batch.parcel.features[batch.image_of[caption]])
            a = tf.nn.relu(tf.matmul(v, w.W_v) + w.b_v)                   # (L, D)
            h = tf.zeros((1, n), a.dtype)
            if model.initial_state == "mean":
                h = tf.tanh(tf.matmul(tf.reduce_mean(a, 0, keepdims=True), w.W_h0)
                            + w.b_h0)
            looked = 0.
            for t in range(length):
                hidden = tf.tanh(tf.matmul(a, w.W_1) + w.b_1 + tf.matmul(h, w.W_2))
                alpha = tf.nn.softmax(tf.matmul(hidden, w.V), axis=0)     # (L, 1)
                looked += alpha
                z = tf.reduce_sum(alpha * a, 0, keepdims=True)
                if model.gate:
                    z *= tf.sigmoid(tf.matmul(h, w.W_beta) + w.b_beta)
                Ey = tf.gather(w.E, batch.parcel.words[caption, t:t + 1])
                x = tf.matmul(Ey, w.W_E) + tf.matmul(z, w.W_z) + w.b_g
                s = tf.matmul(h, w.U)
                r = tf.sigmoid(x[:, :n] + s[:, :n])
                u = tf.sigmoid(x[:, n:2 * n] + s[:, n:2 * n])
                h = u * h + (1 - u) * tf.tanh(x[:, 2 * n:] + r * s[:, 2 * n:])
                o = Ey + tf.matmul(h, w.L_h) + tf.matmul(z, w.L_z)
                log_p = tf.nn.log_softmax(tf.matmul(o, w.L_o) + w.b_o)
                nats -= log_p[0, batch.parcel.words[caption, t + 1]]
            doubly += tf.reduce_sum((1 - looked) ** 2)
        total = (nats + penalty * doubly) / int(batch.lengths.sum())
    gradients = tape.gradient(total, list(model.weights.values()))
    return float(total.numpy()), [tf.convert_to_tensor(g).numpy() for g in gradients]


@pytest.mark.parametrize("dtype, error", [("float64", 1e-8), ("float32", 1e-4)])
@pytest.mark.parametrize("lengths", [(5, 3, 2), (4, 4, 4)])
@pytest.mark.parametrize("options", [{}, {"gate": False, "initial_state": "zeros"}])
@pytest.mark.parametrize("compiled", [False, True])
def test_fast_step_has_the_loss_and_gradients_of_the_plain_one(dtype, error, lengths,
                                                               options, compiled):
    model, batch = model_of(dtype, **options), batch_of(dtype, np.array(lengths))
    if compiled:  # needs one image per caption
        each = batch.parcel.features[batch.image_of]
        batch = batch.replacing(features=each)._replace(
            image_of=np.arange(3, dtype=np.int32))
    expected, gradients = plain_gradients(model, batch, .7)
    trainer = Trainer(model, None, [DoublyStochastic(.7)])
    trainer.compile_for({(3, 4): 1} if compiled else {})
    batch = tensors(batch)
    total, _, *found = trainer.gradients(batch, tf.ones((), dtype))
    assert len(trainer.gradients.compiled) == (compiled and len(set(lengths)) == 1)
    assert abs(float(total.numpy()) / expected - 1) < error
    for name, mine, plain in zip(model.weights, found, gradients):
        difference = abs(mine.numpy() - plain).max()
        assert difference <= error * abs(plain).max(), name


def test_padding_changes_neither_loss_nor_gradients():
    model, batch = model_of(), batch_of()
    words = batch.parcel.words
    other = batch.replacing(words=np.where(
        np.arange(words.shape[1]) > batch.lengths[:, None], 9, words))
    assert (other.parcel.words != words).any()
    mine, others = gradients_of(model, batch, .7), gradients_of(model, other, .7)
    for name in mine:
        np.testing.assert_array_equal(mine[name], others[name])


def test_padding_word_gets_no_gradient():
    gradient = gradients_of(model_of(), batch_of(), 0.)["E"]
    assert (gradient[0] == 0).all() and (gradient[1] != 0).any()


def test_alphas_sum_to_one_and_follow_the_captions_that_go_on():
    _, _, alphas = model_of().teacher_forcing(tensors(batch_of()))
    assert [a.shape.as_list() for a in alphas] == [
        [3, SIDE], [3, SIDE], [2, SIDE], [1, SIDE], [1, SIDE]]
    for alpha in alphas:
        np.testing.assert_allclose(alpha.numpy().sum(1), 1, rtol=1e-12)


def test_previous_state_changes_the_next_state_and_attention():
    """The GRU's state reaches the GRU, not only the attention."""
    model = model_of()
    model.W_2.assign(np.zeros((4, 3)))      # the attention sees no state,
    model.W_beta.assign(np.zeros((4, 1)))   # nor does the gate
    context = model.encode(tf.constant(batch_of().parcel.features)).first(1)
    _, gates = model.embed(np.array([5], np.int32))
    results = [model.step(context, tf.constant(np.full((1, 4), value)), gates)
               for value in (-.5, .5)]
    (h, z, _, _), (other_h, other_z, _, _) = results
    np.testing.assert_array_equal(z.numpy(), other_z.numpy())
    assert abs(h.numpy() - other_h.numpy()).max() > .05


def test_image_changes_the_logits():
    model, batch = model_of(), batch_of()
    logits, _, _ = model.teacher_forcing(tensors(batch))
    swapped = tensors(batch.replacing(features=batch.parcel.features[::-1].copy()))
    assert abs(logits.numpy() - model.teacher_forcing(swapped)[0].numpy()).max() > .01


def test_loss_at_the_start_is_near_the_log_of_the_vocabulary():
    model, batch = Captioner(SIZES, seed=0), batch_of("float32")
    # Features as small, relative to the layer's fan-in, as a CNN's
    batch = batch.replacing(features=.1 * batch.parcel.features)
    _, cross_entropy, _ = loss(model, tensors(batch))
    assert abs(float(cross_entropy.numpy()) - np.log(13)) < .1


def test_same_seed_gives_the_same_weights_and_another_seed_others():
    first, again, other = (Captioner(SIZES, seed=s).weights for s in (1, 1, 2))
    assert all((first[k].numpy() == again[k].numpy()).all() for k in first)
    assert (first["U"].numpy() != other["U"].numpy()).any()


def test_captions_must_come_longest_first():
    batch = batch_of()._replace(lengths=np.array([2, 3, 5], np.int32))
    with pytest.raises(AssertionError, match="longest first"):
        model_of().teacher_forcing(tensors(batch))


def test_overfits_a_toy_batch():
    # Two images, since two captions of one image could not both be certain
    model, batch = Captioner(SIZES, seed=1), tensors(batch_of("float32", LENGTHS[:2]))
    trainer = Trainer(model, AdamOptimizer(.02))
    N = int(batch.lengths.sum())
    values = collections.deque((trainer.step(batch, N) for _ in range(200)), maxlen=1)
    assert values[0] < .1
