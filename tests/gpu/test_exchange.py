"""Exchanges of a chain on a GPU: pinned buffers, a separate stream, the same numbers as on the CPU."""

import pytest
import torch

from lsam_hpc.distributed.exchange import ThreadExecutor
from lsam_hpc.optim import LocalLSAM
from lsam_hpc.optim.center import LocalCenter
from lsam_hpc.optim.staging import Staging
from tests.helpers.problems import batches, closure_of, flat, network

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_staging_copies_to_pinned_memory_and_back():
    tensors = [torch.randn(1000, 1000, device="cuda"), torch.randn(7, device="cuda")]
    staging = Staging(tensors)
    assert staging.host.is_pinned()
    for _ in range(20):
        for t in tensors:
            t.normal_()
        expected = torch.cat([t.reshape(-1) for t in tensors]).cpu()
        staging.take(tensors)
        staging.land()
        assert torch.equal(staging.host, expected)
        staging.host.mul_(2)
        staging.send()
        for t, view in zip(tensors, staging.views(), strict=True):
            torch.testing.assert_close(view, 2 * t, rtol=0, atol=0)


def test_the_compute_stream_does_not_wait_for_the_copies():
    tensors = [torch.randn(50_000_000, device="cuda")]
    staging = Staging(tensors)
    staging.take(tensors)
    staging.land()
    torch.cuda.synchronize()
    # The copy to the host waits for a kernel on the compute stream; the call itself returns at once.
    torch.cuda._sleep(2_000_000_000)
    staging.take(tensors)
    assert not staging._copied.query()
    staging.land()


@pytest.mark.parametrize("coupling", ["elastic", "kernel", "restart"])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_chain_gets_the_same_numbers_as_on_the_cpu(coupling, overlap):
    results = []
    for device in ("cpu", "cuda"):
        model = network().to(device)
        center = LocalCenter(flat(model).cpu())
        executor = ThreadExecutor(lambda waited: False) if overlap else None
        opt = LocalLSAM(
            torch.optim.SGD(model.parameters(), lr=0.1),
            center,
            rho=0.05,
            coupling=coupling,
            pull=0.3,
            period=2,
            executor=executor,
            fixed_delay=overlap,
        )
        for x, y in batches(40):
            opt.step(closure_of(model, opt, x.to(device), y.to(device)))
        opt.drain()
        results.append((flat(model).cpu(), center.vector.clone()))
    for cpu, gpu in zip(*results, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=0, atol=1e-9)
