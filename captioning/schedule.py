"""The learning rate over a run, and which of its epochs is best.

Both depend only on the history of finished epochs and the position in the current one:
a run that was stopped and resumed takes the same steps.
"""
import math

# --select: the log's column, and whether its lowest or highest value is best.
SELECT = {"loss": ("val_loss", min), "bleu-4": ("val_bleu4", max),
          "cider": ("val_cider", max)}


def epochs_since_best(history, select):
    """Epochs since the best one; select: a key of SELECT.

    Ties, such as the zeros of the first epochs, go to the lowest validation loss.
    """
    key, best = SELECT[select]
    sign = 1 if best is min else -1
    values = [(sign * row[key], row["val_loss"]) for row in history]
    return len(values) - 1 - values.index(min(values))


def complaint(history, select):
    """A warning if scores cannot select an epoch, being all 0; else None."""
    key, _ = SELECT[select]
    if any(row[key] for row in history):
        return None
    return (f"{key} has been 0 so far: --select {select} goes by the validation loss "
            "until an epoch scores higher (CIDEr of a single image is always 0)")


def worse_epochs(history, select):
    """How many epochs were no better than all before them; select: a key of SELECT."""
    return sum(epochs_since_best(history[:n], select) > 0
               for n in range(1, len(history) + 1))


def learning_rate_at(args, history, done):
    """The learning rate when the share `done` of the epoch after this history is done.

    args: the command's, see options.py.
    """
    passed = len(history) + done
    height = args.learning_rate
    if args.schedule == "cosine":  # Loshchilov & Hutter 2017, without restarts
        height *= .5 * (1 + math.cos(math.pi * min(1., passed / args.epochs)))
    elif args.schedule == "plateau":
        height *= args.decay ** worse_epochs(history, args.select)
    else:
        height *= args.decay ** len(history)
    return height
