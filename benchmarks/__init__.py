"""Speed, compared with the published design, with PyTorch and across versions."""
