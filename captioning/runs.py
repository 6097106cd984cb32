"""A run's folder: its settings, vocabulary and images.

    checkpoints/<run>/settings.json      the arguments, sizes and versions
    checkpoints/<run>/vocabulary.tsv     the words of the model
    checkpoints/<run>/split.json         the images of training and validation
"""
import argparse
import functools
import json
import os
import subprocess
import typing

from captioning.tokens import (LARGEST, Vocabulary, read_vocabulary,
                               vocabulary_path)
from runtime import atomic, cli
from runtime.flags import did_you_mean

RUNS = "checkpoints"
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LOOKS = ("expected", "likeliest")  # how attention gives the context, see models.LOOKING


class Run(typing.NamedTuple):
    """A trained run without its model, for commands that read its results."""
    folder: str
    settings: dict
    vocabulary: Vocabulary


def run_name(text):
    """An argparse type: the name of a run, or the path of its folder.

    d1, d1/ and checkpoints/d1 are the same run.
    """
    folder, name = os.path.split(os.path.normpath(text))
    if folder and os.path.abspath(folder) != os.path.abspath(RUNS) or name[0] == "-":
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a folder below "
                                         f"{RUNS}")
    return cli.name(name)


def add_run_flag(parser, default="baseline", **kwargs):
    """Add --run, for commands that work on one run. kwargs: see the parser's `always`.
    """
    parser.always("--run", type=run_name, default=default, help=f"name below {RUNS}/",
                  **kwargs)


def run_folder(name):
    """The folder of a run, whether or not it exists; name: a `run_name`."""
    return os.path.join(RUNS, name)


def find_run(name, folder=None):
    """The folder of an existing run. Raises cli.UserError if there is none.

    folder: where it should be, if not below RUNS.
    """
    folder = folder or run_folder(name)
    if not atomic.exists(settings_path(folder)):
        raise cli.UserError(f"{settings_path(folder)}: no such run{others_than(name)}")
    return folder


def others_than(name):
    """The end of a message about a missing run: the existing ones."""
    there = sorted(name for name in os.listdir(RUNS) if os.path.exists(
        settings_path(run_folder(name)))) if os.path.isdir(RUNS) else []
    if not there:
        return f"; train it with: python train.py --run {name}"
    return f"{did_you_mean(name, there) or ';'} there are: {', '.join(there)}"


def settings_path(folder):
    """The path of a run's arguments, sizes and versions."""
    return os.path.join(folder, "settings.json")


def split_path(folder):
    """The path of a run's list of training and validation images."""
    return os.path.join(folder, "split.json")


def is_begun(folder):
    """Whether the run in this folder has a checkpoint, even a bad one set aside."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return any(name.startswith(("newest", "previous", "best"))
               and not name.endswith(atomic.PARTIAL) for name in names)


def read_run(name, folder=None):
    """The Run of this name; folder: where it is, if not below RUNS.

    Raises cli.UserError if it does not exist, is damaged, or its parts do not fit
    together.
    """
    folder = find_run(name, folder)
    settings = read_settings(folder)
    try:
        sizes = settings["sizes"]
        if not all(type(size) is int and 0 < size < LARGEST for size in sizes.values()):
            raise ValueError(f"bad sizes {sizes}")
        words = sizes["vocabulary"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damaged(folder)
    if not atomic.exists(vocabulary_path(folder)):
        raise cli.UserError(f"{vocabulary_path(folder)}: missing, so this is not a "
                            "whole run; the folders below results/ have no weights")
    vocabulary = read_vocabulary(folder)
    if len(vocabulary) != words:
        raise cli.UserError(f"{folder}: its vocabulary has {len(vocabulary)} words, "
                            f"the weights {words}; put the run's own vocabulary back")
    return Run(folder, settings, vocabulary)


def read_settings(folder):
    """The settings.json of the run in this folder. Raises cli.UserError if it is
    missing or damaged.
    """
    try:
        with atomic.reading(settings_path(find_run(os.path.basename(folder),
                                                   folder))) as file:
            return dict(json.load(file))
    except (ValueError, TypeError):
        raise damaged(folder)


def damaged(folder):
    """The cli.UserError for damaged settings."""
    return cli.UserError(f"{settings_path(folder)}: damaged; train the run again under "
                         "another name")


def read_split(folder):
    """The images of a run's training and validation: {'train', 'val': list of str}.

    folder: the run's. Raises cli.UserError if the file is missing or damaged.
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


def has_gate(settings):
    """Whether a run of these settings, of whatever release, has beta."""
    return not settings.get("no_gate") and "gate" not in settings.get("without", ())


def how_it_looks(settings):
    """How a run with these settings turns attention into a context: one of LOOKS."""
    return "likeliest" if settings.get("attention") == "hard" else "expected"


@functools.lru_cache(maxsize=None)
def commit():
    """The git commit of these scripts, with -dirty if they have been changed since;
    'unknown' without git or a clone.
    """
    def git(*words):
        return subprocess.check_output(["git", *words], cwd=HERE,
                                       stderr=subprocess.DEVNULL).decode().strip()
    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
