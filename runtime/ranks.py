"""Several processes: this one's rank, and communication between them.

`start()` is called at the beginning of main(). If the script was not started by
horovodrun, mpirun or srun, `size` stays 1, every function returns its argument, and
nothing of MPI is imported. Only rank 0 prints and writes.

Communication goes through an engine: Horovod where it is installed, otherwise mpi4py,
which works with TensorFlow 2.
"""
import contextlib
import importlib.util
import json
import os

import numpy as np

from runtime import cli
from runtime.tf import tf

rank, size = 0, 1  # number of this process, and how many there are
engine = None


class Horovod:
    """Communicates inside TensorFlow: between GPUs with NCCL, if built with it."""
    error = tf.errors.OpError

    def __init__(self):
        import horovod.tensorflow as horovod
        horovod.init()
        self.horovod, self.rank, self.size = horovod, horovod.rank(), horovod.size()

    def sum(self, tensor):
        """The sum of a tensor over all processes."""
        return self.horovod.allreduce(tensor, op=self.horovod.Sum)

    def copy_first(self, variable):
        """Assign rank 0's value to a variable."""
        variable.assign(self.horovod.broadcast(variable.read_value(), 0))

    def gather(self, text):
        """[text of rank 0, of rank 1, ...]; text: str."""
        array = np.frombuffer(text.encode(), np.uint8)
        lengths = self.horovod.allgather(tf.constant([len(array)])).numpy()
        texts = self.horovod.allgather(tf.constant(array)).numpy()
        ends = np.cumsum(lengths)
        return [texts[end - length:end].tobytes().decode()
                for end, length in zip(ends, lengths)]


class Mpi4py:
    """Communicates through main memory. The methods are those of Horovod."""

    def __init__(self):
        from mpi4py import MPI
        self.error, self.world = MPI.Exception, MPI.COMM_WORLD
        self.rank, self.size = self.world.rank, self.world.size

    def sum(self, tensor):
        mine = tensor.numpy()
        summed = np.empty_like(mine)
        self.world.Allreduce(mine, summed)
        return tf.constant(summed)

    def copy_first(self, variable):
        value = np.array(variable.numpy())
        self.world.Bcast(value)
        variable.assign(value)

    def gather(self, text):
        return self.world.allgather(text)


def start():
    """Connect to the other processes of this run, and take one of the host's GPUs.

    Raises cli.UserError if there should be others, but they cannot be reached.
    """
    global rank, size, engine
    launched = cli.launched()
    if launched.count == 1:
        return
    # Otherwise a process that waits for the others in Open MPI keeps a core busy that
    # they compute on.
    os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    try:
        engine = (Horovod if importlib.util.find_spec("horovod") else Mpi4py)()
    except (ImportError, RuntimeError) as error:  # RuntimeError: no MPI for mpi4py
        raise cli.UserError(f"this is one of {launched.count} processes, but their "
                            f"communication library cannot be imported ({error}): run "
                            "`make horovod` for TensorFlow 1.x, `make mpi` for 2.x, or "
                            "start one process only")
    if engine.size != launched.count:
        raise cli.UserError(f"this is one of {launched.count} processes, but MPI sees "
                            f"{engine.size}; start them with the mpirun of the same "
                            "MPI, or with SLURM: srun --mpi=pmix or pmi2, as your MPI "
                            "was built")
    rank, size = engine.rank, launched.count
    take_one_gpu(launched.local_rank)


def take_one_gpu(local_rank):
    """Make one GPU of this host visible to TensorFlow.

    local_rank: number of this process among those on its host.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = (visible or "").split(",")
    if visible is None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(local_rank)
    elif len(gpus) > 1:  # with one, the launcher has chosen already
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[local_rank % len(gpus)]


def total(tensors):
    """The sum of each tensor over all processes; tensors: list, of one dtype.

    They are sent as one vector: a single latency for all, and the same order of
    additions in every step, whatever arrives first.
    """
    if size == 1:
        return tensors
    shapes = [tensor.shape.as_list() for tensor in tensors]
    with _together():
        summed = engine.sum(
            tf.concat([tf.reshape(tensor, (-1,)) for tensor in tensors], 0))
    parts = tf.split(summed, [int(np.prod(shape)) for shape in shapes])
    return [tf.reshape(part, shape) for part, shape in zip(parts, shapes)]


def any_of(flag):
    """Whether `flag` is true in any of the processes."""
    return bool(total([tf.constant(float(flag))])[0].numpy()) if size > 1 else flag


def copy_first(variables):
    """Assign rank 0's values to these variables."""
    if size > 1:
        with _together():
            for variable in variables:
                engine.copy_first(variable)


def gather(value):
    """[value of rank 0, of rank 1, ...] in all processes.

    value: anything that JSON can hold; it returns as JSON has it (tuples as lists).
    """
    if size == 1:
        return [value]
    with _together():
        return [json.loads(text) for text in engine.gather(json.dumps(value))]


def from_first(value=None):
    """Rank 0's value, in all processes; see `gather`."""
    return gather(value if rank == 0 else None)[0]


def same_devices(device):
    """Raise cli.UserError if only some processes have a GPU: there are more processes
    than GPUs, and all would wait for those on the CPU.

    device: this process's, from tf.device_name.
    """
    found = gather(device.startswith("GPU"))
    if any(found) and not all(found):
        raise cli.UserError(f"{found.count(False)} of {size} processes have no GPU; "
                            f"start {found.count(True)}, one for each GPU")


@contextlib.contextmanager
def locked(folder, part=""):
    """cli.locked by rank 0, on behalf of all."""
    with contextlib.ExitStack() as stack:
        if rank == 0:
            stack.enter_context(cli.locked(folder, part))
        yield


@contextlib.contextmanager
def _together():
    try:
        yield
    except engine.error as error:
        raise cli.UserError("another process of this run has ended "
                            f"({cli.one_line(error)[:160]}); its own line says why")
