"""What a run has decoded on a split: captions with attention, scores, n-best lists.

    checkpoints/<run>/attention_<split>.npz                 see Decoded
    checkpoints/<run>/scores_<split>.json                   see scores.summarize
    checkpoints/<run>/nbest_<split>.json                    candidates of the beam
    checkpoints/<run>/samples_<split>.json                  sampled captions, --sample
    checkpoints/<run>/captions_<split>_<run>_results.json   for the COCO server
"""
import contextlib
import json
import os
import typing

import numpy as np

from captioning.coco import split_of
from captioning.features import check_network, find_features, read_record
from captioning.lineage import is_own_data, refuse_seen, spelled
from captioning.runs import LOOKS, find_run, how_it_looks
from captioning.tokens import read_images, read_tokens, read_vocabulary
from runtime import atomic, cli

# The habit's name in the files of earlier releases
OLD_HABIT = "words that stood in the caption before, %"


class Inputs(typing.NamedTuple):
    """What evaluate.py captions: images with sound features."""
    name: str                     # of the results: the split's, or a separate one
    alone: str                    # the name without the other runs of an ensemble
    source: dict                  # see `read_source`
    images: typing.List[str]      # paths below the data set
    ids: typing.List[str]
    as_annotated: list            # the same ids, int where the annotations have int
    paths: typing.List[str]       # of the features
    server: str                   # the split's name for the COCO server


class Decoded(typing.NamedTuple):
    """The captions of one split with their attention."""
    images: np.ndarray     # str (I,): paths below the data set
    image_ids: np.ndarray  # str (I,)
    words: np.ndarray      # int32 (I, T), padded with 0
    steps: np.ndarray      # int32 (I,): number of words, the end token included
    alphas: np.ndarray     # float32 (I, T, L)
    log_probs: np.ndarray  # float32 (I, T)
    betas: np.ndarray      # float32 (I, T): 1 without a gate


def find_inputs(args, runs):
    """The Inputs of evaluate.py; images without sound features are left out.

    args: the command's. runs: the ensemble's, or the only one. Results on a data set
    other than the first run's get a separate name, and so do those of an ensemble.
    Raises cli.UserError if one of the runs, or that of --compare, was trained on the
    images, or if features are missing or of another network.
    """
    run = runs[0]
    source = {"data": run.settings["data"], "split": args.split,
              "tokens": args.tokens or run.settings["tokens"],
              "features": args.features or run.settings["features"],
              "look": args.look or _common([how_it_looks(r.settings) for r in runs]),
              "with": [os.path.basename(r.folder) for r in runs[1:]],
              "checkpoint": args.checkpoint, "beam": args.beam}
    tokens = read_tokens(source["tokens"], args.split)
    name = args.split
    if args.tokens:
        source["data"] = os.path.dirname(os.path.abspath(args.tokens))
        if not is_own_data(run, args.tokens):
            name += "_of_" + os.path.basename(os.path.abspath(source["data"]))
    for each in runs:
        check_network(source["features"], each.settings, each.folder)
    source["extractor"] = read_record(source["features"])
    folders = [each.folder for each in runs]
    for folder in folders + ([find_run(args.compare)] if args.compare else []):
        if not args.allow_seen:
            refuse_seen(folder, args.split, tokens.images, source)
    paths, sound = find_features(source["features"], tokens.images, args.split)
    there = sound.nonzero()[0]
    if len(there) < len(paths):
        cli.warn(f"{len(paths) - len(there)} of {len(paths)} images have no "
                 "sound features and are left out: run extract_features.py again")
    ids = [str(tokens.image_ids[i]) for i in there]
    images = [str(tokens.images[i]) for i in there]
    whole = "_with_".join([name, *source["with"]])
    return Inputs(whole, name, source, images, ids,
                  [int(i) if tokens.is_number[n] else i for i, n in zip(ids, there)],
                  [paths[i] for i in there],
                  server_name(args.split, source["tokens"], images)
                  if whole == args.split else whole)


def _common(values):
    """The value that all have in common; None if they differ."""
    return values[0] if len(set(values)) == 1 else None


