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
import collections
import contextlib
import json
import os
import time

import numpy as np

import atomic
import cli
import scores
from decode import decode_files
from download_coco import split_of
from extract_features import feature_path, is_sound
from tf_runtime import device_errors, device_name, start, tf
from tokenize_captions import (PAD, START, UNK, read_references, read_tokens,
                               read_vocabulary, references_path)
from train import RUNS, read_run, read_split

Decoded = collections.namedtuple("Decoded", "images image_ids words steps alphas "
                                            "log_probs betas")
Decoded.__doc__ = """The captions of one split with their attention.

images: str (I,), paths below the data set. image_ids: str (I,).
words: int32 (I, T), padded with 0. steps: int32 (I,): words, the end token among them.
alphas: float32 (I, T, L). log_probs, betas: float32 (I, T); betas 1 without a gate.
"""


# --- reading what this step writes ----------------------------------------------------

def decoded_path(folder, split):
    """Where the attention of a split stands in a run's folder."""
    return os.path.join(folder, f"attention_{split}.npz")


def read_decoded(path, vocabulary):
    """The Decoded of a run with this Vocabulary.

    Raises cli.UserError where it is missing or damaged, or has words of another.
    """
    try:
        with atomic.load_arrays(path) as arrays:
            decoded = Decoded(**{name: arrays[name] for name in Decoded._fields})
        I, T = decoded.words.shape
        if not (decoded.alphas.shape[:2] == (I, T) == decoded.log_probs.shape
                == decoded.betas.shape and decoded.alphas.ndim == 3
                and decoded.steps.shape == decoded.images.shape == (I,)
                and decoded.image_ids.shape == (I,)
                and decoded.images.dtype.kind == "U" and decoded.steps.max() <= T
                and decoded.steps.min() >= 1 and decoded.words.min() >= 0
                and (decoded.alphas.shape[2] ** .5).is_integer()  # a square of cells
                and all(np.isfinite(array).all() for array in
                        (decoded.alphas, decoded.log_probs, decoded.betas))):
            raise ValueError
    except FileNotFoundError:
        raise cli.UserError(f"{path}: no decoded captions there; run evaluate.py")
    except atomic.DAMAGED:
        raise cli.UserError(f"{path}: damaged; run evaluate.py again")
    if decoded.words.max() >= len(vocabulary):
        raise cli.UserError(f"{path}: was decoded with another vocabulary; run "
                            "evaluate.py again")
    return decoded


def read_scores(path):
    """What `report` gave for a split. Raises cli.UserError if missing or damaged."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        count = len(found["image_ids"])
        if not (found["scores"] and all(
                len(values) == count for values in found["of_each_image"].values())
                and set(found["scores"]) == set(found["intervals"])
                and set(found["habits"]) == set(found["habits_of_first_references"])):
            raise ValueError
    except FileNotFoundError:
        raise cli.UserError(f"{path}: no scores there; run evaluate.py")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise cli.UserError(f"{path}: damaged; run evaluate.py again")
    return found


def read_captions_of(folder, split):
    """{image id: caption} of the split, as the run in this folder has decoded it."""
    vocabulary = read_vocabulary(os.path.join(folder, "vocabulary.tsv"))
    decoded = read_decoded(decoded_path(folder, split), vocabulary)
    return {str(i): vocabulary.decode(words[:steps]) for i, words, steps in
            zip(decoded.image_ids, decoded.words, decoded.steps)}


# --- the run --------------------------------------------------------------------------

def pack(captions, images, ids):
    """A list of Captions as the arrays of Decoded."""
    I, T = len(captions), max(len(caption.words) for caption in captions)
    L = captions[0].alphas.shape[1]
    decoded = Decoded(np.array(images), np.array(ids), np.zeros((I, T), np.int32),
                      np.array([len(c.words) for c in captions], np.int32),
                      np.zeros((I, T, L), np.float32), np.zeros((I, T), np.float32),
                      np.ones((I, T), np.float32))
    for i, caption in enumerate(captions):
        steps = len(caption.words)
        decoded.words[i, :steps] = caption.words
        decoded.alphas[i, :steps] = caption.alphas
        decoded.log_probs[i, :steps] = caption.log_probs
        if caption.betas is not None:
            decoded.betas[i, :steps] = caption.betas
    return decoded


def refuse_seen(folder, split, images):
    """Raise cli.UserError if the run has trained on any of these images."""
    seen = set(read_split(folder)["train"]) & set(images)
    if seen:
        raise cli.UserError(f"{len(seen)} of {len(images)} images of {split} were "
                            f"trained on (one is {sorted(seen)[0]}), so the scores "
                            "would say nothing; --allow-seen scores them all the same")


def report(scored, made, references, training):
    """The scores with their intervals and the captions' habits, as JSON takes them."""
    each = {name: values.round(3).tolist() for name, values in scored.parts.items()}
    each["BLEU-4"] = scores.bleu(scored.bleu)[:, 3].round(3).tolist()
    people = {i: group[0] for i, group in references.items() if i in made}
    first = [scores.plain(people[i]) for i in sorted(people)]
    return {
        "scores": scores.averages(scored), "intervals": scores.intervals(scored),
        "tokenizer": scored.tokenizer, "images": len(scored.ids),
        "habits": scores.habits([made[i] for i in scored.ids], training),
        "habits_of_first_references": scores.habits(first, training),
        "image_ids": scored.ids, "of_each_image": each}


