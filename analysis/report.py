"""After step 5: an HTML page for exploring captions and attention.

    python -m analysis.report --run baseline
    python -m analysis.report --run baseline --compare other     # two runs side by side
    python -m analysis.report --run baseline --pictures mine/    # your own pictures

The page is self-contained: it opens from the disk, without a server or network. First
come scores with their intervals, habits, loss curves and settings, then a gallery of
images with generated and reference captions. Pointing at a word, or moving to it with
the keyboard, shows where the model looked for it, how sharp that map is, and how much
less probable the word becomes without it, if deletion.py has measured that. The key b
draws the boxes of the annotated things.

With --pictures the run captions your own pictures, draws their figures as
plot_attention.py does, and shows them in the gallery.

Reads:  checkpoints/<run>/ (what steps 4 and 5 wrote, and nbest_<split>.json and
        deletion_<split>.json if they exist), the images, the references, and
        <data>/annotations/instances_<folder of the images>.json if it exists
Writes: checkpoints/<run>/report_<split>.html
        checkpoints/<run>/report_own_<path>.html and attention/own_*    with --pictures
"""
import os
import sys

if not __package__:  # started by its path, not with -m
    sys.path[0] = os.path.dirname(os.path.abspath(sys.path[0]))
import runtime  # noqa: F401  (first: it reports missing packages)
import base64
import io
import json
import re

import jinja2
import numpy as np
from PIL import Image
from tqdm import tqdm

from analysis.drops import read_drops
from captioning import maps
from captioning.coco import has_boxes, read_objects
from captioning.decoded import (read_contents, read_decoded, read_nbest, read_scores,
                                read_source, refuse_other_images)
from captioning.features import cells_of
from captioning.log import curves_path
from captioning.names import boxes_of
from captioning.own import BEAM, caption_own, load
from captioning.pictures import load_picture
from captioning.runs import add_run_flag, has_gate, read_run, run_name
from captioning.tokens import read_references
from runtime import atomic, cli

TEMPLATES = os.path.dirname(os.path.abspath(__file__))
SHOWN = ("CIDEr", "BLEU-4", "METEOR", "ROUGE-L")  # for each image, where available
LONGEST_SIDE = 400   # pixels of a picture on the page
LONGEST_OWN = (100, 480, 320)  # own pictures: 480 pixels for up to 100, else 320
QUALITY = 78         # of its JPEG: 200 pictures stay far below 20 MB
SURENESS = "mean probability of a word, %"  # own captions can be sorted by it


def data_uri(content, kind):
    """Bytes as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def thumbnail(path, longest_side=LONGEST_SIDE):
    """A picture as (data URI, width, height). Raises cli.UserError."""
    image = Image.fromarray(load_picture(path, longest_side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return (data_uri(buffer.getvalue(), "image/jpeg"),) + image.size


def packed(alpha):
    """Attention weights (L,) as base64, one byte each, 255 for the largest."""
    scaled = np.asarray(alpha) / max(float(np.max(alpha)), 1e-12)
    return base64.b64encode(np.round(255 * scaled).astype(np.uint8).tobytes()).decode()


class RunView:
    """One run's results on a split, by image id."""

    def __init__(self, name, split):
        """Raises cli.UserError if the run or its captions are missing or damaged."""
        self.name, self.run = name, read_run(name)
        folder = self.run.folder
        self.decoded = read_decoded(folder, split, self.run.vocabulary)
        self.scores = read_scores(folder, split)
        self.row = {str(i): row for row, i in enumerate(self.decoded.image_ids)}
        self.place = {i: n for n, i in enumerate(self.scores["image_ids"])}
        if not set(self.place) <= set(self.row):
            raise cli.UserError(f"{folder}: captions and scores are of other images; "
                                "run evaluate.py again")
        self.beams = read_nbest(folder, split)
        self.drops = read_drops(folder, split, self.decoded)
        self.grid = cells_of(self.run.settings, self.decoded.alphas.shape[2])

    def summary(self):
        """The page's data about the run as a whole."""
        path = curves_path(self.run.folder)
        try:
            with atomic.reading(path, "rb") as file:
                curves = data_uri(file.read(), "image/png")
        except FileNotFoundError:
            raise cli.UserError(f"{path}: missing; train.py draws it when the run is "
                                "resumed")
        settings = {key: json.dumps(value) if isinstance(value, dict) else value
                    for key, value in self.run.settings.items()}
        return {"name": self.name, "scores": self.scores, "curves": curves,
                "settings": settings}

    def caption(self, identity, objects):
        """The page's data about one image: the template's, and the script's.

        objects: from `read_objects`, or None.
        """
        row = self.row[identity]
        words = self.run.vocabulary.words(
            self.decoded.words[row, :self.decoded.steps[row]])
        T, each = len(words), self.scores["of_each_image"]
        drops = self.drops.get(identity, {})
        return ({"words": words, "beam": self.beams.get(identity, []),
                 "scores": {name: each[name][self.place[identity]] for name in SHOWN
                            if name in each}},
                facts_of(words, self.decoded.log_probs[row, :T],
                         self.decoded.alphas[row, :T],
                         self.decoded.betas[row, :T] if has_gate(self.run.settings)
                         else None, self.grid,
                         [drops.get(place) for place in range(T)], objects))


