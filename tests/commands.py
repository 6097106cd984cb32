"""The scripts as real commands, and their main() run inside the tests' process."""
import os
import signal
import subprocess
import sys

from runtime import cli

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def words(script):
    """A script for Python's command line: its path for train.py, -m for demo.x."""
    return [os.path.join(ROOT, script)] if script.endswith(".py") else ["-m", script]


def environment(**variables):
    """The environment of a command: modules are found wherever it runs."""
    return dict(os.environ, PYTHONPATH=ROOT, **variables)


def command(folder, script, *flags, python=sys.executable):
    """Run a script in `folder`; returns its stdout. It must succeed."""
    done = subprocess.run([python, *words(script), *flags], env=environment(),
                          cwd=str(folder), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def exit_status(main):
    """What `main` would end its process with, run as a script runs it."""
    before = {signum: signal.getsignal(signum) for signum in cli.STOPPING}
    try:
        cli.run(main)
    except SystemExit as end:
        return end.code
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return 0
