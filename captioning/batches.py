"""Batches of captions of similar length, read from disk while the model computes."""
import collections
import os

import numpy as np

from captioning.features import find_features, read_features
from captioning.tokens import read_tokens, read_vocabulary, tokens_path, vocabulary_path
from model import Batch, Masks, Parcel
from runtime import cli
from runtime.ahead import read_ahead
from runtime.tf import compiled, tf, xla_helps_training

# Batches of one shape in an epoch from which their step is compiled, and by XLA, which
# takes three seconds for each shape
WORTH_COMPILING, WORTH_XLA = 4, 100


class CaptionBatches:
    """One split's captions, and the paths of their features."""
    measure = "train_loss"  # the log's name for the average of `measured`
    unit = "caption"        # what `captions` are
    each = 1                # training captions for each of them

    def __init__(self, tokens, paths, sound):
        """tokens: Tokens. paths, sound: from `find_features` for their images.

        Images without features (step 2 lists why) are left out and counted in
        `missing`; those with a damaged file are left out and listed in `bad` by path.
        """
        self.tokens, self.paths = tokens, paths
        unsound = [paths[i] for i in np.flatnonzero(~sound)]
        self.bad = [path for path in unsound if os.path.exists(path)]
        self.missing = len(unsound) - len(self.bad)
        self.captions = np.flatnonzero(sound[tokens.image_of])

    def epoch(self, batch_size, random=None):
        """One array of caption numbers per batch: of similar length, longest first.

        The captions of each length, shuffled, are cut into full batches; the rest of
        all lengths is sorted by length and cut too. The batches come in random order.
        random=None: a fixed order.
        """
        order = self.captions if random is None else random.permutation(self.captions)
        lengths = self.tokens.lengths[order]
        full, rest = [], []
        for length in np.unique(lengths)[::-1]:
            group = order[lengths == length]
            whole = len(group) - len(group) % batch_size
            full += [group[i:i + batch_size] for i in range(0, whole, batch_size)]
            rest.append(group[whole:])
        rest = np.concatenate(rest)
        full += [rest[i:i + batch_size] for i in range(0, len(rest), batch_size)]
        return full if random is None else [full[i]
                                            for i in random.permutation(len(full))]

    def assign_images(self, order, processes):
        """The rank that gets each image in an epoch of these batches: int (images,).

        An image's captions are in several batches. Each image in turn goes to the
        process with the fewest words so far in those batches: this balances the work
        in every batch, and each image is read by one process only.
        """
        image_of, lengths = self.tokens.image_of, self.tokens.lengths
        batches_of = collections.defaultdict(list)
        for i, numbers in enumerate(order):
            for number in numbers:
                batches_of[image_of[number]].append((i, lengths[number]))
        owners = np.zeros(len(self.paths), np.int32)
        loads = np.zeros((len(order), processes))
        for image, places in batches_of.items():
            batches, words = zip(*places)
            owners[image] = loads[list(batches)].sum(axis=0).argmin()
            np.add.at(loads[:, owners[image]], list(batches), words)
        return owners

    def shapes(self, order):
        """The batch shapes worth compiling for, (captions, words per caption), and how
        many batches have each: {shape: int}.

        Those of batches of a single length that occur at least WORTH_COMPILING times.
        """
        lengths = [self.tokens.lengths[numbers] for numbers in order if len(numbers)]
        counts = collections.Counter((len(n), int(n[0])) for n in lengths
                                     if n[0] == n[-1])
        return {shape: count for shape, count in counts.items()
                if count >= WORTH_COMPILING}

    def images_of_batch(self, numbers):
        """The images of a batch, and each caption's index into them: two int arrays.

        Where lengths differ, captions of one image share its features. Where they do
        not, hardly any image occurs twice, and each caption brings its own features:
        such batches then have one shape, for which the training step is compiled.
        """
        lengths, images = self.tokens.lengths[numbers], self.tokens.image_of[numbers]
        if lengths[0] != lengths[-1]:
            return np.unique(images, return_inverse=True)
        return images, np.arange(len(numbers))

    def load(self, numbers, dropout=0., sizes=None, seed=()):
        """Read one batch: caption numbers -> Batch of numpy arrays; None if empty.

        dropout, sizes, seed: for its `masks`, unless dropout is 0.
        """
        if not len(numbers):
            return None
        lengths = self.tokens.lengths[numbers]
        images, image_of = self.images_of_batch(numbers)
        return Batch(
            Parcel(np.stack([read_features(self.paths[i]) for i in images]),
                   self.tokens.words[numbers, :lengths[0] + 1],
                   self.masks(numbers, dropout, sizes, seed) if dropout else Masks()),
            lengths, image_of.astype(np.int32), numbers)

    def masks(self, numbers, rate, sizes, seed):
        """Dropout factors for one batch: model.Masks, as numpy arrays.

        sizes: model.Sizes. seed: a tuple of ints. Masks depend only on these and the
        image or caption: not on the rest of the batch, nor on earlier samples.
        """
        random = np.random.RandomState(0)  # numpy 2 takes 0.2 ms to make one

        def keep(key, *shape):
            random.seed([*seed, *key])
            return random.random_sample(shape) >= rate
        lengths, m = self.tokens.lengths[numbers], sizes.embedding
        images, _ = self.images_of_batch(numbers)
        a = np.stack([keep((0, i), 1, sizes.annotation) for i in images])
        words = np.zeros((lengths[0], len(numbers), 2 * m), np.bool_)
        for row, number in enumerate(numbers):
            words[:lengths[row], row] = keep((1, number), lengths[row], 2 * m)
        # The real words by step, then by caption
        words = words[np.arange(lengths[0])[:, None] < lengths]
        a, words = (np.float32(x) / np.float32(1 - rate) for x in (a, words))
        return Masks(a, *np.split(words, 2, axis=1))

    def explain_nonfinite(self, numbers):
        """Explain a non-finite loss, for a message: a bad file, or too large a step.

        numbers: of the batch's captions.
        """
        for i in np.unique(self.tokens.image_of[numbers]):
            if not np.isfinite(read_features(self.paths[i])).all():
                return (f"{self.paths[i]} is not finite: delete it and run "
                        "extract_features.py again; ")
        return "try a smaller --learning-rate or --clip in a new --run; "

    def measured(self, cross_entropy):
        """The quantity logged for a step, here in nats a word."""
        return cross_entropy

    def batches(self, order, **dropout):
        """Yield a Batch for each array of `order`; see `read_ahead` and `load`.

        Its parcel holds tensors: they are copied to the GPU while it works on others.
        """
        def load(numbers):
            batch = self.load(numbers, **dropout)
            return batch and tensors(batch)
        return read_ahead(load, order)


