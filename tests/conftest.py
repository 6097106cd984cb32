"""For all tests: eager execution, the scripts as modules, a small run of the whole
pipeline, and a count of the faults tried.
"""
import collections
import os
import shutil
import signal
import sys
import warnings

import numpy as np
import pytest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def pytest_addoption(parser):
    parser.addoption("--tally", action="store_true",
                     help="print how many faults were tried, survived and lost")


def pin(worker):
    """Pin each worker of pytest-xdist ('gw0', 'gw1', ...) to a core of its own.

    TensorFlow then uses one thread per worker. With one per core, two workers' threads
    wait for each other, and small tests take three times as long.
    """
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker[2:]) % len(cores)]})


def pytest_configure(config):
    if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)) > 1:
        pin(os.environ["PYTEST_XDIST_WORKER"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from TensorFlow's own imports
        from runtime.tf import start
        start()
    # A background job starts with Ctrl-C ignored, but the tests send it
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    # Start the slowest files first, so that both cores finish together
    slow = ("test_pipeline.py", "test_ranks.py", "test_ranks_runs.py",
            "test_train.py", "torture_kills.py", "torture_writes.py")
    items.sort(key=lambda item: item.fspath.basename not in slow)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder in which a small drawn data set has gone through all steps."""
    folder = tmp_path_factory.mktemp("world")
    from worlds import QUICK, World, without_network
    with pytest.MonkeyPatch.context() as patch:
        world = World(folder, patch)
        without_network(patch)
        for script, *flags in (
                ("demo.draw_scenes", "--data", "data", "--train", "8", "--val", "4",
                 "--size", "48"),
                ("extract_features.py", "--weights", "random"),
                ("tokenize_captions.py",), ("train.py", "--run", "a", *QUICK),
                ("evaluate.py", "--run", "a"),
                ("plot_attention.py", "--run", "a", "--count", "1")):
            assert world(script, *flags) == 0
            if script == "extract_features.py":  # as with untrained weights
                np.savez("data/features/calibration.npz", mean=np.zeros(3))
    return folder


@pytest.fixture
def world(made, tmp_path, monkeypatch):
    """A copy of that folder to spoil, with the commands run inside this process."""
    from worlds import World, without_network
    shutil.copytree(str(made), str(tmp_path / "w"))
    world = World(tmp_path / "w", monkeypatch)
    without_network(monkeypatch)
    return world


@pytest.fixture(scope="session")
def outputs(tmp_path_factory):
    """What each step printed, by script, and their folder under 'folder'."""
    from commands import command
    folder = tmp_path_factory.mktemp("pipeline")
    data = ("--data", "drawn")
    steps = [("demo.draw_scenes", *data, "--train", "30", "--val", "8", "--size",
              "160"),
             ("extract_features.py", *data, "--weights", "random"),
             ("tokenize_captions.py", *data),
             ("train.py", *data, "--run", "toy", "--epochs", "12", "--units", "128",
              "--embedding", "128", "--batch-size", "16", "--dropout", "0",
              "--decay", "1"),
             ("evaluate.py", "--run", "toy"),
             ("evaluate.py", "--run", "toy", "--split", "train", "--allow-seen"),
             ("plot_attention.py", "--run", "toy", "--count", "2"),
             ("plot_attention.py", "--run", "toy", "--picture",
              "drawn/val/scene_000001.png"),
             ("demo.score_scenes", "--run", "toy"),
             ("analysis.pointing", "--run", "toy"), ("analysis.report", "--run", "toy")]
    found = {"folder": folder}
    for script, *flags in steps:
        found[script] = found.get(script, "") + command(folder, script, *flags)
    return found


def pytest_runtest_setup(item):
    # A test marked `fault(kind)` tries one fault; with `faults` it may try many
    marker = item.get_closest_marker("fault")
    if marker:
        item.user_properties.append(("fault", marker.args[0]))


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("--tally"):
        return
    from runtime import cli
    tried, lost = collections.Counter(), collections.Counter()
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            properties = dict(getattr(report, "user_properties", ()))
            kind = properties.get("fault")
            if kind and (report.when == "call" or outcome != "passed"):
                tried[kind] += properties.get("faults", 1)
                lost[kind] += outcome != "passed"
    rows = [(kind, str(tried[kind]), str(tried[kind] - lost[kind]), str(lost[kind]))
            for kind in sorted(tried)]
    all_tried, all_lost = sum(tried.values()), sum(lost.values())
    rows.append(("all", str(all_tried), str(all_tried - all_lost), str(all_lost)))
    terminalreporter.write_line("")
    cli.table([("fault", "tried", "survived", "lost")] + rows)
