"""What `make gpu-check` does: build, tests, compute-sanitizer and benchmark on this machine's GPU.

`python -m bench.gpu` runs the parts within a time limit and writes one JSON file and one Markdown
table. Everything that could bring down a process with a broken kernel runs in one of its own.
"""
