"""What happens if TensorFlow is missing, too old, too new, or lacks its CUDA."""
import os
import subprocess
import sys

import numpy as np
import pytest

from commands import ROOT, environment
from runtime import tf as tf_runtime


@pytest.mark.parametrize("version", ["1.9.0", "1.10.0", "1.10.1", "1.15.5",
                                     "2.0.0", "2.21.0", "2.100.0-rc1"])
def test_supported_versions_are_taken(version):
    assert tf_runtime.unsupported(version) is None


@pytest.mark.parametrize("version, words", [
    ("1.8.0", "too old"), ("0.12.1", "too old"), ("3.0.0", "newer than"),
    ("10.1.0", "newer than")])
def test_other_versions_are_refused_in_one_line_that_says_what_to_install(version,
                                                                          words):
    line = tf_runtime.unsupported(version)
    assert version in line and words in line and "pip install" in line
    assert "\n" not in line


@pytest.mark.parametrize("module, words", [
    (None, "TensorFlow cannot be imported"),
    ("__version__ = '1.4.0'", "TensorFlow 1.4.0 is too old"),
    ("__version__ = '3.0.0'", "TensorFlow 3.0.0 is newer"),
    ("raise ImportError('libcublas.so.9.0: cannot open shared object file')",
     "needs CUDA 9.0 and cuDNN 7"),
    ("raise ImportError('libcudnn.so.7: cannot open\\nshared object file')",
     "needs CUDA 9.0 and cuDNN 7")])
@pytest.mark.parametrize("script", ["train.py", "extract_features.py", "evaluate.py"])
def test_scripts_say_what_is_wrong_with_tensorflow_in_one_line(module, words, script,
                                                               tmp_path):
    content = "raise ImportError('No module named tensorflow')" if module is None else (
        module)
    (tmp_path / "tensorflow.py").write_text(content)
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, script), "--help"], cwd=str(tmp_path),
        env=dict(os.environ, PYTHONPATH=str(tmp_path)), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and words in done.stderr
    assert done.stderr.startswith(script + ": ") and "Traceback" not in done.stderr


def stderr_of_import(tmp_path, module):
    """Run a step with this module as TensorFlow: (status, stderr)."""
    (tmp_path / "tensorflow.py").write_text(module)
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, "train.py"), "--help"], cwd=str(tmp_path),
        env=dict(os.environ, PYTHONPATH=str(tmp_path)), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, universal_newlines=True, timeout=60)
    return done.returncode, done.stderr.splitlines()


CHATTER = ("WARNING: All log messages before absl::InitializeLog() is called are "
           "written to STDERR\nI0000 00:00:17 7 port.cc:153] oneDNN custom operations "
           "are on. You may see slightly different numerical results\n")


def test_chatter_of_the_import_is_left_out_and_all_else_is_seen(tmp_path):
    status, lines = stderr_of_import(
        tmp_path, f"import os\nos.write(2, {CHATTER.encode()!r} + b'E0000 no AVX\\n')\n"
        "__version__ = '1.4.0'")
    assert status == 2 and lines[0] == "E0000 no AVX" and len(lines) == 2
    assert "TensorFlow 1.4.0 is too old" in lines[1]


def test_what_tensorflow_says_before_it_crashes_is_seen(tmp_path):
    status, lines = stderr_of_import(
        tmp_path, f"import os\nos.write(2, {CHATTER.encode()!r} + b'F0000 no AVX\\n')\n"
        "os.abort()")
    assert status < 0 and lines == ["F0000 no AVX"]


@pytest.mark.skipif(not hasattr(tf_runtime.tf, "function"), reason="1.x is silent")
def test_real_tensorflow_computes_without_a_word(tmp_path):
    body = ("from runtime.tf import compiled, start, tf; start(); compiled(lambda x: "
            "tf.matmul(tf.cast(x, tf.float32), tf.ones((3, 2))))(tf.zeros((1, 3), "
            "tf.float16))")
    done = subprocess.run([sys.executable, "-c", body], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, env=environment())
    assert (done.returncode, done.stderr) == (0, b"")


def test_import_goes_on_where_nobody_can_filter(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PATH", str(tmp_path))
    with tf_runtime._without_chatter():
        os.write(2, CHATTER.encode())
    assert capfd.readouterr().err == CHATTER


def test_device_is_named():
    assert tf_runtime.device_name().split(" ")[0] in ("GPU", "the")


def test_compiled_function_gives_what_the_plain_one_gives():
    tf = tf_runtime.tf

    def double(x):
        return [2 * x, tf.reduce_sum(x)]
    x = tf.constant([1., 2., 4.])
    twice, total = tf_runtime.compiled(double)(x)
    assert twice.numpy().tolist() == [2, 4, 8] and float(total.numpy()) == 7


def test_memory_of_a_tensor_is_used_again_and_not_asked_of_the_system_anew():
    """On Linux: not a page fault for each page of each large tensor."""
    resource = pytest.importorskip("resource")
    tf = tf_runtime.tf
    if not sys.platform.startswith("linux"):
        pytest.skip("other systems keep other accounts")
    x = tf.ones((1 << 21,))  # 8 MB, 2,048 pages
    for _ in range(100):  # until there is enough to reuse
        tf.square(x)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        tf.square(x)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < 20 * 2048 / 4


@pytest.mark.parametrize("save", ["save", "save_weights"])
@pytest.mark.parametrize("name", ["w.h5", "w.weights.h5", "weights", "w.keras"])
def test_weights_are_read_whatever_the_name_of_their_file(save, name, tmp_path):
    layers = tf_runtime.tf.keras.layers

    def model():
        return tf_runtime.tf.keras.Sequential([
            layers.Dense(5, input_shape=(3,)), layers.Dense(2)])
    first, second = model(), model()
    weights = [np.arange(array.size, dtype=np.float32).reshape(array.shape)
               for array in first.get_weights()]
    first.set_weights(weights)
    # save() writes the format of Keras 2, save_weights() that of the installed Keras
    path = str(tmp_path / ("a.h5" if save == "save" else "a.weights.h5"))
    getattr(first, save)(path, **{"include_optimizer": False} if save == "save" else {})
    os.rename(path, str(tmp_path / name))
    tf_runtime.load_weights(second, str(tmp_path / name))
    for read, written in zip(second.get_weights(), weights):
        np.testing.assert_array_equal(read, written)