def facts_of(words, log_probs, alphas, betas, grid, drops=None, objects=None):
    """The script's data about a caption of T words.

    alphas: (T, L). betas: (T,), or None. grid: the Grid of the L cells. drops: the
    words' results from analysis/deletion.py, or None. objects: from `read_objects`, or
    None.
    """
    boxes = boxes_of(words, *objects)[1:] if objects else [[] for _ in words]
    return {"maps": [packed(alpha) for alpha in alphas],
            "entropies": [round(100 * e) for e in maps.entropy(alphas).tolist()],
            "drops": drops or [None] * len(words),
            "boxes": [rounded(some) for some in boxes],
            "probabilities": [round(float(np.exp(p)), 3) for p in log_probs],
            "betas": betas if betas is None else [round(float(b), 3) for b in betas],
            "grid": [[round(first, 5), round(step, 5), cells]
                     for first, step, cells in grid]}


def rounded(boxes):
    """Boxes for the script: lists of [x, y, w, h], as fractions of the sides."""
    return [[round(float(share), 4) for share in box] for box in boxes]


def objects_of(view, data, identities):
    """The `read_objects` of each image, by id; {} if the data set has no boxes."""
    names = [str(view.decoded.images[view.row[i]]) for i in identities]
    if not has_boxes(data, names):
        return {}
    return dict(zip(identities, read_objects(data, names, identities)))


def make(views, data, references, split, count, seed):
    """Build the page, a str. views: one or two RunViews. data: folder of the images."""
    identities = [i for i in views[0].row if all(i in other.place for other in views)]
    if not identities:
        raise cli.UserError(f"{views[0].name} and {views[1].name} have no image of "
                            f"{split} in common")
    chosen = np.random.RandomState(seed).permutation(len(identities))[:count]
    chosen = [identities[n] for n in sorted(chosen)]
    objects, cards, facts = objects_of(views[0], data, chosen), [], []
    for i in tqdm(chosen, desc="report", unit="image"):
        name = str(views[0].decoded.images[views[0].row[i]])
        try:
            picture, width, height = thumbnail(os.path.join(data, name))
        except cli.UserError as error:
            cli.warn(f"left out: {error}")
            continue
        things = objects.get(i)
        captions = [run.caption(i, things) for run in views]
        shown, first = captions[0][0]["scores"], captions[0][0]["words"]
        cards.append({"name": name, "picture": picture, "width": width,
                      "height": height, "references": references[i],
                      "captions": [caption for caption, _ in captions]})
        facts.append({"number": len(facts), "score": shown[SHOWN[0]],
                      "length": len(first), "words": first, "name": name,
                      "boxes": rounded(boxes_of([], *things)[0]) if things else [],
                      "runs": [rest for _, rest in captions]})
        if len(views) > 1:
            facts[-1]["gain"] = captions[1][0]["scores"][SHOWN[0]] - shown[SHOWN[0]]
    sortings = [("number up", "as they come"),
                ("score down", f"{SHOWN[0]}, best first"),
                ("score up", f"{SHOWN[0]}, worst first"),
                ("length down", "longest first"), ("length up", "shortest first")]
    if len(views) > 1:
        sortings += [("gain down", f"gain of {views[1].name}"),
                     ("gain up", f"gain of {views[0].name}")]
    return render(
        title=" and ".join(run.name for run in views), own=False, cards=cards,
        runs=[run.summary() for run in views], data=facts, split=split,
        boxes=bool(objects), total=len(identities), sortings=sortings,
        score_names=list(views[0].scores["scores"]), score_key=SHOWN[0])


