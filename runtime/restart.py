"""Run a script, and restart it when its GPU is lost, it hangs or it is killed.

    python -m runtime.restart 5 train.py --run baseline
    python -m runtime.restart 5 --last-on-cpu extract_features.py --data data
    python -m runtime.restart 5 -m analysis.report --run baseline
    python -m runtime.restart 5 mpirun -np 4 python train.py --run baseline

A process that has lost its GPU never gets it back; a fresh one may. The script, or
another program, runs in a child process. If it ends with status 3 (the GPU was lost,
nothing happened for --hang-minutes, or the disk did not answer) or is killed, it is
restarted, at most the given number of times and after a pause that doubles each time.
The exit status is the last child's: 128 + the signal's number if it was killed.
"""
import os
import sys

if not __package__:  # started by its path, not with -m
    sys.path[0] = os.path.dirname(os.path.abspath(sys.path[0]))
import runtime  # noqa: F401  (first: it reports missing packages)
import argparse
import signal
import subprocess
import tempfile
import time

from runtime import cli, watchdog

PAUSE, LONGEST_PAUSE = 5, 600  # seconds before the first restart, and at most
HANDLED = (130, 141)           # statuses of scripts: see cli.run


def main():
    args = arguments()
    if cli.launched().count > 1:
        raise cli.UserError("this is one of several processes; put restarts before "
                            "their launcher: python -m runtime.restart "
                            f"{args.restarts} mpirun -np {cli.launched().count} python "
                            + " ".join(args.command))
    status = run(args.restarts, args.command, args.last_on_cpu)
    if status:
        sys.exit(status)


def run(restarts, command, last_on_cpu=False):
    """Run a script in child processes until one succeeds; return the last exit status.

    restarts: how many may follow the first run. command: the script, or -m and a
    module, or another program, and its arguments. last_on_cpu: whether the last restart
    does without the GPU. Signals that stop a script are passed on to the child, and end
    the restarts.
    """
    child, asked, pause = None, [], PAUSE

    def pass_on(signum, frame):
        asked.append(signum)
        if child and child.poll() is None:
            child.send_signal(signum)
    for signum in cli.STOPPING:
        signal.signal(signum, pass_on)
    if command[0] == "-m" or command[0].endswith(".py"):
        command = [sys.executable, *command]
    for number in range(restarts + 1):
        environment = dict(os.environ)
        if last_on_cpu and number == restarts:
            environment["CUDA_VISIBLE_DEVICES"] = "-1"
        # In its own session, so that a Ctrl-C in the terminal does not reach it twice
        with tempfile.TemporaryDirectory() as folder:
            environment[watchdog.ALIVE] = os.path.join(folder, "alive")
            child = subprocess.Popen(command, env=environment, start_new_session=True)
            if asked:  # the signal came before there was a child
                child.terminate()
            status = watchdog.wait(child, environment[watchdog.ALIVE])
        killed_by = signal_of(status)
        lost = status == cli.DeviceLost.status
        if asked or not (lost or killed_by) or number == restarts:
            break
        how = f"signal {killed_by}" if killed_by else "a lost GPU, a hang or the disk"
        cli.warn(f"ended by {how}; restart {number + 1} of {restarts} in {pause} s")
        end = time.time() + pause
        while time.time() < end and not asked:
            time.sleep(min(.2, pause))
        pause = min(2 * pause, LONGEST_PAUSE)
    if asked:
        return 130
    return status if status >= 0 else 128 - status


def signal_of(status):
    """The number of the signal that killed a child; 0 if none did."""
    if status > 128 and status not in HANDLED:  # mpirun about one of its processes
        return status - 128
    return max(0, -status)


def arguments():
    parser = cli.parser(__doc__)
    parser.always("restarts", type=cli.number(int, at_least=0),
                  help="how often to start the command again")
    parser.always("--last-on-cpu", action="store_true",
                  help="the last restart does without the GPU")
    parser.always("command", nargs=argparse.REMAINDER,
                  help="train.py, say, or -m and a module, or a launcher of it; with "
                       "its own flags")
    own, command = cut(sys.argv[1:])
    # Flags first: what follows the number would be taken for the command
    args = parser.parse_args(sorted(own, key=lambda word: not word.startswith("-")))
    if not command:
        parser.error("no command to start; give train.py, say, and its flags")
    args.command = command
    return args


def cut(words):
    """Split a command line into this program's words and those of the command it runs.

    The command begins with the second word that is not a flag, or with -m.
    """
    begins = [n for n, word in enumerate(words)
              if word == "-m" or not word.startswith("-")][1:2]
    first = begins[0] if begins else len(words)
    return words[:first], words[first:]


if __name__ == "__main__":
    cli.run(main)
