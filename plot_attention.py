"""Step 6: draw where the model looked for each word of a caption.

    python plot_attention.py --run baseline                     # some of the split
    python plot_attention.py --run baseline --images a.jpg      # of the split, by name
    python plot_attention.py --run baseline --best 5 --worst 5  # by CIDEr
    python plot_attention.py --run baseline --boxes             # with annotated boxes
    python plot_attention.py --run baseline --picture mine.jpg  # a file of your own

As in the paper, a map is upsampled and smoothed with a Gaussian filter; it brightens
the picture where the model looked. Under it are the word's probability and, if the
model has one, the gate beta (section 4.2.1). The CNN saw the whole picture, stretched
to a square; each cell's weight is drawn at the middle of what that cell sees
(captioning/grid.py). No display is needed.

Reads:  checkpoints/<run>/attention_<split>.npz and the images; for --picture the
        weights of the run and the network that made its features
Writes: checkpoints/<run>/attention/<image>.png, .pdf or .svg
        checkpoints/<run>/attention/own_captions.json     for --picture
"""
import runtime  # noqa: F401  (first: it reports missing packages)
import os

import numpy as np

from captioning.coco import read_objects
from captioning.decoded import read_decoded, read_scores, read_source, scores_path
from captioning.features import cells_of
from captioning.figures import COLOURS, FORMATS, LONGEST_SIDE, draw, notes_of
from captioning.names import boxes_of
from captioning.own import BEAM, caption_own, load
from captioning.pictures import load_picture, titles
from captioning.runs import add_run_flag, has_gate, read_run
from runtime import cli


def choose_images(decoded, args, folder):
    """Indices of the images to draw, chosen by the flags.

    By name (--images), by id (--ids), the --best and --worst by CIDEr, else --count at
    random. folder: the run's. Raises cli.UserError if an image is missing.
    """
    for wanted, there, what in (
            (args.images, [os.path.basename(str(name)) for name in decoded.images],
             "--images"), (args.ids, decoded.image_ids.tolist(), "--ids")):
        missing = [name for name in wanted or () if name not in there]
        if missing:
            raise cli.UserError(f"{what} {missing[0]}: not among the {len(there)} "
                                "decoded images of this split; for a file of your own "
                                "use --picture")
        if wanted:
            return [there.index(name) for name in wanted]
    if args.best or args.worst:
        found = read_scores(folder, args.split)
        row = {str(i): n for n, i in enumerate(decoded.image_ids)}
        if not set(found["image_ids"]) <= set(row):
            raise cli.UserError(f"{scores_path(folder, args.split)}: of other images; "
                                "run evaluate.py again")
        ranked = sorted(zip(found["of_each_image"]["CIDEr"], found["image_ids"]))
        order = [row[i] for _, i in reversed(ranked)]
        worst = order[::-1][:args.worst or 0]
        return list(dict.fromkeys(order[:args.best or 0] + worst[::-1]))
    chosen = np.random.RandomState(args.seed).permutation(len(decoded.images))
    return sorted(int(i) for i in chosen[:args.count])


def draw_split(run, args):
    """Draw images of the split; return the paths of the figures."""
    data = args.data or read_source(run, args.split)["data"]
    decoded = read_decoded(run.folder, args.split, run.vocabulary)
    drawn, lost = [], []
    prefix = "" if args.split == "val" else args.split + "_"  # splits share a folder
    title = titles(decoded.images.tolist())
    chosen = choose_images(decoded, args, run.folder)
    objects = read_objects(data, decoded.images[chosen].tolist(),
                           decoded.image_ids[chosen].tolist()) if args.boxes else None
    for n, i in enumerate(chosen):
        name = str(decoded.images[i])
        try:
            picture = load_picture(os.path.join(data, name), LONGEST_SIDE)
        except cli.UserError as error:
            lost.append(error)
            continue
        words = run.vocabulary.words(decoded.words[i, :decoded.steps[i]])
        notes = notes_of(decoded.log_probs[i, :len(words)],
                         decoded.betas[i] if has_gate(run.settings) else None)
        drawn.append(_figure(run, args, prefix + title[i], picture, words,
                             decoded.alphas[i, :len(words)], notes,
                             boxes_of(words, *objects[n]) if args.boxes else None))
    if lost and not drawn:
        raise lost[0]
    for error in lost:
        cli.warn(f"left out: {error}")
    return drawn


