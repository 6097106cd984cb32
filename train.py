"""Step 4: train the captioner with teacher forcing, in eager mode.

    python train.py --data data --run baseline

Start the same command again and it goes on from the newest checkpoint, which is also
written inside an epoch (--save-minutes) and on Ctrl-C: the weights become those of a
run that was never stopped. Batches hold captions of like length, as in section 4.3 of
the paper, so that little is padding.

    horovodrun -np 4 python train.py --data data --run baseline

shares every batch among four processes, and gives what one would have given; so a run
can also go on with another number of them.

Reads:  <tokens>/vocabulary.tsv, train.npz and val.npz; <features>/<split>/*.npy
Writes, below checkpoints/<run>/:
        settings.json                  the arguments, sizes and versions of the run
        vocabulary.tsv                 the words that the weights know
        split.json                     the images of training and validation
        newest.npz, previous.npz       weights, optimizer, and how far the run has come
        best.npz                       the same, after the best epoch (--select)
        bad_features.txt               files of step 2 that are damaged, if any
        log.csv, loss.png, events...   a line an epoch, its picture, and TensorBoard's

After every epoch the validation captions give a loss, and some validation images are
captioned without teacher forcing and scored: towards the end of training the loss gets
worse while the captions still get better (section 5.4 of the paper).
"""
import collections
import concurrent.futures
import csv
import io
import json
import os
import subprocess
import time
import zlib

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

import atomic
import cli
import ranks
import scores
from decode import decode_files
from extract_features import SHAPE, feature_path, is_sound, read_features
from model import Batch, Captioner, Masks, Sizes, loss
from tf_runtime import (AdamOptimizer, RMSPropOptimizer, Variable, compiled,
                        device_errors, device_name, event_writer, start, tf,
                        unsorted_segment_sum)
from tokenize_captions import (LARGEST, read_references, read_tokens, read_vocabulary,
                               references_path)

RUNS = "checkpoints"
WORTH_COMPILING = 4  # batches of one shape in an epoch
OPTIMIZERS = {"adam": AdamOptimizer, "rmsprop": RMSPropOptimizer}
# What makes a run another model: it cannot change when the run goes on.
FIXED = ("data", "tokens", "features", "batch_size", "embedding", "units", "dropout",
         "penalty", "no_gate", "no_state", "initial_state", "optimizer",
         "learning_rate", "base_batch_size", "warm_up", "decay", "clip", "select",
         "val_images", "seed")
# --select: the figure of the log, and whether the lowest or the highest is the best.
SELECT = {"loss": ("val_loss", min), "bleu-4": ("val_bleu4", max),
          "cider": ("val_cider", max)}
Run = collections.namedtuple("Run", "folder settings vocabulary model history")
Progress = collections.namedtuple("Progress", "history batch total words seconds order")
Progress.__doc__ = """How far a run has come.

history: a list of dicts, one for each finished epoch. The others are about the epoch
after those: batch: int, its batches done; total, words: cross-entropy in nats, and real
words, summed over these; seconds: float, spent; order: int, checksum of the order of
its captions.
"""


# --- reading what this step writes ----------------------------------------------------

def read_run(name, checkpoint="best"):
    """A trained run: its settings, Vocabulary and Captioner with weights, its history.

    checkpoint: 'best', 'newest' or 'previous'. Raises cli.UserError where the run does
    not exist, is damaged, or its parts do not fit together.
    """
    folder = os.path.join(RUNS, name)
    path = os.path.join(folder, "settings.json")
    try:
        with open(path, encoding="utf-8") as file:
            settings = json.load(file)
        model = build(settings)
    except FileNotFoundError:
        raise cli.UserError(f"{path}: no such run; train it with: python train.py "
                            f"--run {name}")
    except (ValueError, KeyError, TypeError):
        raise cli.UserError(f"{path}: damaged; train the run again under another name")
    vocabulary = read_vocabulary(os.path.join(folder, "vocabulary.tsv"))
    if len(vocabulary) != settings["sizes"]["vocabulary"]:
        raise cli.UserError(f"{folder}: vocabulary.tsv has {len(vocabulary)} words, "
                            f"the weights {settings['sizes']['vocabulary']}; put the "
                            "run's own vocabulary back")
    progress = load_checkpoint(os.path.join(folder, checkpoint + ".npz"), model)
    return Run(folder, settings, vocabulary, model, progress.history)


def read_split(folder):
    """Which images a run was trained and validated on: {'train', 'val': list of str}.

    folder: the run's. Raises cli.UserError where the file is missing or damaged.
    """
    path = os.path.join(folder, "split.json")
    try:
        with open(path, encoding="utf-8") as file:
            split = json.load(file)
        if not all(isinstance(image, str) for name in ("train", "val")
                   for image in split[name]):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise cli.UserError(f"{path}: missing or damaged, so nobody knows which images "
                            "were trained on; train the run again under another name")
    return split


