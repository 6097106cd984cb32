"""Step 5: caption a split without teacher forcing, and score the captions.

    python evaluate.py --run baseline
    python evaluate.py --run baseline --beam 3
    python evaluate.py --run baseline --beam 20 --consensus neighbours
    python evaluate.py --run baseline --compare other    # a paired bootstrap
    python evaluate.py --ensemble one two three          # several runs as one
    python evaluate.py --run baseline --sample 5         # five captions per image

Each word is decoded from the model's own previous word, its state and the image, up to
the end token. Scores are those of the COCO caption tools against all references of an
image, in percent; BLEU also without brevity penalty, as in the paper's table, and with
punctuation, as in its authors' references (see scores.py). METEOR and the tools'
tokenizer need Java. Intervals are 95 % bootstrap intervals over images.

Reads:  checkpoints/<run>/, the tokens and features that the run names
Writes, below checkpoints/<run>/:
        captions_<split>_<run>_results.json   in the COCO server's format
        attention_<split>.npz                 see Decoded for the contents
        scores_<split>.json                   the scores, and how they were made
        nbest_<split>.json                    only with --n-best
        samples_<split>.json                  with --sample, instead of all of these
"""
import runtime  # noqa: F401  (first: it reports missing packages)
import time

from captioning import decode, maps, scores
from captioning.decode import Decoder, decode_files, sample_files, was_cut
from captioning.decoded import (decoded_path, find_inputs, nbest_path, pack,
                                read_theirs, remove_scores, write_decoded, write_nbest,
                                write_results, write_samples, write_scores)
from captioning.diversity import diversity
from captioning.lineage import digest, training_tokens
from captioning.runs import LOOKS, add_run_flag, run_name
from captioning.tokens import PAD, START, UNK, read_references, references_path
from methods.consensus import by_consensus, by_neighbours, training_rewards
from methods.ensemble import read_members, together
from methods.neighbours import training_neighbours
from runtime import atomic, cli, watchdog
from runtime.tf import device_errors, device_name, start, tf

FEW = 50  # images, for CIDEr


def show(summary):
    """Print the scores as a table, then the captions' habits beside people's."""
    rows, bleu = [("", "score", "95 % interval")], {}
    for name, value in summary["scores"].items():
        how = name.partition(" ")[2]  # BLEU-1 without brevity penalty, say
        if how:
            bleu.setdefault(how, []).append(f"{value:.2f}")
            continue
        low, high = summary["intervals"][name]
        rows.append((name, f"{value:.2f}", f"{low:.2f} - {high:.2f}"))
    cli.table(rows)
    for how, values in bleu.items():
        print(f"BLEU-1 to 4 {how}: {', '.join(values)}")
    print("with punctuation: full stops and commas are words; no brevity penalty, "
          "unless stated")
    if "length" in summary:
        print(f"the captions have {summary['length']:.0f} % of the words of the "
              "closest references; without brevity penalty short ones score higher")
    if summary["images"] < FEW:
        print(f"CIDEr weighs words by how few of the {summary['images']} images have "
              "them: with so few it says little, and with one image it is 0")
    print()
    found = summary.get("maps", {})
    cli.table([("", "generated", "first reference")] + [
        (name, f"{value:.1f}", f"{summary['habits_of_first_references'][name]:.1f}")
        for name, value in summary["habits"].items()] + [
        (title, f"{found[key]:.1f}", "")
        for key, title in (("entropy", "entropy of the attention maps (even: 100), %"),
                           ("change", "change of the maps from word to word, %"))
        if key in found])
    complaint = found and maps.complaint(**found)
    if complaint:
        cli.warn(complaint)


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
        for name, (point, low, high, p) in scores.compare(*scored).items()
        if " " not in name])


def main():
    args = arguments()
    if (args.n_best or 1) > args.beam:
        raise cli.UserError(f"--n-best {args.n_best}: the beam keeps {args.beam}; give "
                            f"--beam {args.n_best} or more")
    cli.print_heading(5, "evaluate")
    start()
    args.run = args.ensemble[0] if args.ensemble else args.run
    runs = read_members(args.ensemble or [args.run], args.checkpoint, args.look)
    with cli.locked(runs[0].folder), device_errors(args.batch_size), \
            watchdog.watching(args.hang_minutes):
        run, data = together(runs), find_inputs(args, runs)
        if args.sample:
            sample(args, run, data)
            return
        name = evaluate(args, run, data)
    cli.next_step("plot_attention.py", "--run", args.run,
                  *(("--split", name) if name != "val" else ()))


