"""After step 5: does it matter where the model looked?

    python -m analysis.deletion --run baseline

A map may look right without being used. For every generated word that names an
annotated thing in its image, given the words before it: how much does log p(word) fall
when attention is masked and renormalised, without

    the cells with the highest weights, or as many random ones;
    the cells inside the thing's boxes, or as many random ones;
    all cells outside the boxes?

The mask applies to the word's step alone, or to all steps up to it, since the state
remembers earlier contexts. (The deletion game of Petsiuk et al. 2018, "RISE", played on
attention instead of pixels.)

And would another map have written the same word? With alpha permuted over the cells, or
even, at the word's step alone: how much does log p(word) fall, and how far is p from
what it was (permutation.py)? For the same words, and for all words of all captions,
their ends included.

Intervals are 95 % bootstrap intervals over images.

Reads:  checkpoints/<run>/, its attention_<split>.npz, the features it was decoded from,
        and <data>/annotations/instances_<folder of the images>.json
Writes: checkpoints/<run>/deletion_<split>.json, with each word's drop for the report
        (report.py)
"""
import os
import sys

if not __package__:  # started by its path, not with -m
    sys.path[0] = os.path.dirname(os.path.abspath(sys.path[0]))
import runtime  # noqa: F401  (first: it reports missing packages)
import typing

import numpy as np
from tqdm import tqdm

from analysis.boxes import box_coverage, parser_of, read_annotated
from analysis.drops import write_drops
from analysis.permutation import (PERMUTATIONS, REPLACED, random_for, replace_alpha,
                                  summarize_replaced)
from captioning.bootstrap import means
from captioning.decoded import read_source
from captioning.features import (cells_of, check_network, feature_path, read_features,
                                 shape_of)
from captioning.names import named, words_for
from captioning.runs import read_run
from captioning.tokens import START
from methods.ensemble import read_members, together
from runtime import cli
from runtime.tf import device_errors, start, tf

DRAWS = 4       # random sets of cells for each word
DELETED = (("most", "the cells looked at most"), ("random", "as many random cells"),
           ("boxes", "the cells inside the boxes"),
           ("random_boxes", "as many random cells"),
           ("outside", "all cells outside the boxes"))


class Name(typing.NamedTuple):
    """A word of a generated caption that names an annotated thing."""
    image: int          # index in the Decoded
    place: int          # index of the word in the caption
    inside: np.ndarray  # bool (L,): cells whose middles are in the thing's boxes


def log_probs(model, features, words, keep=None):
    """The log p of each word of B captions, given the words before it: float (B, T).

    features: (B, L, F). words: int32 (B, T). keep: bool (B, T, L), where each step may
    look (see Captioner.attend); None: everywhere.
    """
    context = model.encode(tf.constant(features))
    h, before, columns = model.h_0(context.a), np.full(len(words), START), []
    for t in range(words.shape[1]):
        Ey, gates = model.embed(before)
        h, z, _, _ = model.step(context, h, gates, None if keep is None
                                else tf.constant(keep[:, t].astype(np.float32)))
        log_p = tf.nn.log_softmax(model.deep_output(Ey, h, z)).numpy()
        columns.append(log_p[np.arange(len(words)), words[:, t]])
        before = words[:, t]
    return np.stack(columns, 1)


def find_names(decoded, objects, vocabulary, grid):
    """The Names in the captions of a Decoded; objects: from `read_objects`."""
    names = words_for(sorted({name for _, found in objects for name, _ in found}))
    found = []
    for i, (size, things) in enumerate(objects):
        words = vocabulary.words(decoded.words[i, :decoded.steps[i]])
        for _, place, category in named(words, names):
            boxes = [box for name, box in things if name == category]
            if boxes:
                found.append(Name(i, place, box_coverage(boxes, size, grid)[1].ravel()))
    return found


def kept_cells(name, alpha, cells, random):
    """Where attention may look in each case of DELETED: {case: bool (draws, L)}.

    Cases that would delete no cell, or all, are left out. alpha: (L,), the word's map.
    cells: how many highest-weighted cells to delete.
    """
    L, inside = len(alpha), name.inside

    def without(chosen):
        keep = np.ones(L, np.bool_)
        keep[chosen] = False
        return keep

    def sampled(count):
        return np.array([without(random.permutation(L)[:count]) for _ in range(DRAWS)])
    kept = {"most": without(np.argsort(-alpha)[:cells])[None], "random": sampled(cells)}
    if inside.any() and not inside.all():
        kept.update(boxes=~inside[None], random_boxes=sampled(int(inside.sum())),
                    outside=inside[None])
    return kept


def drops(model, features, words, names, alphas, cells, random):
    """The drop of each name's log p, in nats: float (names, 2, len(DELETED)).

    features: (L, F) of the image. words: int32 (T,). names: Names in its caption.
    alphas: (T, L). The middle axis: masked at the word's step, and at all steps up to
    it. nan where a case of DELETED does not apply.
    """
    table = np.full((len(names), 2, len(DELETED)), np.nan)
    rows, keeps = [], []
    for n, name in enumerate(names):
        for what, kept in kept_cells(name, alphas[name.place], cells, random).items():
            column = [key for key, _ in DELETED].index(what)
            for when in (0, 1):
                for keep in kept:
                    mask = np.ones((len(words), len(keep)), np.bool_)
                    mask[0 if when else name.place:name.place + 1] = keep
                    rows.append((n, when, column, name.place))
                    keeps.append(mask)
    count = len(rows)
    whole = log_probs(model, features[None], words[None])[0]
    values = log_probs(model, np.repeat(features[None], count, 0),
                       np.repeat(words[None], count, 0), np.array(keeps))
    falls = np.array([whole[place] - value[place]
                      for (*_, place), value in zip(rows, values)])
    for key in {row[:3] for row in rows}:
        table[key] = falls[[row[:3] == key for row in rows]].mean()
    return table