def build(settings):
    """The Captioner of a settings.json, with its first weights.

    Raises ValueError, KeyError or TypeError where these are not such settings.
    """
    sizes = Sizes(**settings["sizes"])
    if not all(type(size) is int and 0 < size < LARGEST for size in sizes):
        raise ValueError(f"bad sizes {sizes}")
    return Captioner(sizes, gate=not settings["no_gate"],
                     initial_state=settings["initial_state"],
                     recurrent=not settings["no_state"], seed=settings["seed"])


# --- checkpoints ----------------------------------------------------------------------

def begin_epoch(history):
    """The Progress of a run that has finished the epochs of this history."""
    return Progress(history, 0, 0., 0, 0., 0)


def save_checkpoint(path, model, optimizer, progress):
    """Weights, optimizer state and progress in one file, complete or not at all.

    Plain arrays under the paper's letters: numpy reads them, with or without a GPU.
    """
    arrays = {name: weight.numpy() for name, weight in model.weights.items()}
    arrays.update(("optimizer/" + name, slot.numpy())
                  for name, slot in slots(model, optimizer).items())
    arrays["progress"] = np.array(json.dumps(progress._asdict()))
    atomic.write_arrays(path, arrays)


def load_checkpoint(path, model, optimizer=None):
    """Put a checkpoint's arrays into the model, and the optimizer; return its Progress.

    Raises cli.UserError where the file is missing, damaged, or its weights have other
    sizes; nothing has been changed then.
    """
    targets = dict(model.weights)
    if optimizer is not None:
        targets.update(("optimizer/" + name, slot)
                       for name, slot in slots(model, optimizer).items())
    try:
        with atomic.load_arrays(path) as file:
            arrays = {name: file[name] for name in targets}
            progress = read_progress(str(file["progress"]))
    except FileNotFoundError:
        raise cli.UserError(f"{path}: no such checkpoint; train.py writes one after "
                            "its first epoch")
    except atomic.DAMAGED:
        raise cli.UserError(f"{path}: damaged, or not a checkpoint of this project; "
                            "move it away and start train.py again")
    for name, variable in targets.items():
        if arrays[name].shape != tuple(variable.shape.as_list()):
            raise cli.UserError(
                f"{path}: {name} has shape {arrays[name].shape}, the model expects "
                f"{tuple(variable.shape.as_list())}; this checkpoint is of another run")
        if not np.isfinite(arrays[name]).all():
            raise cli.UserError(f"{path}: {name} is not finite; move the checkpoint "
                                "away and start train.py again")
    for name, variable in targets.items():
        variable.assign(arrays[name])
    return progress


def read_progress(text):
    """The Progress in a checkpoint's JSON. Raises ValueError, KeyError or TypeError
    where it is none.
    """
    found = Progress(**json.loads(text))
    if not (isinstance(found.history, list)
            and all(row["epoch"] == i for i, row in enumerate(found.history, 1))
            and all(type(n) is int and n >= 0
                    for n in (found.batch, found.words, found.order))
            and all(type(x) in (int, float) and np.isfinite(x)
                    for x in (found.total, found.seconds))):
        raise ValueError
    return found


def slots(model, optimizer):
    """The optimizer's variables by a name that does not depend on the process."""
    found = collections.OrderedDict()
    for name, weight in model.weights.items():
        for slot in optimizer.get_slot_names():
            variable = optimizer.get_slot(weight, slot)
            if variable is not None:
                found[f"{slot}/{name}"] = variable
    inside = {id(variable) for variable in found.values()}
    for variable in optimizer.variables():  # Adam's powers of beta_1 and beta_2
        if id(variable) not in inside:
            found[variable.name.split(":")[0].split("/")[-1]] = variable
    return found


def make_slots(model, optimizer):
    """Create the optimizer's variables with a step of no effect, for a checkpoint."""
    before = {name: weight.numpy().copy() for name, weight in model.weights.items()}
    optimizer.apply_gradients([(tf.zeros_like(weight), weight)
                               for weight in model.weights.values()])
    for name, weight in model.weights.items():
        weight.assign(before[name])
    # The step has moved what the optimizer starts from: Adam's powers of beta_1 and
    # beta_2, and RMSProp's mean square.
    first = {"beta1_power": .9, "beta2_power": .999, "rms": 1.}
    for name, slot in slots(model, optimizer).items():
        value = first.get(name.split("/")[0])
        if value is not None:
            slot.assign(np.full(slot.shape.as_list(), value, np.float32))


# --- batches --------------------------------------------------------------------------

