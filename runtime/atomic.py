"""Files that get their name only when they are complete; and why one cannot be read:
its content is damaged, or the disk has failed.
"""
import contextlib
import errno
import io
import json
import os
import pickle
import struct
import tokenize
import zipfile

import numpy as np

PARTIAL = ".partial"
# What the readers of JSON, arrays and archives raise for bad content
CONTENT = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError,
           EOFError, SyntaxError, OverflowError, zipfile.BadZipFile, zipfile.zlib.error,
           NotImplementedError, RuntimeError, struct.error, tokenize.TokenError,
           AssertionError, pickle.UnpicklingError)


class Damaged(ValueError):
    """A file was read, but its content is not what it should be."""


# (partial file, path) pairs waiting for the end of `together`; (None, path): removal
_together = None


@contextlib.contextmanager
def together():
    """Files written inside get their names when the block ends: all of them, or none if
    it ends with an exception. Files removed inside are removed before that.
    """
    global _together
    _together = waiting = []
    try:
        yield
        _together = None
        for partial, path in sorted(waiting, key=lambda pair: pair[0] is not None):
            if partial is None:
                remove(path)
            else:
                os.replace(partial, path)
    except BaseException:
        for partial, _ in waiting:
            with contextlib.suppress(OSError):
                os.remove(partial or "")
        raise
    finally:
        _together = None


def remove(path):
    """Remove an outdated file, if it exists."""
    if _together is not None:
        _together.append((None, path))
        return
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


@contextlib.contextmanager
def writing(path, mode="wb", **kwargs):
    """Open `path` + '.partial' for writing; rename it to `path` on success.

    At any moment `path` is the old file or the complete new one, even if the process is
    killed or the machine loses power. The partial file's name is always the same, so a
    killed run leaves at most one and the next run overwrites it.

    Raises OSError, naming the file, if the folder cannot be written or the disk is
    full; the old file at `path` is then untouched.
    """
    partial = f"{path}{PARTIAL}"
    try:
        with named(path):
            with open(partial, mode, **kwargs) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if _together is None:
                os.replace(partial, path)
            else:
                _together.append((partial, path))
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise


@contextlib.contextmanager
def named(path):
    """Inside, an OSError without a file name gets the name `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        # numpy reports a short write without an error number: the disk is full
        number = error.errno or errno.ENOSPC
        raise OSError(number, os.strerror(number), path) from error


@contextlib.contextmanager
def telling_apart(path):
    """Inside, `path` is read and checked: bad content is told from a failing disk.

    Raises Damaged for bad content. If the disk or the memory has failed, raises an
    OSError that names the file (FileNotFoundError included): the file may be sound
    then, and must not be replaced.
    """
    try:
        yield
    except (MemoryError,) + CONTENT as error:
        if isinstance(error, OSError) and error.filename not in (None, path):
            raise  # of another file
        refusal = _refusal(error, path) or _refusal_to_read(path)
        if refusal:
            raise OSError(refusal.errno, os.strerror(refusal.errno), path) from error
        raise Damaged(str(error)) from error


def _refusal(error, path):
    """The OSError of the disk or the memory behind an error about a file, or None.

    zipfile wraps it in an error of its own. EINVAL means an impossible position in the
    file, so bad content.
    """
    while error is not None:
        if isinstance(error, MemoryError):
            return OSError(errno.ENOMEM, "")
        if (isinstance(error, OSError) and error.filename in (None, path)
                and error.errno not in (None, errno.EINVAL)):
            return error
        error = error.__cause__ or error.__context__
    return None


def _refusal_to_read(path):
    """The OSError of the disk if the file cannot be read to its end, or None.

    numpy takes a failed read for the end of the file.
    """
    try:
        with open(path, "rb") as file:
            while file.read(1 << 24):
                pass
    except OSError as error:
        return error
    return None


@contextlib.contextmanager
def reading(path, mode="r", encoding="utf-8", **kwargs):
    """Open `path`, by default as text; errors inside are those of `telling_apart`."""
    encoding = None if "b" in mode else encoding
    with telling_apart(path), open(path, mode, encoding=encoding, **kwargs) as file:
        yield file


def exists(path):
    """Whether a file exists. Unlike os.path.exists, raises OSError if the disk fails,
    so that nothing is overwritten then.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextlib.contextmanager
def load_arrays(path):
    """Open the .npz file `path` with np.load, without any pickled objects.

    Raises as `telling_apart`. It is first opened as an archive because NumPy 1.14
    prints a traceback of its own for anything else.
    """
    with telling_apart(path):
        zipfile.ZipFile(path).close()
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays


def write_arrays(path, arrays, compress=False):
    """Write {name: array} as an .npz file, complete or not at all.

    The same arrays give the same bytes: np.savez would include the time of day.
    """
    whole = io.BytesIO()  # a ZipFile on a disk that fills up prints a traceback
    with zipfile.ZipFile(whole, "w") as archive:
        for name, values in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, values, allow_pickle=False)
            entry = zipfile.ZipInfo(name + ".npy", date_time=(1980, 1, 1, 0, 0, 0))
            if compress:
                entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, buffer.getbuffer())
    with writing(path) as file:
        file.write(whole.getbuffer())


def write_json(path, value):
    """Write `value` as indented JSON, complete or not at all."""
    # A lone surrogate becomes \udXXX, as JSON itself writes it
    with writing(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        json.dump(value, file, indent=1, ensure_ascii=False, sort_keys=True)
        file.write("\n")
