"""What a run was made of: the images that it, and the runs it started from, have seen.

    checkpoints/<run>/lineage.json   Generations: of the run, of the one it started from
                                     (train.py --start-from), and so on

Written when training begins, so that it survives the older runs and their data. Images
are identified by content as well, since COCO 2014 and 2017 have the same pictures under
different names. Reading all of COCO for that would take as long as copying 13 GB, so a
picture is identified by its file's size and first and last 16 KB; if the picture is
missing, by those of its features.
"""
import hashlib
import json
import os
import posixpath
import typing

from tqdm import tqdm

from captioning.features import feature_path
from captioning.runs import (find_run, is_begun, read_settings, read_split,
                             run_folder)
from captioning.tokens import read_images, read_references, references_path
from runtime import atomic, cli, watchdog
from runtime.ahead import read_ahead

PIECE = 16384   # bytes at either end of a file
DOUBLES = .01   # share of duplicate images that any large collection may have


class Generation(typing.NamedTuple):
    """What one run was trained on."""
    run: str
    images: typing.Dict[str, typing.Optional[str]]  # {path: `fingerprint`}
    references: typing.Dict[str, str]  # {'train', 'val': `digest`}, as far as known


def lineage_path(folder):
    """The path of a run's lineage."""
    return os.path.join(folder, "lineage.json")


def write_lineage(args, images):
    """Write a new run's lineage; a run that has begun keeps its own.

    args: train.py's. images: its training images, paths below the data set.
    """
    folder = run_folder(args.run)
    if is_begun(folder):
        return
    older = read_lineage(find_run(args.start_from)) if args.start_from else []
    references = {split: references_digest(args.tokens, split)
                  for split in ("train", "val")}
    own = Generation(args.run, fingerprints(args.data, args.features, images,
                                            "training"),
                     {split: found for split, found in references.items() if found})
    atomic.write_json(lineage_path(folder), [generation._asdict()
                                             for generation in [own] + older])


def read_lineage(folder, younger=()):
    """The Generations of the run in this folder, its own first.

    For a run of an earlier release they come from its split.json and from the run it
    started from, if that still exists. younger: folders that led here. Raises
    cli.UserError if the file is damaged.
    """
    path = lineage_path(folder)
    try:
        with atomic.reading(path) as file:
            found = [Generation(**generation) for generation in json.load(file)]
        if not found or not all(isinstance(part, dict) for generation in found
                                for part in generation[1:]):
            raise ValueError
        return found
    except FileNotFoundError:
        pass
    except (ValueError, TypeError, RecursionError):
        raise cli.UserError(f"{path}: damaged, so what the run was trained on is "
                            "unknown; put it back, or train another run")
    own = Generation(os.path.basename(folder), dict.fromkeys(
        map(spelled, read_split(folder)["train"])), {})
    parent = read_settings(folder).get("start_from")
    if not parent:
        return [own]
    parent = os.path.join(os.path.dirname(folder), os.path.basename(
        os.path.normpath(parent)))  # it may have been given as a path
    if parent in younger or not os.path.isdir(parent):
        cli.warn(f"{folder}: started from {parent}, which is gone, so not all images "
                 "that it was trained on are known")
        return [own]
    return [own] + read_lineage(parent, younger + (folder,))


def spelled(image):
    """An image's path, normalized: d//e.jpg and ./d/e.jpg become d/e.jpg."""
    return posixpath.normpath(str(image))


