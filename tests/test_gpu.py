"""The GPU benchmark, small, on the CPU: every figure is there, and is a number."""
import json
import sys

import numpy as np

from benchmarks import gpu
from captioning.features import SHAPE
from runtime.tf import compiled, tf, use

TF2 = hasattr(tf, "function")


def test_all_is_measured_written_and_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "start", lambda: None)  # the tests have started already
    monkeypatch.setattr(gpu, "inception_network", lambda how: (
        lambda pixels: tf.zeros((int(pixels.shape[0]),) + SHAPE)))
    monkeypatch.setattr(gpu, "WAYS", (("eager", "float32"), ("compiled", "mixed"),
                                      ("XLA", "tf32")))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    gpu.main()
    out, err = capsys.readouterr()
    assert "the figures mean nothing" in err
    with open(str(tmp_path / "gpu.json")) as file:
        found = json.load(file)
    ways = [(row["what"], row["how"], row["precision"]) for row in found["rows"]]
    expected = gpu.WAYS if TF2 else gpu.WAYS[:1]
    assert ways == [(what, *way) for way in expected for what in gpu.WORK]
    for value in [row["rate"] for row in found["rows"]] + list(
            found["feeding"].values()):
        assert np.isfinite(value) and value >= 0
    assert all(row["rate"] > 0 for row in found["rows"])
    assert "training, batch 4, eager, float32: " in out
    assert (tmp_path / "gpu.png").stat().st_size > 10000


def test_every_way_computes_the_same():
    x = tf.constant(np.random.RandomState(0).normal(size=(8, 8)).astype(np.float32))

    def work(x):
        return tf.nn.softmax(tf.matmul(x, x))
    expected = work(x).numpy()
    for precision, xla in (("float32", False), ("tf32", True), ("mixed", False)):
        if not TF2:
            break
        use(precision, xla)
        try:
            function = compiled(work)
            tolerance = .05 if precision == "mixed" else 1e-5
            np.testing.assert_allclose(function(x).numpy(), expected, atol=tolerance)
            if xla:
                assert "HloModule" in function.experimental_get_compiler_ir(x)()
        finally:
            use()
