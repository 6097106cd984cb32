"""What every script does the same way on the command line.

Errors the user can mend are raised as UserError and end the program with one line and
exit status 2; a GPU that was lost ends it with 3 (DeviceLost), Ctrl-C and SIGTERM with
130. Nothing else is caught: an unexpected traceback is a bug that should be seen.
"""
import argparse
import contextlib
import errno
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

STEPS = 6
rank = None  # number of this process where there are several (see ranks.py)
HEAD_START = 3  # seconds in which process 0 can say what is wrong for all of them
STOPPING = (signal.SIGINT, signal.SIGTERM)
ALONE = ["--restarts", "0"]    # ends the command of a child of `restarted`
PAUSE, LONGEST_PAUSE = 5, 600  # seconds before the first restart, and at most


class UserError(Exception):
    """What the user can mend: which file, what is wrong, what to do, in one line."""
    status = 2


class DeviceLost(UserError):
    """The GPU is gone for this process; a fresh one may find it again."""
    status = 3


def run(main):
    """Call `main()` and turn the ways it can end into messages and exit statuses.

    0: done. 2: bad input (UserError, or the operating system refused a file).
    3: the GPU was lost. 130: interrupted; everything that was complete has been kept.
    """
    _speak_utf8()
    for signum in STOPPING:
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, _interrupt)
    name = os.path.basename(sys.argv[0])
    try:
        main()
    except UserError as error:
        _stop(f"{name}: {one_line(error)}", error.status)
    except (KeyboardInterrupt, SystemError) as error:
        if (isinstance(error, SystemError)  # what C code makes of it, as matplotlib's
                and not isinstance(error.__cause__, KeyboardInterrupt)):
            raise
        _stop(f"\n{name}: stopped. What is complete has been kept; the same command "
              f"goes on from there:\n  {this_command()}", 130)
    except BrokenPipeError:  # `| head` closed the pipe: not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno is None:
            raise
        again = "and run the same command again"
        advice = {errno.ENOSPC: f"; make room on that disk {again}",
                  errno.EDQUOT: f"; make room in your quota {again}",
                  errno.EACCES: "; change its permissions or choose another folder"}
        where = f"{error.filename}: " if error.filename else ""
        _stop(f"{name}: {where}{error.strerror}{advice.get(error.errno, '')}", 2)


@contextlib.contextmanager
def interrupts_wait():
    """Inside, Ctrl-C and SIGTERM make the function that is yielded true, no more.

    For work that must not stop half-way: ask the function where stopping is safe, and
    raise KeyboardInterrupt. A second signal does not wait.
    """
    asked = []

    def note(signum, frame):
        if asked:
            _interrupt(signum, frame)
        asked.append(signum)
    before = {signum: signal.getsignal(signum) for signum in STOPPING}
    for signum, handler in before.items():
        if handler != signal.SIG_IGN:  # as the shell has it for a job in the background
            signal.signal(signum, note)
    try:
        yield lambda: bool(asked)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def alone(folder, part="", wait=False):
    """Make `folder` and hold it while the block runs: no second one of this script.

    part: of the script's work, if only that must not be done twice. wait: until the
    other has done it. Raises UserError where another process holds it. The lock dies
    with the process, however that ends.
    """
    os.makedirs(folder, exist_ok=True)
    script = os.path.splitext(os.path.basename(sys.argv[0]))[0]
    path = os.path.join(folder, f".{script}{part}.lock")
    with _lock(path, folder, wait) as file:
        file.truncate(0)
        file.write(f"{script} (process {os.getpid()} on {socket.gethostname()})\n")
        file.flush()
        try:
            yield
        finally:
            os.remove(path)


def _lock(path, folder, wait):
    """Open and lock the file `path`, which its last holder may remove meanwhile."""
    while True:
        file = open(path, "a+")
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    return file
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            file.close()
            raise UserError(f"{folder}: {holder} is at work there; wait for it, or "
                            "choose another folder")
        file.close()


def add_restarts(parser):
    """The flags of `restarted`."""
    parser.add_argument("--restarts", type=number(int, at_least=0), default=0,
                        help="start again so often when the GPU is lost or the process "
                             "is killed")
    parser.add_argument("--last-on-cpu", action="store_true",
                        help="the last of --restarts does without the GPU")