def server_name(split, tokens_folder, images):
    """The COCO server's name for a split, such as val2014.

    It is the name of the images' folder, unless other splits have images there, too.
    """
    folders = set(map(split_of, images))
    others = {split_of(image) for other in ("train", "val", "test") if other != split
              for image in read_images(tokens_folder, other)}
    return split if len(folders) > 1 or folders & others else folders.pop()


def decoded_path(folder, split):
    """The path of a split's captions with their attention, in a run's folder."""
    return os.path.join(folder, f"attention_{split}.npz")


def pack(captions, images, ids):
    """Pack a list of Captions into a Decoded."""
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


def write_decoded(folder, name, decoded, source):
    """Write a Decoded, for `read_decoded`, and its source, for `read_source`."""
    atomic.write_arrays(decoded_path(folder, name), compress=True, arrays=dict(
        decoded._asdict(), source=np.array(json.dumps(source, sort_keys=True))))


def read_source(run, name):
    """Where a Run's decoded captions come from, and what produced them: a dict.

    'data', 'tokens', 'features': folders. 'split': of the tokens. 'extractor': the
    record of the features. 'look': a key of LOOKS; None: each run's own. 'with': the
    other runs of an ensemble. 'checkpoint': of all of them. 'beam'. 'references':
    {image id: digest of its captions by people}.

    Files of earlier releases record little: the rest is taken from the run, and the
    beam and the references are missing. Raises cli.UserError if the captions are
    missing or damaged, or if the runs that produced them are unknown.
    """
    own = {key: run.settings.get(key) for key in ("data", "tokens", "features",
                                                  "extractor")}
    own.update(look=how_it_looks(run.settings), split=name, references={})
    path = decoded_path(run.folder, name)
    found = _read_record(path)
    if "with" not in found:
        if "_with_" in name:
            raise cli.UserError(f"{path}: of an earlier release, which did not write "
                                "down what made it; run evaluate.py again")
        own["with"] = []
        with contextlib.suppress(cli.UserError):
            own["checkpoint"] = read_scores(run.folder, name).get("checkpoint", "best")
    found = dict({"checkpoint": "best"}, **dict(own, **found))
    if found["look"] not in (*LOOKS, None):
        raise cli.UserError(f"{path}: damaged; run evaluate.py again")
    return found


def _read_record(path):
    """The source recorded in a file of decoded captions; {} in the first releases."""
    try:
        with atomic.load_arrays(path) as arrays:
            return dict(json.loads(str(arrays["source"]))) if (
                "source" in arrays.files) else {}
    except FileNotFoundError:
        raise cli.UserError(f"{path}: no decoded captions there; run evaluate.py")
    except atomic.Damaged:
        raise cli.UserError(f"{path}: damaged; run evaluate.py again")


def read_decoded(folder, split, vocabulary):
    """The Decoded of a split, of a run with this Vocabulary.

    Raises cli.UserError if it is missing, damaged, or has words of another vocabulary.
    """
    path = decoded_path(folder, split)
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
                    and all(np.isfinite(array).all() for array in
                            (decoded.alphas, decoded.log_probs, decoded.betas))):
                raise ValueError
    except FileNotFoundError:
        raise cli.UserError(f"{path}: no decoded captions there; run evaluate.py")
    except atomic.Damaged:
        raise cli.UserError(f"{path}: damaged; run evaluate.py again")
    if decoded.words.max() >= len(vocabulary):
        raise cli.UserError(f"{path}: was decoded with another vocabulary; run "
                            "evaluate.py again")
    return decoded


def read_captions_of(folder, split):
    """{image id: (image's path, caption)} of a split, as decoded by this run."""
    vocabulary = read_vocabulary(folder)
    decoded = read_decoded(folder, split, vocabulary)
    return {str(i): (str(image), vocabulary.decode(words[:steps]))
            for i, image, words, steps in zip(decoded.image_ids, decoded.images,
                                              decoded.words, decoded.steps)}


