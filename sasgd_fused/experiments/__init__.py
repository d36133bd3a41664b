"""Training runs that compare scale-amended SGD with SGD: `python -m sasgd_fused.experiments compare`."""
