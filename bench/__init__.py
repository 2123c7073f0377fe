"""Benchmarks: one file per question, every goal a ratio measured inside one run. See bench/README.md."""
