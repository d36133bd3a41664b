"""The step in Triton. Only `availability` and `variant` can be imported where Triton is not installed."""
