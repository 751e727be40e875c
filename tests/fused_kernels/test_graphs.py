"""Captured steps: buffers, restored state and refusals by a stand-in for torch's graphs; bits where a GPU is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from fused_kernels import graphed, graphs
from fused_kernels.errors import Unsupported
from fused_kernels.modules import FusedBasicBlock, FusedResNet
from tests.fused_kernels.conftest import reference

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="replays on a GPU")


class Tape(TorchDispatchMode):
    """What a CUDA graph does, on a CPU: notes every operation with its memory, and repeats them on the same memory.

    As there, autograd does not see that a replay changes tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        tensors = {id(leaf): leaf for leaf in tree_flatten(self.calls)[0] if isinstance(leaf, Tensor)}
        with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(tuple(tensors.values())):
            for func, args, kwargs, out in self.calls:
                again = func(*args, **kwargs)
                for old, new in zip(tree_flatten(out)[0], tree_flatten(again)[0], strict=True):
                    if isinstance(old, Tensor) and old is not new and old.numel():
                        old.copy_(new)


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda's graphs by ``Tape``; a capture runs its operations, so what they change is put back."""

    class Stream:
        def wait_stream(self, other: object) -> None:
            pass

    @contextmanager
    def graph(tape: Tape) -> Iterator[None]:
        with tape:
            yield

    monkeypatch.setattr(graphs, "DEVICE", "cpu")
    for name, value in {
        "Stream": Stream,
        "current_stream": Stream,
        "CUDAGraph": Tape,
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def batch(seed: int, device: str = "cpu", n: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(n, 3, 8, 8).to(device), (torch.arange(n) % 4).to(device)


def sgd(network: nn.Module, **settings: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), **{"lr": 0.1, "momentum": 0.9} | settings)


def by_hand(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss = F.cross_entropy(network(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def captured(network: nn.Module, optimizer: torch.optim.Optimizer, device: str = "cpu") -> graphs.Graphed:
    x, y = batch(0, device)
    return graphed(network, x, target=y, loss=F.cross_entropy, optimizer=optimizer)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.usefixtures("tape")
def test_inference_reads_and_writes_its_own_buffers() -> None:
    network = plain().eval()
    infer = graphed(network, batch(0)[0])
    first = infer(batch(1)[0])
    kept = first.clone()
    second = infer(batch(2)[0])
    assert second is first
    assert torch.equal(kept, network(batch(1)[0]))
    assert torch.equal(second, network(batch(2)[0]))


@pytest.mark.usefixtures("tape")
@pytest.mark.parametrize("steps_before", [0, 2])
def test_steps_are_those_without_a_graph(steps_before: int) -> None:
    network = plain()
    twin = copy.deepcopy(network)
    ours, theirs = sgd(network), sgd(twin)
    for seed in range(steps_before):
        by_hand(network, ours, *batch(seed))
        by_hand(twin, theirs, *batch(seed))
    state = graphs._State(network, ours)
    with state.kept():  # what a real capture does not run, the tape does
        step = captured(network, ours)
    assert same(network, twin), "a capture changes nothing"
    for seed in range(3):
        assert torch.equal(step(*batch(10 + seed)), by_hand(twin, theirs, *batch(10 + seed)))
        assert same(network, twin)


def test_a_step_that_fails_before_the_capture_leaves_weights_as_they_were() -> None:
    network = plain()
    twin, optimizer = copy.deepcopy(network), sgd(network)

    def failing_step() -> None:
        with graphs._State(network, optimizer).kept():
            by_hand(network, optimizer, *batch(0))
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        failing_step()
    assert same(network, twin)


@pytest.mark.usefixtures("tape")
def test_what_a_replay_cannot_know_is_refused() -> None:
    network = plain()
    optimizer = sgd(network)
    step = captured(network, optimizer)
    with pytest.raises(
        Unsupported, match=r"captured for torch.float32 \(6, 3, 8, 8\) and got torch.float32 \(5"
    ):
        step(*batch(0, n=5))
    with pytest.raises(Unsupported, match=r"torch\.float64"):
        step(batch(0)[0].double(), batch(0)[1])
    with pytest.raises(Unsupported, match="takes 2 tensors and got 1"):
        step(batch(0)[0])
    optimizer.param_groups[0]["lr"] = 0.01
    with pytest.raises(Unsupported, match=r"lr was 0.1 when this graph was captured and is 0.01 now"):
        step(*batch(0))
    optimizer.param_groups[0]["lr"] = 0.1
    network.eval()
    with pytest.raises(Unsupported, match=r"call network.train\(\)"):
        step(*batch(0))


@pytest.mark.usefixtures("tape")
def test_what_cannot_be_captured_is_refused() -> None:
    network, (x, y) = plain(), batch(0)
    with pytest.raises(Unsupported, match=r"inference needs network.eval\(\)"):
        graphed(network, x)
    with pytest.raises(Unsupported, match="all three or none"):
        graphed(network, x, target=y)
    with pytest.raises(Unsupported, match="capturable=True"):
        captured(network, torch.optim.Adam(network.parameters()))
    with pytest.raises(Unsupported, match="one step before the capture"):
        captured(network, sgd(network, dampening=0.5))
    with pytest.raises(Unsupported, match="NAdam may begin with other numbers than zero: take one step"):
        captured(network, torch.optim.NAdam(network.parameters(), capturable=True))
    with pytest.raises(Unsupported, match="the sample is on meta"):
        graphed(network.eval(), x.to("meta"))
    with pytest.raises(Unsupported, match="1 averages its statistics over all batches"):
        captured(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None)), sgd(network))
    with pytest.raises(Unsupported, match="1 talks to other processes"):
        captured(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4)), sgd(network))