def draw_own(args):
    """Caption and draw the user's own pictures; return the paths of the figures."""
    captioner = load(args.run, args.features)
    draw = None if args.captions_only else {
        "format": args.format, "layout": args.layout, "colours": args.colours}
    with cli.locked(captioner.run.folder):
        return caption_own(captioner, args.picture, args.beam, draw)[1]


def _figure(run, args, title, picture, words, alphas, notes, boxes=None):
    """Draw one figure into the run's folder, print and return its path."""
    path = os.path.join(run.folder, "attention", f"{title}.{args.format}")
    draw(picture, words, alphas, path, notes, args.layout, args.colours,
         cells_of(run.settings, alphas.shape[1]), boxes)
    print(f"{path}: {' '.join(words)}", flush=True)
    return path


def main():
    args = arguments()
    cli.print_heading(6, "plot attention")
    if args.picture:
        drawn = draw_own(args)
    else:
        run = read_run(args.run)
        with cli.locked(run.folder):
            drawn = draw_split(run, args)
    if drawn:
        print(f"{len(drawn)} figures; open {drawn[0]}")


def arguments():
    parser = cli.parser(__doc__)
    chosen = ("--picture", "--images", "--ids", "--best", "--worst")
    add_run_flag(parser)
    parser.add_argument("--split", without="--picture", type=cli.name, default="val",
                        help="which of the decoded splits: train, val, test, or the "
                             "name that evaluate.py gave to another data set's")
    parser.add_argument("--images", without="--picture", nargs="+", metavar="NAME",
                        otherwise="--count at random", help="file names of the split")
    parser.add_argument("--ids", without=chosen[:2], nargs="+", metavar="ID",
                        help="COCO's image ids")
    parser.add_argument("--best", without=chosen[:3], type=cli.positive, metavar="N",
                        help="the N images of the highest CIDEr; also with --worst")
    parser.add_argument("--worst", without=chosen[:3], type=cli.positive, metavar="N",
                        help="the N images of the lowest CIDEr")
    parser.always("--picture", nargs="+", metavar="FILE",
                  help="caption and draw these image files, or folders of them, "
                       "instead")
    parser.add_argument("--boxes", without="--picture", action="store_true",
                        help="draw the annotated boxes: all of them over the picture, "
                             "those of a named thing over its word's map")
    parser.add_argument("--captions-only", needs="--picture", action="store_true",
                        help="caption, and draw nothing")
    parser.add_argument("--count", without=chosen, type=cli.positive, default=8,
                        help="images to draw")
    parser.add_argument("--seed", without=chosen, type=cli.seed, default=0,
                        help="of the choice of images")
    parser.add_argument("--beam", needs="--picture", type=cli.positive, default=BEAM,
                        help="width of the beam search")
    parser.add_argument("--layout", without="--captions-only",
                        choices=("grid", "strip"), default="grid",
                        help="rows of five, or all in one row")
    parser.add_argument("--colours", without="--captions-only", choices=COLOURS,
                        default="light",
                        help="light over dark as in the paper, or a colour map")
    parser.add_argument("--format", without="--captions-only", choices=FORMATS,
                        default="png", help="file format of the figures")
    parser.add_argument("--data", without="--picture",
                        otherwise="that of the decoded captions",
                        help="data set with the images")
    parser.add_argument("--features", needs="--picture", otherwise="the run's",
                        help="folder of step 2 that says which network")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