class PerShape:
    """A function of batches, compiled for the shapes of most of them."""

    def __init__(self, function):
        """function: takes a Batch of tensors, and more tensors; returns tensors."""
        self.function, self.common, self.compiled = function, {}, {}

    def compile_for(self, shapes):
        """Compile it for batches of these shapes, see CaptionBatches.shapes."""
        self.common = shapes

    def __call__(self, batch, *others):
        """The function's value. It is compiled for captions of one length, each with
        its own features, where their shape is common.
        """
        def function(parcel, *others):
            return self.function(batch._replace(parcel=parcel), *others)
        lengths = batch.lengths
        shape = (len(lengths), int(lengths[0]))
        if (shape not in self.common or lengths[-1] != lengths[0]
                or batch.parcel.features.shape[0] != len(lengths)):
            return function(batch.parcel, *others)
        if shape not in self.compiled:
            self.compiled[shape] = compiled(
                function, xla=xla_helps_training() and self.common[shape] >= WORTH_XLA)
        return self.compiled[shape](batch.parcel, *others)


def tensors(batch):
    """Convert the arrays in a Batch's parcel to tensors."""
    def tensor(array):
        return None if array is None else tf.convert_to_tensor(array)
    masks = Masks(*map(tensor, batch.parcel.masks))
    parcel = Parcel(*map(tensor, batch.parcel._replace(masks=None)))
    return batch._replace(parcel=parcel._replace(masks=masks))


def uniforms_of(seeds, shape):
    """Uniform numbers in [0, 1), float64 (number of seeds, *shape), one seed per row.

    seeds: lists of ints.
    """
    random = np.random.RandomState(0)  # numpy 2 takes 0.2 ms to make one
    numbers = np.empty((len(seeds),) + shape)
    for row, seed in zip(numbers, seeds):
        random.seed(seed)
        row[:] = random.random_sample(shape)
    return numbers


def list_bad(folder, splits, most):
    """List damaged features files with cli.left_out. splits: {name: CaptionBatches}."""
    for name, captions in splits.items():
        cli.left_out(os.path.join(folder, f"bad_features_{name}.txt"), captions.bad,
                     len(captions.paths), most, f"features of {name}", "they are "
                     "damaged: run extract_features.py again, which replaces them")


def read_splits(folder, features):
    """The Vocabulary of a folder of tokens, and its {'train', 'val': CaptionBatches}.

    features: the folder of step 2. Raises cli.UserError if files do not belong
    together, or are missing or damaged.
    """
    path = vocabulary_path(folder)
    vocabulary = read_vocabulary(folder)
    splits = {}
    for name in ("train", "val"):
        tokens = read_tokens(folder, name)
        if tokens.vocabulary != vocabulary.digest():
            raise cli.UserError(f"{path}: does not belong to "
                                f"{os.path.basename(tokens_path(folder, name))} beside "
                                "it; run tokenize_captions.py again")
        if tokens.words.max() >= len(vocabulary):
            raise cli.UserError(f"{tokens_path(folder, name)}: has words that are not "
                                "in the vocabulary; run tokenize_captions.py again")
        splits[name] = CaptionBatches(tokens,
                                      *find_features(features, tokens.images, name))
        print(f"{name}: {len(splits[name].captions)} captions, "
              f"{splits[name].missing} images without features left out")
    return vocabulary, splits
