"""Step 5: caption a split without teacher forcing, and score the captions.

    python evaluate.py --run baseline
    python evaluate.py --run baseline --beam 3
    python evaluate.py --run baseline --compare other    # a paired bootstrap

Each word is decoded from the model's own previous word, its state and the image, up to
the end token. Scores are those of the COCO caption tools against all references of an
image, in percent; BLEU also without brevity penalty, as in the paper's table, and with
punctuation, as in its authors' references (see scores.py). METEOR and the tools'
tokenizer need Java. Intervals are 95 % bootstraps over images.

Reads:  checkpoints/<run>/, the tokens and features that the run names
Writes, below checkpoints/<run>/:
        captions_<split>_<run>_results.json   what the COCO server takes
        attention_<split>.npz                 see Decoded for what is inside
        scores_<split>.json                   the scores, and how they were made
        nbest_<split>.json                    only with --n-best
"""
import os
import time

from captioning import scores
from captioning.coco import split_of
from captioning.decode import decode_files
from captioning.decoded import (decoded_path, nbest_path, pack, read_captions_of,
                                remove_scores, write_decoded, write_nbest,
                                write_results, write_scores)
from captioning.features import find_features
from captioning.runs import RUNS, read_run, read_split
from captioning.tokens import (PAD, START, UNK, read_references, read_tokens,
                               references_path)
from runtime import cli
from runtime.tf import device_errors, device_name, start, tf


def refuse_seen(folder, split, images):
    """Raise cli.UserError if the run has trained on any of these images."""
    seen = set(read_split(folder)["train"]) & set(images)
    if seen:
        raise cli.UserError(f"{len(seen)} of {len(images)} images of {split} were "
                            f"trained on (one is {sorted(seen)[0]}), so the scores "
                            "would say nothing; --allow-seen scores them all the same")


def show(summary):
    """Print the scores as a table, then the habits beside those of people."""
    rows = [("", "score", "95 % interval")]
    for name, value in summary["scores"].items():
        low, high = summary["intervals"][name]
        rows.append((name, f"{value:.2f}", f"{low:.2f} - {high:.2f}"))
    cli.table(rows)
    print("with punctuation: full stops and commas are words, no brevity penalty\n")
    cli.table([("", "generated", "first reference")] + [
        (name, f"{value:.1f}", f"{summary['habits_of_first_references'][name]:.1f}")
        for name, value in summary["habits"].items()])


def compare(run, other, texts, theirs, references):
    """Print the paired bootstrap of two runs on the images that both have captioned.

    run, other: their names. texts, theirs: their captions by image id.
    """
    both = sorted(set(texts) & set(theirs))
    scored = [scores.score({i: captions[i] for i in both}, references)
              for captions in (theirs, texts)]
    print(f"\n{run} minus {other} on {len(both)} images:")
    cli.table([("", "points", "95 % interval", "p")] + [
        (name, f"{point:+.2f}", f"{low:+.2f} to {high:+.2f}", f"{p:.3f}")
        for name, (point, low, high, p) in scores.compare(*scored).items()])


def main():
    args = arguments()
    if (args.n_best or 1) > args.beam:
        raise cli.UserError(f"--n-best {args.n_best}: the beam keeps {args.beam}; give "
                            f"--beam {args.n_best} or more")
    cli.print_heading(5, "evaluate")
    start()
    run = read_run(args.run, args.checkpoint)
    with cli.locked(run.folder), device_errors(args.batch_size):
        evaluate(args, run)
    cli.next_step("plot_attention.py", "--run", args.run)


def evaluate(args, run):
    """Caption and score the split, write the files, print the scores.

    args: the command's. run: a Run.
    """
    images, ids, paths, references = inputs(args, run)
    theirs = None
    if args.compare:
        theirs = read_captions_of(os.path.join(RUNS, args.compare), args.split)
        if not set(ids) & set(theirs):
            raise cli.UserError(f"{args.compare} and {args.run} have no image of "
                                f"{args.split} in common")
    trained = read_references(run.settings["tokens"], "train")

    begin = time.time()
    beams = decode_files(run.model, paths, args.batch_size, width=args.beam,
                         max_steps=args.max_steps, length_power=args.length_power,
                         forbidden=(PAD, START) + (() if args.allow_unk else (UNK,)))
    speed = len(ids) / (time.time() - begin)
    texts = {i: run.vocabulary.decode(beam[0].words) for i, beam in zip(ids, beams)}
    written = write_captions(args, run, images, ids, beams)

    scored = scores.score(texts, references, args.spice)
    if scored.tokenizer != scores.PTB:
        cli.warn("no Java was found: METEOR is left out, and the other scores are of "
                 "captions in lower case without punctuation instead of PTB's tokens")
    summary = scores.summarize(
        scored, texts, references,
        {scores.plain(c) for group in trained.values() for c in group})
    summary.update(split=args.split, beam=args.beam, length_power=args.length_power,
                   checkpoint=args.checkpoint, epoch=len(run.history),
                   device=device_name(), tensorflow=tf.__version__,
                   images_per_second=round(speed, 1))
    written.append(write_scores(run.folder, args.split, summary))

    print(f"{len(ids)} images of {args.split}, epoch {summary['epoch']}, beam "
          f"{args.beam}, {speed:.1f} images/s, tokenizer: {scored.tokenizer}\n")
    show(summary)
    if args.compare:
        compare(args.run, args.compare, texts, theirs, references)
    print("\nwritten: " + ", ".join(written))


