"""What every script does the same way on the command line.

Errors the user can mend are raised as UserError and end the program with one line and
exit status 2. Ctrl-C and SIGTERM end it with exit status 130. Nothing else is caught:
an unexpected traceback is a bug that should be seen.
"""
import argparse
import errno
import os
import shlex
import signal
import sys

STEPS = 6


class UserError(Exception):
    """What the user can mend: which file, what is wrong, what to do, in one line."""


def run(main):
    """Call `main()` and turn the ways it can end into messages and exit statuses.

    0: done. 2: bad input (UserError, or the operating system refused a file).
    130: interrupted; everything that was complete has been kept.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    name = os.path.basename(sys.argv[0])
    try:
        main()
    except UserError as error:
        _stop(f"{name}: {one_line(error)}", 2)
    except KeyboardInterrupt:
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


def introduce(step, title):
    """Print the heading of a pipeline step, e.g. `[2/6] extract features`."""
    print(f"[{step}/{STEPS}] {title}", flush=True)


def next_step(*words):
    """Print the command of the next step, quoted for the shell."""
    print("next: " + " ".join(shlex.quote(str(word)) for word in words), flush=True)


def warn(message):
    """Print one line to stderr, without breaking a progress bar on its line."""
    from tqdm import tqdm
    tqdm.write(f"warning: {one_line(message)}", file=sys.stderr)


def one_line(message):
    """The message with every run of white space folded into one blank."""
    return " ".join(str(message).split())


def this_command():
    """The command that started this program, as one can type it."""
    return " ".join(shlex.quote(word) for word in ["python"] + sys.argv)


def parser(doc, **kwargs):
    """An argument parser whose --help is the script's docstring and all defaults."""
    class Formatter(argparse.ArgumentDefaultsHelpFormatter,
                    argparse.RawDescriptionHelpFormatter):
        pass
    # allow_abbrev: a flag that is added later must not change what an old command means
    return argparse.ArgumentParser(description=doc, formatter_class=Formatter,
                                   allow_abbrev=False, **kwargs)


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


def _interrupt(signum, frame):
    raise KeyboardInterrupt


def _stop(message, status):
    print(message, file=sys.stderr, flush=True)
    sys.exit(status)
