"""The published design against which this project is measured, written out plainly.

TensorFlow's eager captioning tutorial of 2018, in our own code: one word at a time in
eager mode, every batch padded to the longest caption of the set, W_1 a recomputed and
the output layer applied at every word, one image at a time in decoding, and InceptionV3
in a plain loop of 16 images. Its GRU does not receive its previous state: only the
attention sees that. `bench.py` times it.

    python -m benchmarks.published --data data --epochs 6

trains it with its own loss and its own batches, which mix captions of all lengths, and
scores it as step 5 does. The mathematics is the tutorial's; but so that this takes
minutes instead of hours, the step is compiled, and columns that are padding in every
caption of a batch, and so add nothing to the loss, are cut off.

Reads:  <data>/tokens/, <data>/features/
Writes: checkpoints/<run>/: settings.json; newest.npz and best.npz (by CIDEr), log.csv
        and loss.png after each epoch; scores_val_greedy.json, scores_val_beam3.json
"""
import argparse
import collections
import os
import time

import numpy as np
from tqdm import tqdm

from captioning import scores
from captioning.batches import read_splits
from captioning.checkpoints import (begin_epoch, checkpoint_path,
                                    create_optimizer_variables, load_checkpoint,
                                    save_checkpoint, variables_of)
from captioning.coco import read_json
from captioning.decode import Decoder, decode_files
from captioning.features import read_features
from captioning.log import write_log
from captioning.runs import add_run_flag, run_folder, settings_path
from captioning.schedule import epochs_since_best
from captioning.tokens import END, PAD, START, read_references
from captioning.validation import ValidationScorer
from evaluate import show
from runtime import atomic, cli
from runtime.ahead import read_ahead
from runtime.tf import (COMPILED_KERAS_CRASHES, AdamOptimizer, compiled, device_errors,
                        device_name, set_seed, start, tf, unsorted_segment_sum, v1,
                        variable_of)

WHOLE = 4  # batches are cut to a multiple of this many words: fewer shapes to compile


class Published:
    """Encoder, attention and decoder of the tutorial, as Keras layers."""

    def __init__(self, vocabulary, embedding=256, units=512):
        layers, self.units = tf.keras.layers, units
        self.looped = True  # False: call the GRU's cell, without the loop over time
        self.vocabulary = vocabulary
        self.fc = layers.Dense(embedding, activation="relu")
        self.embedding = layers.Embedding(vocabulary, embedding)
        self.W1, self.W2, self.V = (layers.Dense(units), layers.Dense(units),
                                    layers.Dense(1))
        self.gru = layers.GRU(units, return_sequences=True, return_state=True,
                              recurrent_activation="sigmoid")
        self.fc1, self.fc2 = layers.Dense(units), layers.Dense(vocabulary)
        self.layers = (self.fc, self.embedding, self.W1, self.W2, self.V, self.gru,
                       self.fc1, self.fc2)
        self.optimizer = AdamOptimizer()

    @property
    def variables(self):
        return [variable_of(variable) for layer in self.layers
                for variable in layer.trainable_variables]

    def step(self, words, a, hidden):
        """words (B, 1), a (B, L, D), hidden (B, n) -> logits (B, K), state, alpha."""
        score = tf.nn.tanh(self.W1(a) + self.W2(tf.expand_dims(hidden, 1)))
        alpha = tf.nn.softmax(self.V(score), axis=1)                     # (B, L, 1)
        context = tf.reduce_sum(alpha * a, axis=1)
        words = self.embedding(tf.convert_to_tensor(words))             # (B, 1, m)
        x = tf.concat([tf.expand_dims(context, 1), words], axis=-1)
        if self.looped:
            output, state = self.gru(x)
        else:
            output, (state,) = self.gru.cell(tf.squeeze(x, 1), [tf.zeros_like(hidden)])
        x = tf.reshape(self.fc1(output), (-1, self.units))
        return self.fc2(x), state, alpha

    def loss(self, features, words):
        """Nats per caption, 0 for padding; features (B, L, F), words (B, T)."""
        loss, hidden = 0., tf.zeros((int(words.shape[0]), self.units))
        a = self.fc(tf.cast(features, tf.float32))
        for t in range(1, int(words.shape[1])):
            logits, hidden, _ = self.step(words[:, t - 1:t], a, hidden)
            nats = tf.nn.sparse_softmax_cross_entropy_with_logits(
                labels=words[:, t], logits=logits)
            loss += tf.reduce_mean(nats * tf.cast(tf.not_equal(words[:, t], PAD),
                                                  tf.float32))
        return loss

    def gradients(self, features, words):
        """The loss and its gradients, in the order of `variables`."""
        with tf.GradientTape() as tape:
            loss = self.loss(features, words)
        return [loss] + tape.gradient(loss, self.variables)

    def train_step(self, features, words, gradients=None):
        """One step on features (B, L, F) and padded words (B, T); nats per word slot.

        gradients: a compiled stand-in for the method of that name.
        """
        loss, *values = (gradients or self.gradients)(tf.constant(features),
                                                      tf.constant(words))
        self.optimizer.apply_gradients(zip(values, self.variables))
        return float(loss.numpy()) / (words.shape[1] - 1)

    def decode(self, features, max_steps):
        """Greedy decoding of one image (L, F): its words and attention maps."""
        a = self.fc(tf.cast(tf.constant(features[None]), tf.float32))
        hidden, word, words, maps = tf.zeros((1, self.units)), START, [], []
        for _ in range(max_steps):
            logits, hidden, alpha = self.step(np.array([[word]], np.int32), a, hidden)
            word = int(np.argmax(logits.numpy()[0]))
            words.append(word)
            maps.append(alpha.numpy().reshape(-1))
            if word == END:
                break
        return words, maps