def show(summary):
    """Print the scores as a table, then the habits beside those of people."""
    rows = [("", "score", "95 % interval")]
    for name, value in summary["scores"].items():
        low, high = summary["intervals"][name]
        rows.append((name, f"{value:.2f}", f"{low:.2f} - {high:.2f}"))
    scores.table(rows)
    print("with punctuation: full stops and commas are words, no brevity penalty\n")
    scores.table([("", "generated", "first reference")] + [
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
    scores.table([("", "points", "95 % interval", "p")] + [
        (name, f"{point:+.2f}", f"{low:+.2f} to {high:+.2f}", f"{p:.3f}")
        for name, (point, low, high, p) in scores.compare(*scored).items()])


def main():
    args = arguments()
    if (args.n_best or 1) > args.beam:
        raise cli.UserError(f"--n-best {args.n_best}: the beam keeps {args.beam}; give "
                            f"--beam {args.n_best} or more")
    cli.introduce(5, "evaluate")
    start()
    run = read_run(args.run, args.checkpoint)
    with cli.alone(run.folder), device_errors(args.batch_size):
        evaluate(args, run)
    cli.next_step("python", "plot_attention.py", "--run", args.run)


def evaluate(args, run):
    """Caption and score the split, write the files, print the scores.

    args: the command's. run: a Run.
    """
    settings = run.settings
    features = args.features or settings["features"]
    folder = args.tokens or settings["tokens"]
    tokens = read_tokens(os.path.join(folder, args.split + ".npz"))
    if not args.allow_seen:
        refuse_seen(run.folder, args.split, tokens.images.tolist())
    paths = [feature_path(features, str(name)) for name in tokens.images]
    there = [i for i, path in enumerate(paths) if is_sound(path)]
    if not there:
        raise cli.UserError(f"{features}: no features of the images in {args.split}"
                            ".npz; run extract_features.py")
    if len(there) < len(paths):
        cli.warn(f"{len(paths) - len(there)} of {len(paths)} images have no "
                 "sound features and are left out: run extract_features.py again")
    images = [str(tokens.images[i]) for i in there]
    ids = [str(tokens.image_ids[i]) for i in there]
    references = read_references(references_path(folder, args.split))
    lost = [i for i in ids if i not in references]
    if lost:
        raise cli.UserError(f"{references_path(folder, args.split)}: has no captions "
                            f"of image {lost[0]} and {len(lost) - 1} others; run "
                            "tokenize_captions.py again")
    if args.compare:
        theirs = read_captions_of(os.path.join(RUNS, args.compare), args.split)
        if not set(ids) & set(theirs):
            raise cli.UserError(f"{args.compare} and {args.run} have no image of "
                                f"{args.split} in common")
    trained = read_references(references_path(settings["tokens"], "train"))

    begin = time.time()
    found = decode_files(run.model, [paths[i] for i in there], args.batch_size,
                         width=args.beam, max_steps=args.max_steps,
                         length_power=args.length_power,
                         forbidden=(PAD, START) + (() if args.allow_unk else (UNK,)))
    speed = len(there) / (time.time() - begin)
    texts = {i: run.vocabulary.decode(beam[0].words) for i, beam in zip(ids, found)}
    scored = scores.score(texts, references, args.spice)
    if scored.tokenizer != scores.PTB:
        cli.warn("no Java was found: METEOR is left out, and the other scores are of "
                 "captions in lower case without punctuation instead of PTB's tokens")
    summary = report(scored, texts, references,
                     {scores.plain(c) for group in trained.values() for c in group})
    summary.update(split=args.split, beam=args.beam, length_power=args.length_power,
                   checkpoint=args.checkpoint, epoch=len(run.history),
                   device=device_name(), tensorflow=tf.__version__,
                   images_per_second=round(speed, 1))

    atomic.write_arrays(decoded_path(run.folder, args.split), compress=True,
                        arrays=pack([beam[0] for beam in found], images, ids)._asdict())
    splits = set(map(split_of, images))  # the server's name for val is val2014, say
    name = splits.pop() if len(splits) == 1 else args.split
    results = os.path.join(run.folder, f"captions_{name}_{args.run}_results.json")
    atomic.write_json(results, [{"image_id": int(i) if i.isdigit() else i,
                                 "caption": texts[i]} for i in ids])
    written = [results, os.path.join(run.folder, f"scores_{args.split}.json"),
               decoded_path(run.folder, args.split)]
    atomic.write_json(written[1], summary)
    candidates = os.path.join(run.folder, f"nbest_{args.split}.json")
    if not args.n_best:
        with contextlib.suppress(FileNotFoundError):
            os.remove(candidates)  # of an earlier beam
    else:
        written.append(candidates)
        atomic.write_json(candidates, {i: [
            {"caption": run.vocabulary.decode(caption.words),
             "log_prob": round(float(caption.log_probs.sum()), 4)}
            for caption in beam[:args.n_best]] for i, beam in zip(ids, found)})

    print(f"{len(ids)} images of {args.split}, epoch {summary['epoch']}, beam "
          f"{args.beam}, {speed:.1f} images/s, tokenizer: {scored.tokenizer}\n")
    show(summary)
    if args.compare:
        compare(args.run, args.compare, texts, theirs, references)
    print("\nwritten: " + ", ".join(written))


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
