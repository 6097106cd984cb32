"""A run's folder: its settings, vocabulary and images.

    checkpoints/<run>/settings.json      the arguments, sizes and versions
    checkpoints/<run>/vocabulary.tsv     the words that the weights know
    checkpoints/<run>/split.json         the images of training and validation
"""
import argparse
import hashlib
import json
import os
import subprocess
import typing

from captioning.features import check_network
from captioning.tokens import LARGEST, Vocabulary, read_vocabulary, write_vocabulary
from runtime import atomic, cli
from runtime.flags import did_you_mean

RUNS = "checkpoints"
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# What runs of earlier releases, whose settings do not say, were trained with
EARLIER = {"guidance": 0., "no_word_query": True, "schedule": "epochs", "average": None,
           "start_share": 0., "label_smoothing": 0., "scheduled_sampling": 0.,
           "attention": "soft", "expected": None, "reinforce": None, "entropy": None}
LOOKS = ("expected", "likeliest")  # what z is made with, see models.LOOKING


class Run(typing.NamedTuple):
    """A trained run without its model, for those who read what it has written."""
    folder: str
    settings: dict
    vocabulary: Vocabulary


def run_name(text):
    """An argparse type: the name of a run, be it given as the path of its folder.

    d1, d1/ and checkpoints/d1 are one run.
    """
    folder, name = os.path.split(os.path.normpath(text))
    if folder and os.path.abspath(folder) != os.path.abspath(RUNS) or name[0] == "-":
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a folder below "
                                         f"{RUNS}")
    return cli.name(name)


def add_run_flag(parser, default="baseline", **kwargs):
    """--run, for the commands that work on one. kwargs: as of the parser's `always`."""
    parser.always("--run", type=run_name, default=default, help=f"name below {RUNS}/",
                  **kwargs)


def run_folder(name):
    """The folder of the run called so, be it there or not; name: a `run_name`."""
    return os.path.join(RUNS, name)


def find_run(name, folder=None):
    """The folder of a run that is there. Raises cli.UserError where there is none.

    folder: where it should be, if not below RUNS.
    """
    folder = folder or run_folder(name)
    if not atomic.exists(settings_path(folder)):
        raise cli.UserError(f"{settings_path(folder)}: no such run{others_than(name)}")
    return folder


def others_than(name):
    """The end of a message about a run that is not there: those that are."""
    there = sorted(name for name in os.listdir(RUNS) if os.path.exists(
        settings_path(run_folder(name)))) if os.path.isdir(RUNS) else []
    if not there:
        return f"; train it with: python train.py --run {name}"
    return f"{did_you_mean(name, there) or ';'} there are: {', '.join(there)}"


def settings_path(folder):
    """The arguments, sizes and versions of a run."""
    return os.path.join(folder, "settings.json")


def split_path(folder):
    """The images of training and validation of a run."""
    return os.path.join(folder, "split.json")


