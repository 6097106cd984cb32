"""Run a script, and run it again when its GPU is lost or it is killed.

    python -m runtime.restart 5 train.py --run baseline
    python -m runtime.restart 5 --last-on-cpu extract_features.py --data data

A process that has lost its GPU never gets it back; a fresh one may. The script runs in
a child process. One that ends with status 3 (the GPU was lost), or is killed, is
followed by another, at most as often as the number says and each after twice the pause.
The exit status is the last child's: 128 + the signal's number where it was killed.
"""
import argparse
import os
import signal
import subprocess
import sys
import time

from runtime import cli

PAUSE, LONGEST_PAUSE = 5, 600  # seconds before the first restart, and at most


def main():
    args = arguments()
    if cli.launched().count > 1:
        raise cli.UserError("restarts are for one process; where there are several, "
                            "have the launcher start all of them again")
    status = run(args.restarts, [args.script] + args.arguments, args.last_on_cpu)
    if status:
        sys.exit(status)


def run(restarts, command, last_on_cpu=False):
    """Run a script in child processes until one ends well; the last exit status.

    restarts: how many may follow the first. command: the script and its arguments.
    last_on_cpu: whether the last of them does without the GPU. SIGINT and SIGTERM are
    passed on to the child, and end the restarts.
    """
    child, asked, pause = None, [], PAUSE

    def pass_on(signum, frame):
        asked.append(signum)
        if child and child.poll() is None:
            child.send_signal(signum)
    for signum in cli.STOPPING:
        signal.signal(signum, pass_on)
    for number in range(restarts + 1):
        environment = dict(os.environ)
        if last_on_cpu and number == restarts:
            environment["CUDA_VISIBLE_DEVICES"] = "-1"
        # Of its own session: a Ctrl-C in the terminal must not reach it twice.
        child = subprocess.Popen([sys.executable, *command], env=environment,
                                 start_new_session=True)
        if asked:  # just before there was a child to pass it on to
            child.terminate()
        status = child.wait()
        lost = status == cli.DeviceLost.status or status < 0
        if asked or not lost or number == restarts:
            break
        how = f"signal {-status}" if status < 0 else "a lost GPU"
        cli.warn(f"ended by {how}; restart {number + 1} of {restarts} in {pause} s")
        end = time.time() + pause
        while time.time() < end and not asked:
            time.sleep(min(.2, pause))
        pause = min(2 * pause, LONGEST_PAUSE)
    if asked:
        return 130
    return status if status >= 0 else 128 - status


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("restarts", type=cli.number(int, at_least=0),
                        help="how often to start the script again")
    parser.add_argument("--last-on-cpu", action="store_true",
                        help="the last restart does without the GPU")
    parser.add_argument("script", help="train.py or extract_features.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER,
                        help="the script's own flags")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
