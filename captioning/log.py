"""What a run tells of its epochs: a line each, printed and in a table, and its curves.

    checkpoints/<run>/log.csv, loss.png
"""
import csv
import io
import os

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from captioning import maps
from captioning.schedule import complaint
from runtime import atomic, cli, drawing


def curves_path(folder):
    """The picture of a run's loss and scores."""
    return os.path.join(folder, "loss.png")


def tell(history, select):
    """Print the last row of the log as a line, and warn of attention that shows nothing
    and of scores that select nothing.
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
    """log.csv and loss.png from the whole history: they never contradict it.

    dropout: whether the training loss was measured with it; the curve then says so.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, sorted(set().union(*history)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    with atomic.writing(os.path.join(folder, "log.csv"), "w", encoding="utf-8") as file:
        file.write(text.getvalue())
    try:
        with drawing.defaults():
            figure = draw_curves(history, dropout)
            with atomic.writing(curves_path(folder)) as file:
                figure.canvas.print_figure(file, dpi=150, format="png")
    except OSError:
        raise
    except Exception as error:  # a picture is no reason to stop training
        cli.warn(f"{curves_path(folder)}: could not be drawn ({cli.one_line(error)})")


def draw_curves(history, dropout):
    """The Figure of loss.png; history, dropout: as for `write_log`."""
    training = "training (with dropout)" if dropout else "training"
    panels = [("cross-entropy (nats a word)",
               (("train_loss", "#4477aa", training),
                ("val_loss", "#ee6677", "validation")))]
    if "train_reward" in history[0]:
        panels = [("cross-entropy (nats a word)", panels[0][1][1:]),
                  ("reward of a sample", (("train_reward", "#4477aa", "training"),))]
    if "val_cider" in history[0]:
        panels.append(("score of validation captions (%)",
                       (("val_cider", "#228833", "CIDEr"),
                        ("val_bleu4", "#aa3377", "BLEU-4"))))
    if all("val_entropy" in row for row in history):  # releases before had none
        panels.append(("maps of validation captions (%)",
                       (("val_entropy", "#66ccee", "entropy (even: 100)"),
                        ("val_change", "#ccbb44", "change from word to word"))))
    figure = Figure(figsize=(4.5 * len(panels), 3.2))
    FigureCanvasAgg(figure)
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
    return figure
