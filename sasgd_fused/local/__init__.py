"""The local Hessian and back-matching: tools that look at a network, no part of the optimizer. Only torch is needed.

The paper is Huishuai Zhang, Wei Chen and Tie-Yan Liu, "On the Local Hessian in Back-propagation", NeurIPS 2018. Numbers
in brackets in the docstrings here, such as (5), are its equations.

They are imported by name, `from sasgd_fused.local import condition_report`; `import sasgd_fused` does not load them.
"""

from sasgd_fused.local.capture import Captured, capture
from sasgd_fused.local.condition import ConditionReport, ConditionRow, condition_report
from sasgd_fused.local.density import Density, spectral_density
from sasgd_fused.local.graph import graph_factors
from sasgd_fused.local.hessian import LocalHessian, local_hessian
from sasgd_fused.local.jacobian import Jacobian
from sasgd_fused.local.marchenko_pastur import MarchenkoPastur
from sasgd_fused.local.matching import BackMatching, BlockLoss, back_matching, chain, exact, gradient_steps, one_step
from sasgd_fused.local.measured import measured_factors, output_shares
from sasgd_fused.local.shares import OutputShares, ShareRow
from sasgd_fused.local.still import still

__all__ = [
    "BackMatching",
    "BlockLoss",
    "Captured",
    "ConditionReport",
    "ConditionRow",
    "Density",
    "Jacobian",
    "LocalHessian",
    "MarchenkoPastur",
    "OutputShares",
    "ShareRow",
    "back_matching",
    "capture",
    "chain",
    "condition_report",
    "exact",
    "gradient_steps",
    "graph_factors",
    "local_hessian",
    "measured_factors",
    "one_step",
    "output_shares",
    "spectral_density",
    "still",
]
