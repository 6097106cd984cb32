"""Step 3: turn captions into padded arrays of word indices.

    python tokenize_captions.py --data data
    python tokenize_captions.py --data data --num-examples 30000    # the published set
    python tokenize_captions.py --data data --captions dataset_coco.json
    python tokenize_captions.py --data flickr8k --captions flickr8k/captions.txt
    python tokenize_captions.py --data other --vocabulary data/tokens/vocabulary.tsv

Captions are lower-cased, and punctuation and extra white space removed. The vocabulary
comes from training captions only: the 5,000 most frequent words are kept (or those of
--vocabulary), all others become UNK. An image, with all its captions, is either for
training or for validation (or for testing, if the file of --captions says so:
captioning/caption_files.py).

Reads:  <data>/annotations/captions_<split>.json, or the file of --captions
Writes: <tokens>/vocabulary.tsv          index, word, count, as plain text
        <tokens>/train.npz, val.npz      see Tokens for the contents
        <tokens>/test.npz                only with --captions
        <tokens>/references_<name>.json  the captions as written, for the scores
        <tokens>/skipped_<name>.txt      empty and overlong captions, if any
        <tokens>/strays_<name>.txt       captions without an image, if any
"""
import runtime  # noqa: F401  (first: it reports missing packages)
import collections
import os
import typing
from array import array

import numpy as np
from sklearn.model_selection import GroupShuffleSplit
from tqdm import tqdm

from captioning.caption_files import read_caption_file
from captioning.coco import read_captions, splits
from captioning.tokens import (END, LARGEST, PAD, SPECIAL, START, UNK, Tokens,
                               Vocabulary, read_words, references_path, split_words,
                               tokens_path, vocabulary_path, write_references,
                               write_tokens, write_vocabulary)
from runtime import atomic, cli


NONE = "none"  # --val-split: cut the validation images off the training images


class Split(typing.NamedTuple):
    """Captions split into words, before any word is dropped."""
    words: typing.List[str]  # the distinct ones
    flat: np.ndarray         # int32: words of all captions, concatenated, as indices
    lengths: np.ndarray      # int32 (captions,): number of words
    image_of: np.ndarray     # int32 (captions,): index of its image


def choose_splits(data, train_split, val_split):
    """The names of the training and validation splits; None for one to be held out."""
    found = splits(data)
    chosen = []
    for kind, name in (("train", train_split), ("val", val_split)):
        if kind == "val" and name == NONE:
            chosen.append(None)
            continue
        fitting = [s for s in found if s.startswith(kind)]
        if name is None and len(fitting) > 1:
            raise cli.UserError(f"{data}: has {' and '.join(fitting)}; choose one with "
                                f"--{kind}-split")
        if name is not None and name not in found:
            raise cli.UserError(f"{data}: has no split {name} (it has "
                                f"{', '.join(found)}); choose another --{kind}-split")
        chosen.append(name or (fitting[0] if fitting else None))
    if chosen[0] is not None and chosen[0] == chosen[1]:
        raise cli.UserError(f"{data}: {chosen[0]} cannot be both the training and the "
                            f"validation split; leave --val-split out, or give {NONE}")
    if chosen[0] is None:
        raise cli.UserError(f"{data}: has no training split (it has "
                            f"{', '.join(found)}); name one with --train-split")
    return chosen


def limit(images, captions, random):
    """Random images that together have about `captions` captions, in the old order."""
    kept, total = [], 0
    for i in random.permutation(len(images)):
        if total >= captions:
            break
        kept.append(i)
        total += len(images[i].captions)
    return [images[i] for i in sorted(kept)]


def split_by_image(images, fraction, seed):
    """Hold out a seeded fraction of the images, with all their captions, as val."""
    if len(images) < 2:
        raise cli.UserError("one image cannot be split into training and validation; "
                            "there must be two at least")
    cut = GroupShuffleSplit(n_splits=1, test_size=fraction, random_state=seed)
    train, val = next(cut.split(images, groups=range(len(images))))
    return [images[i] for i in sorted(train)], [images[i] for i in sorted(val)]


