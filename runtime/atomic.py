"""Files that appear under their name only when they are complete."""
import contextlib
import errno
import io
import json
import os
import struct
import tokenize
import zipfile

import numpy as np

PARTIAL = ".partial"
# What reading a damaged archive of arrays can raise
DAMAGED = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError,
           EOFError, MemoryError, SyntaxError, OverflowError, zipfile.BadZipFile,
           zipfile.zlib.error, NotImplementedError, RuntimeError, struct.error,
           tokenize.TokenError, AssertionError)


_together = None  # (partial file, path) of what waits for the end of `together`


@contextlib.contextmanager
def together():
    """Files that are written inside get their names when the block ends: all of them,
    and none where it ends with an exception.
    """
    global _together
    _together = waiting = []
    try:
        yield
        _together = None
        for partial, path in waiting:
            os.replace(partial, path)
    except BaseException:
        for partial, _ in waiting:
            with contextlib.suppress(OSError):
                os.remove(partial)
        raise
    finally:
        _together = None


@contextlib.contextmanager
def writing(path, mode="wb", **kwargs):
    """Open `path` + '.partial' for writing; rename it to `path` when all went well.

    Whoever looks at `path` sees the old file or the whole new one, even if the process
    is killed or the machine loses power. The partial file's name is always the same, so
    that a killed run leaves at most one and the next run writes over it.

    Raises OSError, naming the file, where the folder cannot be written or the disk is
    full; what stood under `path` is still there then.
    """
    partial = f"{path}{PARTIAL}"
    try:
        with open(partial, mode, **kwargs) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if _together is None:
            os.replace(partial, path)
        else:
            _together.append((partial, path))
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(partial)
        if isinstance(error, OSError) and error.filename is None:
            # numpy tells of a short write without an error number: the disk is full
            number = error.errno or errno.ENOSPC
            raise OSError(number, os.strerror(number), path) from error
        raise


def load_arrays(path):
    """The open .npz file `path`, as np.load gives it, without any pickled objects.

    Raises FileNotFoundError, or another of DAMAGED where it is no whole archive: tried
    beforehand because NumPy 1.14 prints a traceback of its own about those.
    """
    zipfile.ZipFile(path).close()
    return np.load(path, allow_pickle=False)


def write_arrays(path, arrays, compress=False):
    """Write {name: array} as an .npz file, complete or not at all.

    The same arrays give the same bytes: np.savez would put the time of day in.
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
    # Half a letter becomes \udXXX, as JSON itself spells it
    with writing(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        json.dump(value, file, indent=1, ensure_ascii=False, sort_keys=True)
        file.write("\n")
