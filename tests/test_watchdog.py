"""What makes no progress for --hang-minutes is ended, and started again."""
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from commands import ROOT, environment
from test_restart import lives, run, start
from worlds import write_data

LIMIT = .05  # minutes, for scripts that only wait
WATCHED = f"""
from runtime import watchdog
with watchdog.watching({LIMIT}):
"""


def indented(body):
    return WATCHED + "".join(f"    {line}\n" for line in body.strip().splitlines())


@pytest.mark.parametrize("body, awaited", [
    ("time.sleep(60)", "the first batch"),
    ("for n in watchdog.watched((n or time.sleep(60) for n in (1, 0)), 'batch', 'epoch "
     "2', 5):\n    pass", "batch 6 of epoch 2 to be read"),
    ("for _ in watchdog.watched([1], 'batch', 'epoch 2'):\n    time.sleep(60)",
     "batch 1 of epoch 2 to be computed"),
    ("list(watchdog.watched([1], 'batch', 'epoch 2'))\ntime.sleep(60)",
     "what follows epoch 2")])
def test_hang_ends_with_status_3_and_says_in_one_line_what_it_waited_for(
        body, awaited, tmp_path):
    status, _, errors = run(tmp_path, indented(body), 0)
    assert status == 3, errors
    line, = errors.strip().splitlines()
    assert line.startswith("work.py: nothing has happened for 0.05 minutes ")
    assert f"while it waited for {awaited}; " in line


@pytest.mark.parametrize("body", [
    "for _ in watchdog.watched(range(20), 'batch', 'epoch 2'):\n    time.sleep(.25)",
    "watchdog.waits_for(None)\ntime.sleep(5)", "pass\ntime.sleep(5)"],
    ids=["slow", "not awaited", "over"])
def test_what_is_slow_or_not_awaited_is_no_hang(body, tmp_path):
    body = indented(body).replace("    pass\n    time", "    pass\ntime")
    status, out, errors = run(tmp_path, body + "print('done')", 0)
    assert (status, out) == (0, "done\n"), errors


@pytest.mark.parametrize("terminal, status", [(True, 0), (False, 3)])
def test_nothing_is_watched_in_a_terminal_unless_asked_for(terminal, status, tmp_path):
    (tmp_path / "work.py").write_text(
        "import time\nfrom runtime import watchdog\nwatchdog.DEFAULT = .02\n"
        "with watchdog.watching(None):\n    time.sleep(4)\n")
    screen, keyboard = os.openpty()
    with subprocess.Popen([sys.executable, "work.py"], cwd=str(tmp_path),
                          env=environment(), stderr=keyboard if terminal
                          else subprocess.DEVNULL) as child:
        assert child.wait(60) == status
    os.close(screen)
    os.close(keyboard)


@pytest.mark.fault("hang, then a fresh process")
def test_stopped_child_is_killed_and_followed_by_another(tmp_path):
    process = start(tmp_path, indented("print(os.getpid(), flush=True)\n"
                                       "time.sleep(1 if life > 1 else 60)"), 3)
    os.kill(int(process.stdout.readline()), signal.SIGSTOP)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and lives(tmp_path) == ["0", "0"], errors
    assert "has not answered for 0.05 minutes" in errors
    assert "ended by signal 9; restart 1 of 3" in errors


# --- training -------------------------------------------------------------------------

TRAINING = ("train.py", "--run", "a", "--epochs", "100000", "--embedding", "7",
            "--units", "11", "--batch-size", "4", "--select", "loss", "--save-minutes",
            "1e-9", "--hang-minutes", ".15")


class Training:
    """Training, restarted up to twice; stdout and stderr go to one file."""

    def __init__(self, folder):
        self.folder, self.log = folder, folder / "log.txt"
        self.features = write_data(folder)
        os.rename(self.features, self.features + "_whole")
        self.take_features_from(self.features + "_whole")
        with open(str(self.log), "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "runtime.restart", "2",
                 os.path.join(ROOT, TRAINING[0]), *TRAINING[1:]], cwd=str(folder),
                env=environment(), stdout=log, stderr=subprocess.STDOUT)

    def take_features_from(self, folder):
        os.symlink(folder, self.features + "_next")
        os.replace(self.features + "_next", self.features)

    def wait_for(self, text, seconds=240):
        """Wait until a line of the log matches this regular expression."""
        end = time.time() + seconds
        while not re.search(text, self.log.read_text()):
            assert self.process.poll() is None and time.time() < end, (
                text, self.log.read_text())
            time.sleep(.05)

    def child(self):
        """The id of the training process, from its lock."""
        lock = self.folder / "checkpoints" / "a" / ".train.lock"
        return int(re.search(r"process (\d+)", lock.read_text()).group(1))

    def end(self):
        """Stop the restarted training as SLURM would; returns the log."""
        self.wait_for(r"resuming from [\s\S]*\nepoch \d+: ")
        self.process.send_signal(signal.SIGUSR1)
        assert self.process.wait(60) == 130
        return self.log.read_text()


@pytest.fixture
def training(tmp_path):
    training = Training(tmp_path)
    training.wait_for("\nepoch 2: ")
    yield training
    training.process.kill()


@pytest.mark.fault("hang, then a fresh process")
def test_training_that_was_stopped_is_restarted_from_its_checkpoint(training):
    os.kill(training.child(), signal.SIGSTOP)
    training.wait_for("restart 1 of 2")
    log = training.end()
    assert "has not answered for 0.15 minutes" in log and "Traceback" not in log


@pytest.mark.fault("hang, then a fresh process")
def test_training_whose_folder_hangs_is_restarted_from_its_checkpoint(training):
    """Reading a pipe that nobody writes to hangs, like a dead network folder."""
    hanging = training.features + "_that_hang"
    for split in ("train", "val"):
        os.makedirs(os.path.join(hanging, split))
        for name in os.listdir(os.path.join(training.features, split)):
            os.mkfifo(os.path.join(hanging, split, name))
    training.take_features_from(hanging)
    training.wait_for("nothing has happened for 0.15 minutes .* to be read; ")
    training.take_features_from(training.features + "_whole")
    log = training.end()
    assert "a lost GPU, a hang or the disk; restart 1 of 2 in 5 s" in log
    assert "Traceback" not in log
