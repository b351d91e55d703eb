"""What is measured: one instrument a file, and the one-pass `measure`."""
