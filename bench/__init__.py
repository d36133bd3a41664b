"""Benchmarks of one optimizer step on the layer profiles of real networks.

`python -m bench` lets contenders take turns and prints ratios, on a CPU or a GPU, and with `--check` compares those
with an earlier run's. `pytest bench/bench_step.py` times every contender alone. No test asserts a speed.
"""
