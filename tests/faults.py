"""Run commands whose process is killed, or whose disk fails, at a chosen write.

A server imports TensorFlow and the scripts once and forks for every command, so that
hundreds of commands each have a process, which a real kill -9 ends. All changes to
files in the command's folder go through `Disk`, which counts them.

    python faults.py     the server: reads orders and answers, each a line of JSON
"""
import builtins
import contextlib
import errno
import faulthandler
import io
import json
import os
import signal
import subprocess
import sys
import typing

FAULTS = {"kill": None, "full": errno.ENOSPC, "error": errno.EIO}
LONGEST = 600  # seconds per command: more is a hang


class Disk:
    """Count a process's changes in a folder, and fail at one of them.

    A change creates, writes, syncs, renames or removes a file. kill: the process dies
    in the middle of it. full: from then on nothing fits, the first write by half.
    error: this once, the disk gives an input/output error.
    """

    def __init__(self, folder, fault=None, at=None):
        """fault: a key of FAULTS, or None. at: the index of the change that fails."""
        self.folder, self.fault, self.at = os.path.abspath(folder), fault, at
        self.changes = []  # [what is done, the path within the folder]

    def holds(self, path):
        return not isinstance(path, int) and os.path.abspath(
            os.fsdecode(path)).startswith(self.folder + os.sep)

    def fails(self, kind, path):
        """Count a change. Returns whether it fails."""
        at = len(self.changes)
        self.changes.append([kind, os.path.relpath(os.fsdecode(path), self.folder)])
        if self.fault == "full":
            return at >= self.at and can_fill(kind)
        return at == self.at

    def strike(self, *paths):
        """Fail. paths: those that the operating system would name."""
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        number = FAULTS[self.fault]
        raise OSError(number, os.strerror(number), *paths)

    def opened(self, whole):
        """Wrap `whole`, open(), so that writes are counted here."""
        def open(path, mode="r", buffering=-1, encoding=None, errors=None,
                 newline=None, **kwargs):
            if not set(mode) & set("wax+") or not self.holds(path):
                return whole(path, mode, buffering, encoding, errors, newline, **kwargs)
            new = not os.path.exists(path)
            if self.fails("open", path) and (new or self.fault != "full"):
                if self.fault == "kill":  # just after
                    whole(path, mode).close()
                self.strike(path)
            raw = File(self, path, mode.replace("b", "").replace("t", ""))
            file = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
            return file if "b" in mode else io.TextIOWrapper(file, encoding, errors,
                                                             newline)
        return open

    def synced(self, whole):
        """Wrap `whole`, os.fsync(): a process that dies in it leaves half the file."""
        def fsync(file):
            path = os.readlink(f"/proc/self/fd/{file}")
            if self.holds(path) and self.fails("fsync", path):
                if self.fault == "kill":
                    os.ftruncate(file, os.fstat(file).st_size // 2)
                self.strike()
            return whole(file)
        return fsync

    def changed(self, kind, whole):
        """Wrap `whole`, a function of os that changes its last positional argument."""
        def change(*paths, **kwargs):
            path = paths[-1] if isinstance(paths[-1], (str, bytes)) else paths[0]
            if (self.holds(path) and os.path.exists(paths[0]) != (kind == "mkdir")
                    and self.fails(kind, path)):
                self.strike(*paths[:1])
            return whole(*paths, **kwargs)
        return change

    def insert(self):
        """From now on, count all changes."""
        builtins.open = io.open = self.opened(io.open)
        os.fsync = self.synced(os.fsync)
        for kind in ("replace", "rename", "remove", "unlink", "mkdir", "rmdir"):
            setattr(os, kind, self.changed(kind, getattr(os, kind)))


def can_fill(kind):
    """Whether a full disk refuses this change."""
    return kind in ("open", "write", "fsync", "mkdir")


class File(io.FileIO):
    """A file whose writes a Disk counts as one; if that fails, half is written."""

    def __init__(self, disk, path, mode):
        super().__init__(path, mode)
        self.disk, self.begun, self.failing = disk, False, False

    def write(self, data):
        first, self.begun = not self.begun, True
        if first and self.disk.fails("write", self.name):
            self.failing = True
            super().write(bytes(data)[:len(data) // 2])
        if self.failing and (first or self.disk.fault == "full"):
            self.disk.strike()
        return super().write(data)


# --- the server -----------------------------------------------------------------------

class Done(typing.NamedTuple):
    """How a command ended."""
    status: int  # -9: killed
    said: str    # stdout and stderr
    changes: typing.List[typing.Tuple[str, str]]  # from Disk


class Server:
    """Runs commands: server(folder, command, fault, at) returns a Done."""

    def __init__(self, place, environment):
        """place: a folder for the commands' output."""
        self.said, self.changes = (os.path.join(place, name) for name in
                                   ("said.txt", "changes.json"))
        self.process = subprocess.Popen([sys.executable, os.path.abspath(__file__)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        env=environment, universal_newlines=True)

    def __call__(self, folder, command, fault=None, at=None):
        self.process.stdin.write(json.dumps([folder, command, fault, at, self.said,
                                             self.changes]) + "\n")
        self.process.stdin.flush()
        status = json.loads(self.process.stdout.readline())
        with open(self.said, errors="replace") as file:
            said = file.read()
        changes = None
        if status >= 0:
            with open(self.changes) as file:
                changes = json.load(file)
        return Done(status, said, changes)

    def close(self):
        self.process.stdin.close()
        self.process.wait(LONGEST)


def obey(folder, command, fault, at, said, changes):
    """Carry out an order, in the process forked for it."""
    from runtime import cli
    from worlds import MAIN, shown
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(out, stream)
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    os.chdir(folder)
    script, *flags = command
    sys.argv = [shown(script), *flags]
    status, disk, whole = 0, Disk(folder, fault, at), open
    disk.insert()
    try:
        cli.run(MAIN[script])
    except SystemExit as end:
        status = end.code
    finally:
        with whole(changes, "w") as file:
            json.dump(disk.changes, file)
    return status


def serve():
    """Carry out the orders on stdin."""
    from matplotlib.figure import Figure
    from captioning import curves, networks
    from worlds import fake_build
    # Skip what takes long and does not touch the disk
    networks.build, curves.draw_curves = fake_build, lambda *_: Figure(figsize=(1, 1))
    answer = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        child = os.fork()
        if not child:
            status = 1
            with contextlib.suppress(BaseException):
                try:
                    status = obey(*json.loads(line))
                except BaseException:
                    sys.excepthook(*sys.exc_info())
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(status or 0)
        _, status = os.waitpid(child, 0)
        answer.write(json.dumps(-os.WTERMSIG(status) if os.WIFSIGNALED(status)
                                else os.WEXITSTATUS(status)) + "\n")
        answer.flush()


if __name__ == "__main__":
    serve()
