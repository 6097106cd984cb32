"""Step 4: train the captioner with teacher forcing, in eager mode.

    python train.py --data data --run baseline

Start the same command again and it resumes from the newest checkpoint, which is also
written inside an epoch (--save-minutes) and on Ctrl-C: the weights become those of a
run that was never stopped. Flags left out then keep the run's own values. Batches
hold captions of similar length, as in section 4.3 of the paper, to avoid padding.

    mpirun -np 4 python train.py --data data --run baseline

shares every batch among four processes, with the result that one would have had; so a
run can also be resumed with another number of them.

    python -m runtime.restart 5 train.py --data data --run baseline

restarts it, up to five times, when the GPU is lost or the process is killed.

    python train.py --data data --run other --start-from baseline

begins another run with the weights of the first. With --self-critical as well, it
samples captions and learns from their rewards (methods/self_critical.py).

Reads:  <tokens>/vocabulary.tsv, train.npz and val.npz; <features>/<split>/*.npy
Writes, below checkpoints/<run>/:
        settings.json                  the arguments, sizes and versions of the run
        vocabulary.tsv                 the words of the model
        calibration.npz                statistics of an untrained CNN, if it was one
        familiarity.npz                statistics of its images, to spot unusual ones
        localiser.npz                  the attention's teacher (--guidance)
        split.json, lineage.json       the images of training and validation, and what
                                       it and the runs before it were trained on
        newest.npz, previous.npz       weights, optimizer and progress
        best.npz                       the same, after the best epoch (--select)
        bad_features_<split>.txt       damaged files of step 2, if any
        log.csv, loss.png, events...   one row per epoch, its plot, and TensorBoard's
and <features>/means_<split>.npz       each image's mean vector, for the next run, too

After every epoch the validation loss is measured, and some validation images are
captioned without teacher forcing and scored: towards the end of training the loss gets
worse while the captions still get better, as the paper observes of log-likelihood and
BLEU.
"""
import runtime  # noqa: F401  (first: it reports missing packages)
import time
import zlib

import numpy as np
from tqdm import tqdm

from captioning.batches import PerShape, list_bad, read_splits, tensors
from captioning.checkpoints import (Progress, begin_epoch, checkpoint_path,
                                    create_optimizer_variables, resume,
                                    rotate_checkpoint, save_checkpoint,
                                    variables_of)
from captioning.decode import Decoder
from captioning.features import read_record, shape_of
from captioning.lineage import refuse_seen_by_ancestors, write_lineage
from captioning.log import curves_path, tell, write_log
from captioning.options import fixed
from captioning.models import build, start_from
from captioning.own import keep_for_pictures
from captioning.resuming import arguments, write_settings
from captioning.runs import commit, run_folder
from captioning.schedule import epochs_since_best, learning_rate_at
from captioning.tokens import read_references
from captioning.validation import ValidationScorer, validate
from methods.averaging import Averaging, better
from methods.hard_attention import reinforce, with_draws
from methods.label_smoothing import LabelSmoothing
from methods.localiser import Guide
from methods.scheduled_sampling import OwnWords
from methods.self_critical import SelfCritical, read_rewards
from model import DoublyStochastic, Sizes, loss
from runtime import cli, ranks, watchdog
from runtime.tf import (AdamOptimizer, RMSPropOptimizer, Variable, compiled,
                        device_errors, device_name, event_writer, start, tf,
                        unsorted_segment_sum, use_precision)

OPTIMIZERS = {"adam": AdamOptimizer, "rmsprop": RMSPropOptimizer}