def split_captions(images, name):
    """All captions of these images as a Split. name: of the split, for the bar."""
    index = collections.defaultdict()
    index.default_factory = index.__len__  # a new word gets the next number
    flat, lengths, image_of = array("i"), array("i"), array("i")
    for i, image in enumerate(tqdm(images, desc=f"split {name}", unit="image")):
        for caption in image.captions:
            numbers = [index[word] for word in split_words(caption)]
            flat.extend(numbers)
            lengths.append(len(numbers))
            image_of.append(i)
    return Split(list(index), *(np.array(numbers, np.int32)
                                for numbers in (flat, lengths, image_of)))


def count_words(split):
    """How often each word of a Split occurs: {word: int}."""
    counts = np.bincount(split.flat, minlength=len(split.words))
    return dict(zip(split.words, counts.tolist()))


def build_vocabulary(counter, captions, size):
    """The Vocabulary of the `size` most frequent words; ties in alphabetical order.

    counter: {word: count}. captions: their number, the count of start and end.
    """
    ranked = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    kept = ranked[:size]
    unknown = sum(counter.values()) - sum(count for _, count in kept)
    return Vocabulary([word for word, _ in kept],
                      [0, captions, captions, unknown] + [count for _, count in kept])


def recount(vocabulary, counter, captions):
    """A Vocabulary of the same words with new counts; arguments: see build_vocabulary.
    """
    words = vocabulary.index_word[len(SPECIAL):]
    counts = [counter.get(word, 0) for word in words]
    unknown = sum(counter.values()) - sum(counts)
    return Vocabulary(words, [0, captions, captions, unknown] + counts)


def tokenize(images, split, name, vocabulary, max_words):
    """Tokens of these images, and the numbers of captions that are empty or too long.

    split: from `split_captions`.
    """
    kept = (split.lengths > 0) & (split.lengths <= max_words)
    if not kept.any():
        raise cli.UserError(f"{name}: not one caption with 1 to {max_words} words; "
                            "check the annotations, or raise --max-words")
    lengths = split.lengths[kept]
    numbers = np.array(vocabulary.encode(split.words), np.int32)[
        split.flat[np.repeat(kept, split.lengths)]]
    padded = np.full((len(lengths), lengths.max() + 2), PAD, np.int32)
    columns = np.arange(padded.shape[1])
    padded[:, 0] = START
    padded[(columns >= 1) & (columns <= lengths[:, None])] = numbers
    padded[np.arange(len(lengths)), lengths + 1] = END
    return Tokens(padded, lengths + 1, split.image_of[kept],
                  np.array([image.path for image in images]),
                  np.array([str(image.id) for image in images]),
                  np.array(vocabulary.digest()),
                  np.array([isinstance(image.id, int) for image in images])
                  ), np.flatnonzero(~kept)


def facts(name, tokens, skipped):
    """One line about a split, for the terminal. skipped: number of skipped captions."""
    words = tokens.lengths - 1
    unknown = (tokens.words == UNK).sum() / max(1, words.sum())
    line = (f"{name}: {len(tokens.images)} images, {len(words)} captions, "
            f"{words.mean():.2f} words on average, {words.max()} at most, "
            f"{unknown:.2%} of the words are UNK")
    return line + (f", {skipped} captions skipped" if skipped else "")


def list_skipped(folder, name, images, split, skipped, most):
    """List the captions that are empty or too long, with cli.left_out.

    skipped: their numbers in `split`, the Split of these images.
    """
    captions = [(image.path, caption) for image in images for caption in image.captions]
    rows = ["{}\t{} words\t{}".format(captions[i][0], split.lengths[i],
                                      cli.one_line(captions[i][1])) for i in skipped]
    cli.left_out(skipped_path(folder, name), rows, len(captions), most,
                 f"captions of {name}", "these are empty or too long: check the "
                 "annotations, or raise --max-words or --max-bad")


def strays_path(folder, name):
    """The list of a split's captions whose image is unknown."""
    return os.path.join(folder, f"strays_{name}.txt")