@pytest.fixture
def fused() -> Iterator[FusedResNet]:
    torch.manual_seed(0)
    with reference():
        yield FusedResNet(FusedBasicBlock, (1, 1), 4, widths=(16, 32), stem_kernel=3)


def fresh(network: nn.Module, x: Tensor) -> Tensor:
    """The answers of a copy, which has kept nothing."""
    with torch.no_grad():
        out: Tensor = copy.deepcopy(network).eval()(x)
        return out


@pytest.mark.usefixtures("tape")
def test_evaluations_between_replayed_steps_use_the_new_weights(fused: FusedResNet) -> None:
    network = fused
    step, (x, y) = captured(network, sgd(network)), batch(1)
    for _ in range(2):
        with torch.no_grad():
            assert torch.equal(network.eval()(x), fresh(network, x))
        network.train()
        step(x, y)
    network.eval()  # no longer a change of mode that is seen by the network inside
    with torch.no_grad():
        first = network(x)
    network.training = True
    step(x, y)
    network.training = False
    with torch.no_grad():
        assert not torch.equal(network(x), first)
        assert torch.equal(network(x), fresh(network, x))


def write_in_place(network: nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.25)


def write_unseen(network: nn.Module) -> None:
    network.train()
    for parameter in network.parameters():
        parameter.data.mul_(1.25)
    network.eval()


@pytest.mark.usefixtures("tape")
@pytest.mark.parametrize("change", [write_in_place, write_unseen])
def test_captured_inference_follows_the_weights(
    fused: FusedResNet, change: Callable[[nn.Module], None]
) -> None:
    network, (x, _) = fused.eval(), batch(1)
    infer = graphed(network, x)
    before = infer(x).clone()
    with torch.no_grad():
        assert torch.equal(network(x), before), "the network itself still has folded weights of its own"
    change(network)
    after = infer(x)
    assert not torch.equal(after, before)
    assert torch.equal(after, fresh(network, x))


@pytest.mark.usefixtures("tape")
def test_a_capture_folds_nothing(fused: FusedResNet) -> None:
    """Folded in a capture, weights would have no values before the first replay, and the network would read them."""
    network, (x, _) = fused.eval(), batch(1)
    infer = graphed(network, x)
    assert isinstance(infer._graph, Tape)
    assert not [func for func, *_ in infer._graph.calls if "rsqrt" in str(func)]


@pytest.mark.usefixtures("tape")
def test_memory_that_is_no_longer_the_networks_is_refused(fused: FusedResNet) -> None:
    network, (x, y) = fused, batch(1)
    optimizer = sgd(network, lr=torch.tensor(0.1))
    step = captured(network, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    step(x, y)
    optimizer.load_state_dict(state)
    with pytest.raises(Unsupported, match="not where it was when this graph was captured"):
        step(x, y)
    step = captured(network, optimizer)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.01)
    with pytest.raises(Unsupported, match="not where it was when this graph was captured"):
        step(x, y)
    infer = graphed(network.eval(), x)
    network.double()
    with pytest.raises(Unsupported, match="not where it was when this graph was captured"):
        infer(x)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing")
def test_without_a_gpu_there_is_no_graph() -> None:
    with pytest.raises(Unsupported, match="torch sees none: call the network itself"):
        graphed(plain().eval(), batch(0)[0])


@gpu
def test_a_replay_has_the_launches_bits() -> None:
    torch.manual_seed(0)
    network = FusedResNet(FusedBasicBlock, (1, 1), 4, widths=(16, 32), stem_kernel=3).cuda()
    twin = copy.deepcopy(network)
    ours, theirs = sgd(network), sgd(twin)
    step = captured(network, ours, "cuda")
    assert same(network, twin)
    for seed in range(3):
        assert torch.equal(step(*batch(seed, "cuda")), by_hand(twin, theirs, *batch(seed, "cuda")))
        assert same(network, twin)
    infer = graphed(network.eval(), batch(0, "cuda")[0])
    with torch.no_grad():
        assert torch.equal(infer(batch(5, "cuda")[0]), network(batch(5, "cuda")[0]))