def refuse_other_images(whose, ours, theirs):
    """Raise cli.UserError if two sets of captions have different images under the same
    ids, and so cannot be compared.

    whose: the run that theirs belong to. ours, theirs: from `read_contents`.
    """
    for i in sorted(set(ours) & set(theirs)):
        (image, said), (other, told) = ours[i], theirs[i]
        if image != other or None not in (said, told) and said != told:
            what = f"is {other}, not {image}" if image != other else (
                f"({image}) has other captions by people than here")
            raise cli.UserError(f"{whose}: its image {i} {what}: captions of another "
                                "data set cannot be compared; run evaluate.py for both "
                                "on the same one")


def read_contents(folder, name):
    """{image id: (path, digest of its captions by people, or None)} of the images that
    a run has captioned. Raises cli.UserError if the file is missing or damaged.
    """
    path = decoded_path(folder, name)
    said = _read_record(path).get("references", {})
    with atomic.load_arrays(path) as arrays:
        return {str(i): (spelled(image), said.get(str(i)))
                for i, image in zip(arrays["image_ids"], arrays["images"])}


def read_theirs(other, data):
    """{image id: caption} of another run's results on the same images.

    data: Inputs, with 'references' in their source. Raises cli.UserError if they have
    no image in common, or different images under the same ids.
    """
    folder = find_run(other)
    theirs = read_captions_of(folder, data.alone)
    if not set(data.ids) & set(theirs):
        raise cli.UserError(f"{other}: has no caption of an image of {data.alone}")
    said = data.source["references"]
    refuse_other_images(other, {i: (spelled(image), said.get(i)) for i, image in zip(
        data.ids, data.images)}, read_contents(folder, data.alone))
    return {i: caption for i, (_, caption) in theirs.items()}


def scores_path(folder, split):
    """The path of a split's scores in a run's folder."""
    return os.path.join(folder, f"scores_{split}.json")


def write_scores(folder, split, summary):
    """Write the result of scores.summarize, for `read_scores`; return the path."""
    path = scores_path(folder, split)
    atomic.write_json(path, summary)
    return path


def remove_scores(folder, split):
    """Remove a split's scores, whose captions are about to be replaced."""
    atomic.remove(scores_path(folder, split))


def read_scores(folder, split):
    """The scores.summarize of a split. Raises cli.UserError if missing or damaged."""
    path = scores_path(folder, split)
    try:
        with atomic.reading(path) as file:
            found = json.load(file)
        for habits in (found["habits"], found["habits_of_first_references"]):
            if OLD_HABIT in habits:
                habits["repeated words, %"] = habits.pop(OLD_HABIT)
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


def nbest_path(folder, split):
    """The path of a split's n-best lists in a run's folder."""
    return os.path.join(folder, f"nbest_{split}.json")


def write_nbest(folder, split, beams):
    """Write {image id: list of {'caption', 'log_prob'}}; None removes an old one."""
    path = nbest_path(folder, split)
    if beams is not None:
        atomic.write_json(path, beams)
    else:
        atomic.remove(path)


def read_nbest(folder, split):
    """{image id: list of {'caption', 'log_prob'}}; empty if there is no such file.

    Raises cli.UserError if it is damaged.
    """
    path = nbest_path(folder, split)
    try:
        with atomic.reading(path) as file:
            beams = json.load(file)
        for beam in beams.values():
            for candidate in beam:
                str(candidate["caption"]), float(candidate["log_prob"])
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise cli.UserError(f"{path}: damaged; run evaluate.py again")
    return beams


def samples_path(folder, split):
    """The path of a split's sampled captions in a run's folder."""
    return os.path.join(folder, f"samples_{split}.json")


def write_samples(folder, split, samples, summary):
    """Write {image id: list of captions} and their summary; return the path."""
    path = samples_path(folder, split)
    atomic.write_json(path, dict(summary, captions=samples))
    return path


def write_results(folder, name, run, captions):
    """Write captions in the COCO server's format; return the file's path.

    name: the server's name for the split. run: the run's name. captions: a list of
    (image id as in the annotations, caption).
    """
    path = os.path.join(folder, f"captions_{name}_{run}_results.json")
    atomic.write_json(path, [{"image_id": i, "caption": text} for i, text in captions])
    return path
