"""The machine that the scripts run on: command line, files, TensorFlow, processes.

Nothing here knows of captions.
"""
