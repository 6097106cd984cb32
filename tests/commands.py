"""Run the scripts as real commands, or their main() inside the tests' process."""
import os
import signal
import subprocess
import sys

from runtime import cli

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def words(script):
    """How Python's command line names a script: by its path, or -m and its module."""
    return [os.path.join(ROOT, script)] if script.endswith(".py") else ["-m", script]


def environment(**variables):
    """The environment of a command, so that it finds the modules from any folder."""
    return dict(os.environ, PYTHONPATH=ROOT, **variables)


def finished(command, **options):
    """subprocess.run on a command line, with stdout and stderr as str.

    Also prints both, so that a failing test shows them.
    """
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          encoding="utf-8", errors="replace", **options)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done


def command(folder, script, *flags, python=sys.executable, **variables):
    """Run a script in `folder`, which must succeed. Returns its stdout.

    variables: of the environment.
    """
    done = finished([python, *words(script), *flags], env=environment(**variables),
                    cwd=str(folder))
    assert done.returncode == 0, f"{script} ended with {done.returncode}"
    return done.stdout


def exit_status(main):
    """Run `main` as a script does. Returns its exit status."""
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
    """Run `main` as a script does: (exit status, stdout, stderr).

    The output is still printed, so that a failing test shows it.
    """
    before = capsys.readouterr()
    status = exit_status(main)
    found = capsys.readouterr()
    sys.stdout.write(before.out + found.out)
    sys.stderr.write(before.err + found.err)
    return status, found.out, found.err