def skipped_path(folder, name):
    """The list of a split's captions that are empty or too long."""
    return os.path.join(folder, f"skipped_{name}.txt")


def assign(args, strays):
    """Assign images to splits: an ordered {'train', 'val' and perhaps 'test': list}.

    By a file of captions (restval is for training), by COCO's splits, or by holding out
    some of the images that have captions. strays: {'train', 'val': list}, filled.
    """
    share, seed = args.val_fraction or .2, args.seed or 0
    random = np.random.RandomState(seed)
    if args.captions:
        parts = read_caption_file(args.captions, args.data, strays["train"])
        groups = {"train": parts.get("train", []) + parts.get("restval", [])}
        if set(parts) != {"train"}:
            groups.update(val=parts.get("val", []), test=parts.get("test", []))
        train_split = args.captions
        advice = f"it has {', '.join(sorted(parts))}; name them train, val and test"
    else:
        train_split, val_split = choose_splits(args.data, args.train_split,
                                               args.val_split)
        groups = {"train": read_captions(args.data, train_split, strays["train"])}
        if val_split is not None:
            look_for_pictures(args.data, train_split, val_split)
            groups["val"] = read_captions(args.data, val_split, strays["val"])
        advice = "take more --num-examples, or choose other splits"
    if "val" in groups:
        for flag in ("val_fraction", "seed"):
            if vars(args)[flag] is not None and not args.num_examples:
                cli.warn(f"--{flag.replace('_', '-')}: has no effect on images that "
                         "are split already, except with --num-examples")
        if args.num_examples:
            groups["train"] = limit(groups["train"],
                                    round(args.num_examples * (1 - share)), random)
            groups["val"] = limit(groups["val"], round(args.num_examples * share),
                                  random)
    else:
        described = [image for image in groups["train"] if image.captions]
        if len(described) < len(groups["train"]):
            print(f"{len(groups['train']) - len(described)} images of {train_split} "
                  "have no captions and are left out")
        if args.num_examples:
            described = limit(described, args.num_examples, random)
        groups["train"], groups["val"] = split_by_image(described, share, seed)
        print(f"no validation split: {len(groups['val'])} images of {train_split} "
              "serve as one")
    for name in ("train", "val"):
        if not groups[name]:
            raise cli.UserError(f"{args.captions or args.data}: no images for {name}; "
                                + advice)
    return collections.OrderedDict((name, groups[name]) for name in ("train", "val",
                                                                     "test")
                                   if groups.get(name))


def look_for_pictures(data, train_split, val_split):
    """Warn where only the training images were downloaded."""
    def there(split):
        return any(os.path.isdir(os.path.join(data, *folders))
                   for folders in ((split,), ("features", split)))
    if there(train_split) and not there(val_split):
        cli.warn(f"{os.path.join(data, val_split)}: neither pictures nor features "
                 f"there; --val-split {NONE} keeps a part of the training images for "
                 "validation instead")


def refuse_shared(groups, source):
    """Raise cli.UserError if an image is in two groups, or an id occurs twice."""
    seen = {}
    for name, images in groups.items():
        for image in images:
            if seen.setdefault(image.path, name) != name:
                raise cli.UserError(f"{source}: {image.path} is both for "
                                    f"{seen[image.path]} and for {name}; leave one out")
        if len({str(image.id) for image in images}) < len(images):
            raise cli.UserError(f"{source}: two images of {name} have one id; correct "
                                "the annotations")


def hint_at_blanks(name, split, tokens):
    """Warn if captions seem to have no spaces between words."""
    letters = np.mean([len(split.words[i]) for i in split.flat[:10000]])
    if letters > 4 and np.mean(tokens.lengths - 1) < 3 and any(
            "\u0e00" <= letter <= "\u0eff" or "\u2e80" <= letter <= "\uffdc"
            for i in split.flat[:100] for letter in split.words[i]):
        cli.warn(f"{name}: captions have {np.mean(tokens.lengths - 1):.1f} words on "
                 "average; if their script has no spaces between words, insert spaces "
                 "first")


