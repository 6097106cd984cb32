"""What several processes promise: the same runs, however many share the work."""
import csv
import json
import os
import signal
import sys
import time

import numpy as np
import pytest

from processes import (TRAINING, cores_for_all, finish, mpirun,  # noqa: F401
                       several, start, wait_for, workers)
from worlds import write_data


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the runs `one` and `two`, trained by one process and by two."""
    folder = tmp_path_factory.mktemp("trained")
    write_data(folder)
    arguments = (*TRAINING, "one", "--epochs", "3")
    status, out, errors = finish([sys.executable, *arguments], folder)
    assert status == 0, errors
    status, out, errors = finish(mpirun(2, *TRAINING, "two", "--epochs", "3"), folder)
    assert status == 0, errors
    assert out.count("[4/6] train") == out.count("epoch 3:") == 1  # from rank 0 only
    assert errors.count("epoch 1/3:   0%") == 1
    return folder


def arrays_of(folder, run, name="newest"):
    """The arrays of a checkpoint, and its history without times."""
    path = str(folder / "checkpoints" / run / (name + ".npz"))
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files if key != "progress"}
        history = json.loads(str(file["progress"]))["history"]
    return arrays, [{key: value for key, value in row.items()
                     if key not in ("seconds", "captions_per_second")}
                    for row in history]


def assert_same_run(folder, ours, plain):
    arrays, history = arrays_of(folder, plain)
    others, other_history = arrays_of(folder, ours)
    assert len(history) == len(other_history)
    for row, other in zip(history, other_history):
        assert other == pytest.approx(row, rel=1e-4)
    weights = [name for name in arrays if "/" not in name]
    assert len(weights) > 15
    for name in weights:  # Adam amplifies the last digits of a gradient
        np.testing.assert_allclose(others[name], arrays[name], atol=1e-3, err_msg=name)


@several
def test_run_of_two_processes_is_the_run_of_one(trained):
    assert_same_run(trained, "two", "one")
    folders = [sorted(name for name in os.listdir(str(trained / "checkpoints" / run))
                      if not name.startswith("events")) for run in ("one", "two")]
    assert folders[0] == folders[1]
    with open(str(trained / "checkpoints" / "two" / "log.csv")) as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    with open(str(trained / "checkpoints" / "two" / "settings.json")) as file:
        assert json.load(file)["processes"] == 2


@several
@pytest.mark.parametrize("first, second", [(2, 1), (1, 3)])
def test_run_goes_on_with_another_number_of_processes(first, second, trained):
    run = f"from_{first}_to_{second}"
    for processes, epochs in ((first, 1), (second, 3)):
        arguments = (*TRAINING, run, "--epochs", str(epochs))
        status, out, errors = finish(mpirun(processes, *arguments), trained)
        assert status == 0, errors
    assert "after epoch 1" in out
    assert_same_run(trained, run, "one")


@several
def test_self_critical_run_of_two_processes_is_the_run_of_one(trained):
    flags = ("--epochs", "2", "--start-from", "one", "--self-critical", "3")
    for command in ([sys.executable, *TRAINING, "alone"], mpirun(2, *TRAINING, "both")):
        status, _, errors = finish([*command, *flags], trained)
        assert status == 0, errors
    assert_same_run(trained, "both", "alone")
    assert all(row["train_reward"] > 0 for row in arrays_of(trained, "both")[1])


@several
@pytest.mark.parametrize("signum, status, then", [(signal.SIGKILL, 128 + 9, 2),
                                                  (signal.SIGTERM, 130, 1)])
def test_worker_that_ends_ends_the_job_and_the_next_goes_on(signum, status, then,
                                                            trained):
    run = f"ended_by_{int(signum)}"
    arguments = (*TRAINING, run, "--save-minutes", "1e-9", "--epochs")
    process = start(mpirun(2, *arguments, "1000"), trained)
    wait_for(str(trained / "checkpoints" / run / "best.npz"), process)
    victims = workers(process)
    assert len(victims) == 2
    os.kill(max(victims), signum)
    begin = time.time()
    out = process.communicate(timeout=240)[0].decode()
    assert time.time() - begin < 60 and process.returncode == status, out
    assert "Traceback" not in out
    epochs = len(arrays_of(trained, run)[1])
    assert epochs >= 1
    done, out, errors = finish(mpirun(then, *arguments, str(epochs + 1)), trained)
    assert done == 0, errors
    assert f"after epoch {epochs}" in out
    one = f"one_beside_{run}"
    assert finish([sys.executable, *TRAINING, one, "--epochs", str(epochs + 1)],
                  trained)[0] == 0
    assert_same_run(trained, run, one)
