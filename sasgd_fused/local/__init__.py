"""The local Hessian and back-matching: tools that look at a network, not part of the optimizer. Only torch is needed.

They are imported by name, `from sasgd_fused.local import condition_report`; `import sasgd_fused` does not load them.
"""

from sasgd_fused.local.still import still

__all__ = ["still"]
