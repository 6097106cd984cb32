"""Eager execution for all tests, and the scripts as modules."""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def pytest_configure(config):
    import tf_runtime
    tf_runtime.start()