def evaluate(args, run, data):
    """Caption and score a split: write the files, print the scores.

    args: the command's. run: a LoadedRun. data: Inputs. Returns the results' name.
    """
    references, described = described_images(args, data)
    data.source["references"] = {i: digest(references[i]) for i in described}
    theirs = read_theirs(args.compare, data) if args.compare else None
    training = read_training(run, data.source["tokens"])
    in_order = consensus(args, run, data) if args.consensus else None

    begin = time.time()
    beams = decode_files(Decoder(run.model), data.paths, args.batch_size,
                         width=args.beam, max_steps=args.max_steps,
                         length_power=args.length_power)
    if args.consensus:
        beams = in_order(beams)
    watchdog.waits_for(None)  # the scorers may take long
    speed = len(data.ids) / (time.time() - begin)
    texts = {i: run.vocabulary.decode(beam[0].words)
             for i, beam in zip(data.ids, beams)}
    written = write_captions(args, run, data, beams)

    scored = scores.score({i: texts[i] for i in described}, references, args.spice)
    if scored.tokenizer != scores.PTB:
        cli.warn("no Java was found that runs: METEOR is left out, and the other "
                 "scores are computed on lower-case captions without punctuation "
                 "instead of PTB tokens")
    summary = scores.summarize(scored, texts, references, training, {
        i: was_cut(beam[0]) for i, beam in zip(data.ids, beams)})
    summary["maps"] = maps.averages(maps.totals(beam[0].alphas) for beam in beams)
    del data.source["references"]  # of each image: too many for these
    summary.update(split=args.split, beam=args.beam, length_power=args.length_power,
                   consensus=args.consensus, look=data.source["look"],
                   checkpoint=args.checkpoint, epoch=len(run.history),
                   device=device_name(), tensorflow=tf.__version__,
                   images_per_second=round(speed, 1), source=data.source)
    written.append(write_scores(run.folder, data.name, summary))

    print(f"{len(described)} images of {args.split}, epoch {summary['epoch']}, beam "
          f"{args.beam}, {speed:.1f} images/s, tokenizer: {scored.tokenizer}\n")
    show(summary)
    if args.compare:
        compare(" with ".join(args.ensemble or [args.run]), args.compare,
                {i: texts[i] for i in described}, theirs, references)
    print("\nwritten: " + ", ".join(written))
    return data.name


def consensus(args, run, data):
    """The function that reorders the captions of beams for --consensus.

    args: the command's. run: a LoadedRun. data: Inputs. Raises cli.UserError if the
    run's training data is missing.
    """
    tokens, features = data.source["tokens"], data.source["features"]
    rewards = training_rewards(run, tokens)
    if args.consensus == "beam":
        return lambda beams: by_consensus(beams, rewards, args.length_power)
    images, shares = training_neighbours(run, data.images, args.split, features, tokens)
    return lambda beams: by_neighbours(beams, rewards, images, shares,
                                       args.length_power)


def described_images(args, data):
    """The references of a split, and the ids of the Inputs that have references."""
    references = read_references(data.source["tokens"], args.split)
    described = [i for i in data.ids if i in references]
    if not described:
        raise cli.UserError(f"{references_path(data.source['tokens'], args.split)}: "
                            "has no captions of these images; run "
                            "tokenize_captions.py again")
    if len(described) < len(data.ids):
        cli.warn(f"{len(data.ids) - len(described)} of {len(data.ids)} images have no "
                 "captions by people; they are captioned but not scored")
    return references, described