def fingerprint(data, features, image):
    """Identify an image by content: a short str; None if its files are missing.

    data, features: the folders of the pictures and of step 2.
    """
    for kind, path in (("image", os.path.join(data, image)),
                       ("features", feature_path(features, image))):
        try:
            with atomic.reading(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                content = [str(size).encode()]
                for start in (0, max(0, size - PIECE)):
                    file.seek(start)
                    content.append(file.read(PIECE))
        except (FileNotFoundError, NotADirectoryError):
            continue
        return f"{kind} {hashlib.sha256(b' '.join(content)).hexdigest()[:16]}"
    return None


def fingerprints(data, features, images, of):
    """{path: `fingerprint`} of images; of: label of the progress bar."""
    prints = watchdog.watched(
        tqdm(read_ahead(lambda image: fingerprint(data, features, str(image)), images),
             desc=f"images of {of}", unit="image", total=len(images)), "image", of)
    return dict(zip(map(spelled, images), prints))


def digest(content):
    """A short digest of captions, or of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def references_digest(tokens, split):
    """The `digest` of a split's captions by people; None if there are none."""
    if os.path.exists(references_path(tokens, split)):
        return digest(read_references(tokens, split))


# --- what it may be asked to caption --------------------------------------------------

def refuse_seen(folder, split, images, source):
    """Raise cli.UserError if a run, or one that it started from, was trained on some of
    these images. Called before their captions are scored or shown.

    folder: the run's. split: of the images. source: their {'data', 'tokens',
    'features': folders}. A few copies under other names only cause a warning: large
    collections contain duplicates.
    """
    images, now = list(map(spelled, images)), None
    beside = set(map(spelled, read_images(source["tokens"], "train")))
    for number, generation in enumerate(read_lineage(folder)):
        trained = generation.images
        seen = [image for image in images if image in trained]
        copies = {}
        if beside != set(trained) and any(trained.values()):
            # With the same training images, step 3 would have kept the splits apart
            if now is None:
                now = fingerprints(source["data"], source["features"], images, split)
            names = {content: name for name, content in trained.items() if content}
            seen = [image for image in seen if not differ(trained[image], now[image])]
            copies = {image: names[now[image]] for image in images
                      if now[image] in names and image not in seen}
        whom = f"{generation.run}, from which {os.path.basename(folder)} comes" if (
            number) else generation.run
        one = seen[0] if seen else "{}, there {}".format(
            *next(iter(copies.items()))) if copies else ""
        count = f"{len(seen) + len(copies)} of {len(images)} images of {split}"
        if seen or len(copies) > DOUBLES * len(images):
            raise cli.UserError(f"{count} were trained on by {whom} (one is {one}), so "
                                "their scores would be meaningless; --allow-seen "
                                "scores them all the same")
        if copies:
            cli.warn(f"{count} were trained on by {whom} under other names (one is "
                     f"{one})")


def differ(one, other):
    """Whether two fingerprints, or None, surely belong to different images."""
    return bool(one and other and one != other
                and one.split()[0] == other.split()[0])


def refuse_seen_by_ancestors(args, images):
    """`refuse_seen` for the validation images of a new run with --start-from.

    args: train.py's.
    """
    if args.start_from and not args.allow_seen and not is_begun(run_folder(args.run)):
        refuse_seen(find_run(args.start_from), "validation", images, vars(args))


# --- where what it was trained on is now ----------------------------------------------

def training_tokens(run, *elsewhere):
    """Find the tokens that a Run was trained on: in its own folder, or in the first of
    `elsewhere` that has the same captions of the same images.

    Raises cli.UserError if none has.
    """
    trained = list(map(spelled, read_split(run.folder)["train"]))
    said = read_lineage(run.folder)[0].references.get("train")
    wrong = []
    for folder in [run.settings["tokens"], *filter(None, elsewhere)]:
        path = references_path(folder, "train")
        if not os.path.exists(path):
            wrong.append(f"{path}: not there, so what {run.folder} was trained on is "
                         "unknown")
        elif list(map(spelled, read_images(folder, "train"))) != trained:
            wrong.append(f"{folder}: has other training images than {run.folder}")
        elif said not in (None, references_digest(folder, "train")):
            wrong.append(f"{path}: has other captions than {run.folder} was trained on")
        else:
            return folder
    raise cli.UserError(f"{wrong[0]}; run tokenize_captions.py as before the training, "
                        "or give the folder that has them with --tokens")


def is_own_data(run, tokens):
    """Whether a folder of tokens has a Run's validation images, with the same captions
    by people if those are known.
    """
    own, other = (sorted(map(spelled, images)) for images in (
        read_split(run.folder)["val"], read_images(tokens, "val")))
    if own != other:
        return False
    said = read_lineage(run.folder)[0].references.get("val")
    if said is None and read_images(run.settings["tokens"], "val"):
        said = references_digest(run.settings["tokens"], "val")
    return said in (None, references_digest(tokens, "val"))
