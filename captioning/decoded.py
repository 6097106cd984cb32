"""What a run has decoded of a split: captions with attention, scores, n-best lists.

    checkpoints/<run>/attention_<split>.npz                 see Decoded
    checkpoints/<run>/scores_<split>.json                   see scores.summarize
    checkpoints/<run>/nbest_<split>.json                    candidates of the beam
    checkpoints/<run>/samples_<split>.json                  captions drawn, --sample
    checkpoints/<run>/captions_<split>_<run>_results.json   what the COCO server takes
"""
import contextlib
import json
import os
import typing

import numpy as np

from captioning.runs import LOOKS, how_it_looks
from captioning.tokens import read_vocabulary
from runtime import atomic, cli

# The habit's name in the files of earlier releases
OLD_HABIT = "words that stood in the caption before, %"


class Decoded(typing.NamedTuple):
    """The captions of one split with their attention."""
    images: np.ndarray     # str (I,): paths below the data set
    image_ids: np.ndarray  # str (I,)
    words: np.ndarray      # int32 (I, T), padded with 0
    steps: np.ndarray      # int32 (I,): words, the end token among them
    alphas: np.ndarray     # float32 (I, T, L)
    log_probs: np.ndarray  # float32 (I, T)
    betas: np.ndarray      # float32 (I, T): 1 without a gate


def decoded_path(folder, split):
    """Where a run's folder has the captions of a split with their attention."""
    return os.path.join(folder, f"attention_{split}.npz")


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


def write_decoded(folder, name, decoded, source):
    """Write a Decoded, for `read_decoded`, and what it is of, for `read_source`."""
    atomic.write_arrays(decoded_path(folder, name), compress=True, arrays=dict(
        decoded._asdict(), source=np.array(json.dumps(source, sort_keys=True))))


def read_source(run, name):
    """What a Run's decoded captions are of: {'data', 'tokens', 'features': folders,
    'look': a key of LOOKS, what z was made with}.

    Files of earlier releases do not say: theirs are the run's own. Raises
    cli.UserError where the captions are missing or damaged.
    """
    own = {key: run.settings.get(key)
           for key in ("data", "tokens", "features")}
    own["look"] = how_it_looks(run.settings)
    path = decoded_path(run.folder, name)
    try:
        with atomic.load_arrays(path) as arrays:
            if "source" not in arrays.files:
                return own
            found = dict(own, **json.loads(str(arrays["source"])))
            if found["look"] not in LOOKS:
                raise ValueError
            return found
    except FileNotFoundError:
        raise cli.UserError(f"{path}: no decoded captions there; run evaluate.py")
    except atomic.Damaged:
        raise cli.UserError(f"{path}: damaged; run evaluate.py again")


def read_decoded(folder, split, vocabulary):
    """The Decoded of a split, of a run with this Vocabulary.

    Raises cli.UserError where it is missing or damaged, or has words of another.
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
    """{image id: (image's path, caption)} of the split, as this run has decoded it."""
    vocabulary = read_vocabulary(folder)
    decoded = read_decoded(folder, split, vocabulary)
    return {str(i): (str(image), vocabulary.decode(words[:steps]))
            for i, image, words, steps in zip(decoded.image_ids, decoded.images,
                                              decoded.words, decoded.steps)}


def scores_path(folder, split):
    """Where a run's folder has the scores of a split."""
    return os.path.join(folder, f"scores_{split}.json")


def write_scores(folder, split, summary):
    """Write what scores.summarize gave, for `read_scores`; return the file's path."""
    path = scores_path(folder, split)
    atomic.write_json(path, summary)
    return path


def remove_scores(folder, split):
    """Remove the scores of captions that are about to be replaced."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(scores_path(folder, split))


def read_scores(folder, split):
    """What scores.summarize gave for a split. Raises cli.UserError if bad or missing.
    """
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
    """Where a run's folder has the best captions of each image's beam."""
    return os.path.join(folder, f"nbest_{split}.json")


def write_nbest(folder, split, beams):
    """Write {image id: list of {'caption', 'log_prob'}}; None removes an old one."""
    path = nbest_path(folder, split)
    if beams is not None:
        atomic.write_json(path, beams)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def read_nbest(folder, split):
    """{image id: list of {'caption', 'log_prob'}}; empty where there is no such file.

    Raises cli.UserError where it is damaged.
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
    """Where a run's folder has several captions of each image, drawn from the model."""
    return os.path.join(folder, f"samples_{split}.json")


def write_samples(folder, split, samples, summary):
    """Write {image id: list of captions} beside what is said of them; return the path.
    """
    path = samples_path(folder, split)
    atomic.write_json(path, dict(summary, captions=samples))
    return path


def write_results(folder, name, run, captions):
    """Write captions as the COCO server takes them; return the file's path.

    name: of the split, the server's. run: the run's name. captions: a list of
    (image id as in the annotations, caption).
    """
    path = os.path.join(folder, f"captions_{name}_{run}_results.json")
    atomic.write_json(path, [{"image_id": i, "caption": text} for i, text in captions])
    return path
