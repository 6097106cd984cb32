"""After step 5: does the attention point at what the words name?

    python -m analysis.pointing --run baseline

For every generated word that names an annotated category of its image: does the peak of
its attention map lie in a box of that category (the pointing game of Zhang et al. 2016,
"Top-down Neural Attention by Excitation Backprop"), and how much of the map's mass lies
inside the boxes (the attention correctness of Liu et al. 2017)? Both are also given for
the map of the next step, since a word's map is made before the word is known, and for
two baselines on the same words: uniform attention, and all of it on the centre. A third
figure is how much the map changes from one word to the next: maps that stay the same
are a known failure. Intervals are 95 % bootstrap intervals over images.

    python -m analysis.pointing --run baseline --of references

scores the words of people's captions instead, which the model is given one by one:
several times as many, and the same for every run, so that two runs can be compared.

Reads:  checkpoints/<run>/attention_<split>.npz and
        <data>/annotations/instances_<folder of the images>.json; for references also
        the run's weights, and the tokens and features that it was evaluated on
Writes: checkpoints/<run>/pointing_<split>.json, or pointing_<split>_references.json

Which words name which category: captioning/names.py.
"""
import os
import sys

if not __package__:  # started by its path, not with -m
    sys.path[0] = os.path.dirname(os.path.abspath(sys.path[0]))
import runtime  # noqa: F401  (first: it reports missing packages)
import collections

import numpy as np

from analysis.boxes import box_coverage, parser_of, read_annotated
from captioning.bootstrap import means
from captioning.features import cells_of
from captioning.maps import changes
from captioning.names import named, words_for
from captioning.runs import read_run
from runtime import atomic, cli

COLUMNS = ("peak", "peak_uniform", "peak_centre", "peak_after",
           "mass", "mass_uniform", "mass_centre", "mass_after")


def pointing_hits(words, alphas, objects, size, names, grid):
    """The figures of one caption, (n, len(COLUMNS)), one row per annotated name.

    words: list of str. alphas: (T, L), at least of these words. objects: list of
    (category, box), boxes as in `box_coverage`. names: from `words_for`. grid: the Grid
    of the L cells.

    The peak is that of the name's noun. The mass is the attention correctness of Liu et
    al. 2017, "Attention Correctness in Neural Image Captioning": the maximum over the
    name's words. 'after': the same for the maps one step later.
    """
    rows = []
    for first, last, category in named(words, names):
        boxes = [box for name, box in objects if name == category]
        if not boxes:
            continue
        share, middles, centre = box_coverage(boxes, size, grid)
        after = min(last + 1, len(alphas) - 1)
        peak = middles.ravel()[alphas.argmax(axis=1)]                     # (T,)
        mass = alphas.dot(share.ravel()) / alphas.sum(axis=1)             # (T,)
        near = tuple(slice((cells - 1) // 2, cells // 2 + 1)  # they meet in the centre
                     for cells in share.shape)
        rows.append((peak[last], middles.mean(), centre, peak[after],
                     mass[first:last + 1].max(), share.mean(),
                     share[near].mean(), mass[after]))
    return np.array(rows, float).reshape(-1, len(COLUMNS))


def gains(mean):
    """The peak's share minus the centre's, and the mass in the boxes relative to a
    uniform map's, (..., 2). mean: (..., len(COLUMNS)).
    """
    value = dict(zip(COLUMNS, np.moveaxis(mean, -1, 0)))
    return np.stack([value["peak"] - value["peak_centre"],
                     value["mass"] / value["mass_uniform"]], -1)


def written(decoded, vocabulary):
    """The captions of a Decoded as `score_pointing` takes them."""
    return [[(vocabulary.words(words[:steps]), alphas[:steps])]
            for words, alphas, steps in zip(decoded.words, decoded.alphas,
                                            decoded.steps)]


def score_pointing(captions, objects, seed, grid):
    """All figures of a split, a dict for JSON.

    captions: for each image a list of (words, alphas): T str and float (T, L). objects:
    from `read_objects`. grid: the Grid of the cells.
    """
    names = words_for(sorted({name for _, found in objects for name, _ in found}))
    pointed, moved, counts = [], [], collections.Counter()
    for of_image, (size, found) in zip(captions, objects):
        there = {name for name, _ in found}
        pointed.append(np.vstack([np.zeros((0, len(COLUMNS)))] + [
            pointing_hits(words, alphas, found, size, names, grid)
            for words, alphas in of_image]))
        counts.update(category for words, _ in of_image
                      for *_, category in named(words, names) if category in there)
        moved.append(np.concatenate([np.zeros(0)] + [
            changes(alphas[:len(words)]) for words, alphas in of_image])[:, None])
    if not sum(map(len, pointed)):
        raise cli.UserError("no word of the captions names an annotated category of "
                            "its image: there is nothing to score")
    summary = {name: [round(float(value), 4) for value in values]
               for name, values in zip(COLUMNS + ("peak_above_centre", "mass_ratio"),
                                       np.hstack([means(pointed, seed), means(
                                           pointed, seed, gains)]).T)}
    if sum(map(len, moved)):  # captions of more than one word
        summary["change"] = [round(float(value), 4) for value in
                             means(moved, seed)[:, 0]]
    return dict(summary, words=sum(map(len, pointed)), images=sum(
        len(rows) > 0 for rows in pointed), of_images=len(objects),
        categories=dict(counts.most_common()))


def show(summary):
    """Print the figures beside their baselines."""
    def cell(name, interval=True):
        value, low, high = (100 * x for x in summary[name])
        return f"{value:.1f}" + (f" ({low:.1f} - {high:.1f})" if interval else "")
    cli.table([("", "attention", "a step later", "spread evenly", "at the centre")] + [
        (title,) + tuple(cell(name + of) for of in ("", "_after", "_uniform",
                                                    "_centre"))
        for title, name in (("peak in a box of the named thing, %", "peak"),
                            ("mass in its boxes, %", "mass"))])
    times, low, high = summary["mass_ratio"]
    print(f"peak above the centre: {cell('peak_above_centre')} points; mass: "
          f"{times:.2f} ({low:.2f} - {high:.2f}) times that of attention spread evenly")
    print(f"on {summary['words']} words in the captions of {summary['images']} of "
          f"{summary['of_images']} images, with 95 % intervals")
    if "change" in summary:
        print("distance between the maps of one word and the next (0: the same, 100: "
              f"nothing in common): {cell('change')}")


def main():
    args = arguments()
    print("[after 5] pointing score", flush=True)
    run = read_run(args.run)
    with cli.locked(run.folder):
        decoded, objects = read_annotated(run, args)
        captions, name = written(decoded, run.vocabulary), args.split
        if args.of == "references":
            # Only here: it loads TensorFlow and the weights
            from captioning.forced import maps_of_references
            captions = maps_of_references(args.run, args.split, decoded.images)
            name += "_references"
        summary = score_pointing(captions, objects, args.seed,
                                 cells_of(run.settings, decoded.alphas.shape[2]))
        atomic.write_json(os.path.join(run.folder, f"pointing_{name}.json"), summary)
    show(summary)


def arguments():
    parser = parser_of(__doc__)
    parser.always("--seed", type=cli.seed, default=0, help="of the bootstrap")
    parser.always("--of", choices=("captions", "references"), default="captions",
                  help="whose words: the run's, or people's")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