def summarize(fallen, seed):
    """Means and intervals, {'at_the_word' or 'up_to_it': {case: [mean, low, high]}}.

    In nats. fallen: for each image, its `drops`.
    """
    summary = {}
    for when, key in enumerate(("at_the_word", "up_to_it")):
        summary[key] = {}
        for column, (what, _) in enumerate(DELETED):
            values = [rows[:, when, column] for rows in fallen]
            values = [rows[~np.isnan(rows)][:, None] for rows in values]
            if sum(map(len, values)):
                summary[key][what] = [round(float(value), 4)
                                      for value in means(values, seed)[:, 0]]
    return summary


def summaries(replaced, names, seed):
    """The figures of other weights, of the words that name a thing and of all words.

    replaced: the `replace_alpha` of each image.
    """
    of_names = [replaced[i][[name.place for name in names if name.image == i]]
                for i in sorted({name.image for name in names})]
    return {"replaced": summarize_replaced(of_names, seed),
            "replaced_of_all": summarize_replaced(replaced, seed),
            "all_words": sum(map(len, replaced)), "all_images": len(replaced),
            "permutations": PERMUTATIONS}


def drops_of_words(decoded, names, fallen):
    """Each word's drop without its highest-weighted cells, masked at its step alone.

    fallen: for each image, its `drops`. Returns what `read_drops` reads, {image id:
    {'words', 'drops'}}.
    """
    entries, column = {}, [key for key, _ in DELETED].index("most")
    for i, rows in zip(sorted({name.image for name in names}), fallen):
        entries[str(decoded.image_ids[i])] = {
            "words": decoded.words[i, :decoded.steps[i]].tolist(),
            "drops": {str(name.place): round(float(drop), 3) for name, drop in
                      zip((n for n in names if n.image == i), rows[:, 0, column])}}
    return entries


def show(summary):
    """Print the figures as a table."""
    def cell(key, what):
        mean, low, high = summary[key][what]
        return f"{mean:.2f} ({low:.2f} - {high:.2f})"
    cli.table([("log p(word) falls by (nats) without", "at the word's step",
                "at all steps up to it")] + [
        (title.replace("the cells looked", f"the {summary['cells']} cells looked"),
         cell("at_the_word", what), cell("up_to_it", what))
        for what, title in DELETED if what in summary["at_the_word"]])
    print(f"on {summary['words']} words in the captions of {summary['images']} images, "
          "with 95 % intervals\n")
    cli.table([("with alpha at the word's step", "log p(word) falls by (nats)",
                "total variation distance of p, %")] + [
        (f"{title}, {whose} words",
         "{:.2f} ({:.2f} - {:.2f})".format(*figures[what]["fall"]), "{:.1f} ({:.1f} - "
         "{:.1f})".format(*np.multiply(100, figures[what]["distance"])))
        for whose, figures in (("those", summary["replaced"]),
                               ("all", summary["replaced_of_all"]))
        for what, title in REPLACED])
    print(f"all words: {summary['all_words']} in the captions of "
          f"{summary['all_images']} images, ends included; permuted: the mean fall and "
          f"the median distance of {summary['permutations']} permutations")


def main():
    args = arguments()
    print("[after 5] deletion test", flush=True)
    start()
    run = read_run(args.run)
    with cli.locked(run.folder), device_errors():
        decoded, objects = read_annotated(run, args)
        source = read_source(run, args.split)
        features = source["features"]
        runs = read_members([os.path.basename(run.folder), *source["with"]],
                            source["checkpoint"], source["look"])
        for each in runs:
            check_network(features, each.settings, each.folder)
        model = together(runs).model
        locations = decoded.alphas.shape[2]
        if args.cells >= locations:
            raise cli.UserError(f"--cells {args.cells}: the maps have {locations} "
                                "cells; give fewer")
        names = find_names(decoded, objects, run.vocabulary,
                           cells_of(run.settings, locations))
        if not names:
            raise cli.UserError("no generated word names an annotated category of its "
                                "image: there is nothing to test")
        random, fallen, replaced = np.random.RandomState(args.seed), [], []
        for i, image in enumerate(tqdm(decoded.images.tolist(), unit="image")):
            maps = read_features(feature_path(features, image), shape_of(features))
            words = decoded.words[i, :decoded.steps[i]]
            own = [name for name in names if name.image == i]
            replaced.append(replace_alpha(model, maps, words,
                                          random_for(image, args.seed)))
            if own:
                fallen.append(drops(model, maps, words, own,
                                    decoded.alphas[i, :len(words)], args.cells, random))
        summary = dict(summarize(fallen, args.seed), words=len(names),
                       images=len(fallen), cells=args.cells,
                       **summaries(replaced, names, args.seed),
                       of_each_word=drops_of_words(decoded, names, fallen))
        write_drops(run.folder, args.split, summary)
    show(summary)


def arguments():
    parser = parser_of(__doc__)
    parser.always("--cells", type=cli.positive, default=8,
                  help="how many highest-weighted cells to delete")
    parser.always("--seed", type=cli.seed, default=0,
                  help="of the random cells and of the bootstrap")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