def main():
    args = arguments()
    cli.print_heading(3, "tokenize captions")
    tokens_folder = args.tokens or os.path.join(args.data, "tokens")
    old = args.vocabulary and read_words(args.vocabulary)
    strays = {"train": [], "val": []}
    groups = assign(args, strays)
    refuse_shared(groups, args.captions or args.data)
    split = {name: split_captions(images, name) for name, images in groups.items()}
    with cli.locked(tokens_folder):
        for name, lost in strays.items():
            cli.left_out(strays_path(tokens_folder, name), lost,
                         len(lost) + sum(len(i.captions) for i in groups[name]),
                         args.max_bad, f"captions of {name}", "their images are not "
                         "listed: correct the annotations, or raise --max-bad")
        counter, captions = count_words(split["train"]), len(split["train"].lengths)
        vocabulary = (recount(old, counter, captions) if old else
                      build_vocabulary(counter, captions, args.vocab_size))
        done = [(name, *tokenize(images, split[name], name, vocabulary, args.max_words))
                for name, images in groups.items()]
        for name, tokens, skipped in done:
            hint_at_blanks(name, split[name], tokens)
            list_skipped(tokens_folder, name, groups[name], split[name], skipped,
                         args.max_bad)
        write(tokens_folder, groups, vocabulary, done)
    kept = len(counter.keys() & vocabulary.word_index.keys())
    print(f"vocabulary: {kept} of {len(counter)} words kept, in "
          f"{vocabulary_path(tokens_folder)}")
    cli.next_step("train.py", "--data", args.data,
                  *(("--tokens", args.tokens) if args.tokens else ()))


def write(tokens_folder, groups, vocabulary, done):
    """Write everything except the lists of skipped captions.

    groups: from `assign`. done: a list of (name, Tokens, skipped).
    """
    with atomic.together():
        write_vocabulary(tokens_folder, vocabulary)
        for name, tokens, skipped in done:
            write_tokens(tokens_folder, name, tokens)
            write_references(tokens_folder, name, groups[name])
            print(facts(name, tokens, len(skipped)))
    if "test" not in groups:  # of an earlier run with other splits
        for path in (tokens_path(tokens_folder, "test"),
                     references_path(tokens_folder, "test")):
            if os.path.exists(path):
                os.remove(path)


def arguments():
    parser = cli.parser(__doc__)
    parser.always("--data", default="data", help="data set in COCO's layout")
    parser.always("--tokens", otherwise="<data>/tokens", help="folder to write")
    parser.add_argument("--vocab-size", without="--vocabulary", default=5000,
                        type=cli.number(int, at_least=1, below=LARGEST - len(SPECIAL)),
                        help="words kept, special tokens not counted")
    parser.always("--vocabulary", metavar="FILE",
                  help="use the words of this vocabulary.tsv, for train.py "
                       "--start-from")
    parser.always("--num-examples", type=cli.positive, otherwise="all",
                  help="captions in all, whole images at a time")
    parser.always("--captions", "--karpathy", metavar="FILE",
                  help="take the captions of this file: a table (Kaggle's "
                       "captions.txt, any CSV, Flickr8k.token.txt) or Karpathy's "
                       "splits (dataset_coco.json, dataset_flickr8k.json, ...)")
    parser.add_argument("--train-split", without="--captions",
                        otherwise="the one named train...", help="split to train on")
    parser.add_argument("--val-split", without="--captions",
                        otherwise="the one named val..., else 'none'",
                        help="split to validate on; 'none': a part of the training "
                             "images")
    parser.add_argument("--val-fraction", by_data=True, otherwise="0.2",
                        type=cli.number(float, above=0, below=1),
                        help="share of the images held out for validation if there is "
                             "no such split, or of --num-examples")
    parser.always("--max-words", type=cli.positive, default=100,
                  help="longer captions are skipped")
    parser.always("--max-bad", type=cli.share, default=.05,
                  help="share of skipped captions tolerated")
    parser.add_argument("--seed", by_data=True, type=cli.seed, otherwise="0",
                        help="of the choice of images")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
