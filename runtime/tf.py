"""TensorFlow as the scripts use it: version check, GPU, and differences by version.

Every other file imports TensorFlow with `from runtime.tf import tf`; `start()` is
called once, in main(), before any computation. No other file checks TensorFlow's
version.
"""
import contextlib
import ctypes
import functools
import os
import re
import subprocess
import sys
import tempfile

from runtime import cli

OLDEST, TOO_NEW = (1, 9), (3, 0)  # supported: from the first to before the second
BASELINE = "1.10.0"
# Texts of TensorFlow's errors that are the device's fault
OUT_OF_MEMORY = re.compile(r"out of memory|OOM|failed to allocate|CUDA_ERROR_OUT_OF_ME"
                           r"|Dst tensor is not initialized", re.I)
LOST = re.compile(r"\bcu(da|dnn|blas|rand|fft|solver)|\bGPU\b|\bBlas\b|device lost"
                  r"|stream|memcpy|memcopy|launch failed|launch failure", re.I)
# Harmless messages of TensorFlow 2.21, the first two on import, whatever the log level
CHATTER = (r"absl::InitializeLog\(\) is called|oneDNN custom operations are on"
           r"|oneDNN supports DT_HALF only on platforms")
CUDA_ADVICE = ("tensorflow-gpu 1.10 needs CUDA 9.0 and cuDNN 7 (conda env create -f "
               "environment.yml), and a card of 2017 or older; for others see "
               "docs/versions.md, without a GPU install requirements/cpu.txt")


def _load():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # warnings only
    # TensorFlow 1.x includes jemalloc, which returns the memory of a large tensor to
    # the system at once and gets it back page by page, zeroed: that takes most of the
    # time of an elementwise operation on the CPU. Make it keep the memory.
    os.environ.setdefault("JEMALLOC_MALLOC_CONF", "purge:ratio,lg_dirty_mult:-1")
    try:
        with _without_chatter():
            import tensorflow
    except KeyboardInterrupt:  # it takes seconds to import: no traceback for Ctrl-C
        print(f"\n{os.path.basename(sys.argv[0])}: stopped", file=sys.stderr)
        os._exit(130)
    except ImportError as error:
        text = " ".join(str(error).split())
        if "libcu" in text or "libcudnn" in text:
            _refuse(f"TensorFlow cannot load a CUDA library ({text[-120:]}): "
                    + CUDA_ADVICE)
        _refuse(f"TensorFlow cannot be imported ({text[-120:]}): run `make env`, or "
                "`pip install --no-deps -r` the list for this Python and card "
                "(docs/versions.md)")
    complaint = unsupported(tensorflow.__version__)
    if complaint:
        _refuse(complaint)
    # Whatever ~/.keras/keras.json says
    tensorflow.keras.backend.set_image_data_format("channels_last")
    tensorflow.keras.backend.set_floatx("float32")
    return tensorflow


@contextlib.contextmanager
def _without_chatter():
    """Inside, filter CHATTER out of what C code writes to stderr.

    Another process filters, so that what TensorFlow prints before a crash is not lost.
    """
    grep = None
    with contextlib.suppress(OSError):  # no stderr, no grep
        stderr = os.dup(2)
        grep = subprocess.Popen(["grep", "--line-buffered", "-vE", CHATTER],
                                stdin=subprocess.PIPE, stdout=stderr,
                                start_new_session=True)  # no Ctrl-C for it
    if grep is None:
        yield
        return
    os.dup2(grep.stdin.fileno(), 2)
    grep.stdin.close()
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        with contextlib.suppress(subprocess.TimeoutExpired):
            grep.wait(5)


def unsupported(version):
    """Why a version of TensorFlow is unsupported, in one line; None if it is not."""
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) < OLDEST:
        return (f"TensorFlow {version} is too old: 1.9 or newer is required, "
                f"{BASELINE} is the tested baseline (pip install --no-deps -r "
                "requirements.txt)")
    if (major, minor) >= TOO_NEW:
        return (f"TensorFlow {version} is newer than this project supports (1.9 to "
                "2.x): make env, or pip install --no-deps -r one of the lists of "
                "docs/versions.md")
    return None


def _refuse(message):
    # The user can fix a missing TensorFlow; a traceback would not help.
    print(f"{os.path.basename(sys.argv[0])}: {message}", file=sys.stderr)
    sys.exit(2)


