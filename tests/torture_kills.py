"""kill -9 at random moments of every step; the end is as if it had never happened.

Not part of `make test`: `make torture` runs it.
"""
import csv
import glob
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from commands import ROOT, environment, words
from test_download_coco import Server, jpeg, zip_of

SEED = int(os.environ.get("TORTURE_SEED", "0"))
pytestmark = pytest.mark.fault("kill -9, then the same command")
# Without Java's folder on PATH, as Java takes seconds to start
ENVIRONMENT = dict(environment(), PATH=os.path.dirname(sys.executable),
                   NO_PROXY="127.0.0.1")
TRAIN = ("train.py", "--run", "a", "--epochs", "4", "--embedding", "16", "--units",
         "24", "--batch-size", "4", "--save-minutes", "1e-9")
STEPS = {  # command, what it writes, how often to kill it
    "draw": (("demo.draw_scenes", "--data", "data", "--train", "24", "--val", "12",
              "--size", "200"), ("data/annotations", "data/train", "data/val"), 5),
    "extract": (("extract_features.py", "--weights", "random", "--batch-size", "4"),
                ("data/features",), 6),
    "tokenize": (("tokenize_captions.py",), ("data/tokens",), 6),
    "train": (TRAIN, ("checkpoints/a",), 10),
    "evaluate": (("evaluate.py", "--run", "a", "--beam", "3", "--batch-size", "1"),
                 ("checkpoints/a/*_val*",), 6),
    "plot": (("plot_attention.py", "--run", "a", "--count", "12"),
             ("checkpoints/a/attention",), 6)}


def start(folder, command):
    return subprocess.Popen([sys.executable, *words(command[0]), *command[1:]],
                            cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)


def finish(folder, command):
    """Run a command to its end; returns the seconds it took."""
    begin = time.time()
    process = start(folder, command)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out.decode()
    return time.time() - begin


def clear(folder, outputs):
    for pattern in outputs:
        for path in glob.glob(os.path.join(folder, pattern)):
            (shutil.rmtree if os.path.isdir(path) else os.remove)(path)


def content(path):
    """What must be equal in a file of two runs: all except times of day and rates."""
    name = os.path.basename(path)
    if name.endswith(".npz"):
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: (file[key].dtype.str, file[key].shape, file[key].tobytes())
                      for key in file.files if key != "progress"}
            if "progress" in file.files:
                progress = json.loads(str(file["progress"]))
                arrays["progress"] = [progress["batch"], progress["total"]] + [
                    without_rates(row) for row in progress["history"]]
        return arrays
    if name.startswith("scores_") and name.endswith(".json") or name == "settings.json":
        with open(path) as file:
            found = json.load(file)
        found.pop("images_per_second", None)
        return found
    if name == "log.csv":
        with open(path, newline="") as file:
            return [without_rates(row) for row in csv.DictReader(file)]
    with open(path, "rb") as file:
        return hashlib.md5(file.read()).hexdigest()


def without_rates(row):
    """A line of a log without what differs between repetitions of a run."""
    return {name: value for name, value in row.items()
            if name not in ("seconds", "captions_per_second")}


def snapshot(folder, outputs):
    """What a step writes, {path: content}, except TensorBoard's events and locks."""
    found = {}
    for pattern in outputs:
        for top in glob.glob(os.path.join(folder, pattern)):
            paths = [top] if os.path.isfile(top) else [
                os.path.join(at, name) for at, _, names in os.walk(top)
                for name in names]
            for path in paths:
                if not os.path.basename(path).startswith(("events.", ".")):
                    found[os.path.relpath(path, folder)] = content(path)
    return found


def assert_whole(folder):
    """Check that no file under its own name is half-written."""
    for at, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(at, name)
            if name.endswith(".npz"):
                with zipfile.ZipFile(path) as archive:
                    assert archive.testzip() is None
            elif name.endswith(".npy"):
                assert np.load(path).shape == (8, 8, 2048)
            elif name.endswith(".json"):
                with open(path, encoding="utf-8") as file:
                    json.load(file)
            elif name.endswith((".png", ".jpg")):
                with Image.open(path) as image:
                    image.load()