class Captions:
    """One split's captions and where their features are."""

    def __init__(self, name, tokens, features):
        """name: of the split. tokens: Tokens. features: the folder of step 2.

        Images without features (step 2 lists why) are left out, and counted in
        `missing`; so are those whose file is damaged, in `bad`, a list of paths.
        Raises cli.UserError where no image has any.
        """
        self.tokens = tokens
        self.paths = [feature_path(features, str(name)) for name in tokens.images]
        sound = np.array([is_sound(path) for path in self.paths])
        unsound = [self.paths[i] for i in np.flatnonzero(~sound)]
        self.bad = [path for path in unsound if os.path.exists(path)]
        self.missing = len(unsound) - len(self.bad)
        self.captions = np.flatnonzero(sound[tokens.image_of])
        if not len(self.captions):
            raise cli.UserError(f"{features}: no features of the images in "
                                f"{name}.npz; run extract_features.py")

    def epoch(self, batch_size, random=None):
        """Arrays of caption numbers, one a batch, of like length and the longest first.

        The captions of one length, shuffled, are cut into full batches; what remains of
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

    def deal(self, order, processes):
        """Whose each image is in an epoch of these batches: int (images,).

        An image's captions stand in several batches. Each image in turn goes to the
        process that has fewest words so far in those: then all have about as much to
        do in every batch, and each image is read by one process only.
        """
        image_of, lengths = self.tokens.image_of, self.tokens.lengths
        stands_in = collections.defaultdict(list)
        for i, numbers in enumerate(order):
            for number in numbers:
                stands_in[image_of[number]].append((i, lengths[number]))
        owners = np.zeros(len(self.paths), np.int32)
        loads = np.zeros((len(order), processes))
        for image, places in stands_in.items():
            batches, words = zip(*places)
            owners[image] = loads[list(batches)].sum(axis=0).argmin()
            np.add.at(loads[:, owners[image]], list(batches), words)
        return owners

    def shapes(self, order):
        """What the step is worth compiling for: a set of (captions, words of each).

        Batches of one length have a shape; at least WORTH_COMPILING must have it.
        """
        lengths = [self.tokens.lengths[numbers] for numbers in order if len(numbers)]
        counts = collections.Counter((len(n), int(n[0])) for n in lengths
                                     if n[0] == n[-1])
        return {shape for shape, count in counts.items() if count >= WORTH_COMPILING}

    def rows(self, numbers):
        """Which features a batch has, and which of them each caption: two int arrays.

        Where the lengths differ, captions of one image share its features. Where they
        do not, hardly any image comes twice, and each caption brings its own: such
        batches then have one shape, and the training step is compiled for it.
        """
        lengths, images = self.tokens.lengths[numbers], self.tokens.image_of[numbers]
        if lengths[0] != lengths[-1]:
            return np.unique(images, return_inverse=True)
        return images, np.arange(len(numbers))

    def load(self, numbers):
        """Read one batch: caption numbers -> Batch, as numpy arrays; None for none."""
        if not len(numbers):
            return None
        lengths = self.tokens.lengths[numbers]
        images, image_of = self.rows(numbers)
        maps = np.stack([read_features(self.paths[i]) for i in images])
        return Batch(maps.reshape(len(images), -1, SHAPE[-1]),
                     image_of.astype(np.int32),
                     self.tokens.words[numbers, :lengths[0] + 1], lengths)

    def masks(self, numbers, rate, sizes, *seed):
        """Dropout's factors for one batch: model.Masks, as numpy arrays.

        sizes: model.Sizes. seed: ints. An image's masks depend on them and the image
        only, a caption's on them and the caption: not on the rest of the batch, nor on
        what was drawn before.
        """
        def keep(key, *shape):
            return np.random.RandomState([*seed, *key]).random_sample(shape) >= rate
        lengths, m = self.tokens.lengths[numbers], sizes.embedding
        images, _ = self.rows(numbers)
        a = np.stack([keep((0, i), 1, sizes.annotation) for i in images])
        words = np.zeros((lengths[0], len(numbers), 2 * m), np.bool_)
        for row, number in enumerate(numbers):
            words[:lengths[row], row] = keep((1, number), lengths[row], 2 * m)
        # The real words by step, then by caption
        words = words[np.arange(lengths[0])[:, None] < lengths]
        a, words = (np.float32(x) / np.float32(1 - rate) for x in (a, words))
        return Masks(a, *np.split(words, 2, axis=1))

    def culprit(self, numbers):
        """Why a batch gave no finite loss, as far as its files tell: words for a line.

        numbers: those of its captions.
        """
        for i in np.unique(self.tokens.image_of[numbers]):
            if not np.isfinite(read_features(self.paths[i])).all():
                return (f"{self.paths[i]} is not finite: delete it and run "
                        "extract_features.py again; ")
        return "try a smaller --learning-rate or --clip in a new --run; "

    def load_to_train(self, numbers, rate, sizes, *seed):
        """`load` and the `masks` of the batch, () where there are none."""
        masks = ()
        if rate and len(numbers):
            masks = self.masks(numbers, rate, sizes, *seed)
        return self.load(numbers), masks

    def batches(self, order, load=None):
        """Yield a Batch for each array of `order`; the next ones are read meanwhile.

        load: a function to call on each array in place of `self.load`.
        """
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            ahead = collections.deque()
            try:
                for numbers in order:
                    ahead.append(pool.submit(load or self.load, numbers))
                    if len(ahead) > 3:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()


# --- the loop -------------------------------------------------------------------------

class Trainer:
    """What one training step needs besides the batch."""

    def __init__(self, model, optimizer, penalty=0., clip=5.):
        """penalty, clip: see the command's flags.

        Its `shapes` are those that the step is compiled for: Captions.shapes.
        """
        self.model, self.optimizer, self.penalty = model, optimizer, penalty
        self.shapes, self.compiled = set(), {}
        self.clip = compiled(lambda *gradients: tf.clip_by_global_norm(gradients, clip))

    def gradients(self, batch, share, *masks):
        """Loss, cross-entropy, and the gradients in the order of model.weights.

        batch: Batch. share: a factor on all of them, float32 (). masks: those of
        model.Masks, or none. Returns a list of tensors.
        """
        variables = list(self.model.weights.values())
        with tf.GradientTape() as tape:
            total, cross_entropy, _ = loss(self.model, batch, self.penalty,
                                           *(Masks(*masks),) if masks else ())
            total = share * total
        gradients = [
            # The embeddings' gradient lists the words of the batch, one by one.
            unsorted_segment_sum(gradient.values, gradient.indices, variable.shape[0])
            if isinstance(gradient, tf.IndexedSlices) else gradient
            for gradient, variable in zip(tape.gradient(total, variables), variables)]
        return [total, share * cross_entropy] + gradients

    def gradients_for(self, batch):
        """`gradients` for batches of this shape; compiled where that is worth it."""
        image_of, lengths = batch.image_of, batch.lengths  # all that a shape keeps

        def plain(features, words, *arguments):
            return self.gradients(Batch(features, image_of, words, lengths), *arguments)
        shape = (len(lengths), int(lengths[0]))
        if (shape not in self.shapes or lengths[-1] != lengths[0]
                or len(batch.features) != len(lengths)):
            return plain
        if shape not in self.compiled:
            self.compiled[shape] = compiled(plain)
        return self.compiled[shape]

    def summed(self, batch, masks=(), N=None, asked_to_stop=bool):
        """The loss, cross-entropy and gradients of a batch that processes share.

        batch: Batch of numpy arrays, this process's captions; None where it has none.
        masks: Masks of numpy arrays, or none. N: words of the whole batch.
        asked_to_stop: a function; how many processes it is true for comes first.

        Each process divides the sum over its words by all words, so the sum over the
        processes is the average over words, however unevenly they are shared.
        """
        dtype = self.model.E.dtype.base_dtype
        if batch is None:
            mine = [tf.zeros((), dtype), tf.zeros((), dtype)] + [
                tf.zeros_like(weight) for weight in self.model.weights.values()]
        else:
            words = int(batch.lengths.sum())
            mine = self.gradients_for(batch)(
                tf.constant(batch.features), tf.constant(batch.words),
                tf.constant(words / (N or words), dtype), *map(tf.constant, masks))
        return ranks.total([tf.constant(float(asked_to_stop()), dtype)] + mine)

    def step(self, batch, masks=(), N=None, asked_to_stop=bool):
        """One step: the cross-entropy in nats a word, and whether to stop after it.

        The arguments are those of `summed`. Raises FloatingPointError where the loss
        or the gradients are not finite; the weights are as before the step then.
        """
        stop, total, cross_entropy, *gradients = self.summed(batch, masks, N,
                                                             asked_to_stop)
        gradients, norm = self.clip(*gradients)
        for name, value in (("loss", total), ("gradient norm", norm)):
            if not np.isfinite(value.numpy()):
                raise FloatingPointError(f"the {name} is {float(value.numpy())}")
        self.optimizer.apply_gradients(zip(gradients, self.model.weights.values()))
        return float(cross_entropy.numpy()), bool(stop.numpy())


def validate(model, captions, batch_size):
    """Cross-entropy of a split in nats a real word, without dropout or penalty.

    Processes take the batches by turns.
    """
    total, words = 0., 0
    order = captions.epoch(batch_size)
    for batch in captions.batches(order[ranks.rank::ranks.size]):
        batch = batch._replace(features=tf.constant(batch.features))
        _, cross_entropy, N = loss(model, batch)
        total, words = total + float(cross_entropy.numpy()) * N, words + N
    total, words = zip(*ranks.gather((total, words)))
    return sum(total) / sum(words)


class Judge:
    """Captions some validation images after an epoch and scores the captions."""

    def __init__(self, captions, references, vocabulary, count, seed):
        """captions: Captions of the split. references: {image id: list of captions}.
        count: how many of its images, drawn with the seed.
        """
        images = np.unique(captions.tokens.image_of[captions.captions])
        chosen = np.random.RandomState(seed).permutation(images)[:count]
        self.paths = [captions.paths[i] for i in chosen]
        self.ids = [str(captions.tokens.image_ids[i]) for i in chosen]
        self.references, self.vocabulary = references, vocabulary

    def __call__(self, model, batch_size):
        """BLEU-4 and CIDEr of greedy captions in percent; words as the vocabulary's.

        The tokenizer is not the COCO tools', which takes seconds to start: evaluate.py
        gives the figures to report. Processes share the images; process 0 scores them.
        """
        mine = slice(ranks.rank, None, ranks.size)
        found = decode_files(model, self.paths[mine], batch_size, quiet=True)
        shares = ranks.gather({i: self.vocabulary.decode(beam[0].words)
                               for i, beam in zip(self.ids[mine], found)})
        averages = None
        if ranks.rank == 0:
            texts = {i: text for share in shares for i, text in share.items()}
            averages = scores.averages(scores.score(texts, self.references, java=False))
            averages = {name: float(value) for name, value in averages.items()}
        averages = ranks.from_first(averages)
        return {"val_bleu4": round(averages["BLEU-4"], 3),
                "val_cider": round(averages["CIDEr"], 3)}


def waited(history, select):
    """Epochs since the best one."""
    key, best = SELECT[select]
    values = [row[key] for row in history]
    return len(values) - 1 - values.index(best(values))


def rate(args, epoch, done):
    """The learning rate when the share `done` of this epoch (from 1) is done.

    It grows with the batch where --base-batch-size is given, and rises to its height in
    the first --warm-up epochs (Goyal et al. 2017).
    """
    height = args.learning_rate * args.decay ** (epoch - 1)
    if args.base_batch_size:
        height *= args.batch_size / args.base_batch_size
    if args.warm_up:
        height *= min(1, (epoch - 1 + done) / args.warm_up)
    return height


def train_epoch(trainer, learning_rate, captions, progress, args, save):
    """Train to the end of the epoch that `progress` stands in; return the new Progress.

    learning_rate: the optimizer's Variable. save: a function that keeps a Progress;
    called every args.save_minutes, and before KeyboardInterrupt is raised. The order
    and dropout depend on the seed and the epoch only, so that a run that was stopped
    and goes on is the run that was never stopped.
    """
    epoch = len(progress.history) + 1
    order = captions.epoch(args.batch_size, np.random.RandomState([args.seed, epoch]))
    checksum = zlib.crc32(np.concatenate(order))
    if len(set(ranks.gather(checksum))) > 1:
        raise cli.UserError(f"{args.features}: the processes see different files "
                            "there; give all hosts the same folder")
    if progress.batch and progress.order != checksum:
        cli.warn(f"the images with features are not those of before: epoch {epoch} "
                 "begins anew")
        progress = begin_epoch(progress.history)
    mine = order
    if ranks.size > 1:
        owners = captions.deal(order, ranks.size)
        mine = [numbers[owners[captions.tokens.image_of[numbers]] == ranks.rank]
                for numbers in order]
    trainer.shapes = captions.shapes(mine)
    done, total, words = progress[1:4]
    begin = saved = time.time()

    def load(numbers):
        return captions.load_to_train(numbers, args.dropout, trainer.model.sizes,
                                      args.seed, epoch)

    def reached(batch):
        return Progress(progress.history, batch, total, words,
                        progress.seconds + time.time() - begin, checksum)
    with cli.interrupts_wait() as asked_to_stop, tqdm(
            total=len(captions.captions), initial=sum(map(len, order[:done])),
            desc=f"epoch {epoch}/{args.epochs}", unit="caption",
            disable=ranks.rank > 0) as bar:
        for i, (batch, masks) in enumerate(captions.batches(mine[done:], load), done):
            N = int(captions.tokens.lengths[order[i]].sum())
            learning_rate.assign(rate(args, epoch, (i + 1) / len(order)))
            try:
                value, stop = trainer.step(batch, masks, N, asked_to_stop)
            except FloatingPointError as error:
                raise cli.UserError(
                    f"epoch {epoch}, batch {i + 1} of {len(order)}: {error}; "
                    + captions.culprit(order[i]) + "the last checkpoint is sound")
            if ranks.size == 1:  # nobody else must know: a signal of just now counts
                stop = asked_to_stop()
            total, words = total + value * N, words + N
            bar.update(len(order[i]))
            bar.set_postfix(loss=f"{total / words:.3f}", refresh=False)
            if stop or time.time() - saved > 60 * args.save_minutes:
                saved = time.time()
                save(reached(i + 1))
            if stop:
                ranks.gather(None)  # process 0 has saved
                raise KeyboardInterrupt
        if any(ranks.gather(bool(asked_to_stop()))):  # in the last batch
            save(reached(len(order)))
            ranks.gather(None)
            raise KeyboardInterrupt
    return reached(len(order))


def write_log(folder, history, dropout):
    """log.csv and loss.png from the whole history: they never contradict it.

    dropout: whether the training loss was measured with it; the curve then says so.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, sorted(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    with atomic.writing(os.path.join(folder, "log.csv"), "w", encoding="utf-8") as file:
        file.write(text.getvalue())
    training = "training (with dropout)" if dropout else "training"
    panels = [("cross-entropy (nats a word)",
               (("train_loss", "#4477aa", training),
                ("val_loss", "#ee6677", "validation")))]
    if "val_cider" in history[0]:
        panels.append(("score of validation captions (%)",
                       (("val_cider", "#228833", "CIDEr"),
                        ("val_bleu4", "#aa3377", "BLEU-4"))))
    figure = Figure(figsize=(4.5 * len(panels), 3.2))
    canvas = FigureCanvasAgg(figure)
    epochs = [row["epoch"] for row in history]
    for i, (unit, curves) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), i)
        for key, colour, label in curves:
            axes.plot(epochs, [row[key] for row in history], ".-", color=colour,
                      label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel(unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines["top"].set_visible(False)
        axes.spines["right"].set_visible(False)
        axes.legend(frameon=False)
    figure.tight_layout()
    with atomic.writing(os.path.join(folder, "loss.png")) as file:
        canvas.print_figure(file, dpi=150, format="png")


def read_splits(folder, features):
    """The Vocabulary of a folder of tokens, and its {'train', 'val': Captions}.

    features: the folder of step 2. Raises cli.UserError where files do not belong
    together, or as the readers of steps 2 and 3 do.
    """
    path = os.path.join(folder, "vocabulary.tsv")
    vocabulary = read_vocabulary(path)
    splits = {}
    for name in ("train", "val"):
        tokens = read_tokens(os.path.join(folder, name + ".npz"))
        if tokens.vocabulary != vocabulary.digest():
            raise cli.UserError(f"{path}: does not belong to {name}.npz beside it; run "
                                "tokenize_captions.py again")
        if tokens.words.max() >= len(vocabulary):
            raise cli.UserError(f"{folder}: {name}.npz has words that are not in "
                                "vocabulary.tsv; run tokenize_captions.py again")
        splits[name] = Captions(name, tokens, features)
        print(f"{name}: {len(splits[name].captions)} captions, "
              f"{splits[name].missing} images without features left out")
    return vocabulary, splits


def run_folder(name):
    """The folder of the run called so. Raises cli.UserError for what is no name."""
    if os.path.basename(name) != name or name in ("", ".", "..") or name[0] == "-":
        raise cli.UserError(f"--run {name}: give a plain name without folders")
    return os.path.join(RUNS, name)


def claim(folder, settings, images):
    """Write a new run's settings, or check that an old run is gone on with the same.

    images: {'train', 'val': list of str}, what `read_split` returns. A run that has no
    checkpoint yet (out of memory, say) may begin again with other settings.
    """
    path = os.path.join(folder, "settings.json")
    begun = os.path.isdir(folder) and any(
        name.startswith(("newest", "previous", "best")) for name in os.listdir(folder))
    if begun and not os.path.exists(path):
        raise cli.UserError(f"{path}: missing, so nobody knows what these checkpoints "
                            "are of; put it back, or choose another --run")
    if begun:
        try:
            with open(path, encoding="utf-8") as file:
                before = json.load(file)
            other = [key for key in FIXED + ("sizes", "vocabulary_digest")
                     if before.get(key) != settings[key]]
        except (ValueError, AttributeError):
            raise cli.UserError(f"{path}: damaged; choose another --run")
        if other:
            raise cli.UserError(
                f"{path}: this run was started with another "
                f"{', '.join(other).replace('_', ' ')}; repeat its command, or choose "
                "another --run")
        if read_split(folder) != images:
            raise cli.UserError(f"{folder}: this run was started with other images; "
                                "tokenize those again, or choose another --run")
    os.makedirs(folder, exist_ok=True)
    atomic.write_json(os.path.join(folder, "split.json"), images)
    atomic.write_json(path, settings)


def commit():
    """The git commit of these scripts; 'unknown' where there is no git or no clone."""
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        return subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=here,
                                       stderr=subprocess.DEVNULL).decode().strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def resume(folder, model, optimizer):
    """Load the newest sound checkpoint and return its Progress; else a new run's.

    Process 0 reads, the others get from it what it has found.
    """
    found = begin_epoch([])
    if ranks.rank == 0:
        found = load_newest(folder, model, optimizer)
    ranks.copy_first(list(model.weights.values())
                     + list(slots(model, optimizer).values()))
    return Progress(*ranks.from_first(found))


def load_newest(folder, model, optimizer):
    """`resume` of a process by itself."""
    for name in ("newest", "previous"):
        path = os.path.join(folder, name + ".npz")
        if os.path.exists(path):
            try:
                progress = load_checkpoint(path, model, optimizer)
            except cli.UserError as error:
                cli.warn(f"{error} (passed over, kept as {path}.bad)")
                os.replace(path, path + ".bad")  # never becomes previous.npz
                continue
            inside = f" and {progress.batch} batches" if progress.batch else ""
            print(f"going on from {path}, after epoch {len(progress.history)}{inside}")
            return progress
    return begin_epoch([])


def keep(folder, model, optimizer, progress):
    """Save the newest checkpoint, and keep the one before it; process 0 does it."""
    if ranks.rank:
        return
    newest, previous = (os.path.join(folder, name + ".npz")
                        for name in ("newest", "previous"))
    if os.path.exists(newest):
        os.replace(newest, previous)
    save_checkpoint(newest, model, optimizer, progress)


def report_bad(folder, splits, most):
    """List damaged features files; raise cli.UserError if their share is over `most`.

    splits: {name: Captions}.
    """
    report = os.path.join(folder, "bad_features.txt")
    bad = [path for captions in splits.values() for path in captions.bad]
    if not bad:
        if os.path.exists(report):
            os.remove(report)
        return
    os.makedirs(folder, exist_ok=True)
    with atomic.writing(report, "w", encoding="utf-8") as file:
        file.writelines(path + "\n" for path in bad)
    advice = "run extract_features.py again, which makes damaged ones anew"
    for name, captions in splits.items():
        if len(captions.bad) > most * len(captions.paths):
            raise cli.UserError(
                f"{report}: {len(captions.bad)} of {len(captions.paths)} features of "
                f"{name} are damaged, more than --max-bad {most:g} allows; {advice}")
    cli.warn(f"{len(bad)} damaged features files are left out, listed in {report}; "
             + advice)


def main():
    ranks.start()
    args = arguments()
    if cli.restarted(args.restarts, args.last_on_cpu):
        return
    cli.introduce(4, "train")
    args.tokens = args.tokens or os.path.join(args.data, "tokens")
    args.features = args.features or os.path.join(args.data, "features")
    folder = run_folder(args.run)
    vocabulary, splits = read_splits(args.tokens, args.features)
    judge = None
    if args.select != "loss":
        judge = Judge(splits["val"],
                      read_references(references_path(args.tokens, "val")),
                      vocabulary, args.val_images, args.seed)
    start()
    ranks.same_devices(device_name())
    with ranks.alone(folder), device_errors(args.batch_size,
                                            restarts=ranks.size == 1):
        if ranks.rank == 0:
            report_bad(folder, splits, args.max_bad)
        train(args, folder, splits, vocabulary, judge)
    cli.next_step("python", "evaluate.py", "--run", args.run)


def train(args, folder, splits, vocabulary, judge):
    """Begin the run in this folder, or go on with it, to its last epoch.

    args: the command's. splits: {'train', 'val': Captions}. judge: a Judge or None.
    """
    sizes = Sizes(vocabulary=len(vocabulary), features=SHAPE[-1],
                  annotation=args.embedding, embedding=args.embedding,
                  hidden=args.units, attention=args.units)
    settings = dict(vars(args), sizes=sizes._asdict(), device=device_name(),
                    vocabulary_digest=vocabulary.digest(), commit=commit(),
                    versions={"tensorflow": tf.__version__, "numpy": np.__version__},
                    processes=ranks.size)
    events = None
    if ranks.rank == 0:
        claim(folder, settings, {name: captions.tokens.images.tolist()
                                 for name, captions in splits.items()})
        with open(os.path.join(args.tokens, "vocabulary.tsv"), "rb") as source, \
                atomic.writing(os.path.join(folder, "vocabulary.tsv")) as copy:
            copy.write(source.read())
        events = event_writer(folder)
    model = build(settings)
    learning_rate = Variable(args.learning_rate, trainable=False, name="rate")
    optimizer = OPTIMIZERS[args.optimizer](learning_rate)
    make_slots(model, optimizer)
    progress = resume(folder, model, optimizer)
    if progress.history and events:  # what ended the run may have done so before this
        write_log(folder, progress.history, args.dropout > 0)
    trainer = Trainer(model, optimizer, args.penalty, args.clip)

    def save(progress):
        keep(folder, model, optimizer, progress)

    for epoch in range(len(progress.history) + 1, args.epochs + 1):
        history = progress.history
        if args.patience and history and waited(history,
                                                args.select) >= args.patience:
            print(f"no better for {args.patience} epochs (--patience): that is all")
            break
        progress = train_epoch(trainer, learning_rate, splits["train"], progress, args,
                               save)
        save(progress)  # validation can take long, and fail
        begin = time.time()
        train_loss = progress.total / progress.words
        speed = len(splits["train"].captions) / progress.seconds
        val_loss = validate(model, splits["val"], args.batch_size)
        if not np.isfinite(val_loss):
            raise cli.UserError(
                f"epoch {epoch}: the validation loss is {val_loss}; "
                + splits["val"].culprit(splits["val"].captions)
                + "the last checkpoint is sound")
        judged = judge(model, args.batch_size) if judge else {}
        history = history + [ranks.from_first(dict(
            judged, epoch=epoch, train_loss=train_loss, val_loss=val_loss,
            captions_per_second=round(speed, 1),
            seconds=round(progress.seconds + time.time() - begin, 1)))]
        progress = begin_epoch(history)
        if events and waited(history, args.select) == 0:
            # Before the newest: it must not be missing when the run goes on from there
            save_checkpoint(os.path.join(folder, "best.npz"), model, optimizer,
                            progress)
        save(progress)
        if events:
            write_log(folder, history, args.dropout > 0)
            events(epoch, train_loss=train_loss, val_loss=val_loss,
                   captions_per_second=speed, **judged)
        told = "".join(f", {name} {judged[key]:.1f}" for name, key in
                       (("BLEU-4", "val_bleu4"), ("CIDEr", "val_cider")) if judged)
        print(f"epoch {epoch}: training loss {train_loss:.4f}, validation loss "
              f"{val_loss:.4f} nats a word{told}, {speed:.1f} captions/s", flush=True)
    best = progress.history[-1 - waited(progress.history, args.select)]
    print(f"best by {args.select}: epoch {best['epoch']}, validation loss "
          f"{best['val_loss']:.4f}; see {os.path.join(folder, 'loss.png')}")


def arguments():
    parser = cli.parser(__doc__)
    positive = cli.number(int, at_least=1)
    size = cli.number(int, at_least=1, below=LARGEST)
    share = cli.number(float, at_least=0, below=1)
    parser.add_argument("--data", default="data", help="data set in COCO's layout")
    parser.add_argument("--tokens", help="folder of step 3 (default: <data>/tokens)")
    parser.add_argument("--features",
                        help="folder of step 2 (default: <data>/features)")
    parser.add_argument("--run", default="baseline", help="name below checkpoints/")
    parser.add_argument("--epochs", type=positive, default=20, help="in all")
    parser.add_argument("--batch-size", type=positive, default=64,
                        help="captions of a step, of all processes together")
    parser.add_argument("--embedding", type=size, default=256,
                        help="m, and D: size of word embeddings and annotation vectors")
    parser.add_argument("--units", type=size, default=512,
                        help="n, and A: size of the GRU and of the attention")
    parser.add_argument("--dropout", type=share, default=.3,
                        help="share of annotation channels, of embeddings and of the "
                             "deep output left out (section 4.3)")
    parser.add_argument("--penalty", type=cli.number(float, at_least=0), default=0.,
                        help="lambda of the doubly stochastic loss (eq. 14)")
    parser.add_argument("--no-gate", action="store_true",
                        help="leave out beta (section 4.2.1)")
    parser.add_argument("--no-state", action="store_true",
                        help="keep the state from the GRU, as the published tutorial "
                             "does, to see what that costs")
    parser.add_argument("--initial-state", choices=("mean", "zeros"), default="mean",
                        help="h_0 from the mean annotation vector (3.1.2), or zeros")
    parser.add_argument("--optimizer", choices=sorted(OPTIMIZERS), default="adam",
                        help="the paper takes rmsprop for Flickr8k, adam for COCO")
    parser.add_argument("--learning-rate", type=cli.number(float, above=0),
                        default=1e-3, help="of the optimizer")
    parser.add_argument("--base-batch-size", type=positive,
                        help="the batch size that --learning-rate is meant for: a "
                             "larger batch takes larger steps in proportion")
    parser.add_argument("--warm-up", type=cli.number(float, above=0), metavar="EPOCHS",
                        help="in which the learning rate rises from 0 to its height")
    parser.add_argument("--decay", type=cli.number(float, above=0, at_most=1),
                        default=1., help="factor on the learning rate after each epoch")
    parser.add_argument("--clip", type=cli.number(float, above=0), default=5.,
                        help="largest global norm of the gradients")
    parser.add_argument("--select", choices=sorted(SELECT), default="cider",
                        help="the best epoch is that of the lowest validation loss or "
                             "the highest score of validation captions")
    parser.add_argument("--val-images", type=positive, default=1000,
                        help="validation images captioned after each epoch")
    parser.add_argument("--patience", type=positive,
                        help="stop after so many epochs without a better one "
                             "(default: never)")
    parser.add_argument("--seed", type=cli.seed, default=0,
                        help="of first weights, order and dropout")
    parser.add_argument("--save-minutes", type=cli.number(float, above=0), default=10.,
                        help="between two checkpoints inside an epoch")
    parser.add_argument("--max-bad", type=cli.number(float, at_least=0, at_most=1),
                        default=.05, help="share of damaged features files tolerated")
    cli.add_restarts(parser)
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
