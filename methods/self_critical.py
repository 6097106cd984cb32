"""Self-critical training (Rennie et al. 2017): sample captions from the model, and make
those more probable that earn more than the other samples of their image.

The gradient of the expected reward r of a sampled caption y is the expectation of that
of (r - b) log p(y), for every b that does not depend on y. Here b is the mean reward of
the image's other samples, so nothing else has to be decoded. A batch is sampled
captions, each with a weight, and goes through the usual training step. Captions are
sampled from the distribution that is differentiated: without dropout, and with the
words that decoding forbids.
"""
import numpy as np

from captioning.batches import CaptionBatches, uniforms_of
from captioning.decode import Decoder
from captioning.features import read_features
from captioning.tokens import PAD, START, read_references, references_path
from methods.rewards import Rewards
from model import Batch, Parcel
from runtime import cli, ranks
from runtime.ahead import read_ahead
from runtime.tf import tf


class SelfCritical(CaptionBatches):
    """CaptionBatches over images: a batch's captions are sampled when it is requested.

    An item is an image; its `lengths` is the number of samples, which the training
    step divides by.
    """
    measure, unit = "train_reward", "image"

    def __init__(self, captions, model, rewards, samples):
        """captions: CaptionBatches of the split. model: the Captioner to sample from.
        rewards: the Rewards of the split's images. samples: captions per image.

        Samples are cut at the length of the split's longest caption: some never end.
        """
        tokens = captions.tokens
        self.decoder, self.rewards, self.each = Decoder(model), rewards, samples
        self.paths, self.steps = captions.paths, int(tokens.lengths.max())
        self.captions = np.unique(tokens.image_of[captions.captions])
        images = np.arange(len(tokens.images), dtype=np.int32)
        self.tokens = tokens._replace(image_of=images,
                                      lengths=np.full_like(images, samples))
        self.reward = None  # mean of the last batch, in all processes

    def shapes(self, order):
        """Nothing is worth compiling: hardly two batches share a shape."""
        return {}

    def batches(self, order, seed=(), **_):
        """Yield a Batch for each array of `order`, image numbers; None for no images.

        It is sampled when it is requested, with the weights of the last step.
        """
        apart, most = 0., max(map(len, order), default=0)
        for images, features in zip(order, read_ahead(self.read, order)):
            batch, earned, spread = None, 0., 0.
            if features is not None:
                whole = len(images) == most
                batch, earned, spread = self.draw(
                    images, features, seed, len(self.captions) // most if whole else 1)
            earned, count, spread = (float(x.numpy()) for x in ranks.total(
                [tf.constant(x, tf.float64) for x in (earned, len(images), spread)]))
            self.reward, apart = earned / max(1, count), apart + spread
            yield batch
        if len(order) and not apart:
            cli.warn("all samples of an image earned the same, in every batch: no step "
                     "had anything to learn from; start from a run that writes better "
                     "captions, or take more samples (--self-critical)")

    def read(self, images):
        """The features of these images, a tensor (I, L, F); None if there are none."""
        if len(images):
            return tf.convert_to_tensor(np.stack(
                [read_features(self.paths[i]) for i in images]))

    def draw(self, images, features, seed, batches=1):
        """Sample captions of these images, and score them.

        Returns their Batch and two sums over the images: of the mean reward, and of the
        difference between the largest and the smallest. Samples depend only on seed,
        image and weights. batches: see Decoder.sample.
        """
        uniforms = uniforms_of([[*seed, 2, i] for i in images],
                               (self.each, self.steps))
        samples = self.decoder.sample(features, uniforms, batches=batches)
        captions = [caption.words for group in samples for caption in group]
        earned = self.rewards(captions, np.repeat(images, self.each))
        earned = earned.reshape(len(images), self.each)
        return (weighted(features, captions, earned), earned.mean(axis=1).sum(),
                np.ptp(earned, axis=1).sum())

    def measured(self, cross_entropy):
        """What the log records of a step: the mean reward, since of the loss only the
        gradient has a meaning.
        """
        return self.reward


def weighted(features, captions, rewards):
    """Weight sampled captions so that their cross-entropy has the gradient of minus the
    expected reward.

    features: (I, L, F). captions: I * S lists of word indices, image by image.
    rewards: float (I, S). Returns a Batch. The gradient of its mean over the captions
    is an unbiased estimate of that of the mean over the images.
    """
    I, S = rewards.shape
    others = (rewards.sum(axis=1, keepdims=True) - rewards) / (S - 1)
    lengths = np.array([len(caption) for caption in captions], np.int32)
    longest_first = np.argsort(-lengths, kind="mergesort")
    words = np.full((I * S, lengths.max() + 1), PAD, np.int32)
    words[:, 0] = START
    for row, number in zip(words, longest_first):
        row[1:lengths[number] + 1] = captions[number]
    weights = (rewards - others).ravel()[longest_first]
    return Batch(
        Parcel(features, tf.constant(words), weights=tf.constant(weights)),
        lengths[longest_first],
        np.repeat(np.arange(I, dtype=np.int32), S)[longest_first], longest_first)


def read_rewards(args, captions, vocabulary):
    """The Rewards of a split; None without --self-critical.

    captions: CaptionBatches of the split. Raises cli.UserError if --start-from is
    missing, or an image has no references.
    """
    if not args.self_critical:
        return None
    if not args.start_from:
        raise cli.UserError("--self-critical: an untrained model samples nothing that "
                            "could be rewarded; train a run without it, and pass it "
                            "to --start-from")
    references = read_references(args.tokens, "train")
    groups = [references.get(str(i), []) for i in captions.tokens.image_ids]
    for i in np.unique(captions.tokens.image_of):
        if not groups[i]:
            raise cli.UserError(f"{references_path(args.tokens, 'train')}: has no "
                                f"references for {captions.tokens.images[i]}; run "
                                "tokenize_captions.py again")
    return Rewards(vocabulary, groups, args.bleu_reward or 0.)
