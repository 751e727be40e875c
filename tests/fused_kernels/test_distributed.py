"""Two processes: SyncBatchNorm statistics and DistributedDataParallel, against torch's own on the same batches."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fused_kernels import modules
from fused_kernels.blocks.batch_norm import Affine, Norm, normalize
from fused_kernels.choice import choosing
from fused_kernels.launch import implementation
from fused_kernels.modules import FusedBottleneck, FusedResNet
from fused_kernels.operands.geometry import Conv
from fused_kernels.ops import convolution
from fused_kernels.specification import Layer
from fused_kernels.tiles import Tile
from tests.fused_kernels import ground_truth
from tests.fused_kernels.conftest import activation, fitting, reseed, tiles
from tests.fused_kernels.tolerances import assert_close, assert_variance

PROCESSES = 2
BATCHES = (3, 2)
"""Images of each process; unequal, so that a mean of means would be wrong."""


def network() -> FusedResNet:
    torch.manual_seed(0)
    return FusedResNet(modules.FusedBasicBlock, (1, 1), 5, widths=(8, 12), stem_kernel=3)


def whole_batch() -> tuple[Tensor, Tensor]:
    reseed(3)
    return activation(sum(BATCHES), 3, 6, 6, mean=1.0), torch.arange(sum(BATCHES)) % 5


def part(rank: int) -> slice:
    return slice(0, BATCHES[0]) if rank == 0 else slice(BATCHES[0], None)


def save(rank: int, folder: str, name: str, model: nn.Module) -> None:
    if rank == 0:
        grads = {name: parameter.grad for name, parameter in model.named_parameters()}
        torch.save({"grads": grads, "state": model.state_dict()}, Path(folder) / f"{name}.pth")


def far_from_zero(rank: int) -> Tensor:
    """The output of a convolution on one process: mean/std = 1000, and the processes' means one std apart."""
    reseed(rank)
    return activation(BATCHES[rank], 16, 8, 8, mean=1000.0 + rank)


def shared_variance(rank: int) -> Tensor:
    """The running variance after one batch that all processes share."""
    group = dist.group.WORLD
    assert group is not None
    layer = Layer(Conv(1, 1), 1e-5, True, True, True, str(group.group_name))
    running = torch.zeros(16), torch.ones(16)
    _, partials = convolution.conv_moments(far_from_zero(rank), torch.eye(16)[:, :, None, None], layer.conv)
    affine = Affine(torch.ones(16), torch.zeros(16), running, 1.0)
    (normalized,) = normalize([Norm(layer, partials, affine)])
    assert normalized.running is not None
    assert normalized.total is not None
    assert normalized.total.item() == 64 * sum(BATCHES)
    return normalized.running[1]


def synchronized_norms(rank: int, folder: str, how: str) -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    images, classes = whole_batch()
    with implementation(how), tiles(Tile(64, 16, 16)):
        torch.save(shared_variance(rank), Path(folder) / f"variance-{rank}.pth")
    with implementation(how), choosing(fitting):
        loss = F.cross_entropy(model(images[part(rank)]), classes[part(rank)], reduction="sum") / sum(BATCHES)
        loss.backward()
    for parameter in model.parameters():  # DistributedDataParallel refuses synchronized norms on CPUs
        dist.all_reduce(parameter.grad)
    save(rank, folder, "synchronized", model)


def data_parallel(rank: int, folder: str) -> None:
    model = network()
    images, classes = whole_batch()
    ddp = DistributedDataParallel(model)
    with implementation("reference"):
        F.cross_entropy(ddp(images[part(rank)]), classes[part(rank)]).backward()
    save(rank, folder, "data parallel", model)


def process(rank: int, folder: str) -> None:
    """The work of each process; starting them takes longer, so they do all of it."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES)
    for how in ("reference", "kernels"):
        synchronized_norms(rank, f"{folder}/{how}", how)
    data_parallel(rank, f"{folder}/reference")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the processes have left their results, one folder for each implementation."""
    folder = tmp_path_factory.mktemp("processes")
    for how in ("reference", "kernels"):
        (folder / how).mkdir()
    mp.spawn(process, (str(folder),), nprocs=PROCESSES)
    return folder


@pytest.fixture(params=["reference", "kernels"])
def results(request: pytest.FixtureRequest, folders: Path) -> Path:
    """The results of one implementation."""
    return folders / str(request.param)


def test_synchronized_norms_give_what_one_process_has_with_the_whole_batch(results: Path) -> None:
    result = torch.load(results / "synchronized.pth", weights_only=True)
    alone = network().double()
    images, classes = whole_batch()
    with implementation("reference"):
        F.cross_entropy(alone(images.double()), classes).backward()
    for name, parameter in alone.named_parameters():
        assert_close(name, result["grads"][name], parameter.grad)
    for name, buffer in alone.named_buffers():
        assert_close(name, result["state"][name].float(), buffer.double(), "sum")


def test_processes_far_from_zero_keep_the_variance(results: Path) -> None:
    together = torch.cat([far_from_zero(rank) for rank in range(PROCESSES)])
    truth = ground_truth.moments(together)[1] * together.numel() / (together.numel() - 16)
    for rank in range(PROCESSES):
        shared = torch.load(results / f"variance-{rank}.pth", weights_only=True)
        assert_variance("shared variance", shared, truth)


@pytest.mark.parametrize("results", ["reference"], indirect=True)
def test_data_parallel_training_averages_gradients(results: Path) -> None:
    result = torch.load(results / "data parallel.pth", weights_only=True)
    images, classes = whole_batch()
    replicas = [network().double() for _ in range(PROCESSES)]
    with implementation("reference"):
        for rank, replica in enumerate(replicas):
            F.cross_entropy(replica(images[part(rank)].double()), classes[part(rank)]).backward()
    for name, got in result["grads"].items():
        both = torch.stack([dict(replica.named_parameters())[name].grad for replica in replicas])
        assert_close(name, got, both.mean(0))


def test_a_synchronized_norm_alone_is_a_plain_one() -> None:
    block = FusedBottleneck(32, 8)
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(block))
    x = activation(2, 32, 4, 4)
    with implementation("reference"):
        assert torch.equal(block(x), synchronized(x))
