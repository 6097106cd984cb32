"""Make a run small enough to ship: the best epoch's weights in float16, no optimizer.

    .venv/bin/python -m tools.ship_run --run all --name flickr8k

The copy works for captioning, evaluation and --start-from, but cannot be trained
further. Settings that only describe the machine are left out.

Reads:  checkpoints/<run>/
Writes: checkpoints/<name>/
"""
import runtime  # noqa: F401  (first: it reports missing packages)
import os

import numpy as np

from captioning.checkpoints import checkpoint_path
from captioning.runs import (add_run_flag, find_run, read_settings, run_folder,
                             run_name, settings_path)
from runtime import atomic, cli

KEPT = ("vocabulary.tsv", "split.json", "log.csv", "loss.png", "lineage.json",
        "familiarity.npz", "calibration.npz")
OF_THE_MACHINE = ("device", "save_minutes", "hang_minutes")


def main():
    args = arguments()
    source, folder = find_run(args.run), run_folder(args.name)
    settings = read_settings(source)
    arrays = small_weights(checkpoint_path(source, "best"))
    with cli.locked(folder):
        if atomic.exists(settings_path(folder)):
            raise cli.UserError(f"{folder}: a run of that name exists; choose "
                                "another --name")
        with atomic.together():
            for name in KEPT:
                copy(os.path.join(source, name), os.path.join(folder, name))
            atomic.write_arrays(checkpoint_path(folder, "best"), arrays, compress=True)
            # Last, since without settings it is no run, and can be made anew
            atomic.write_json(settings_path(folder), dict(
                {key: value for key, value in settings.items()
                 if key not in OF_THE_MACHINE}, run=args.name, shipped=True))
    size = os.path.getsize(checkpoint_path(folder, "best"))
    print(f"{checkpoint_path(folder, 'best')}: {size / 1e6:.1f} MB")


def small_weights(path):
    """A checkpoint's arrays in float16, by name, without the optimizer's.

    Raises cli.UserError if it is missing or damaged, or float16 cannot hold them.
    """
    try:
        with atomic.load_arrays(path) as file:
            arrays = {name: file[name] for name in file.files
                      if not name.startswith("optimizer/")}
    except FileNotFoundError:
        raise cli.UserError(f"{path}: no such checkpoint; train.py writes one after "
                            "its first epoch")
    except atomic.Damaged:
        raise cli.UserError(f"{path}: damaged; train.py writes the next one after a "
                            "better epoch")
    with np.errstate(over="ignore"):
        arrays = {name: array.astype(np.float16) if array.dtype.kind == "f" else array
                  for name, array in arrays.items()}
    if not all(np.isfinite(array).all() for array in arrays.values()
               if array.dtype.kind == "f"):
        raise cli.UserError(f"{path}: its weights are too large for float16")
    return arrays


def copy(old, new):
    """Copy a file, whole or not at all. Without an old one, remove the new one: an
    attempt with another run left it.
    """
    if not atomic.exists(old):
        atomic.remove(new)
        return
    with atomic.reading(old, "rb") as file:
        content = file.read()
    with atomic.writing(new) as file:
        file.write(content)


def arguments():
    parser = cli.parser(__doc__)
    add_run_flag(parser, default=None, required=True)
    parser.add_argument("--name", type=run_name, required=True, help="name of the copy")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
