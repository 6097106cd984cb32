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


def finished(command, **options):
    """subprocess.run of a command line; its stdout and stderr are str.

    They are printed as well: a test that fails shows them.
    """
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          encoding="utf-8", errors="replace", **options)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done


def command(folder, script, *flags, python=sys.executable):
    """Run a script in `folder`; returns its stdout. It must succeed."""
    done = finished([python, *words(script), *flags], env=environment(),
                    cwd=str(folder))
    assert done.returncode == 0, f"{script} ended with {done.returncode}"
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


def printed(capsys, main):
    """What `main` ends its process with, and prints: (status, stdout, stderr).

    It stays printed as well: a test that fails shows it, and all that came before.
    """
    before = capsys.readouterr()
    status = exit_status(main)
    found = capsys.readouterr()
    sys.stdout.write(before.out + found.out)
    sys.stderr.write(before.err + found.err)
    return status, found.out, found.err
