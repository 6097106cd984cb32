"""How the learning rate changes over a run, and which epoch is its best.

Both follow from the history of the finished epochs and the place in the present one: a
run that was stopped and resumed takes the same steps.
"""
import math

# --select: the figure of the log, and whether the lowest or the highest is the best.
SELECT = {"loss": ("val_loss", min), "bleu-4": ("val_bleu4", max),
          "cider": ("val_cider", max)}


def epochs_since_best(history, select):
    """Epochs since the best one; select: a key of SELECT.

    Among those of one score, as the 0 of the first epochs, it is that of the lowest
    validation loss.
    """
    key, best = SELECT[select]
    sign = 1 if best is min else -1
    values = [(sign * row[key], row["val_loss"]) for row in history]
    return len(values) - 1 - values.index(min(values))


def complaint(history, select):
    """What to say of scores that tell no epoch from another; None where they do."""
    key, _ = SELECT[select]
    if any(row[key] for row in history):
        return None
    return (f"{key} has been 0 so far: --select {select} goes by the validation loss "
            "until an epoch has more (CIDEr of a single image is always 0)")


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
