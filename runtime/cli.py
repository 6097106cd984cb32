"""The command line behaviour that all scripts share.

Errors that the user can fix are raised as UserError and end the program with one line
and exit status 2; a lost GPU (DeviceLost), a hang (watchdog.py) and a disk that does
not answer end it with 3, Ctrl-C, SIGTERM and SIGUSR1 with 130. Nothing else is caught:
an unexpected traceback is a bug that should be seen.
"""
import argparse
import contextlib
import errno
import inspect
import os
import shlex
import signal
import socket
import sys
import threading
import time
import traceback
import typing

from runtime import atomic, flags, letters

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

STEPS = 6
# Transient errors of a disk, or of the network or memory behind it
PASSING = {getattr(errno, name, None) for name in (
    "EIO", "ESTALE", "ETIMEDOUT", "EREMOTEIO", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH",
    "ENETDOWN", "ENETUNREACH", "ENOMEM", "EMFILE", "ENFILE")} - {None}
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
HEAD_START = 3  # seconds for rank 0 to report an error on behalf of all
# SLURM can send it some time before it ends a job; not on Windows
WARNING = getattr(signal, "SIGUSR1", None)
STOPPING = tuple(filter(None, (signal.SIGINT, signal.SIGTERM, WARNING)))
# Launchers' variables for the number of processes, this one's rank, and its rank on its
# host: the innermost launcher first, since mpirun may itself be a step of SLURM's.
COUNTS = ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
RANKS = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
LOCAL_RANKS = ("HOROVOD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID",
               "SLURM_LOCALID")


class UserError(Exception):
    """An error that the user can fix: the file, what is wrong, what to do, in a line.
    """
    status = 2


class Launched(typing.NamedTuple):
    """This process's place among those that a launcher has started."""
    count: int       # processes in all; 1 without a launcher
    rank: int        # number of this one, from 0
    local_rank: int  # its number among those on its host


class DeviceLost(UserError):
    """This process has lost the GPU; a fresh one may get it back."""
    status = 3


def run(main):
    """Call `main()` and turn the ways it can end into messages and exit statuses.

    0: done. 2: bad input (UserError, or the operating system refused a file). 3: a lost
    GPU, a hang, or a transient disk error. 130: interrupted; everything complete has
    been kept.
    """
    _speak_utf8()
    letters.print_any()
    for signum in STOPPING:
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, _interrupt)
    name = os.path.basename(sys.argv[0])
    if launched().rank:  # rank 0 says the same
        sys.stdout = open(os.devnull, "w")
    try:
        main()
    except UserError as error:
        _stop(f"{name}: {one_line(error)}", error.status)
    except (KeyboardInterrupt, SystemError) as error:
        if (isinstance(error, SystemError)  # what C code makes of it, as matplotlib's
                and not isinstance(error.__cause__, KeyboardInterrupt)):
            raise
        _stop(f"\n{name}: stopped. What is complete has been kept; the same command "
              f"continues from there:\n  {this_command()}", 130)
    except BrokenPipeError:  # `| head` closed the pipe: not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno is None:
            raise
        again = "and run the same command again"
        advice = {errno.ENOSPC: f"; make room on that disk {again}",
                  errno.EDQUOT: f"; make room in your quota {again}",
                  errno.EACCES: "; change its permissions or choose another folder",
                  errno.ENOMEM: f"; free some memory {again}",
                  errno.EMFILE: f"; raise the limit, `ulimit -n`, {again}"}
        passing = error.errno in PASSING and error.filename is not None
        where = f"{error.filename}: " if error.filename else ""
        what = advice.get(error.errno, f"; it may pass: {again[4:]}" if passing else "")
        _stop(f"{name}: {where}{error.strerror}{what}",
              DeviceLost.status if passing else UserError.status)
    except Exception:
        if launched().count == 1:
            raise
        traceback.print_exc()
        _end_at_once(1)


@contextlib.contextmanager
def interrupts_wait():
    """Defer STOPPING signals; the yielded function says whether one came.

    For work that must not stop half-way: call the function where stopping is safe, and
    raise KeyboardInterrupt if it returns True. If a signal came after the last call,
    leaving the block raises it. A second signal, except WARNING, interrupts at once.
    Only the main thread gets signals: elsewhere nothing is deferred.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked, heard = [], []

    def note(signum, frame):
        if asked and signum != WARNING:
            _interrupt(signum, frame)
        asked.append(signum)

    def asked_to_stop():
        heard.extend(asked)
        return bool(heard)
    before = {signum: signal.getsignal(signum) for signum in STOPPING}
    for signum, handler in before.items():
        if handler != signal.SIG_IGN:  # ignored in a background job of the shell
            signal.signal(signum, note)
    try:
        yield asked_to_stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if asked and not heard:  # it came after the last call
        raise KeyboardInterrupt


@contextlib.contextmanager
def locked(folder, part="", wait=False, name=None):
    """Make `folder` and lock it while the block runs, against a second such script.

    part: of the script's work, if only that must not be done twice. wait: until the
    other has done it. name: of work that several scripts do; None: the script's. Raises
    UserError where another process holds it. The lock dies with the process, however
    that ends.
    """
    os.makedirs(folder, exist_ok=True)
    script = os.path.splitext(os.path.basename(sys.argv[0]))[0]
    path = os.path.join(folder, f".{name or script}{part}.lock")
    with _lock(path, folder, wait) as file:
        with atomic.named(path):
            file.truncate(0)
            file.write(f"{script} (process {os.getpid()} on {socket.gethostname()})\n")
            file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # one that stays there locks nothing
                os.remove(path)


def _lock(path, folder, wait):
    """Open and lock the file `path`, which its previous holder may remove meanwhile."""
    while True:
        file = open(path, "a+")
        try:
            if fcntl:
                _flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), folder)
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


def _flock(file, how, folder):
    # Cluster file systems may be mounted without locks.
    try:
        with atomic.named(file.name):
            fcntl.flock(file, how)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warn(f"{folder}: its file system has no locks ({error.strerror}); do not run "
             "the same command twice at once")


def launched():
    """The Launched of this process, from its launcher's variables."""
    def number(variables):
        texts = [os.environ.get(variable, "") for variable in variables]
        return next((int(text) for text in texts if text.isdigit()), 0)
    count = number(COUNTS)
    if count <= 1:
        return Launched(1, 0, 0)
    return Launched(count, number(RANKS), number(LOCAL_RANKS))


