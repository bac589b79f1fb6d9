"""The benchmarks of `lsam bench`."""
