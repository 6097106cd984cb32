"""A script is run again if it lost its GPU or was killed, and not otherwise."""
import os
import signal
import subprocess
import sys
import time

import pytest

from commands import environment
from runtime import cli, restart

# A script that records each life, and the GPUs that it was started with
COUNT = """
import os, signal, sys, time
from runtime import cli

with open("lives", "a") as file:
    file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "0") + "\\n")
life = len(open("lives").readlines())


def main():
"""
LOST = """
if life < 3:
    raise cli.DeviceLost("gone")
print("done in life", life)
"""


def command(folder, body, restarts, *flags, pause=.05):
    """Write a script whose main() has this body; returns the command to restart it."""
    with open(os.path.join(str(folder), "work.py"), "w", encoding="utf-8") as file:
        file.write(COUNT)
        file.writelines(f"    {line}\n" for line in body.strip().splitlines())
        file.write("\n\nif __name__ == '__main__':\n    cli.run(main)\n")
    return [sys.executable, "-c", f"from runtime import cli, restart; restart.PAUSE = "
            f"{pause}; cli.run(restart.main)", str(restarts), *flags, "work.py",
            "--run", "a"]


def start(folder, *args, **kwargs):
    variables = environment()
    variables.pop("CUDA_VISIBLE_DEVICES", None)
    return subprocess.Popen(command(folder, *args, **kwargs), cwd=str(folder),
                            env=variables, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, universal_newlines=True)


def run(folder, *args):
    """Run such a command: (exit status, stdout, stderr)."""
    process = start(folder, *args)
    out, errors = process.communicate(timeout=60)
    return process.returncode, out, errors


def lives(folder):
    """CUDA_VISIBLE_DEVICES of each process, '0' if not set."""
    with open(os.path.join(str(folder), "lives")) as file:
        return file.read().split()


@pytest.mark.fault("GPU lost or out of memory")
def test_lost_gpu_is_followed_by_a_fresh_process_until_one_ends_well(tmp_path):
    status, out, errors = run(tmp_path, LOST, 5)
    assert (status, out) == (0, "done in life 3\n")
    assert lives(tmp_path) == ["0", "0", "0"]
    assert "restart 1 of 5 in 0.05 s" in errors and "restart 2 of 5 in 0.1 s" in errors


@pytest.mark.fault("GPU lost or out of memory")
def test_last_status_is_told_when_the_restarts_are_used_up(tmp_path):
    status, _, errors = run(tmp_path, LOST, 1)
    assert status == 3 and lives(tmp_path) == ["0", "0"]
    assert errors.count("work.py: gone") == 2


def test_no_restarts_is_one_process(tmp_path):
    assert run(tmp_path, LOST, 0)[0] == 3 and lives(tmp_path) == ["0"]


@pytest.mark.fault("GPU lost or out of memory")
def test_last_restart_can_do_without_the_gpu(tmp_path):
    assert run(tmp_path, LOST, 2, "--last-on-cpu")[0] == 0
    assert lives(tmp_path) == ["0", "0", "-1"]


@pytest.mark.fault("GPU lost or out of memory")
def test_killed_child_is_followed_by_another(tmp_path):
    body = "if life == 1:\n    os.kill(os.getpid(), signal.SIGKILL)"
    status, _, errors = run(tmp_path, body, 3)
    assert status == 0 and lives(tmp_path) == ["0", "0"]
    assert "ended by signal 9; restart 1 of 3" in errors


@pytest.mark.parametrize("body, status", [
    ("raise cli.UserError('bad input')", 2), ("sys.exit(0)", 0),
    ("raise KeyboardInterrupt", 130), ("raise ValueError('a bug')", 1)])
def test_other_ends_are_not_followed_by_another(body, status, tmp_path):
    assert run(tmp_path, body, 3)[0] == status
    assert lives(tmp_path) == ["0"]


def test_script_gets_its_own_flags(tmp_path):
    status, out, _ = run(tmp_path, "print(sys.argv)", 3)
    assert (status, out) == (0, "['work.py', '--run', 'a']\n")


def test_module_is_started_as_python_itself_does(tmp_path):
    words = command(tmp_path, "print(__spec__.name, sys.argv[1:])", 3)
    place = words.index("work.py")
    done = subprocess.run(words[:place] + ["-m", "work"] + words[place + 1:],
                          cwd=str(tmp_path), env=environment(), stdout=subprocess.PIPE)
    assert done.stdout.decode() == "work ['--run', 'a']\n" and done.returncode == 0


@pytest.mark.parametrize("words, own", [
    ("5 train.py --run a", 1), ("5 -m analysis.report --run a", 1),
    ("--last-on-cpu 5 train.py -m x", 2),
    ("5 --last-on-cpu -m demo.x --last-on-cpu", 2),
    ("5 mpirun -np 4 python -m work", 1), ("5", 1), ("", 0), ("--help", 1)])
def test_flags_after_the_command_are_its_own(words, own):
    words = words.split()
    assert restart.cut(words) == (words[:own], words[own:])


@pytest.mark.parametrize("signum", cli.STOPPING)
def test_signal_is_passed_on_once_and_ends_both(signum, tmp_path):
    process = start(tmp_path, """
with cli.interrupts_wait() as asked:
    print("works", flush=True)
    for _ in range(600):
        time.sleep(.1)
        if asked():
            print("saved", flush=True)
            raise KeyboardInterrupt
""", 3)
    assert process.stdout.readline() == "works\n"
    process.send_signal(signum)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "saved\n"), errors
    assert lives(tmp_path) == ["0"]


def test_signal_in_the_pause_ends_it(tmp_path):
    process = start(tmp_path, LOST, 3, pause=60)
    while "restart 1" not in process.stderr.readline():
        assert process.poll() is None
    begin = time.time()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 130 and time.time() - begin < 30
    assert lives(tmp_path) == ["0"]