def inputs(args, run):
    """What to caption: paths of the images, their ids and features, and references.

    Three lists of str, and {id: list of str}. Images without sound features are left
    out. Raises cli.UserError where the run was trained on the images, or where there
    are no features or references.
    """
    features = args.features or run.settings["features"]
    folder = args.tokens or run.settings["tokens"]
    tokens = read_tokens(folder, args.split)
    if not args.allow_seen:
        refuse_seen(run.folder, args.split, tokens.images.tolist())
    paths, sound = find_features(features, tokens.images, args.split)
    there = sound.nonzero()[0]
    if len(there) < len(paths):
        cli.warn(f"{len(paths) - len(there)} of {len(paths)} images have no "
                 "sound features and are left out: run extract_features.py again")
    ids = [str(tokens.image_ids[i]) for i in there]
    references = read_references(folder, args.split)
    lost = [i for i in ids if i not in references]
    if lost:
        raise cli.UserError(f"{references_path(folder, args.split)}: has no captions "
                            f"of image {lost[0]} and {len(lost) - 1} others; run "
                            "tokenize_captions.py again")
    return ([str(tokens.images[i]) for i in there], ids, [paths[i] for i in there],
            references)


def write_captions(args, run, images, ids, beams):
    """Write what was decoded, before it is scored; return the paths of the files.

    images, ids: lists of str. beams: of each image a list of Captions, best first.
    """
    remove_scores(run.folder, args.split)  # they are of the captions before
    write_decoded(run.folder, args.split,
                  pack([beam[0] for beam in beams], images, ids))
    splits = set(map(split_of, images))  # the server's name for val is val2014, say
    name = splits.pop() if len(splits) == 1 else args.split
    results = write_results(run.folder, name, args.run, [
        (i, run.vocabulary.decode(beam[0].words)) for i, beam in zip(ids, beams)])
    written = [results, decoded_path(run.folder, args.split)]
    nbest = None
    if args.n_best:
        nbest = {i: [{"caption": run.vocabulary.decode(caption.words),
                      "log_prob": round(float(caption.log_probs.sum()), 4)}
                     for caption in beam[:args.n_best]] for i, beam in zip(ids, beams)}
        written.append(nbest_path(run.folder, args.split))
    write_nbest(run.folder, args.split, nbest)
    return written


def arguments():
    parser = cli.parser(__doc__)
    positive = cli.number(int, at_least=1)
    parser.add_argument("--run", default="baseline", help="name below checkpoints/")
    parser.add_argument("--split", choices=("train", "val", "test"), default="val",
                        help="which of the tokenized splits")
    parser.add_argument("--checkpoint", choices=("best", "newest", "previous"),
                        default="best", help="which weights of the run")
    parser.add_argument("--beam", type=positive, default=1,
                        help="width of the beam search; 1 is greedy")
    parser.add_argument("--length-power", type=cli.number(float, at_least=0),
                        default=0., help="hypotheses are compared by their log "
                        "probability / words ** this; 0: by the probability itself")
    parser.add_argument("--max-steps", type=positive, default=50,
                        help="words after which a caption is cut")
    parser.add_argument("--n-best", type=positive, metavar="N",
                        help="also write the N best captions of the beam and their "
                             "log probabilities")
    parser.add_argument("--allow-unk", action="store_true",
                        help="let the model write UNK")
    parser.add_argument("--allow-seen", action="store_true",
                        help="score images that were trained on")
    parser.add_argument("--spice", action="store_true",
                        help="also SPICE: takes long, needs 8 GB and a download")
    parser.add_argument("--compare", metavar="RUN",
                        help="paired bootstrap against another run's captions")
    parser.add_argument("--batch-size", type=positive, default=64, help="images")
    parser.add_argument("--tokens", help="default: those of the run")
    parser.add_argument("--features", help="default: those of the run")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