def left_out(path, rows, of, most, what, advice):
    """List what was left out; stop if it is too much.

    path: of the list, which is removed if it would be empty. rows: list of str, one per
    line. of: the total number. most: share of it that may be left out (--max-bad).
    what: a noun for the message, e.g. 'images of val'. advice: what to do about them.
    Warns, or raises UserError above `most`.
    """
    if not rows:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
        return
    with atomic.writing(path, "w", encoding="utf-8",
                        errors="backslashreplace") as file:
        file.writelines(row + "\n" for row in rows)
    found = f"{len(rows)} of {of} {what}"
    if len(rows) > most * of:
        raise UserError(f"{path}: lists {found}, more than --max-bad {most:g} allows; "
                        f"{advice}")
    warn(f"{found} are left out, listed in {path}; {advice}")


def table(rows):
    """Print rows of str in aligned columns; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [
            cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        print("  ".join(cells).rstrip())


def print_heading(step, title):
    """Print the heading of a pipeline step, e.g. `[2/6] extract features`."""
    print(f"[{step}/{STEPS}] {title}", flush=True)


def next_step(*words):
    """Print the next step's command, ready to paste. words: script and arguments."""
    print("next: " + " ".join(shlex.quote(str(word)) for word in
                              (interpreter(), *words)), flush=True)


def warn(message):
    """Print one line to stderr, without breaking a progress bar on its line."""
    if launched().rank:  # rank 0 says the same
        return
    from tqdm import tqdm
    tqdm.write(f"warning: {one_line(message)}", file=sys.stderr)


def one_line(message):
    """The message with every run of white space replaced by one space."""
    return " ".join(str(message).split())


def interpreter():
    """The running Python's path, as one would type it here."""
    inside = os.path.relpath(sys.executable)
    return sys.executable if inside.startswith(os.pardir) else inside


def script():
    """This program as arguments for Python: its path, or -m and its module's name."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec and spec.origin == sys.argv[0]:
        return ["-m", spec.name]
    return [sys.argv[0]]


def this_command():
    """The command that started this program, ready to paste."""
    return " ".join(shlex.quote(word) for word in
                    (interpreter(), *script(), *sys.argv[1:]))


class Parser(flags.Parser):
    """The flags of a script."""

    def error(self, message):  # one line, without argparse's page of usage
        _stop(f"{self.prog}: {one_line(message)}; see --help", 2)


def parser(doc):
    """The Parser of a script with this docstring."""
    return Parser(doc)


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


def name(text):
    """An argparse type: a name that can be part of a file's."""
    if os.path.basename(text) != text or text in ("", ".", ".."):
        raise argparse.ArgumentTypeError(f"{text!r} is not a plain name")
    return text


positive = number(int, at_least=1)
share = number(float, at_least=0, at_most=1)
seed = number(int, at_least=0, at_most=2 ** 32 - 1)  # what numpy takes


def _interrupt(signum, frame):
    """Raise KeyboardInterrupt; if inside a destructor, which cannot raise, a moment
    later.
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
    """Restart in a UTF-8 locale if Python would refuse file names beyond ASCII.

    Python 3.6 does so in the C locale, which many clusters use; later versions do not.
    """
    if sys.getfilesystemencoding() != "ascii":
        return
    name = letters.utf8_locale()
    if name is None or os.environ.get("LC_ALL") == name:  # tried already
        _stop(f"{os.path.basename(sys.argv[0])}: this system has no UTF-8 locale; "
              "install one (on Debian: apt-get install locales-all), or take Python "
              "3.7 or later", 2)
    os.execve(sys.executable, [sys.executable, *script(), *sys.argv[1:]],
              dict(os.environ, LC_ALL=name))


def _close_generators(trace):
    """Close the generators that a traceback keeps suspended, and with them their
    progress bars: these would be drawn once more below the message.
    """
    for frame, _ in traceback.walk_tb(trace):
        for value in list(frame.f_locals.values()):
            if inspect.isgenerator(value):
                with contextlib.suppress(ValueError):  # it is running
                    value.close()


def _stop(message, status):
    _close_generators(sys.exc_info()[2])
    count, rank, _ = launched()
    if rank:
        # Usually all processes fail alike, and the launcher ends this one silently as
        # soon as rank 0 has reported the error.
        for signum in STOPPING:
            signal.signal(signum, signal.SIG_DFL)
        time.sleep(HEAD_START)
        message = f"{message} (rank {rank})"
    print(message, file=sys.stderr, flush=True)
    if count > 1:
        _end_at_once(status)
    sys.exit(status)


def _end_at_once(status):
    # A normal exit would wait for the other processes, which may wait for this one.
    sys.stdout.flush()
    os._exit(status)
