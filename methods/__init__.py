"""Methods beyond the spine, a paper a file; the steps import them, captioning never."""
