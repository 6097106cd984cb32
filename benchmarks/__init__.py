"""Measurements: how fast it is, beside the published design and across versions."""