class Annotations(collections.namedtuple("Annotations", "a")):
    """Encoded images as beam search carries them: a (B, L, D)."""

    def take(self, rows):
        """Select rows, int32 (B,)."""
        return Annotations(tf.gather(self.a, rows))


class Searched:
    """The published model behind the methods of Captioner that beam search calls.

    See Captioner for the shapes.
    """

    def __init__(self, model):
        self.model, self.sizes = model, argparse.Namespace(vocabulary=model.vocabulary)

    def encode(self, features):
        return Annotations(self.model.fc(tf.cast(features, tf.float32)))

    def h_0(self, a):
        return tf.zeros((int(a.shape[0]), self.model.units))

    def embed(self, words):
        return None, words[:, None]  # the step embeds them itself

    def step(self, annotations, h, words):
        logits, h, alpha = self.model.step(words, annotations.a, h)
        return h, logits, tf.squeeze(alpha, 2), None

    def deep_output(self, _, h, logits):
        return logits


def extract(model, paths, targets):
    """The tutorial's loop: decode, resize, InceptionV3 on 16 images, one file each."""
    def load(path):
        picture = tf.image.decode_jpeg(v1.read_file(path), channels=3)
        picture = v1.image.resize_images(picture, (299, 299))
        return tf.keras.applications.inception_v3.preprocess_input(picture)

    data = tf.data.Dataset.from_tensor_slices(list(paths)).map(load).batch(16)
    done = 0
    for pictures in data:
        for array in model(pictures).numpy():
            np.save(targets[done], array)
            done += 1


# --- training it ----------------------------------------------------------------------

def batches(captions, batch_size, random):
    """An epoch's batches, of mixed lengths: a list of arrays of caption indices."""
    order = random.permutation(captions.captions)
    return [order[i:i + batch_size] for i in range(0, len(order), batch_size)]


