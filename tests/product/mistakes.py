"""Mistakes in the Python sources, and the tests that notice them.

As a plugin (`pytest -p tests.product.mistakes`) it puts a module with a mistake in it in the place of one of the
package's: SASGD_MISTAKEN_MODULE names the module and the file, separated by "=".
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NamedTuple

VARIABLE = "SASGD_MISTAKEN_MODULE"


class Mistake(NamedTuple):
    """A mistake, and who notices.

    Attributes:
        module: below sasgd_fused.
        right: what stands there, once.
        wrong: what takes its place.
        test: the file that notices, from this folder, and if need be an expression for `pytest -k`.
    """

    module: str
    right: str
    wrong: str
    test: str


MISTAKES = {
    "multiplies by the backward factor": Mistake(
        "factors", "max(row_norm_sq, eps) / backward_factor", "max(row_norm_sq, eps) * backward_factor",
        "test_algorithm.py foreach",
    ),
    "has no floor under the norm": Mistake(
        "factors", "return max(row_norm_sq, eps) /", "return row_norm_sq /", "test_algorithm.py foreach"
    ),
    "scales the decay by the shape alone": Mistake(
        "factors", 'if decay == "amended" else', 'if decay != "amended" else', "test_algorithm.py foreach"
    ),
    "multiplies factors in the order of the layers": Mistake(
        "factors", "for layer in reversed(layers):", "for layer in layers:", "test_algorithm.py"
    ),
    "forgets the output width": Mistake(
        "factors", "m = output_width / layers[-1].rows", "m = 1.0", "test_algorithm.py foreach"
    ),
    "gives the kernel no factors": Mistake(
        "backends.kernel",
        "                planned.backward_factor,",
        "                0.0,",
        "test_algorithm.py native",
    ),
    "takes rows for columns": Mistake(
        "layers", "_entry(all_columns, position)", "_entry(all_rows, position)", "test_layers.py"
    ),
    "puts later groups behind": Mistake(
        "layers",
        "[*sorted(added, reverse=True), *(index for index in range(len(groups)) if index not in added)]",
        "[*range(len(groups))]",
        "test_algorithm.py foreach",
    ),
    "scales a plain head": Mistake(
        "plan",
        'layer.amend and not (options.head == "plain" and id(_param_of(groups, layer)) in heads_of_all)',
        "layer.amend",
        "test_algorithm.py foreach",
    ),
    "takes a gradient of any shape": Mistake(
        "plan", "if grad.shape != param.shape:", "if grad.numel() != param.numel():", "test_errors.py foreach"
    ),
    "does not see that a group has changed": Mistake(
        "stepper", "if options != (group", "if False and options != (group", "test_layers.py"
    ),
    "reads one group's momentum for all": Mistake(
        "hyperparameters", 'ldexp(group["momentum"], 0), ldexp', "0.9, ldexp", "test_sgd_equivalence.py foreach"
    ),
    "steps in spite of an overflow": Mistake(
        "hyperparameters", "self.found_inf is not None and bool", "self.found_inf is None and bool",
        "test_grad_scaler.py foreach",
    ),
    "unscales twice": Mistake(
        "hyperparameters", "else float(self.grad_scale)", "else float(self.grad_scale) ** 2",
        "test_grad_scaler.py foreach",
    ),
    "dampens the first gradient": Mistake(
        "backends.foreach", "dampening if has else 1.0 for", "dampening for", "test_sgd_equivalence.py foreach"
    ),
    "looks ahead without nesterov": Mistake(
        "backends.foreach", "if groups[k].nesterov else buffer", "", "test_sgd_equivalence.py foreach"
    ),
    "draws the same for weights and momentum": Mistake(
        "backends.rounding", "rounding_step) >> 16 if", "rounding_step) & _HALF if", "test_storage.py native"
    ),
    "never rounds up": Mistake(
        "backends.rounding", "upper = (bits + random) >> 16", "upper = bits >> 16", "test_rounding.py foreach"
    ),
    "keeps a norm of a step without learning rate": Mistake(
        "backends.norms", "norm if is_update else math.nan", "norm", "test_norms.py foreach"
    ),
    "overlooks what others wrote": Mistake(
        "backends.watch", "sum(map(_version_of, params)) != self._version_sum", "False", "test_norms.py native"
    ),
    "counts a step of its own as somebody's": Mistake(
        "backends.watch", "self._version_sum += len(active)", "pass",
        "../kernels/test_cuda_backend.py one_launch_and",
    ),
    "takes gaps for memory of its own": Mistake(
        "backends.addresses", "if not is_dense(p)}", "if False}", "test_parity.py native"
    ),
    "divides by the elements of a row twice": Mistake(
        "factors",
        "elements / layer.rows * depth / layer.rows",
        "elements / layer.rows * depth",
        "test_relative.py foreach",
    ),
    "forgets the depth": Mistake(
        "factors", "return depth / (VECTOR_SHARE**2", "return 1 / (VECTOR_SHARE**2", "test_relative.py foreach"
    ),
    "carries a gradient that is not finite": Mistake(
        "factors", "if measured == 0 or not math.isfinite(measured):", "if measured == 0:", "test_relative.py foreach"
    ),
    "takes the new norm before the step": Mistake(
        "backends.gradient_norms", "return self.of(planned) or (measured", "return (measured",
        "test_relative.py computed_by_hand and foreach",
    ),
    "counts a vector's decay in its norm": Mistake(
        "backends.base", 'options.decay == "amended" and not planned.is_vector', 'options.decay == "amended"',
        "test_relative.py reference or foreach",
    ),
    "does not divide by the loss scale": Mistake(
        "backends.base", "if group.maximize else 1.0) / loss_scale)\n            if group.weight_decay",
        "if group.maximize else 1.0))\n            if group.weight_decay",
        "test_grad_scaler.py foreach",
    ),
    "counts a plain head": Mistake(
        "plan", "max(sum(scaled.values()), 1)", "max(len(scaled), 1)", "test_relative.py plain_head and foreach"
    ),
    "does not follow an emptied state": Mistake(
        "backends.fused", "            self.gradient_norms.follow_state()\n", "", "test_relative.py empties and native"
    ),
    "keeps no trace of the gradient norms in the state": Mistake(
        "backends.fused",
        "        self.gradient_norms.learn(self._may_be_replayed)\n",
        "",
        "test_resume.py native and relative",
    ),
    "reads every layout as if it were the weights'": Mistake(
        "backends.addresses", "or not has_layout_of(grad, param)", "", "test_parity.py native"
    ),
    "takes a buffer of any layout": Mistake(
        "backends.momentum", "and has_layout_of(buffer, param)", "", "test_storage_layouts.py native"
    ),
    "lets the master win over what others wrote": Mistake(
        "backends.masters", "torch.where(param == master.to(param.dtype), master, param)", "master",
        "test_master_weights.py native",
    ),
    "sends a device flag that nobody set": Mistake(
        "backends.device_state", "added[index] = bit", "added[index] = 0", "test_resume.py triton"
    ),
    "has a device forget a skipped first step": Mistake(
        "backends.momentum", "if not self._flags.known[index] & STARTED and", "if False and",
        "test_grad_scaler.py triton",
    ),
    "drops a loaded buffer's precision": Mistake(
        "checkpoint", "if kept.dtype != dtypes[key]:", "if False:", "test_storage.py native"
    ),
    "deals a checkpoint out in the groups' order": Mistake(
        "checkpoint",
        '[key_of[place] for place in group["model_order"]]',
        '[keys.pop(0) for _ in group["model_order"]]',
        "test_checkpoints_of_models.py",
    ),
    "leaves a pruned weight plain": Mistake(
        "matrices", 're.sub(r"(_orig)+$", "", name)', "name", "test_weights_by_other_names.py"
    ),
    "warns of every loose matrix": Mistake("groups", "_LARGE * total", "0 * total", "test_plain_matrices.py"),
    "takes a layer for an output": Mistake("heads", "if not any(_takes(", "if all(_takes(", "test_heads.py"),
    "keeps a released gradient": Mistake(
        "release", "        if is_taken:\n            param.grad = None\n", "", "test_release.py native"
    ),
    "updates by parts of a gradient": Mistake(
        "release", "if _is_within_a_node():", "if False:", "test_release_manners.py"
    ),
    "keeps a norm that is not finite": Mistake(
        "backends.norms", "return norm if norm is not None and math.isfinite(norm) else None", "return norm",
        "test_recovery.py foreach",
    ),
    "has two over the same memory in one plan": Mistake(
        "plan", "kind = ranks.get(k, 0), param", "kind = 0, param", "test_shared_memory.py foreach"
    ),
    "goes by the order of the state alone": Mistake(
        "backends.watch", "list(self._state) == self._owners", "True", "test_edited_state.py native"
    ),
    "notes nothing after an interrupt": Mistake(
        "backends.fused",
        "        finally:\n",
        "        except ZeroDivisionError:\n            pass\n        else:\n",
        "test_interrupts.py native",
    ),
    "takes buffers of one element for the same": Mistake(
        "backends.watch", "addresses and not _all_equal(self._address_of, found, addresses)", "False",
        "test_edited_state.py native",
    ),
    "does not see momentum move": Mistake(
        "backends.watch", "addresses and not _all_equal(self._address_of, found, addresses)", "False",
        "test_training_scripts.py native",
    ),
    "overlooks what was written between two released gradients": Mistake(
        "backends.watch", "versions and param._version == versions[index] + self._steps", "True",
        "test_release.py native",
    ),
    "takes gradients in the same places for the same": Mistake(
        "backends.watch", "if not _all_equal(Tensor.numel, grads, self._facts[0]) or not (", "if not (",
        "test_surprises.py native",
    ),
    "settles before the device has told": Mistake(
        "backends.updates", "flags.settled = active if is_final else None", "flags.settled = active",
        "test_norms.py native",
    ),
    "checks what no step touches": Mistake(
        "plan", "for index in active:", "for index in range(len(self.params)):", "test_idle_parameters.py foreach"
    ),
    "leaves names where they stood": Mistake(
        "group_lists", "self._of_param[key].get(param, ", "{}.get(param, ", "test_edited_groups.py"
    ),
    "reports the decay of the group alone": Mistake(
        "report", "decay_per_step=group.lr * decay", "decay_per_step=group.lr * group.weight_decay",
        "test_report.py foreach",
    ),
    "centres without the correction of the bias": Mistake(
        "precondition", "of_bias * (shrink / alpha) - rows @ mean.unsqueeze(2) * shrink", "of_bias * (shrink / alpha)",
        "test_precondition.py",
    ),
    "damps the covariance alone": Mistake(
        "precondition", "alpha=epsilon / (1 + epsilon)", "alpha=0.0", "test_precondition.py"
    ),
    "forgets what the loss was multiplied by": Mistake(
        "precondition", " / loss_scale**2", "", "test_precondition.py"
    ),
    "takes a covariance that is not finite": Mistake(
        "precondition", " and covariance.isfinite().all())", ")", "test_precondition_manners.py grad_scaler"
    ),
    "counts a forward in evaluation mode": Mistake(
        "precondition", " and module.training", "", "test_precondition_manners.py backward"
    ),
    "adds up covariances as if the means were the same": Mistake(
        "input_moments", " + outer(shift) * (self.count * other.count / count)", "",
        "test_precondition_manners.py backward",
    ),
    "pads an even kernel on the wrong side": Mistake(
        "input_moments", "(span // 2, span - span // 2)", "(span - span // 2, span // 2)",
        "test_precondition.py convolution",
    ),
    "rounds to nearest in Triton": Mistake(
        "backends.triton.update_rule", "(bits + (random & 0xFFFF)) >> 16", "(bits + 0x8000) >> 16",
        "test_storage.py triton",
    ),
    "moves along the momentum alone in Triton": Mistake(
        "backends.triton.update_rule", "tl.where(nesterov, g + momentum * momentum_buffer, momentum_buffer)",
        "momentum_buffer", "test_parity.py triton",
    ),
    "loses the tail of a chunk in Triton": Mistake(
        "backends.triton.chunk", "& (places < count)", "& (places < count - 1)", "test_parity.py triton"
    ),
    "adds up one lane twice in Triton": Mistake(
        "backends.triton.sums", "return sums + s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7",
        "return sums + s0 + s1 + s2 + s3 + s4 + s5 + s6 + s6", "test_norms.py triton"
    ),
}  # fmt: skip


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, module: str, file: str) -> None:
        self._module, self._file = module, file

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self._file) if name == self._module else None


if VARIABLE in os.environ:
    sys.meta_path.insert(0, _Finder(*os.environ[VARIABLE].split("=", 1)))