def kill_and_go_on(folder, command, outputs, kills, seconds, expected, seed):
    """Kill a command `kills` times at random moments, then let it finish."""
    moments = random.Random(seed)
    done = 0
    while done < kills:
        process = start(folder, command)
        try:
            process.communicate(timeout=moments.uniform(.1, .95) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            done += 1
            assert_whole(folder)
        else:  # it ended before the kill
            assert process.returncode == 0
            assert snapshot(folder, outputs) == expected
            clear(folder, outputs)
    finish(folder, command)
    assert snapshot(folder, outputs) == expected
    assert not [name for _, _, names in os.walk(folder) for name in names
                if name.endswith(".partial")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder after all steps, what each step wrote, and how long it took."""
    folder = str(tmp_path_factory.mktemp("undisturbed"))
    seconds, snapshots = {}, {}
    for step, (command, outputs, _) in STEPS.items():
        seconds[step] = finish(folder, command)
        snapshots[step] = snapshot(folder, outputs)
    return folder, seconds, snapshots


@pytest.mark.parametrize("step", list(STEPS))
def test_killed_step_goes_on_to_the_same_files(step, undisturbed, tmp_path,
                                               record_property):
    whole, seconds, snapshots = undisturbed
    command, outputs, kills = STEPS[step]
    folder = str(tmp_path / "killed")
    shutil.copytree(whole, folder)
    clear(folder, outputs)
    record_property("faults", kills)
    kill_and_go_on(folder, command, outputs, kills, seconds[step], snapshots[step],
                   f"{step} {SEED}")


@pytest.mark.fault("Ctrl-C or SIGTERM, then the same command")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", list(STEPS))
def test_stopped_step_says_how_to_go_on_and_does(step, signum, undisturbed, tmp_path):
    whole, seconds, snapshots = undisturbed
    command, outputs, _ = STEPS[step]
    folder = str(tmp_path / "stopped")
    shutil.copytree(whole, folder)
    clear(folder, outputs)
    process = start(folder, command)
    assert process.stdout.readline()  # the imports are done
    time.sleep(.3)
    process.send_signal(signum)
    out = process.communicate(timeout=120)[0].decode()
    assert "Traceback" not in out, out
    last = out.splitlines()[-1]
    if not last.startswith("next: "):  # otherwise it ended before the signal came
        assert process.returncode == 130 and last.startswith("  "), out
    assert_whole(folder)
    finish(folder, command)
    assert snapshot(folder, outputs) == snapshots[step]


DOWNLOAD = """
import json, sys
sys.path.insert(0, {root!r})
import download_coco
from runtime import cli
download_coco.ARCHIVES.update(json.load(open({archives!r})))
cli.run(download_coco.main)
"""


@pytest.fixture
def slow_coco(tmp_path):
    """A slow server with 40 images, and a script that knows their checksums."""
    server = Server()
    names = [f"{i}.jpg" for i in range(40)]
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    for i, name in enumerate(names):
        server.files[f"val2014/{name}"] = jpeg(i)
        server.delays[f"val2014/{name}"] = [.1] * 1000
    archive = zip_of({f"annotations/{kind}_val2014.json": json.dumps(dict(
        extra, images=images, annotations=[
            {"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 1, 1],
             "caption": "grey " * 999} for i in range(40)]))
        for kind, extra in (("captions", {}), ("instances", {"categories": [
            {"id": 1, "name": "cat"}]}))})
    name = "annotations/annotations_trainval2014.zip"
    server.files[name] = archive
    server.delays[name] = [.3] * 1000
    server.cuts[name] = [len(archive) // 3, len(archive) // 3]
    with open(str(tmp_path / "archives.json"), "w") as file:
        json.dump({name: [len(archive), hashlib.md5(archive).hexdigest()]}, file)
    with open(str(tmp_path / "download_coco.py"), "w") as file:
        file.write(DOWNLOAD.format(root=ROOT, archives=str(tmp_path / "archives.json")))
    threading.Thread(target=server.http.serve_forever, args=(.01,), daemon=True).start()
    yield server, (str(tmp_path / "download_coco.py"), "--num-images", "30", "--splits",
                   "val", "--mirror", server.url, "--workers", "2")
    server.http.shutdown()


def test_killed_download_goes_on_to_the_same_files(slow_coco, tmp_path,
                                                   record_property):
    _, command = slow_coco
    whole, folder = str(tmp_path / "whole"), str(tmp_path / "killed")
    os.mkdir(whole)
    os.mkdir(folder)
    seconds = finish(whole, command)
    record_property("faults", 6)
    kill_and_go_on(folder, command, ("data",), 6, seconds, snapshot(whole, ("data",)),
                   f"download {SEED}")