class Trainer:
    """One optimizer step: gradients (compiled per shape), clipping, update."""

    def __init__(self, model, optimizer, terms=(), clip=5.):
        """terms: see model.loss. clip: largest global norm of the gradients."""
        self.model, self.optimizer, self.terms = model, optimizer, terms
        self.gradients, self.own_words = PerShape(self._gradients), OwnWords(model)
        self.clip = compiled(lambda *gradients: tf.clip_by_global_norm(gradients, clip))

    def compile_for(self, shapes):
        """Compile the step for batches of these shapes, see CaptionBatches.shapes."""
        self.gradients.compile_for(shapes)
        self.own_words.compile_for(shapes)

    def variables(self):
        """All that a checkpoint keeps, {name: Variable}."""
        return variables_of(self.model, self.optimizer, self.terms)

    def _gradients(self, batch, share):
        """Loss, cross-entropy, and the gradients in the order of model.weights.

        batch: Batch. share: a factor on all of them, float32 (). Returns a list of
        tensors.
        """
        variables = list(self.model.weights.values())
        with tf.GradientTape() as tape:
            total, cross_entropy, _ = loss(self.model, batch, self.terms)
            total = share * total
        gradients = [
            # The embeddings' gradient has one row for each word of the batch.
            unsorted_segment_sum(gradient.values, gradient.indices, variable.shape[0])
            if isinstance(gradient, tf.IndexedSlices) else gradient
            for gradient, variable in zip(tape.gradient(total, variables), variables)]
        return [total, share * cross_entropy] + gradients

    def reduced_gradients(self, batch, N):
        """The loss, cross-entropy and gradients of a batch shared among processes.

        batch: Batch, this process's captions; None if it has none. N: words of the
        whole batch. Each process divides the sum over its words by N, so the sum over
        processes is the average over all words, however unevenly they are shared.
        """
        dtype = self.model.E.dtype.base_dtype
        if batch is None:
            mine = [tf.zeros((), dtype), tf.zeros((), dtype)] + [
                tf.zeros_like(weight) for weight in self.model.weights.values()]
        else:
            batch = tensors(batch)
            share = tf.constant(int(batch.lengths.sum()) / N, dtype)
            mine = self.gradients(batch, share)
        return ranks.total(mine)

    def step(self, batch, N):
        """Take one step; return the cross-entropy in nats a word.

        The arguments are those of `reduced_gradients`. Raises FloatingPointError if
        the loss or the gradients are not finite; the weights are then unchanged.
        """
        total, cross_entropy, *gradients = self.reduced_gradients(batch, N)
        gradients, norm = self.clip(*gradients)
        for name, value in (("loss", total), ("gradient norm", norm)):
            if not np.isfinite(value.numpy()):
                raise FloatingPointError(f"the {name} is {float(value.numpy())}")
        self.optimizer.apply_gradients(zip(gradients, self.model.weights.values()))
        cross_entropy = float(cross_entropy.numpy())
        for term in self.terms:
            term.follow(cross_entropy)
        return cross_entropy


def plan_epoch(captions, args, epoch):
    """The batches of an epoch: whole, this process's share of each, and a checksum.

    Returns two lists of int arrays, caption numbers, and an int. The order depends only
    on the seed and the epoch.
    """
    order = captions.epoch(args.batch_size, np.random.RandomState([args.seed, epoch]))
    checksum = zlib.crc32(np.concatenate(order))
    if len(set(ranks.gather(checksum))) > 1:
        raise cli.UserError(f"{args.features}: the processes see different files "
                            "there; give all hosts the same folder")
    if ranks.size == 1:
        return order, order, checksum
    owners = captions.assign_images(order, ranks.size)
    mine = [numbers[owners[captions.tokens.image_of[numbers]] == ranks.rank]
            for numbers in order]
    return order, mine, checksum