def sample(args, run, data):
    """Sample several captions of each image of a split, write them, and report their
    diversity. args: the command's. run: a LoadedRun. data: Inputs.
    """
    references, described = described_images(args, data)
    training = read_training(run, data.source["tokens"])
    count, seed = args.sample
    drawn = sample_files(Decoder(run.model), data.paths, args.batch_size, count,
                         args.max_steps, seed, temperature=args.temperature,
                         top_p=args.top_p, forbidden=(PAD, START, UNK))
    watchdog.waits_for(None)  # the scorers may take long
    samples = {i: [run.vocabulary.decode(caption.words) for caption in group]
               for i, group in zip(data.ids, drawn)}
    figures, tokenizer = diversity({i: samples[i] for i in described}, references,
                                   training)
    path = write_samples(run.folder, data.name, samples, dict(
        diversity=figures, tokenizer=tokenizer, split=args.split, samples=count,
        temperature=args.temperature, top_p=args.top_p, seed=seed,
        checkpoint=args.checkpoint, epoch=len(run.history), source=data.source))
    print(f"{count} captions of each of {len(described)} images of {args.split}, "
          f"epoch {len(run.history)}, tokenizer: {tokenizer}\n")
    cli.table([("", "sampled")] + [(name, f"{value:.2f}")
                                   for name, value in figures.items()])
    print(f"\nwritten: {path}")


def read_training(run, tokens):
    """The captions that a run was trained on, normalized by scores.plain; None if they
    no longer exist. tokens: another folder where they may be.
    """
    try:
        references = read_references(training_tokens(run, tokens), "train")
    except cli.UserError as error:
        cli.warn(f"{error}; novelty is not reported")
        return None
    return {scores.plain(c) for group in references.values() for c in group}


def write_captions(args, run, data, beams):
    """Write the decoded captions, before they are scored; return the files' paths.

    data: Inputs. beams: a list of Captions per image, best first.
    """
    nbest = {i: [{"caption": run.vocabulary.decode(caption.words),
                  "log_prob": round(float(caption.log_probs.sum()), 4)}
                 for caption in beam[:args.n_best]]
             for i, beam in zip(data.ids, beams)} if args.n_best else None
    with atomic.together():
        remove_scores(run.folder, data.name)  # they belong to the previous captions
        write_decoded(run.folder, data.name, pack([beam[0] for beam in beams],
                                                  data.images, data.ids), data.source)
        results = write_results(run.folder, data.server, args.run, [
            (i, run.vocabulary.decode(beam[0].words))
            for i, beam in zip(data.as_annotated, beams)])
        write_nbest(run.folder, data.name, nbest)
    return [results, decoded_path(run.folder, data.name)] + (
        [nbest_path(run.folder, data.name)] if args.n_best else [])


def arguments():
    parser = cli.parser(__doc__)
    add_run_flag(parser, without="--ensemble")
    parser.always("--split", choices=("train", "val", "test"), default="val",
                  help="which of the tokenized splits")
    parser.always("--checkpoint", choices=("best", "newest", "previous"),
                  default="best", help="which weights of the run")
    decode.add_flags(parser)
    parser.always("--look", choices=sorted(LOOKS),
                  otherwise="expected; likeliest after --attention hard",
                  help="context of a word: the mean over locations, weighted by "
                       "attention, or the likeliest location alone")
    parser.add_argument("--consensus", needs="--beam", without="--sample",
                        choices=("beam", "neighbours"), nargs="?", const="beam",
                        help="instead of the most probable caption, keep the one most "
                             "like the others in the beam, or most like people's "
                             "captions of the most similar training images "
                             "(methods/consensus.py); for example with --beam 20 "
                             "--length-power 1")
    parser.add_argument("--ensemble", without="--sample", type=run_name, nargs="+",
                        metavar="RUN",
                        help="decode with the mean of these runs' probabilities; the "
                             "results go to the first one's folder, under a name of "
                             "their own")
    parser.always("--allow-seen", action="store_true",
                  help="score images that were trained on")
    parser.add_argument("--spice", without="--sample", action="store_true",
                        help="also SPICE: slow, needs 8 GB and a download")
    parser.add_argument("--compare", without="--sample", type=run_name, metavar="RUN",
                        help="paired bootstrap against another run's captions")
    parser.always("--batch-size", type=cli.positive, default=64, help="images")
    parser.always("--tokens", otherwise="those of the run",
                  help="folder of step 3, inside its data set; results on another data "
                       "set get a name of their own")
    parser.always("--features", otherwise="those of the run", help="folder of step 2")
    watchdog.add_flag(parser)
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