tf = _load()
v1 = getattr(tf.compat, "v1", tf)  # 1.9 and 1.10 have no tf.compat.v1
# Versions without tf.function refuse tf.Variable in eager execution, too.
Variable = tf.Variable if hasattr(tf, "function") else tf.contrib.eager.Variable
AdamOptimizer = v1.train.AdamOptimizer
RMSPropOptimizer = v1.train.RMSPropOptimizer
py_function = getattr(tf, "numpy_function", v1.py_func)
# Compiled, the gradients of Keras layers crash the process (benchmarks/published.py).
COMPILED_KERAS_CRASHES = tf.__version__.startswith("1.9.")
# Its optimizer moves operations out of a compiled loop, and then refuses the graph.
COMPILED_LOOPS_FAIL = tf.__version__.startswith("1.9.")
XLA = int(tf.__version__.split(".")[0]) >= 2  # whether `compiled` can use it
# 1.9 has these only under their older names.
log = getattr(tf.math, "log", None) or tf.log
unsorted_segment_sum = (getattr(tf.math, "unsorted_segment_sum", None)
                        or tf.unsorted_segment_sum)


@functools.lru_cache(maxsize=None)  # once a process
def start():
    """Enable eager execution, let GPU memory grow on demand, and print the device.

    Raises cli.UserError if TensorFlow 1 has already been used in graph mode.
    """
    keep_memory()
    # No warnings for each batch shape that a function is compiled for
    v1.logging.set_verbosity(v1.logging.ERROR)
    # Must come before anything else asks for the mode: that would fix the config.
    try:
        v1.enable_eager_execution(config=config())
    except ValueError:
        raise cli.UserError("TensorFlow was used before in this process, in its graph "
                            "mode; start Python anew, and with this first")
    if hasattr(tf, "function"):
        with _without_chatter():  # one message, at the first float16 function
            tf.function(lambda half: tf.cast(half, tf.float32))(tf.zeros(1, tf.float16))
    print(f"TensorFlow {tf.__version__} on {device_name()}", flush=True)


def set_seed(seed):
    """Make Keras's initial weights reproducible."""
    v1.set_random_seed(seed)
    if hasattr(tf.keras.utils, "set_random_seed"):  # Keras 3 has its own generator
        tf.keras.utils.set_random_seed(seed)


def keep_memory():
    """Make the C library keep freed memory for the next array, as jemalloc does.

    numpy allocates every batch of features there. Only Linux has these settings.
    """
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if hasattr(library, "mallopt"):
        trim_threshold, mmap_max, arena_max = -1, -4, -8  # of malloc.h
        library.mallopt(arena_max, 1)
        library.mallopt(mmap_max, 0)
        library.mallopt(trim_threshold, 2 ** 31 - 1)


def config():
    """A session config that allocates GPU memory as needed, not all of it at once.

    The first call that initializes the GPU fixes this for the process.
    """
    proto = v1.ConfigProto()
    proto.gpu_options.allow_growth = True
    return proto


def device_name():
    """'GPU (its name)' if TensorFlow sees one, else 'the CPU: no GPU is visible'."""
    from tensorflow.python.client import device_lib
    gpus = [device for device in device_lib.list_local_devices(session_config=config())
            if device.device_type == "GPU"]
    if gpus:
        return f"GPU ({gpus[0].physical_device_desc})"
    return "the CPU: no GPU is visible"


@contextlib.contextmanager
def device_errors(batch_size=None):
    """Turn device errors inside the block into cli.UserError or cli.DeviceLost.

    batch_size: the value of --batch-size, if the script has it, for the advice in the
    message. Other TensorFlow errors pass: they are bugs.
    """
    errors = tf.errors
    try:
        yield
    except (errors.ResourceExhaustedError, errors.InternalError, errors.UnknownError,
            errors.AbortedError, errors.UnavailableError) as error:
        text = cli.one_line(error.message)
        if (isinstance(error, errors.ResourceExhaustedError)
                or OUT_OF_MEMORY.search(text)):
            tried = f" with --batch-size {batch_size}" if batch_size else ""
            smaller = (f"set --batch-size {batch_size // 2} or less"
                       if batch_size and batch_size > 1
                       else "close other programs that use it")
            raise cli.UserError(f"out of memory{tried} ({text[:160]}); {smaller}")
        if not LOST.search(text):
            raise
        raise cli.DeviceLost(
            f"the GPU was lost ({text[:160]}); what is saved is sound: the same "
            "command continues from there, and does so by itself with -m "
            "runtime.restart 5 before the script's name")


