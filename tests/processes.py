"""Several processes on this machine, for the tests that need them."""
import importlib.util
import os
import shutil
import subprocess
import sys
import time

import pytest

from commands import ROOT, environment, finished

# `make mpi` installs its own
MPIRUN = shutil.which("mpirun", path=os.pathsep.join(
    [os.path.dirname(sys.executable), os.environ.get("PATH", "")]))
HAS_HOROVOD = importlib.util.find_spec("horovod") is not None
several = pytest.mark.skipif(
    not (MPIRUN and (HAS_HOROVOD or importlib.util.find_spec("mpi4py"))),
    reason="needs mpirun, and Horovod or mpi4py (make horovod, make mpi)")


def mpirun(processes, *command):
    """The command line that starts `processes` here, however few cores there are."""
    return [MPIRUN, "--allow-run-as-root", "--oversubscribe", "--bind-to", "none",
            "-np", str(processes), sys.executable, *command]


def finish(command, cwd, timeout=240):
    """Run a command to its end: (exit status, stdout, stderr)."""
    done = finished(command, cwd=str(cwd), env=environment(), timeout=timeout)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module", autouse=True)
def cores_for_all():
    """Processes that wait for each other need more than the core of a test worker, and
    must not keep it busy while they wait.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMPI_MCA_mpi_yield_when_idle", "1")
        if hasattr(os, "sched_setaffinity"):
            mine = os.sched_getaffinity(0)
            os.sched_setaffinity(0, range(os.cpu_count()))
        yield
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, mine)


TRAINING = (os.path.join(ROOT, "train.py"), "--embedding", "7", "--units", "11",
            "--batch-size", "4", "--learning-rate", ".003",
            "--run")


def start(command, folder):
    return subprocess.Popen(command, cwd=str(folder), env=environment(),
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            start_new_session=True)


def wait_for(path, process, seconds=300):
    end = time.time() + seconds
    while not os.path.exists(path):
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.time() < end, f"{path} did not appear"
        time.sleep(.05)


def workers(process):
    """The process ids of the training processes under an mpirun."""
    psutil = pytest.importorskip("psutil")
    return [child.pid for child in psutil.Process(process.pid).children(recursive=True)
            if any("train.py" in word for word in child.cmdline())]
