"""A hang is a fault, too: a command without progress for --hang-minutes exits with 3.

A GPU, a network folder or another process can stop answering without an error. Inside
`watching`, a thread checks that the loops over `watched` reach their next item.
runtime.restart also watches from outside (`wait`): a process that the system has
stopped, or that hangs while holding Python's lock, cannot end itself.

Both count ticks without progress rather than clock time: a computer that slept, or a
job that was suspended, has not hung.
"""
import contextlib
import os
import subprocess
import sys
import threading
import time

from runtime import cli

DEFAULT = 30  # minutes, where there is no terminal
TICK = 5.     # seconds, at most
# The variable with the path of a file that a watched child touches regularly
ALIVE = "RESTART_ALIVE_FILE"

_awaited, _moves = None, 0  # description of what is awaited; how often it changed


def add_flag(parser, **kwargs):
    """Add --hang-minutes; kwargs: further arguments for the parser."""
    parser.always("--hang-minutes", **kwargs, type=cli.number(float, at_least=0),
                  metavar="M", otherwise=f"{DEFAULT}, and 0 in a terminal",
                  help="exit with status 3 when nothing has happened for this long; "
                       "0: never")


@contextlib.contextmanager
def watching(minutes):
    """Exit, with one line, when nothing happens inside for this many minutes.

    minutes: the value of --hang-minutes.
    """
    if minutes is None:
        minutes = 0 if sys.stderr.isatty() else DEFAULT
    if not minutes:
        yield
        return
    path = os.environ.get(ALIVE) if cli.launched().count == 1 else None
    if path:  # before anything can hang
        with open(path, "w") as file:
            file.write(str(60 * minutes))
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(60 * minutes, over, path),
                              daemon=True)
    waits_for("the first batch")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        waits_for(None)


def waits_for(what):
    """Describe what is awaited from now on; None suspends the watch."""
    global _awaited, _moves
    _awaited, _moves = what, _moves + 1


def watched(items, unit, of, first=1):
    """Yield the items, and note progress. unit, of: nouns for an item and for all."""
    number = first
    waits_for(f"{unit} {number} of {of} to be read")
    for item in items:
        waits_for(f"{unit} {number} of {of} to be computed")
        yield item
        number += 1
        waits_for(f"{unit} {number} of {of} to be read")
    waits_for(f"what follows {of}")


def _watch(seconds, over, path):
    """Watch until the Event `over` is set. path: of the file to touch, or None."""
    tick, quiet, seen = min(TICK, seconds / 10), 0., None
    while not over.wait(tick):
        if path:
            with contextlib.suppress(FileNotFoundError):  # runtime.restart ended
                os.utime(path)
        if seen != _moves or _awaited is None:
            seen, quiet = _moves, 0.
        quiet += tick
        if quiet > seconds:
            _end(seconds)
    if path:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def _end(seconds):
    count, rank, _ = cli.launched()
    if rank:  # rank 0 says the same, and then the launcher ends this one
        time.sleep(cli.HEAD_START)
    others = " (the device, or another process)" if count > 1 else ""
    print(f"\n{os.path.basename(sys.argv[0])}: nothing has happened for "
          f"{seconds / 60:g} minutes (--hang-minutes) while it waited for {_awaited}"
          f"{others}; what is saved is sound: the same command continues from there",
          file=sys.stderr, flush=True)
    os._exit(cli.DeviceLost.status)


def wait(child, path):
    """Wait for a child process, and kill it if it stops answering; its exit status.

    path: of the file that the child's environment names as ALIVE, which it creates.
    """
    tick, quiet, seen = 1., 0., None
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(tick)
        try:
            with open(path) as file:
                now, seconds = os.stat(path).st_mtime_ns, float(file.read())
        except (FileNotFoundError, ValueError):  # not watched (any more)
            continue
        if now != seen:
            seen, quiet = now, 0.
        quiet += tick
        if quiet > seconds + TICK:
            cli.warn(f"process {child.pid} has not answered for {seconds / 60:g} "
                     "minutes (--hang-minutes): it is killed")
            child.kill()
            return child.wait()