def compiled(function, xla=False):
    """`function` as a TensorFlow graph function, traced once for each input shape.

    xla: whether XLA makes one program of it, with TensorFlow 2.

    Never compile batch normalization: TensorFlow 1.10 has been seen to overwrite its
    statistics with garbage there (inception.fold_batch_norm removes it).
    """
    if hasattr(tf, "function"):
        xla = XLA and (xla or _xla)
        return tf.function(function, autograph=False,
                           **({"jit_compile": True} if xla else {}))
    return tf.contrib.eager.defun(function)


_xla, _mixed = False, False
PRECISIONS = ("float32", "tf32", "mixed")


def use(precision="tf32", xla=False):
    """Set how functions compiled from now on compute. Needs TensorFlow 2.

    precision: of matrix products and convolutions on a GPU. 'float32'; 'tf32': float32
    with factors rounded to 10 bits, TensorFlow's default if the GPU supports it;
    'mixed': float16 where TensorFlow considers that safe (bfloat16 on a CPU). xla:
    whether XLA compiles each function and shape.
    """
    global _xla, _mixed
    _xla, _mixed = xla, precision == "mixed"
    tf.config.experimental.enable_tensor_float_32_execution(precision != "float32")
    tf.config.optimizer.set_experimental_options({
        "auto_mixed_precision": precision == "mixed",
        "auto_mixed_precision_onednn_bfloat16":
            precision == "mixed" and not tf.config.list_physical_devices("GPU")})


def xla_helps_training():
    """Whether XLA is worth its compilation in training: in float32 on a CPU.

    It does not know mixed precision, and on a GPU it takes a minute for each shape.
    """
    return XLA and not _mixed and not tf.config.list_physical_devices("GPU")


def add_precision_flag(parser):
    """Add --precision, for `use_precision`."""
    parser.always("--precision", choices=PRECISIONS,
                  otherwise="float32, on newer GPUs tf32",
                  help="of matrix products and convolutions, with TensorFlow 2; "
                       "mixed: float16 on a GPU, bfloat16 on a CPU that has it")


def use_precision(precision):
    """Apply the flag --precision; None: TensorFlow's default.

    Raises cli.UserError if TensorFlow is older than 2.
    """
    if precision is None:
        return
    if int(tf.__version__.split(".")[0]) < 2:
        raise cli.UserError(f"--precision {precision}: needs TensorFlow 2 (make "
                            f"env-2); this is {tf.__version__}")
    use(precision)


def peak_gpu_memory():
    """Peak GPU memory since the last call, in GB; None without a GPU or TensorFlow 2.
    """
    if not hasattr(tf, "function") or not tf.config.list_physical_devices("GPU"):
        return None
    peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    tf.config.experimental.reset_memory_stats("GPU:0")
    return peak / 1e9


def take_no_mask(layer):
    """Drop `mask` from a layer's configuration, as a Keras model gives it: Keras 3
    passes it to batch norm, but Activation rejects it.
    """
    for node in layer["inbound_nodes"]:
        if isinstance(node, dict):  # Keras 3; before, a list with the same meaning
            node["kwargs"].pop("mask", None)


def variable_of(weight):
    """A layer's weight as a TensorFlow variable, which Keras 3 wraps in its own."""
    return weight.value if isinstance(weight.value, tf.Variable) else weight


def load_weights(model, path):
    """Load an .h5 file in the format of Keras 2 or 3 into the model. Raises OSError,
    ValueError or KeyError if it holds no such weights.

    Keras 3 judges the format by the file's extension alone, so it gets the file under a
    name that fits.
    """
    import h5py
    with h5py.File(path, "r") as file:
        old = "layer_names" in file.attrs or "model_weights" in file
    with tempfile.TemporaryDirectory() as folder:
        name = os.path.join(folder, "old.h5" if old else "new.weights.h5")
        os.symlink(os.path.abspath(path), name)
        model.load_weights(name)


def event_writer(folder):
    """A function `write(step, **scalars)` that adds TensorBoard events to `folder`."""
    with tf.Graph().as_default():  # 1.x refuses to make a FileWriter in eager mode
        writer = v1.summary.FileWriter(folder)

    def write(step, **scalars):
        writer.add_summary(v1.Summary(value=[
            v1.Summary.Value(tag=tag, simple_value=value)
            for tag, value in sorted(scalars.items())]), step)
        writer.flush()
    return write
