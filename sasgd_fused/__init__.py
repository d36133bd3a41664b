"""Scale-amended SGD for PyTorch in one fused step. See `ScaleAmendedSGD`."""

from sasgd_fused.groups import parameter_groups
from sasgd_fused.optimizer import ScaleAmendedSGD
from sasgd_fused.report import LayerReport, LayerRow
from sasgd_fused.zero import zero_redundancy_arguments

__all__ = ["LayerReport", "LayerRow", "ScaleAmendedSGD", "parameter_groups", "zero_redundancy_arguments"]
__version__ = "1.0.0"