def train_epoch(trainer, learning_rate, captions, progress, args, save):
    """Train to the end of the epoch that `progress` is in; return the new Progress.

    learning_rate: the optimizer's Variable. save: a function that saves a Progress,
    called every args.save_minutes, and before KeyboardInterrupt is raised. Dropout,
    too, depends only on the seed and the epoch, so a run that is stopped and resumed
    gives the same result as one that never stopped.
    """
    epoch = len(progress.history) + 1
    order, mine, checksum = plan_epoch(captions, args, epoch)
    if progress.batch and progress.order != checksum:
        cli.warn(f"the set of images with features has changed: epoch {epoch} starts "
                 "over")
        progress = begin_epoch(progress.history)
    trainer.compile_for(captions.shapes(mine))
    done, total, words = progress.batch, progress.total, progress.words
    begin = saved = time.time()

    def reached(batch):
        return Progress(progress.history, batch, total, words,
                        progress.seconds + time.time() - begin, checksum)
    batches = captions.batches(mine[done:], dropout=args.dropout,
                               sizes=trainer.model.sizes, seed=(args.seed, epoch))
    if args.attention == "hard":
        batches = with_draws(batches, args.expected, (args.seed, epoch))
    if args.scheduled_sampling:
        shares = (args.scheduled_sampling * (epoch - 1 + i / len(order)) / args.epochs
                  for i in range(done, len(order)))
        batches = trainer.own_words(batches, shares, (args.seed, epoch))
    with cli.interrupts_wait() as asked_to_stop, tqdm(
            total=len(captions.captions), initial=sum(map(len, order[:done])),
            desc=f"epoch {epoch}/{args.epochs}", unit=captions.unit,
            disable=ranks.rank > 0) as bar:
        for i, batch in enumerate(watchdog.watched(batches, "batch", f"epoch {epoch}",
                                                   done + 1), done):
            N = int(captions.tokens.lengths[order[i]].sum())
            learning_rate.assign(learning_rate_at(args, progress.history,
                                                  (i + 1) / len(order)))
            try:
                value = captions.measured(trainer.step(batch, N))
            except FloatingPointError as error:
                raise cli.UserError(
                    f"epoch {epoch}, batch {i + 1} of {len(order)}: {error}; "
                    f"{captions.explain_nonfinite(order[i])}the last checkpoint is "
                    "sound")
            total, words = total + value * N, words + N
            bar.update(len(order[i]))
            bar.set_postfix({captions.measure: f"{total / words:.3f}"}, refresh=False)
            stop = ranks.any_of(asked_to_stop())
            if stop or time.time() - saved > 60 * args.save_minutes:
                saved = time.time()
                save(reached(i + 1))
            if stop:
                ranks.gather(None)  # rank 0 has saved
                raise KeyboardInterrupt
    return reached(len(order))


def main():
    ranks.start()
    args = arguments(__doc__)
    with watchdog.watching(args.hang_minutes):
        run(args)


def run(args):
    """Prepare the data and train. args: the command's."""
    cli.print_heading(4, "train")
    folder = run_folder(args.run)
    if args.start_from == args.run:
        raise cli.UserError(f"--start-from {args.run}: a run cannot start from itself; "
                            "choose another --run")
    vocabulary, splits = read_splits(args.tokens, args.features)
    if ranks.rank == 0:
        refuse_seen_by_ancestors(args, splits["val"].tokens.images)
    rewards = read_rewards(args, splits["train"], vocabulary)
    scorer = None
    if args.select != "loss":
        scorer = ValidationScorer(splits["val"], read_references(args.tokens, "val"),
                                  vocabulary, args.val_images, args.seed)
    start()
    use_precision(args.precision)
    ranks.same_devices(device_name())
    settings = {key: vars(args)[key] for key in fixed(vars(args))}
    if ranks.from_first(settings) != settings:
        raise cli.UserError(f"{folder}: not all processes find the run there, so they "
                            "do not know its settings; give them all of its flags")
    with ranks.locked(folder), device_errors(args.batch_size):
        if ranks.rank == 0:
            list_bad(folder, splits, args.max_bad)
        train(args, folder, splits, vocabulary, scorer, rewards)
    cli.next_step("evaluate.py", "--run", args.run)


def begin_from(args, model, optimizer, vocabulary):
    """Give a new run the weights of --start-from."""
    start_from(args.start_from, model, vocabulary, args.features)
    if args.start_share:
        optimizer.begin()


def settings_of(args, vocabulary):
    """The content of settings.json: arguments, sizes and versions of the run."""
    shape = shape_of(args.features)
    sizes = Sizes(vocabulary=len(vocabulary), features=shape[-1],
                  annotation=args.embedding, embedding=args.embedding,
                  hidden=args.units, attention=args.units)
    return dict(vars(args), sizes=sizes._asdict(), shape=shape, device=device_name(),
                vocabulary_digest=vocabulary.digest(), commit=commit(),
                extractor=read_record(args.features), processes=ranks.size,
                versions={"tensorflow": tf.__version__, "numpy": np.__version__})


