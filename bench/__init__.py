"""Benchmarks of one optimizer step on the layer profiles of real networks.

`pytest bench/bench_step.py` times every contender alone; `python -m bench.table` lets two take
turns and prints their ratio. Neither asserts a speed.
"""
