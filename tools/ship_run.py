"""Make a run small enough to ship: float16 weights of its best epoch, no optimizer.

    .venv/bin/python -m tools.ship_run --run all --name flickr8k

The folder can be used for captioning, evaluation and --start-from, but not trained
further. Settings that only describe the machine are left out.

Reads:  checkpoints/<run>/
Writes: checkpoints/<name>/
"""
import runtime  # noqa: F401  (first: it reports missing packages)
import json
import os
import shutil

import numpy as np

from captioning.checkpoints import checkpoint_path
from captioning.runs import run_folder, settings_path
from runtime import atomic, cli

KEPT = ("vocabulary.tsv", "split.json", "log.csv", "loss.png", "lineage.json",
        "familiarity.npz")
OF_THE_MACHINE = ("device", "save_minutes", "hang_minutes")


def main():
    args = arguments()
    source, folder = run_folder(args.run), run_folder(args.name)
    if os.path.exists(settings_path(folder)):
        raise cli.UserError(f"{folder}: there is a run of that name; choose another "
                            "--name")
    try:
        with open(settings_path(source), encoding="utf-8") as file:
            settings = json.load(file)
    except (FileNotFoundError, ValueError):
        raise cli.UserError(f"{settings_path(source)}: missing or damaged")
    path = checkpoint_path(source, "best")
    if not os.path.exists(path):
        raise cli.UserError(f"{path}: no such checkpoint; train.py writes one after "
                            "its first epoch")
    with atomic.load_arrays(path) as file:
        arrays = {name: file[name].astype(np.float16) if file[name].dtype.kind == "f"
                  else file[name] for name in file.files
                  if not name.startswith("optimizer/")}
    if not all(np.isfinite(array).all() for array in arrays.values()
               if array.dtype.kind == "f"):
        raise cli.UserError(f"{path}: its weights are too large for float16")
    os.makedirs(folder, exist_ok=True)
    for name in KEPT:
        if os.path.exists(os.path.join(source, name)):
            shutil.copyfile(os.path.join(source, name), os.path.join(folder, name))
    atomic.write_arrays(checkpoint_path(folder, "best"), arrays, compress=True)
    atomic.write_json(settings_path(folder), dict(
        {key: value for key, value in settings.items() if key not in OF_THE_MACHINE},
        run=args.name, shipped=True))
    size = os.path.getsize(checkpoint_path(folder, "best"))
    print(f"{checkpoint_path(folder, 'best')}: {size / 1e6:.1f} MB")


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--run", required=True, help="name below checkpoints/")
    parser.add_argument("--name", required=True, help="name of the copy")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
