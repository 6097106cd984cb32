"""The data set that the project draws itself, and its score."""
