"""Benchmarks of one optimizer step on the layer profiles of real networks.

`pytest bench/bench_step.py` times every contender alone; `python -m bench.table` lets them take turns and prints
ratios, and with `--check` compares those with an earlier run's. No test asserts a speed.
"""