def terms_of(args):
    """The terms added to the cross-entropy, a list for model.loss."""
    terms = [args.label_smoothing and LabelSmoothing(args.label_smoothing),
             args.penalty and DoublyStochastic(args.penalty),
             args.guidance and Guide(args.guidance),
             reinforce(args)]
    return [term for term in terms if term]


def train(args, folder, splits, vocabulary, scorer, rewards):
    """Begin or resume the run in this folder, and train it to its last epoch.

    args: the command's. splits: {'train', 'val': CaptionBatches}. scorer: a
    ValidationScorer, or None. rewards: from `read_rewards`.
    """
    settings, events = settings_of(args, vocabulary), None
    if ranks.rank == 0:
        images = {name: some.tokens.images.tolist() for name, some in splits.items()}
        write_settings(folder, settings, images, vocabulary)
        write_lineage(args, images["train"])
        keep_for_pictures(folder, args.data, args.features, splits)
        events = event_writer(folder)
    model = build(settings)
    learning_rate = Variable(args.learning_rate, trainable=False, name="rate")
    optimizer = OPTIMIZERS[args.optimizer](learning_rate)
    if args.average or args.start_share:
        optimizer = Averaging(optimizer, model, args.average, args.start_share)
    create_optimizer_variables(model, optimizer)
    trainer = Trainer(model, optimizer, terms_of(args), args.clip)
    decoder = Decoder(model)
    progress = resume(folder, trainer.variables(), begin=lambda: args.start_from and (
        begin_from(args, model, optimizer, vocabulary)))
    if progress.history and events:  # the run may have ended just before this
        write_log(folder, progress.history, args.dropout > 0)
    for term in trainer.terms:
        term.prepare(folder, splits["train"], settings)
    if rewards:
        splits = dict(splits, train=SelfCritical(splits["train"], model, rewards,
                                                 args.self_critical))

    def save(progress):
        rotate_checkpoint(folder, trainer.variables(), progress)

    for epoch in range(len(progress.history) + 1, args.epochs + 1):
        history = progress.history
        if args.patience and history and (epochs_since_best(history, args.select)
                                          >= args.patience):
            print(f"no better for {args.patience} epochs (--patience): stopping")
            break
        progress = train_epoch(trainer, learning_rate, splits["train"], progress, args,
                               save)
        save(progress)  # validation can take long, and fail
        with better(optimizer):
            row = evaluate_epoch(decoder, splits, scorer, progress, args)
            history = history + [row]
            progress = begin_epoch(history)
            if events and epochs_since_best(history, args.select) == 0:
                # Saved before newest.npz: a run resumed from that must have it
                save_checkpoint(checkpoint_path(folder, "best"), trainer.variables(),
                                progress)
        save(progress)
        if events:
            write_log(folder, history, args.dropout > 0)
            events(epoch, **{name: value for name, value in row.items()
                             if name not in ("epoch", "seconds")})
        tell(history, args.select)
    best = progress.history[-1 - epochs_since_best(progress.history, args.select)]
    print(f"best by {args.select}: epoch {best['epoch']}, validation loss "
          f"{best['val_loss']:.4f}; see {curves_path(folder)}")


def evaluate_epoch(decoder, splits, scorer, progress, args):
    """The log's row for the epoch that `progress` has just finished."""
    epoch, begin = len(progress.history) + 1, time.time()
    val_loss = validate(decoder.model, splits["val"], args.batch_size)
    if not np.isfinite(val_loss):
        raise cli.UserError(
            f"epoch {epoch}: the validation loss is {val_loss}; "
            + splits["val"].explain_nonfinite(splits["val"].captions)
            + "the last checkpoint is sound")
    scored = scorer(decoder, args.batch_size) if scorer else {}
    trained = splits["train"]
    return ranks.from_first(dict(
        scored, epoch=epoch, val_loss=val_loss,
        **{trained.measure: progress.total / progress.words},
        captions_per_second=round(
            trained.each * len(trained.captions) / progress.seconds, 1),
        seconds=round(progress.seconds + time.time() - begin, 1)))


if __name__ == "__main__":
    cli.run(main)