def load(captions, numbers):
    """Features (B, L, F) and words (B, T) of a batch, T - 1 a multiple of WHOLE."""
    maps = np.stack([read_features(captions.paths[i])
                     for i in captions.tokens.image_of[numbers]])
    T = -(-int(captions.tokens.lengths[numbers].max()) // WHOLE) * WHOLE + 1
    words = captions.tokens.words[numbers, :T]
    words = np.pad(words, [(0, 0), (0, T - words.shape[1])], "constant")
    return maps, words


def words(captions):
    """The number of words in a split, without padding."""
    return int(captions.tokens.lengths[captions.captions].sum())


def evaluated(model, scorer, width, java=True):
    """Caption and score a ValidationScorer's images; also their texts, by id."""
    # In TensorFlow 1, a compiled Keras GRU reads its inputs twice
    decoder = Decoder(Searched(model), compile=False)
    beams = decode_files(decoder, scorer.paths, 64, quiet=True, width=width)
    texts = {i: scorer.vocabulary.decode(beam[0].words)
             for i, beam in zip(scorer.ids, beams)}
    return scores.score(texts, scorer.references, java=java), texts


def arguments():
    parser = cli.parser(__doc__)
    positive = cli.number(int, at_least=1)
    parser.add_argument("--data", default="data", help="data set in COCO's layout")
    add_run_flag(parser, "published")
    parser.add_argument("--epochs", type=positive, default=6, help="in total")
    parser.add_argument("--batch-size", type=positive, default=64, help="captions")
    parser.add_argument("--seed", type=cli.seed, default=0, help="of weights and order")
    return parser.parse_args()


def main():
    args = arguments()
    if COMPILED_KERAS_CRASHES:
        raise cli.UserError(f"TensorFlow {tf.__version__} crashes when it compiles "
                            "these layers; take 1.10 or a later one")
    folder = run_folder(args.run)
    tokens = os.path.join(args.data, "tokens")
    vocabulary, splits = read_splits(tokens, os.path.join(args.data, "features"))
    learnt, val = splits["train"], splits["val"]
    training, references = (read_references(tokens, name)
                            for name in ("train", "val"))
    scorer = ValidationScorer(val, references, vocabulary, len(val.paths), args.seed)
    start()
    set_seed(args.seed)
    with cli.locked(folder), device_errors(args.batch_size):
        # Resuming requires the same settings; train.py refuses a run of this kind
        check_settings(folder, dict(vars(args), epochs=None, published=True,
                                    vocabulary_digest=vocabulary.digest()))
        model = Published(len(vocabulary))
        model.loss(*map(tf.constant, load(val, val.captions[:2])))  # builds the weights
        model.looped = False
        model.weights = collections.OrderedDict(
            (f"{i:02d}", variable) for i, variable in enumerate(model.variables))
        create_optimizer_variables(model, model.optimizer)
        train_epochs(args, folder, model, learnt, val, scorer)
        seen = {scores.plain(c) for group in training.values() for c in group}
        report(args, folder, model, scorer, seen)


def check_settings(folder, settings):
    """Write the settings of a new run; check those of an existing one."""
    path = settings_path(folder)
    if not os.path.exists(path):
        atomic.write_json(path, settings)
    elif read_json(path) != settings:
        raise cli.UserError(f"{path}: belongs to another run; choose another --run")


def train_epochs(args, folder, model, learnt, val, scorer):
    """Train to the last epoch, starting after the last one saved in the folder."""
    newest, best = (checkpoint_path(folder, name) for name in ("newest", "best"))
    history = []
    if os.path.exists(newest):
        history = load_checkpoint(newest, variables_of(model, model.optimizer)).history
        write_log(folder, history, dropout=0)

    def dense(features, words):
        loss, *gradients = model.gradients(features, words)
        return [loss] + [unsorted_segment_sum(g.values, g.indices, v.shape[0])
                         if isinstance(g, tf.IndexedSlices) else g
                         for g, v in zip(gradients, model.variables)]
    gradients, loss = compiled(dense), compiled(model.loss)
    for epoch in range(len(history) + 1, args.epochs + 1):
        begin, total = time.time(), 0.
        order = batches(learnt, args.batch_size,
                        np.random.RandomState([args.seed, epoch]))
        for features, rows in tqdm(
                read_ahead(lambda numbers: load(learnt, numbers), order),
                total=len(order), desc=f"epoch {epoch}/{args.epochs}", unit="batch"):
            nats = model.train_step(features, rows, gradients)
            if not np.isfinite(nats):
                raise cli.UserError(f"epoch {epoch}: the loss is {nats}; the last "
                                    "checkpoint is sound")
            total += len(rows) * (rows.shape[1] - 1) * nats
        seconds, summed = time.time() - begin, 0.
        for numbers in val.epoch(args.batch_size):
            features, rows = map(tf.constant, load(val, numbers))
            summed += len(numbers) * float(loss(features, rows).numpy())
        scored = scores.averages(evaluated(model, scorer, width=1, java=False)[0])
        history = history + [{
            "epoch": epoch, "train_loss": total / words(learnt),
            "val_loss": summed / words(val),
            "val_bleu4": round(scored["BLEU-4"], 3),
            "val_cider": round(scored["CIDEr"], 3),
            "captions_per_second": round(len(learnt.captions) / seconds, 1),
            "seconds": round(time.time() - begin, 1)}]
        progress = begin_epoch(history)
        if epochs_since_best(history, "cider") == 0:
            save_checkpoint(best, variables_of(model, model.optimizer), progress)
        save_checkpoint(newest, variables_of(model, model.optimizer), progress)
        write_log(folder, history, dropout=0)
        print(f"epoch {epoch}: training loss {history[-1]['train_loss']:.4f}, "
              f"validation loss {history[-1]['val_loss']:.4f} nats a word, CIDEr "
              f"{history[-1]['val_cider']:.1f}", flush=True)


def report(args, folder, model, scorer, seen):
    """Score the best epoch's captions, greedy and with beam 3."""
    history = load_checkpoint(checkpoint_path(folder, "best"), model.weights).history
    for width, name in ((1, "greedy"), (3, "beam3")):
        scored, texts = evaluated(model, scorer, width)
        summary = scores.summarize(scored, texts, scorer.references, seen)
        print(f"\nepoch {len(history)}, beam {width}, tokenizer: {scored.tokenizer}\n")
        show(summary)
        atomic.write_json(
            os.path.join(folder, f"scores_val_{name}.json"),
            dict(summary, run=args.run, split="val", beam=width, epoch=len(history),
                 device=device_name(), tensorflow=tf.__version__))


if __name__ == "__main__":
    cli.run(main)
