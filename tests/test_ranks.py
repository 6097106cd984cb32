"""What several processes promise: the same steps, however many share the work."""
import collections
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from captioning.batches import CaptionBatches
from commands import ROOT, words
from processes import (HAS_HOROVOD, TRAINING, cores_for_all, finish,  # noqa: F401
                       mpirun, several, start, wait_for, workers)
from runtime import cli, ranks
from runtime.atomic import write_json
from worlds import TRAIN, files_of, tokens_of, write_data


# --- who has which image ------------------------------------------------------------

@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Captions of 600 images, five each, without real features."""
    random = np.random.RandomState(0)
    tokens = tokens_of("train", [tuple(8 + random.poisson(2.5, 5)) for _ in range(600)])
    return CaptionBatches(tokens, [""] * 600, np.ones(600, bool))


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_every_image_is_one_process_s_and_all_have_as_much_to_do(processes, many):
    order = many.epoch(64, np.random.RandomState(0))
    owners = many.assign_images(order, processes)
    assert owners.shape == (600,) and set(owners) == set(range(processes))
    words = np.array([[many.tokens.lengths[n[owners[many.tokens.image_of[n]] == rank]]
                       .sum() for rank in range(processes)] for n in order])
    assert words.sum() == many.tokens.lengths.sum()
    # Every step waits for the process with the most work
    waste = words.max(axis=1).sum() / (words.sum() / processes)
    chance = np.random.RandomState(1).randint(processes, size=600)
    by_chance = np.array([[many.tokens.lengths[n[chance[many.tokens.image_of[n]] == r]]
                           .sum() for r in range(processes)] for n in order])
    assert waste <= 1 + .6 * (by_chance.max(axis=1).sum()
                              / (words.sum() / processes) - 1)


def test_images_without_captions_in_the_epoch_do_no_harm(many):
    order = many.epoch(64)[:1]
    assert many.assign_images(order, 2).shape == (600,)


# --- by itself ------------------------------------------------------------------------

def test_one_process_gives_back_what_it_got():
    assert (ranks.rank, ranks.size) == (0, 1)
    assert ranks.gather({"a": 1}) == [{"a": 1}] and ranks.from_first(5) == 5
    tensors = [object()]
    assert ranks.total(tensors) is tensors
    assert ranks.any_of(True) is True and ranks.any_of(False) is False


def test_more_processes_than_gpus_are_refused(monkeypatch):
    """Simulated, without a GPU."""
    for found in ([True, True], [False, False]):
        monkeypatch.setattr(ranks, "gather", lambda value: found)
        ranks.same_devices("GPU (a card)")
    monkeypatch.setattr(ranks, "gather", lambda value: [True, False, value])
    monkeypatch.setattr(ranks, "size", 3)
    with pytest.raises(cli.UserError, match="1 of 3 processes have no GPU; start 2,"):
        ranks.same_devices("GPU (a card)")


@pytest.mark.parametrize("variables", [
    {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
    {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}])
@pytest.mark.parametrize("package, error", [
    ("horovod", "ImportError"),
    pytest.param("mpi4py", "RuntimeError", marks=pytest.mark.skipif(
        HAS_HOROVOD, reason="Horovod comes first"))])  # mpi4py without an MPI
def test_several_processes_without_an_engine_are_refused_in_one_line(
        package, error, variables, tmp_path):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(f"raise {error}('not here')")
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, "train.py")], cwd=str(tmp_path),
        env=dict(os.environ, PYTHONPATH=str(tmp_path), **variables),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 2
    # On some processors TensorFlow 2 mentions oneDNN at any log level
    line, = [line for line in done.stderr.decode().splitlines()
             if not re.match(r"I\d{4} |WARNING: All log messages before absl", line)]
    assert "`make horovod`" in line and "`make mpi`" in line and "not here" in line
    assert sorted(os.listdir(str(tmp_path))) == [package]


@several
def test_processes_that_mpi_does_not_know_of_are_refused(tmp_path):
    """As under srun without --mpi: each would think it was alone."""
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, "train.py")], cwd=str(tmp_path),
        env=dict(os.environ, SLURM_STEP_NUM_TASKS="4", SLURM_PROCID="0"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert "one of 4 processes, but MPI sees 1" in done.stderr.decode()


# --- the same mathematics -------------------------------------------------------------

@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """The arrays that ranks_steps.py writes, by number of processes."""
    folder = tmp_path_factory.mktemp("steps")
    found = {}
    for processes in (1, 2, 4):
        status, _, errors = finish(
            mpirun(processes, os.path.join(ROOT, "tests", "ranks_steps.py"),
                   f"{processes}.npz"), folder)
        assert status == 0, errors
        with np.load(str(folder / f"{processes}.npz"), allow_pickle=False) as file:
            found[processes] = {name: file[name] for name in file.files}
    return found


def distance(ours, plain):
    """The distance between two arrays, relative to the second."""
    return np.linalg.norm((ours - plain).ravel()) / np.linalg.norm(plain.ravel())


@several
@pytest.mark.parametrize("processes", [2, 4])
def test_every_step_has_the_loss_and_gradients_of_one_process(processes, steps):
    one, shared = steps[1], steps[processes]
    assert sorted(one) == sorted(shared)
    kinds = collections.Counter(tuple(name.split("_")[:2]) for name in one)
    assert set(kinds) == {("loss", "float64"), ("loss", "float32"),
                          ("cross", "entropy"), ("gradient", "float64"),
                          ("gradient", "float32")}
    for name in one:
        if name.startswith("gradient_float32"):
            continue  # sums that nearly cancel out keep few digits
        limit = 1e-9 if one[name].dtype == np.float64 else 1e-5
        assert distance(shared[name], one[name]) < limit, name
    labels = {tuple(name.split("_")[:4]) for name in one
              if name.startswith("gradient_float32")}
    assert len(labels) == 4
    for label in labels:
        ours, plain = (np.concatenate([arrays[name].ravel() for name in sorted(arrays)
                                       if tuple(name.split("_")[:4]) == label])
                       for arrays in (shared, one))
        assert distance(ours, plain) < 1e-5, label


@several
def test_the_shares_of_those_steps_were_uneven_and_some_empty():
    shares = steps_shares(4)
    assert (shares == 0).any() and (shares.max(axis=1) > 2 * shares.min(axis=1)).all()


def steps_shares(processes):
    """Words per batch and process in ranks_steps.py: (batches, processes)."""
    import ranks_steps
    order, owners = ranks_steps.plan(processes)
    tokens = ranks_steps.TOKENS
    return np.array([[tokens.lengths[n[owners[tokens.image_of[n]] == rank]].sum()
                      for rank in range(processes)] for n in order])


# --- ends ---------------------------------------------------------------------------

@several
def test_bad_input_is_told_once_and_ends_all_processes(tmp_path):
    write_data(tmp_path)
    path = str(tmp_path / "data" / "features" / (TRAIN.images[2] + ".npy"))
    array = np.load(path)
    array[:] = np.nan
    np.save(path, array)
    begin = time.time()
    status, _, errors = finish(mpirun(2, *TRAINING, "a", "--epochs", "1"), tmp_path)
    assert status == 2 and time.time() - begin < 120
    assert "Traceback" not in errors
    assert errors.count("train.py: epoch 1, batch ") == 1 and "is not finite" in errors


@several
@pytest.mark.fault("hang, then a fresh process")
def test_hanging_worker_ends_the_job_which_is_restarted_and_can_be_stopped(tmp_path):
    write_data(tmp_path)
    arguments = (*TRAINING, "hangs", "--epochs", "100000", "--save-minutes", "1e-9",
                 "--hang-minutes", ".25")
    process = start([sys.executable, "-m", "runtime.restart", "1",
                     *mpirun(2, *arguments)], tmp_path)
    wait_for(str(tmp_path / "checkpoints" / "hangs" / "best.npz"), process)
    os.kill(max(workers(process)), signal.SIGSTOP)
    lines = []
    while not (lines and re.match(r"epoch \d+: ", lines[-1])
               and any("resuming from" in line for line in lines)):
        line = process.stdout.readline().decode()
        assert line, lines
        lines.append(line)
    process.send_signal(signal.SIGUSR1)
    out = "".join(lines) + process.communicate(timeout=120)[0].decode()
    assert process.returncode == 130, out
    assert "train.py: nothing has happened for 0.25 minutes " in out
    assert "ended by a lost GPU, a hang or the disk; restart 1 of 1" in out
    assert "train.py: stopped. " in out and "Traceback" not in out


# --- features -------------------------------------------------------------------------

@several
def test_features_of_two_processes_are_the_bytes_of_one(tmp_path):
    arguments = (os.path.join(ROOT, "extract_features.py"), "--weights", "random",
                 "--batch-size", "2", "--data", "data", "--max-bad", "1", "--features")
    assert finish([sys.executable, *words("demo.draw_scenes"), "--data", "data",
                   "--train", "5", "--val", "3"], tmp_path)[0] == 0
    (tmp_path / "data" / "train" / "broken.jpg").write_bytes(b"no picture")
    path = str(tmp_path / "data" / "annotations" / "captions_train.json")
    with open(path, encoding="utf-8") as file:
        annotations = json.load(file)
    annotations["images"].append({"id": 99999, "file_name": "broken.jpg"})
    write_json(path, annotations)
    status, _, errors = finish([sys.executable, *arguments, "one"], tmp_path)
    assert status == 0, errors
    status, out, errors = finish(mpirun(2, *arguments, "two"), tmp_path)
    assert status == 0, errors
    assert out.count("train: features of ") == 1  # from rank 0, about its share
    one, two = (files_of(tmp_path / name) for name in ("one", "two"))
    listed = one.pop("unreadable_train.txt")
    assert listed.startswith(b"train/broken.jpg\t")
    assert listed == two.pop("unreadable_train_1_of_2.txt")  # the third batch's
    assert len(one) == 5 + 3 + 2 and one == two
