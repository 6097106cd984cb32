"""The published design that this project is measured against, restated plainly.

TensorFlow's eager captioning tutorial of 2018, in our own code: one word at a time in
eager mode, every batch padded to the longest caption of the set, W_1 a computed anew at
every word, the output layer at every word, one image at a time when decoding, and
InceptionV3 in a plain loop of 16 images. Its GRU does not receive its previous state:
only the attention sees that. It is here to be timed.
"""
import numpy as np

from tf_runtime import tf, v1, variable_of
from tokenize_captions import END, PAD, START


class Published:
    """Encoder, attention and decoder of the tutorial, as Keras layers."""

    def __init__(self, vocabulary, embedding=256, units=512):
        layers, self.units = tf.keras.layers, units
        self.fc = layers.Dense(embedding, activation="relu")
        self.embedding = layers.Embedding(vocabulary, embedding)
        self.W1, self.W2, self.V = (layers.Dense(units), layers.Dense(units),
                                    layers.Dense(1))
        self.gru = layers.GRU(units, return_sequences=True, return_state=True,
                              recurrent_activation="sigmoid")
        self.fc1, self.fc2 = layers.Dense(units), layers.Dense(vocabulary)
        self.layers = (self.fc, self.embedding, self.W1, self.W2, self.V, self.gru,
                       self.fc1, self.fc2)
        self.optimizer = v1.train.AdamOptimizer()

    @property
    def variables(self):
        return [variable_of(variable) for layer in self.layers
                for variable in layer.variables]

    def step(self, words, a, hidden):
        """words (B, 1), a (B, L, D), hidden (B, n) -> logits (B, K), state, alpha."""
        score = tf.nn.tanh(self.W1(a) + self.W2(tf.expand_dims(hidden, 1)))
        alpha = tf.nn.softmax(self.V(score), axis=1)                     # (B, L, 1)
        context = tf.reduce_sum(alpha * a, axis=1)
        words = self.embedding(tf.constant(words))                       # (B, 1, m)
        x = tf.concat([tf.expand_dims(context, 1), words], axis=-1)
        output, state = self.gru(x)
        x = tf.reshape(self.fc1(output), (-1, self.units))
        return self.fc2(x), state, alpha

    def train_step(self, features, words):
        """One step on features (B, L, F) and words (B, longest + 2), padding too."""
        loss, hidden = 0., tf.zeros((len(words), self.units))
        with tf.GradientTape() as tape:
            a = self.fc(tf.cast(tf.constant(features), tf.float32))
            for t in range(1, words.shape[1]):
                logits, hidden, _ = self.step(words[:, t - 1:t], a, hidden)
                nats = tf.nn.sparse_softmax_cross_entropy_with_logits(
                    labels=words[:, t], logits=logits)
                loss += tf.reduce_mean(nats * (words[:, t] != PAD).astype(np.float32))
        variables = self.variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
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


def extract(model, paths, targets):
    """The tutorial's loop: decode, resize, InceptionV3 on 16 images, a file each."""
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
