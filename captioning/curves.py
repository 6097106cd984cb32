"""Curves of a run: its loss and scores after each epoch."""
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from runtime import atomic, drawing


def write_curves(path, history, dropout):
    """Draw the curves into a PNG file; history, dropout: see log.write_log."""
    with drawing.defaults():
        figure = draw_curves(history, dropout)
        with atomic.writing(path) as file:
            figure.canvas.print_figure(file, dpi=150, format="png")


def draw_curves(history, dropout):
    """The curves as a Figure; history, dropout: see log.write_log."""
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
    if all("val_entropy" in row for row in history):  # not in earlier releases
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
