"""What outside suites ask of every optimizer: each of their families is a test here, or has a reason why it is not."""

from __future__ import annotations

from pathlib import Path

import pytest


def same_name(families: str) -> dict[str, str]:
    return dict.fromkeys(families.split(), "")


# Files → family, without its `test_` → empty, for a test of that name; the name of another test; or why there is none.
SUITES: dict[str, dict[str, str]] = {
    # TestOptimRenewed in torch's test/test_optim.py
    "test_torch_optimizer_suite.py test_torch_optimizer_state.py": {
        **same_name("""
            optim_infos_do_not_specify_global_cliquey_kwargs errors forloop_goes_right_direction
            param_group_with_lrscheduler_goes_right_direction tensor_lr complex foreach_matches_forloop
            set_default_dtype_works_with_foreach fused_matches_forloop fused_error_on_params_on_meta
            fused_does_not_step_if_foundinf param_groups_weight_decay param_groups_lr
            step_is_noop_when_params_have_no_grad step_is_noop_for_zero_grads optimizer_can_be_printed
            state_dict_deterministic can_load_older_state_dict can_load_from_to_named_state_dict
            save_load_equality_with_weights_only state_dict_with_cuda_params state_dict_pre_post_hook
            load_state_dict_pre_post_hook step_all_hooks deepcopy_copies_all_public_attrs defaults_changed_to_foreach
            non_empty_state
        """),
        "state_dict_pre_hook": "test_state_dict_pre_post_hook",
        "state_dict_post_hook": "test_state_dict_pre_post_hook",
        "load_state_dict_pre_hook_and_prepend": "test_load_state_dict_pre_post_hook",
        "load_state_dict_post_hook": "test_load_state_dict_pre_post_hook",
        "step_pre_hook": "test_step_all_hooks",
        "step_post_hook": "test_step_all_hooks",
        "forloop_goes_right_direction_multigpu": "needs two GPUs; plans for several devices: test_cuda_devices.py",
        "mixed_device_dtype": "needs two GPUs; several dtypes on one device: test_parity.py",
        "rosenbrock_sparse": "sparse gradients are refused: test_errors.py; a dense Rosenbrock is among timm's",
        "complex_2d": "complex parameters are refused: `complex`",
        "foreach_large_tensor": "needs 72 GB on a GPU",
        "fused_large_tensor": "needs 64 GB",
        "peak_memory_foreach": "reads the statistics of CUDA's allocator; what a step holds on to: test_memory.py",
        "cpu_load_state_dict": "is about a step counter that `fused` wants on the device, and there is none",
        "load_nontensor_step": "is about a step counter",
        "second_order_optims_return_consistent_types": "is for optimizers that need a closure",
        "fused_cpu_matches_cuda": "each is held against the reference: test_parity.py",
    },
    # What tests/test_optim.py of timm runs for its whole registry
    "test_timm_suite.py": {
        **same_name("""
            optim_factory optim_factory_common_kwargs optimizer_no_grad_step optimizer_copy
            optimizer_param_group_independent optimizer_zero_lr optimizer_tensor_lr optimizer_resume
            optimizer_low_precision optimizer_grad_unchanged
        """),
        "optimizer_convergence": "test_optimizer_convergence_of_a_model",
        "optimizer_foreach_parity": "is for timm's own multi-tensor code; ours: test_parity.py",
        "optimizer_foreach_chunked": "is for timm's own multi-tensor code",
    },
    # What the tests of pytorch_optimizer run for all that it lists
    "test_pytorch_optimizer_suite.py": {
        **same_name("""
            training tensor_lr checkpoint_resume closure missing_and_frozen_gradients sparse_not_supported
            complex_not_supported maximize create_optimizer_basic
        """),
        "learning_rate": "test_learning_rate_and_epsilon_and_weight_decay",
        "epsilon": "test_learning_rate_and_epsilon_and_weight_decay",
        "weight_decay": "test_learning_rate_and_epsilon_and_weight_decay",
        "init_group": "is for a method of its own base class",
    },
}


@pytest.mark.parametrize("files", SUITES)
def test_every_family_is_a_test_or_has_a_reason(files: str) -> None:
    source = "".join(Path(__file__).with_name(file).read_text() for file in files.split())
    for family, where in SUITES[files].items():
        name = where if where.startswith("test_") else f"test_{family}"
        assert (f"def {name}(" in source) == (where in ("", name)), family