def is_begun(folder):
    """Whether the run in this folder has a checkpoint, be it a bad one set aside."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return any(name.startswith(("newest", "previous", "best")) for name in names)


def read_run(name, folder=None):
    """The Run of this name; folder: where it is, if not below RUNS.

    Raises cli.UserError where it does not exist, is damaged, or its parts do not fit
    together.
    """
    folder = find_run(name, folder)
    settings = read_settings(folder)
    try:
        sizes, _ = settings["sizes"], settings["no_gate"]
        if not all(type(size) is int and 0 < size < LARGEST for size in sizes.values()):
            raise ValueError(f"bad sizes {sizes}")
        words = sizes["vocabulary"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damaged(folder)
    vocabulary = read_vocabulary(folder)
    if len(vocabulary) != words:
        raise cli.UserError(f"{folder}: its vocabulary has {len(vocabulary)} words, "
                            f"the weights {words}; put the run's own vocabulary back")
    return Run(folder, settings, vocabulary)


def read_settings(folder):
    """What settings.json says of the run in this folder. Raises cli.UserError where it
    is missing or damaged.
    """
    try:
        with atomic.reading(settings_path(find_run(os.path.basename(folder),
                                                   folder))) as file:
            return dict(json.load(file))
    except (ValueError, TypeError):
        raise damaged(folder)


def damaged(folder):
    """The cli.UserError for settings that are none."""
    return cli.UserError(f"{settings_path(folder)}: damaged; train the run again under "
                         "another name")


def read_split(folder):
    """Which images a run was trained and validated on: {'train', 'val': list of str}.

    folder: the run's. Raises cli.UserError where the file is missing or damaged.
    """
    path = split_path(folder)
    try:
        with atomic.reading(path) as file:
            split = json.load(file)
        if not all(isinstance(image, str) for name in ("train", "val")
                   for image in split[name]):
            raise ValueError
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise cli.UserError(f"{path}: missing or damaged, so the images that the "
                            "run was trained on are unknown; train it again under "
                            "another name")
    return split


def how_it_looks(settings):
    """What z is made with in a run of these settings: a key of LOOKS."""
    return "likeliest" if settings.get("attention") == "hard" else "expected"


def completed(settings):
    """Settings with all that they need to have; see EARLIER."""
    found = dict(EARLIER, **settings)
    if found.get("start_from"):  # it may have been given as a path
        found["start_from"] = os.path.basename(os.path.normpath(found["start_from"]))
    return found


def settings_to_resume(folder):
    """The settings of a run that has begun; empty for a new run. folder: the run's.

    Defaults may change from release to release: a run keeps its own.
    """
    try:
        with atomic.reading(settings_path(folder)) as file:
            settings = completed(json.load(file))
        return settings if is_begun(folder) else {}
    except (FileNotFoundError, ValueError, TypeError):  # check_settings will tell
        return {}


def write_settings(folder, settings, images, vocabulary, fixed):
    """Write a new run's settings, or check that an old run is resumed with the same.

    images: {'train', 'val': list of str}, what `read_split` returns. vocabulary: a
    Vocabulary. fixed: tells of settings which of them must be the same. A run that has
    no checkpoint yet (out of memory, say) may begin again with other settings. Raises
    cli.UserError where the run is another one.
    """
    if is_begun(folder):
        check_settings(folder, settings, images, fixed)
    os.makedirs(folder, exist_ok=True)
    atomic.write_json(split_path(folder), images)
    atomic.write_json(settings_path(folder), settings)
    write_vocabulary(folder, vocabulary)


def check_settings(folder, settings, images, fixed):
    """Raise cli.UserError where a run was started with other settings or images.

    The arguments are those of `write_settings`.
    """
    path = settings_path(folder)
    try:
        with atomic.reading(path) as file:
            before = completed(json.load(file))
        names = fixed(before)
        other = [key for key in names + ["sizes", "vocabulary_digest"]
                 if before.get(key) != settings[key]]
    except FileNotFoundError:
        raise cli.UserError(f"{path}: missing, so what these checkpoints are of is "
                            "unknown; put it back, or choose another --run")
    except (ValueError, AttributeError, TypeError):
        raise cli.UserError(f"{path}: damaged; choose another --run")
    if before.get("shipped"):
        name = os.path.basename(folder)
        raise cli.UserError(f"{folder}: this run ships with the project and is not "
                            "trained further; choose another --run, and --start-from "
                            f"{name} to begin with its weights")
    if other:
        were = ", ".join(f"{key} {before.get(key)}" for key in other if key in names)
        raise cli.UserError(
            f"{path}: this run was started with another "
            + f"{', '.join(other)}; repeat its command".replace("_", " ")
            + (f" ({were})".replace("_", " ") if were else "")
            + ", or choose another --run")
    check_network(settings["features"], before, folder)
    if read_split(folder) != images:
        raise cli.UserError(f"{folder}: this run was started with other images; "
                            "tokenize those again, or choose another --run")


def commit():
    """The git commit of these scripts, with -dirty where they have been changed since;
    'unknown' where there is no git or no clone.
    """
    def git(*words):
        return subprocess.check_output(["git", *words], cwd=HERE,
                                       stderr=subprocess.DEVNULL).decode().strip()
    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def model_digest():
    """What tells two versions of model.py apart: its SHA-256."""
    with atomic.reading(os.path.join(HERE, "model.py"), "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()