def restarted(restarts, last_on_cpu=False):
    """Whether this command was run here, in child processes that may lose the GPU.

    A process that has lost its GPU never gets it back, a fresh one may. A child that
    ends with DeviceLost's status, or is killed, is followed by another, `restarts`
    times, each after twice the pause; the last one without a GPU if `last_on_cpu`.
    Without restarts, False: go on in this process. Ends the program with the status of
    the last child, unless that is 0.
    """
    if not restarts:
        return False
    if rank is not None:
        raise UserError("--restarts is for one process; where there are several, have "
                        "the launcher start all of them again")
    child = None

    def pass_on(signum, frame):
        asked.append(signum)
        if child and child.poll() is None:
            child.send_signal(signum)
    asked, pause = [], PAUSE
    for signum in STOPPING:
        signal.signal(signum, pass_on)
    for number in range(restarts + 1):
        environment = dict(os.environ)
        if last_on_cpu and number == restarts:
            environment["CUDA_VISIBLE_DEVICES"] = "-1"
        # Of its own session: a Ctrl-C in the terminal must not reach it twice.
        child = subprocess.Popen([sys.executable, *sys.argv, *ALONE],
                                 env=environment, start_new_session=True)
        if asked:  # just before there was a child to pass it on to
            child.terminate()
        status = child.wait()
        lost = status == DeviceLost.status or status < 0
        if asked or not lost or number == restarts:
            break
        how = f"signal {-status}" if status < 0 else "a lost GPU"
        warn(f"ended by {how}; restart {number + 1} of {restarts} in {pause} s")
        end = time.time() + pause
        while time.time() < end and not asked:
            time.sleep(min(.2, pause))
        pause = min(2 * pause, LONGEST_PAUSE)
    if asked:
        status = 130
    if status:
        sys.exit(status if status > 0 else 128 - status)
    return True


def introduce(step, title):
    """Print the heading of a pipeline step, e.g. `[2/6] extract features`."""
    print(f"[{step}/{STEPS}] {title}", flush=True)


def next_step(*words):
    """Print the command of the next step, quoted for the shell."""
    print("next: " + " ".join(shlex.quote(str(word)) for word in words), flush=True)


def warn(message):
    """Print one line to stderr, without breaking a progress bar on its line."""
    if rank:  # process 0 says the same
        return
    from tqdm import tqdm
    tqdm.write(f"warning: {one_line(message)}", file=sys.stderr)


def one_line(message):
    """The message with every run of white space folded into one blank."""
    return " ".join(str(message).split())


def this_command():
    """The command that started this program, as one can type it."""
    words = sys.argv
    if words[-2:] == ALONE:  # `restarted` has added it
        words = words[:-2]
    return " ".join(shlex.quote(word) for word in ["python"] + words)


def parser(doc, **kwargs):
    """An argument parser whose --help is the script's docstring and all defaults."""
    class Formatter(argparse.ArgumentDefaultsHelpFormatter,
                    argparse.RawDescriptionHelpFormatter):
        pass

    class Parser(argparse.ArgumentParser):
        def error(self, message):  # one line, without argparse's page of usage
            _stop(f"{self.prog}: {one_line(message)}; see --help", 2)

        def parse_args(self, *args, **kwargs):
            found = super().parse_args(*args, **kwargs)
            for name in ("data", "tokens", "features"):
                value = getattr(found, name, None)
                if value and value.startswith("-"):  # the next command is no flag
                    setattr(found, name, os.path.join(".", value))
            return found
    # allow_abbrev: a flag that is added later must not change what an old command means
    return Parser(description=doc, formatter_class=Formatter, allow_abbrev=False,
                  **kwargs)


def number(kind, at_least=None, at_most=None, above=None, below=None):
    """An argparse type: a finite `kind` (int or float) inside the stated limits."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of type "
                                             f"{kind.__name__}")
        for limit, broken, words in ((at_least, lambda: value < at_least, "at least"),
                                     (at_most, lambda: value > at_most, "at most"),
                                     (above, lambda: value <= above, "above"),
                                     (below, lambda: value >= below, "below")):
            if limit is not None and broken():
                raise argparse.ArgumentTypeError(f"{text} must be {words} {limit}")
        if value != value or value in (float("inf"), float("-inf")):
            raise argparse.ArgumentTypeError(f"{text} is not a finite number")
        return value
    return parse


seed = number(int, at_least=0, at_most=2 ** 32 - 1)  # what numpy takes


def _interrupt(signum, frame):
    """Raise KeyboardInterrupt; a moment later where this is inside a destructor, as
    Python lets no exception out of one.
    """
    while frame:
        if frame.f_code.co_name == "__del__":
            again = threading.Timer(.05, os.kill, (os.getpid(), signum))
            again.daemon = True
            again.start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def _speak_utf8():
    """Start anew where Python 3.6 would refuse file names and words beyond ASCII.

    It does so in the locale C, which is that of many clusters; later ones do not.
    """
    if (sys.getfilesystemencoding() == "ascii"
            and os.environ.get("LC_ALL") != "C.UTF-8"):  # else tried already
        os.execve(sys.executable, [sys.executable, *sys.argv],
                  dict(os.environ, LC_ALL="C.UTF-8"))


def _end_of_imports(kind, error, trace):
    # TensorFlow takes seconds to import: no traceback where Ctrl-C comes in there.
    if issubclass(kind, KeyboardInterrupt):
        print(f"\n{os.path.basename(sys.argv[0])}: stopped", file=sys.stderr)
        os._exit(130)
    sys.__excepthook__(kind, error, trace)
    if rank is not None:
        os._exit(1)


sys.excepthook = _end_of_imports


def _stop(message, status):
    if rank:
        # Mostly all processes have met the same thing, and the launcher ends this one
        # as soon as process 0 has spoken.
        time.sleep(HEAD_START)
        message = f"{message} (process {rank})"
    print(message, file=sys.stderr, flush=True)
    if rank is not None:
        # At its usual exit a process waits for the others, which may wait for it.
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)
