"""The step in Triton. Only `backend` can be imported where Triton is not installed."""
