"""Files that appear under their name only when they are complete."""
import contextlib
import json
import os
import zipfile

import numpy as np

PARTIAL = ".partial"


@contextlib.contextmanager
def writing(path, mode="wb", **kwargs):
    """Open `path` + '.partial' for writing; rename it to `path` when all went well.

    Whoever looks at `path` sees the old file or the whole new one, even if the process
    is killed or the machine loses power. The partial file's name is always the same, so
    that a killed run leaves at most one and the next run writes over it.

    Raises OSError where the folder cannot be written or the disk is full.
    """
    partial = f"{path}{PARTIAL}"
    try:
        with open(partial, mode, **kwargs) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise


def load_arrays(path):
    """The open .npz file `path`, as np.load gives it, without any pickled objects.

    Raises OSError or zipfile.BadZipFile where it is missing or no whole archive: tried
    beforehand because NumPy 1.14 prints a traceback of its own about those.
    """
    zipfile.ZipFile(path).close()
    return np.load(path, allow_pickle=False)


def write_json(path, value):
    """Write `value` as indented JSON, complete or not at all."""
    with writing(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False, sort_keys=True)
        file.write("\n")