def render(**names):
    """Render the template as a str; names: its variables."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES),
                                     autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("report.html").render(**names)


def make_own(run, captions):
    """Build the page of the user's own pictures, a str.

    run: its name. captions: OwnCaptions.
    """
    few, large, small = LONGEST_OWN
    longest_side = large if len(captions) <= few else small
    cards, facts = [], []
    for caption in captions:
        picture, width, height = thumbnail(caption.path, longest_side)
        sureness = 100 * float(np.exp(np.mean(caption.log_probs))) if caption.words \
            else 0.
        cards.append({"name": caption.path, "picture": picture, "width": width,
                      "height": height, "references": [], "remark": caption.remark,
                      "captions": [{"words": caption.words, "beam": [],
                                    "scores": {SURENESS: sureness}}]})
        facts.append({"number": len(facts), "score": sureness, "name": caption.path,
                      "length": len(caption.words), "words": caption.words, "boxes": [],
                      "strangeness": caption.strangeness or 0, "runs": [facts_of(
                          caption.words, caption.log_probs, caption.flat_alphas,
                          caption.betas, caption.grid)]})
    sortings = [("number up", "as they come"), ("score down", "surest first"),
                ("score up", "least sure first"), ("length down", "longest first"),
                ("strangeness up", "most like the training images"),
                ("strangeness down", "least like the training images")]
    return render(title=f"Pictures, as {run} sees them", own=True, cards=cards, runs=[],
                  data=facts, boxes=False, total=len(cards), sortings=sortings,
                  score_key=SURENESS)


def write_own_page(args):
    """Caption and draw the user's own pictures; write their page. Returns its path."""
    captioner = load(args.run)
    folder = captioner.run.folder
    title = re.sub(r"[^\w.-]+", "_", os.path.normpath(args.pictures[0])).strip("_.-")
    path = os.path.join(folder, f"report_own_{title[-100:]}.html")
    with cli.locked(folder):
        captions, _ = caption_own(captioner, args.pictures, args.beam,
                                  None if args.no_figures else {"format": "png"})
        with atomic.writing(path, "w", encoding="utf-8") as file:
            file.write(make_own(args.run, captions))
    return path


def main():
    args = arguments()
    print("[after 5] report", flush=True)
    path = write_own_page(args) if args.pictures else write_page(args)
    print(f"{os.path.getsize(path) / 1e6:.2f} MB; open {path}")


def write_page(args):
    """Write the page of a split. Returns its path."""
    views = [RunView(name, args.split) for name in [args.run] + (
        [args.compare] if args.compare else [])]
    contents = [read_contents(view.run.folder, args.split) for view in views]
    refuse_other_images(views[-1].name, contents[0], contents[-1])
    source = read_source(views[0].run, args.split)
    split = views[0].scores.get("split", args.split)
    references = read_references(args.tokens or source["tokens"], split)
    lost = [i for i in views[0].place if i not in references]
    if lost:
        raise cli.UserError(f"{args.tokens or source['tokens']}: has no references "
                            f"for image {lost[0]}; run evaluate.py again")
    path = os.path.join(views[0].run.folder, f"report_{args.split}.html")
    with cli.locked(views[0].run.folder):
        page = make(views, args.data or source["data"], references, args.split,
                    args.count, args.seed)
        with atomic.writing(path, "w", encoding="utf-8") as file:
            file.write(page)
    return path


def arguments():
    parser = cli.parser(__doc__)
    add_run_flag(parser)
    parser.always("--pictures", nargs="+", metavar="PATH",
                  help="any image files, or folders of them, instead of a split")
    of_splits = {"without": "--pictures"}
    parser.add_argument("--compare", type=run_name, metavar="RUN", **of_splits,
                        help="another run to show beside it")
    parser.add_argument("--split", type=cli.name, default="val", **of_splits,
                        help="which of the decoded splits, as for plot_attention.py")
    parser.add_argument("--count", type=cli.positive, default=200, **of_splits,
                        help="images to show: a random sample if there are more")
    parser.add_argument("--seed", type=cli.seed, default=0, **of_splits,
                        help="of the random sample")
    parser.add_argument("--data", otherwise="that of the decoded captions",
                        **of_splits, help="data set in COCO's layout")
    parser.add_argument("--tokens", otherwise="those of the decoded captions",
                        **of_splits, help="folder of step 3")
    parser.add_argument("--beam", needs="--pictures", type=cli.positive, default=BEAM,
                        help="width of the beam search")
    parser.add_argument("--no-figures", needs="--pictures", action="store_true",
                        help="write the page only")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
