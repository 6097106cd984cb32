"""The user's own pictures: finding them, and a run's captions for them.

    checkpoints/<run>/attention/own_captions.json   {path: caption}, of all so far
    checkpoints/<run>/attention/own_<picture>.png   one figure each, or .pdf or .svg
"""
import json
import os
import re

from PIL import Image

from captioning import familiarity
from captioning.decoded import write_results
from captioning.features import keep_calibration
from captioning.pictures import titles
from runtime import atomic, cli

BEAM = 5     # width of the beam search
COCO_NAME = re.compile(r"(?:COCO_(?:\w+_)?)?(\d+)\.\w+$")  # and its id
PHONES = (".heic", ".heif", ".avif")  # count as pictures even if unreadable here


def keep_for_pictures(folder, data, features, splits):
    """Save with a run what it needs to caption the user's own pictures, except the
    CNN's weights.

    folder: the run's. data: of the images. features: of step 2. splits: {'train',
    'val': CaptionBatches}.
    """
    keep_calibration(features, folder)
    familiarity.prepare(folder, data, features, splits)


def pictures_in(given):
    """Expand ~, and folders into the pictures in them, without duplicates.

    In a folder, a picture is a file with a picture's extension or first bytes. Other
    files are skipped, hidden ones and a README silently, the rest with one line per
    folder. Raises cli.UserError for a folder without pictures.
    """
    found = []
    for path in map(os.path.expanduser, given):  # `make` leaves the ~ to us
        if not os.path.isdir(path):
            found.append(path)
            continue
        files = [os.path.join(path, name) for name in sorted(os.listdir(path))
                 if not name.startswith(".")]
        files = [file for file in files if os.path.isfile(file)]
        pictures = [file for file in files if _is_picture(file)]
        others = sorted(file for file in set(files) - set(pictures)
                        if not os.path.basename(file).startswith("README"))
        if not pictures:
            raise cli.UserError(f"{path}: no pictures in that folder (subfolders are "
                                "not searched)")
        if others:
            print(f"{path}: skipped {len(others)} of {len(pictures) + len(others)} "
                  "files (not pictures): "
                  + ", ".join(map(os.path.basename, others[:3]))
                  + (", ..." if len(others) > 3 else ""))
        found += pictures
    return list(dict.fromkeys(found))


def _is_picture(path):
    Image.init()
    ending = os.path.splitext(path)[1].lower()
    if ending in PHONES or Image.EXTENSION.get(ending) in Image.OPEN:
        return True
    try:
        with Image.open(path):
            return True
    except Exception:  # Pillow raises almost anything
        return False


def own_path(folder):
    """The path of a run's captions of the user's own pictures."""
    return os.path.join(folder, "attention", "own_captions.json")


def read_own(folder):
    """{path: caption} of all the user's own pictures that a run has captioned.

    folder: the run's. Raises cli.UserError if the file is damaged.
    """
    path = own_path(folder)
    try:
        with atomic.reading(path) as file:
            found = json.load(file)
        if not all(isinstance(caption, str) for caption in found.values()):
            raise ValueError
        return found
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, RecursionError):
        raise cli.UserError(f"{path}: damaged; delete it, and these captions with it")


def write_own(folder, captions):
    """Add OwnCaptions to those of `read_own`, replacing a path's earlier caption.

    If all pictures in a folder have COCO's names, also writes them in the COCO server's
    format. folder: the run's. Returns a function from a picture's path to the path of
    its figure, without extension.
    """
    new = {caption.path: caption.text for caption in captions}
    known = dict(read_own(folder), **new)
    os.makedirs(os.path.dirname(own_path(folder)), exist_ok=True)
    atomic.write_json(own_path(folder), known)
    print(f"captions: {own_path(folder)}")
    ids = {path: COCO_NAME.match(os.path.basename(path)) for path in new}
    places = list(dict.fromkeys(map(os.path.dirname, known)))
    for place, title in zip(places, titles(places)):
        there = [path for path in new if os.path.dirname(path) == place]
        if there and all(ids[path] for path in there):
            print("for the COCO server: " + write_results(
                folder, f"own_{title}" if title else "own",
                os.path.basename(os.path.abspath(folder)),
                [(int(ids[path].group(1)), new[path]) for path in there]))
    title_of = dict(zip(known, titles(list(known))))
    return lambda path: os.path.join(folder, "attention", "own_" + title_of[path])


def load(run, features=None):
    """captioner.load, imported only here.

    It imports TensorFlow, which commands that only read decoded captions do not need.
    """
    from captioning.captioner import load
    return load(run, features)


def caption_own(captioner, given, beam, draw=None):
    """Caption the user's own pictures, save the captions and print them.

    captioner: a PictureCaptioner. given: see `pictures_in`. draw: None, or a dict of
    the arguments of `OwnCaption.draw` after the path, and 'format', the figures'
    extension. Unreadable pictures are left out, with a warning each. Returns a list of
    OwnCaptions and one of the figures' paths. Raises cli.UserError.
    """
    pictures = pictures_in(given)
    read_own(captioner.run.folder)  # a damaged file stops the command before the work
    captions, figures = captioner.many(pictures, beam, skip=True), []
    figure_of = write_own(captioner.run.folder, captions)
    for caption in captions:
        where = caption.path
        if draw is not None:
            options = dict(draw)
            where = f"{figure_of(caption.path)}.{options.pop('format')}"
            caption.draw(where, **options)
            figures.append(where)
        print(f"{where}: {caption.text}"
              + (f" ({caption.remark})" if caption.remark else ""), flush=True)
    return captions, figures
