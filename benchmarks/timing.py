"""Time, memory and ratios for the benchmarks."""
import time

import numpy as np

from runtime.tf import tf, v1

ROUNDS = 5


def peak_memory():
    """This process's peak memory, in GB.

    Not getrusage's, which includes what the parent used when it started this process.
    """
    with open("/proc/self/status") as file:
        kilobytes = [line.split()[1] for line in file if line.startswith("VmHWM")]
    return int(kilobytes[0]) * 1024 / 1e9


def seconds(function):
    begin = time.time()
    function()
    return time.time() - begin


def matrix_product(side=2048):
    """FLOP/s of a float32 product of two square matrices."""
    x = v1.random_normal((side, side))
    x.numpy()
    return 2 * side ** 3 / seconds(lambda: tf.matmul(x, x).numpy())


def alternate(*functions, rounds=ROUNDS):
    """Call the functions in turn, one round more than `rounds`, the first to warm up.

    Returns the results of the other rounds, a tuple per function.
    """
    results = [[function() for function in functions] for _ in range(rounds + 1)][1:]
    return list(zip(*results))


def ratio(above, below):
    """Median and range over the rounds of above / below."""
    values = np.array(above) / np.array(below)
    return float(np.median(values)), float(values.min()), float(values.max())
