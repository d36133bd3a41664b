"""What a step costs on the host is measured with its launch and without what that runs."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from tests.kernels.host_time import main, our_step, parameters


def test_a_launch_is_kept_and_not_run(emulation: ModuleType) -> None:
    params = parameters("VGG13-CIFAR")
    step = our_step(params)
    before = [param.detach().clone() for param in params]
    done = len(emulation.stream_operations())
    emulation.begin_capture(0)
    step()
    emulation.end_capture(0)
    assert [operation[0] for operation in emulation.stream_operations()[done:]] == ["cudaLaunchKernelEx"]
    assert all(map(torch.equal, params, before))
    emulation.replay(0)
    assert not all(map(torch.equal, params, before))  # the rate is too small for some


def test_ours_stands_beside_torchs(emulation: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        main(["--network", "VGG13-CIFAR", "--rounds", "3"])
    finally:
        torch.set_num_threads(threads)
    head, _, ours, torchs = capsys.readouterr().out.splitlines()
    assert head.startswith("| VGG13-CIFAR, 11 tensors | host |")
    for name, line in (("ours", ours), ("torch fused", torchs)):
        _, found, time, ratio, _ = line.split("|")
        assert found.strip() == name
        assert 0 < int(time.split()[0]) < 1e6
        assert 0 < float(ratio.split()[0]) < 1e3
