"""A run's log: one row per epoch, printed and in a table, and its curves.

    checkpoints/<run>/log.csv, loss.png
"""
import csv
import io
import os

from captioning import maps
from captioning.schedule import complaint
from runtime import atomic, cli


def curves_path(folder):
    """The path of the plot of a run's loss and scores."""
    return os.path.join(folder, "loss.png")


def tell(history, select):
    """Print the last row of the log as a line, and warn of uninformative attention and
    of scores that cannot select an epoch.
    """
    row = history[-1]
    scored = "".join(f", {name} {row[key]:.1f}" for name, key in
                     (("BLEU-4", "val_bleu4"), ("CIDEr", "val_cider"),
                      ("entropy of the maps", "val_entropy"),
                      ("change", "val_change")) if key in row)
    training = (f"loss {row['train_loss']:.4f}" if "train_loss" in row else
                f"reward {row['train_reward']:.4f}")
    print(f"epoch {row['epoch']}: training {training}, validation "
          f"loss {row['val_loss']:.4f} nats a word{scored}, "
          f"{row['captions_per_second']:.1f} captions/s", flush=True)
    flat = maps.complaint(row["val_entropy"], row["val_change"]) if (
        "val_entropy" in row) else None
    for warning in (flat and f"{flat}; see docs/attention.md",
                    complaint(history, select)):
        if warning:
            cli.warn(warning)


def write_log(folder, history, dropout):
    """Write log.csv and loss.png anew from the whole history, to keep them consistent.

    dropout: whether the training loss was measured with it; the curve then says so.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, sorted(set().union(*history)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    with atomic.writing(os.path.join(folder, "log.csv"), "w", encoding="utf-8") as file:
        file.write(text.getvalue())
    try:
        # Imported here: matplotlib takes a second, and the report only needs the path
        from captioning.curves import write_curves
        write_curves(curves_path(folder), history, dropout)
    except OSError:
        raise
    except Exception as error:  # a failed plot is no reason to stop training
        cli.warn(f"{curves_path(folder)}: could not be drawn ({cli.one_line(error)})")
