"""Letters of any script on a terminal, in a pipe and in the names of files."""
import contextlib
import locale
import subprocess
import sys


def print_any():
    """Have letters that the output's encoding lacks written as \\u..., as stderr does.
    """
    if getattr(sys.stdout, "errors", None) != "strict":
        return
    if hasattr(sys.stdout, "reconfigure"):  # Python 3.7 and later
        sys.stdout.reconfigure(errors="backslashreplace")
        return
    with contextlib.suppress(OSError):  # not a file
        sys.stdout.flush()
        sys.stdout = open(sys.stdout.fileno(), "w", 1 if sys.stdout.line_buffering else
                          -1, sys.stdout.encoding, "backslashreplace", closefd=False)


def utf8_locale():
    """The name of a UTF-8 locale that this system has; None where it has none."""
    try:
        listed = subprocess.check_output(["locale", "-a"], stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        listed = b""
    names = [name for name in listed.decode("ascii", "ignore").split()
             if name.lower().replace("-", "").endswith("utf8")]
    before = locale.setlocale(locale.LC_CTYPE)
    for name in ["C.UTF-8", "en_US.UTF-8", *names]:
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, name)
            locale.setlocale(locale.LC_CTYPE, before)
            return name
    return None
