"""Checkpoints of a run: weights, optimizer and progress.

    checkpoints/<run>/newest.npz, previous.npz     the last two
    checkpoints/<run>/best.npz                     after the best epoch

Plain arrays named by the paper's letters: numpy reads them, with or without a GPU.
"""
import collections
import contextlib
import json
import os
import typing

import numpy as np

from runtime import atomic, cli, ranks
from runtime.tf import tf


class Progress(typing.NamedTuple):
    """How far a run has come. All but `history` describes the current epoch."""
    history: typing.List[dict]  # the row of log.csv for each finished epoch
    batch: int      # batches done
    total: float    # cross-entropy in nats, summed over these batches
    words: int      # real words, summed over these batches
    seconds: float  # spent
    order: int      # checksum of the order of its captions


def begin_epoch(history):
    """The Progress at the start of the epoch after this history."""
    return Progress(history, 0, 0., 0, 0., 0)


def checkpoint_path(folder, name):
    """A run's checkpoint; name: 'newest', 'previous' or 'best'."""
    return os.path.join(folder, name + ".npz")


def save_checkpoint(path, variables, progress):
    """Save variables and progress in one file, complete or not at all.

    variables: from `variables_of`.
    """
    arrays = {name: variable.numpy() for name, variable in variables.items()}
    arrays["progress"] = np.array(json.dumps(progress._asdict()))
    atomic.write_arrays(path, arrays)


def load_checkpoint(path, variables):
    """Assign a checkpoint's arrays to these variables; return its Progress.

    variables: from `variables_of`, or the model's weights alone. Raises cli.UserError
    if the file is missing, damaged, or its weights have other sizes, and OSError if the
    disk fails; no variable has been changed then.
    """
    try:
        with atomic.load_arrays(path) as file:
            progress, earlier = read_progress(str(file["progress"]))
            arrays = {name: earlier[name] if name in earlier else file[name]
                      for name in variables}
    except FileNotFoundError:
        raise cli.UserError(f"{path}: no such checkpoint; train.py writes one after "
                            "its first epoch")
    except atomic.Damaged:
        raise cli.UserError(f"{path}: damaged, or not a checkpoint of this project; "
                            "move it away and start train.py again")
    for name, variable in variables.items():
        if arrays[name].shape != tuple(variable.shape.as_list()):
            raise cli.UserError(
                f"{path}: {name} has shape {arrays[name].shape}, the model expects "
                f"{tuple(variable.shape.as_list())}; this checkpoint is of another run")
        if not np.isfinite(arrays[name]).all():
            raise cli.UserError(f"{path}: {name} is not finite; move the checkpoint "
                                "away and start train.py again")
    for name, variable in variables.items():  # a run that ships has float16
        variable.assign(arrays[name].astype(variable.dtype.base_dtype.as_numpy_dtype))
    return progress


def read_progress(text):
    """The Progress in a checkpoint's JSON, and {name: array} of the variables that
    earlier releases kept there. Raises ValueError, KeyError or TypeError if invalid.
    """
    fields = json.loads(text)
    earlier = {"optimizer/baseline": np.array(fields.pop("baseline"), np.float32)
               } if "baseline" in fields else {}
    found = Progress(**fields)
    if not (isinstance(found.history, list)
            and all(row["epoch"] == i for i, row in enumerate(found.history, 1))
            and all(type(n) is int and n >= 0
                    for n in (found.batch, found.words, found.order))
            and all(type(x) in (int, float) and np.isfinite(x)
                    for x in (found.total, found.seconds))):
        raise ValueError
    return found, earlier


def variables_of(model, optimizer, terms=()):
    """Everything needed to resume a run: {name in a checkpoint: Variable}.

    Weights are named by the paper's letters. terms: of the loss, which may have
    variables of their own.
    """
    found = collections.OrderedDict(model.weights)
    for name, variable in optimizer_variables(model, optimizer).items():
        found["optimizer/" + name] = variable
    for term in terms:
        found.update(("optimizer/" + name, variable)
                     for name, variable in term.variables.items())
    return found


def optimizer_variables(model, optimizer):
    """The optimizer's variables, by names that are the same in every process."""
    found = collections.OrderedDict()
    for name, weight in model.weights.items():
        for slot in optimizer.get_slot_names():
            variable = optimizer.get_slot(weight, slot)
            if variable is not None:
                found[f"{slot}/{name}"] = variable
    inside = {id(variable) for variable in found.values()}
    for variable in optimizer.variables():  # Adam's powers of beta_1 and beta_2
        if id(variable) not in inside:
            found[variable.name.split(":")[0].split("/")[-1]] = variable
    return found


def create_optimizer_variables(model, optimizer):
    """Create the optimizer's variables by a step without effect, for a checkpoint."""
    before = {name: weight.numpy().copy() for name, weight in model.weights.items()}
    optimizer.apply_gradients([(tf.zeros_like(weight), weight)
                               for weight in model.weights.values()])
    for name, weight in model.weights.items():
        weight.assign(before[name])
    # That step has changed initial values: Adam's powers of beta_1 and beta_2, and
    # RMSProp's mean square.
    first = {"beta1_power": .9, "beta2_power": .999, "rms": 1., "steps": 0.}
    for name, slot in optimizer_variables(model, optimizer).items():
        value = first.get(name.split("/")[0])
        if value is not None:
            slot.assign(np.full(slot.shape.as_list(), value, np.float32))


def resume(folder, variables, begin=lambda: None):
    """Load the newest sound checkpoint and return its Progress; else a new run's.

    begin: called if there is none. Rank 0 reads, and sends the others what it read.
    """
    found = None
    if ranks.rank == 0:
        found = load_newest(folder, variables)
        if found is None:
            begin()
    found = found or begin_epoch([])
    ranks.copy_first(list(variables.values()))
    return Progress(*ranks.from_first(found))


def load_newest(folder, variables):
    """Load the newest sound checkpoint and return its Progress; None if there is none.

    As a last resort the best epoch's: a run begun anew would overwrite it. Raises
    OSError if the disk fails.
    """
    for name in ("newest", "previous", "best"):
        path = checkpoint_path(folder, name)
        if atomic.exists(path):
            try:
                progress = load_checkpoint(path, variables)
            except cli.UserError as error:
                if name == "best" and has_weights(path, variables):
                    raise cli.UserError(
                        f"{path}: has sound weights, but not what the run needs to go "
                        "on from them; choose another --run, with --start-from "
                        f"{os.path.basename(folder)}")
                cli.warn(f"{error} (passed over, kept as {path}.bad)")
                os.replace(path, path + ".bad")  # never becomes previous.npz
                continue
            if name == "best":
                cli.warn(f"{folder}: has no sound checkpoint but that of its best "
                         "epoch; those after it are trained again")
            inside = f" and {progress.batch} batches" if progress.batch else ""
            print(f"resuming from {path}, after epoch {len(progress.history)}{inside}")
            return progress
    return None


def has_weights(path, variables):
    """Whether a checkpoint's weights are sound; if so, they are loaded."""
    try:
        load_checkpoint(path, {name: variable for name, variable in variables.items()
                               if not name.startswith("optimizer/")})
    except cli.UserError:
        return False
    return True


def rotate_checkpoint(folder, variables, progress):
    """Save the newest checkpoint and keep the one before it, on rank 0."""
    if ranks.rank:
        return
    newest = checkpoint_path(folder, "newest")
    previous = checkpoint_path(folder, "previous")
    with contextlib.suppress(FileNotFoundError):
        os.replace(newest, previous)
    save_checkpoint(newest, variables, progress)
