"""train.py's options when a run is resumed: those left out keep the run's own values,
and a different value of a fixed one is refused.
"""
import json
import os

from captioning.features import check_network
from captioning.options import FOLDERS, GONE, build_parser, completed, fixed
from captioning.runs import (is_begun, read_split, run_folder, settings_path,
                             split_path)
from captioning.tokens import write_vocabulary
from runtime import atomic, cli


def arguments(doc):
    """The arguments of train.py; doc: its docstring. Raises cli.UserError if the run
    was made with a flag that no longer exists.
    """
    parser = build_parser(doc)
    own = settings_to_resume(run_folder(parser.parse_known_args()[0].run))
    names = {action.dest for action in parser._actions} - {"help", "run"}
    parser.set_defaults(**{
        name: value for name, value in own.items() if name in names
        and (name not in FOLDERS or isinstance(value, str))})
    args = parser.parse_args()
    parser.settle(args, own)
    return args


def settings_to_resume(folder):
    """The settings of a run that has begun; empty for a new run. folder: the run's.

    Defaults may change between releases: a run keeps its own. Raises cli.UserError if
    it was made with a flag that no longer exists.
    """
    try:
        with atomic.reading(settings_path(folder)) as file:
            settings = completed(json.load(file))
    except (FileNotFoundError, ValueError, TypeError):  # check_settings reports it
        return {}
    if not is_begun(folder):
        return {}
    for name, values in GONE.items():
        if settings.get(name) not in values + (None,):
            raise cli.UserError(
                f"{settings_path(folder)}: was trained with --{name.replace('_', '-')}"
                f" {settings[name]}, which this release does not have; go on with "
                f"commit {settings.get('commit')}, or choose another --run")
    return settings


def write_settings(folder, settings, images, vocabulary):
    """Write a new run's settings, or check that an old run is resumed with the same.

    images: {'train', 'val': list of str}, as from `read_split`. vocabulary: a
    Vocabulary. A run without a checkpoint (out of memory, say) may begin again with
    other settings. Raises cli.UserError if the settings are those of a different run.
    """
    if is_begun(folder):
        check_settings(folder, settings, images)
    os.makedirs(folder, exist_ok=True)
    atomic.write_json(split_path(folder), images)
    atomic.write_json(settings_path(folder), settings)
    write_vocabulary(folder, vocabulary)


def check_settings(folder, settings, images):
    """Raise cli.UserError if a run was started with other settings or images.

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
