"""Printing letters of any script to a terminal or pipe, and UTF-8 locales."""
import contextlib
import locale
import subprocess
import sys


def print_any():
    """Print letters that the output's encoding lacks as \\u..., as stderr does."""
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
    """The name of a UTF-8 locale of this system; None if it has none."""
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
