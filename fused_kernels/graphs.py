"""CUDA graphs: a network's forward pass or a whole training step, launched as one, without Python between kernels.

    infer = graphed(network, images)                                       infer(images) -> logits
    step = graphed(network, images, target=labels, loss=F.cross_entropy, optimizer=optimizer)
    step(images, labels) -> loss

Capturing leaves the network and the optimizer as they were. A call copies its arguments into buffers that the graph
reads, replays it, and returns the buffer that it writes, which the next call overwrites. A graph knows memory, not
tensors: what a replay changes is noted as changed, folded weights are renewed where the network's have changed, and
it is refused once the network has other memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn, optim

from fused_kernels.errors import Unsupported
from fused_kernels.modules.folding import Folded, kept_of

DEVICE = "cuda"
WARM_UPS = 3
"""Runs before the capture, which compile kernels and make the optimizer's state."""

FROM_ZERO = (optim.SGD, optim.Adam, optim.AdamW, optim.Adamax, optim.RAdam, optim.RMSprop, optim.Adadelta)
"""Optimizers whose whole state is zero before their first step."""

Loss = Callable[[Tensor, Tensor], Tensor]
_Place = tuple[int, torch.dtype]


class Graphed:
    """A captured step; call it with as many tensors as it was captured with, of the same shapes and dtypes."""

    def __init__(self, step: Callable[..., Tensor], samples: Sequence[Tensor], state: _State) -> None:
        self._inputs = [sample.clone() for sample in samples]
        self._state = state
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with state.kept(), torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                step(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        state.drop_gradients()  # so that the graph's own are in its memory
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = step(*self._inputs)
        state.captured()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Replay the step on ``inputs``; the result is overwritten by the next call.

        Raises:
            Unsupported: the inputs, the network's mode or memory, or the optimizer's settings are not those of the
                capture.
        """
        if len(inputs) != len(self._inputs):
            raise Unsupported(f"this graph takes {len(self._inputs)} tensors and got {len(inputs)}")
        for given, buffer in zip(inputs, self._inputs, strict=True):
            if given.shape != buffer.shape or given.dtype != buffer.dtype:
                raise Unsupported(
                    f"this graph was captured for {buffer.dtype} {tuple(buffer.shape)} and got {given.dtype}"
                    f" {tuple(given.shape)}: capture another one for it"
                )
        self._state.require_unchanged()
        self._state.renew_folded()
        for given, buffer in zip(inputs, self._inputs, strict=True):
            buffer.copy_(given)
        self._graph.replay()
        self._state.note_changes()
        return self._output


def graphed(
    network: nn.Module,
    sample: Tensor,
    *,
    target: Tensor | None = None,
    loss: Loss | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    autocast: torch.dtype | None = None,
) -> Graphed:
    """Capture inference, or with ``target``, ``loss`` and ``optimizer`` a whole training step.

    Args:
        network: on a GPU; in eval mode for inference, in training mode for a step.
        sample: an input in the shape and dtype of all inputs to come.
        target: what ``loss`` compares the output with, in the same way.
        loss: of the network's output and the target, a single number.
        optimizer: of the network's parameters; a learning rate that changes must be a tensor.
        autocast: the dtype of the forward pass where it differs from the weights'.

    Raises:
        Unsupported: this cannot be captured; the message says why and what to do.
    """
    if len({target is None, loss is None, optimizer is None}) != 1:
        raise Unsupported(
            "a training step is captured from a target, a loss and an optimizer: give all three or none"
        )
    samples = [sample] if target is None else [sample, target]
    _require_gpu(network, samples)
    _require_mode(network, training=optimizer is not None)
    if optimizer is not None:
        _require_capturable(optimizer)

    def forward(x: Tensor) -> Tensor:
        # without a cache: a weight that was converted before the capture would never be converted again
        with torch.autocast(DEVICE, autocast, enabled=autocast is not None, cache_enabled=False):
            out: Tensor = network(x)
            return out

    def infer(x: Tensor) -> Tensor:
        with torch.no_grad():
            return forward(x)

    def train(x: Tensor, y: Tensor) -> Tensor:
        assert loss is not None
        assert optimizer is not None
        optimizer.zero_grad(set_to_none=True)
        value = loss(forward(x), y)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return value.detach()

    return Graphed(infer if optimizer is None else train, samples, _State(network, optimizer))


class _State:
    """Everything that a step changes, and everything that must not change after its capture."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        self.network, self.optimizer = network, optimizer
        self.training = network.training
        self.settings = self._settings()
        self._tensors = [*network.parameters(), *network.buffers()]
        self._written = [
            *(parameter for group in self._groups() for parameter in group["params"]),
            *(buffer for module in network.modules() if module.training for buffer in module.buffers(False)),
        ]
        self._places: list[_Place] = []
        self._versions: list[int] = []
        self._folded: list[tuple[nn.Conv2d, Folded]] = []

    def captured(self) -> None:
        """Note which memory the graph reads and writes, and keep the folded weights of it."""
        self._places = self._places_now()
        self._folded = list(kept_of(self.network))

    def renew_folded(self) -> None:
        """Fold batch norms again, into the memory that the graph reads, where the network's tensors have changed."""
        versions = [tensor._version for tensor in self._tensors] if self._folded else []
        if versions == self._versions and all(folded.stamp for _, folded in self._folded):
            return
        for conv, folded in self._folded:
            folded.renew(conv)
        self._versions = versions

    def note_changes(self) -> None:
        """Count a change of all that a training step writes to: a replay does not, and caches go by the count."""
        if self.optimizer is not None:
            torch.autograd.graph.increment_version(self._written)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Undo what happens in this context: weights, statistics and the optimizer's state get their values back.

        State that the optimizer makes here is zeroed, which is how those in ``FROM_ZERO`` begin.
        """
        tensors = [*self._tensors, *self._optimizer_tensors()]
        before = [tensor.detach().clone() for tensor in tensors]
        try:
            yield
        finally:
            with torch.no_grad():
                known = {id(tensor) for tensor in tensors}
                for tensor in self._optimizer_tensors():
                    if id(tensor) not in known:
                        tensor.zero_()
                for tensor, value in zip(tensors, before, strict=True):
                    if not torch.equal(tensor, value):
                        tensor.copy_(value)

    def drop_gradients(self) -> None:
        """Let go of the gradients, if this is a training step."""
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)

    def require_unchanged(self) -> None:
        """Refuse to replay under another mode, with other numbers than those in the graph, or in others' memory."""
        if self._places_now() != self._places:
            raise Unsupported(
                "a tensor of the network or the optimizer is not where it was when this graph was captured: capture "
                "another one after tensors are moved, converted or replaced"
            )
        if self.network.training != self.training:
            raise Unsupported(
                f"this graph was captured in {'training' if self.training else 'eval'} mode: call"
                f" network.{'train' if self.training else 'eval'}() before it, or capture another one"
            )
        settings = self._settings()
        for name, value in settings.items():
            if self.settings.get(name) != value:
                raise Unsupported(
                    f"the optimizer's {name[1]} was {self.settings.get(name)} when this graph was captured and is"
                    f" {value} now: make it a tensor if it can be one, or capture again"
                )

    def _settings(self) -> dict[tuple[int, str], Any]:
        """Numbers of the optimizer that a graph holds as constants; tensors are read again at each replay."""
        return {
            (index, name): value
            for index, group in enumerate(self._groups())
            for name, value in group.items()
            if isinstance(value, int | float | tuple) and name != "initial_lr"
        }

    def _places_now(self) -> list[_Place]:
        """Address and dtype of everything that a step reads or writes."""
        settings = [
            value for group in self._groups() for value in group.values() if isinstance(value, Tensor)
        ]
        everything = (*self._tensors, *self._optimizer_tensors(), *settings)
        return [(tensor.data_ptr(), tensor.dtype) for tensor in everything]

    def _groups(self) -> list[dict[str, Any]]:
        return [] if self.optimizer is None else self.optimizer.param_groups

    def _optimizer_tensors(self) -> list[Tensor]:
        states = [] if self.optimizer is None else self.optimizer.state.values()
        return [value for state in states for value in state.values() if isinstance(value, Tensor)]


def _require_gpu(network: nn.Module, samples: Sequence[Tensor]) -> None:
    if DEVICE == "cuda" and not torch.cuda.is_available():
        raise Unsupported("a CUDA graph needs a GPU, and torch sees none: call the network itself")
    for what, tensors in {
        "the sample": samples[:1],
        "the target": samples[1:],
        "the network": [*network.parameters(), *network.buffers()],
    }.items():
        for tensor in tensors:
            if tensor.device.type != DEVICE:
                raise Unsupported(
                    f"{what} is on {tensor.device}, and a CUDA graph takes a GPU's tensors: move it there"
                )


def _require_mode(network: nn.Module, *, training: bool) -> None:
    if network.training != training:
        wanted = "a training step needs network.train()" if training else "inference needs network.eval()"
        raise Unsupported(
            f"the network is in {'eval' if training else 'training'} mode: {wanted} before the capture"
        )
    for name, module in network.named_modules():
        if module.training and isinstance(module, nn.SyncBatchNorm):
            raise Unsupported(f"{name} talks to other processes, which a graph cannot hold: use BatchNorm2d")
        if module.training and getattr(module, "momentum", 0.1) is None:
            raise Unsupported(
                f"{name} averages its statistics over all batches (momentum=None), which needs a number that the graph"
                " would keep: give it a momentum"
            )


def _require_capturable(optimizer: torch.optim.Optimizer) -> None:
    if type(optimizer) not in FROM_ZERO and not optimizer.state:
        raise Unsupported(
            f"{type(optimizer).__name__} may begin with other numbers than zero: take one step before the capture"
        )
    for group in optimizer.param_groups:
        if group.get("capturable") is False and not group.get("fused"):
            raise Unsupported(
                f"{type(optimizer).__name__} counts its steps in Python: make it with capturable=True or fused=True"
            )
        if group.get("dampening") and not optimizer.state:
            raise Unsupported(
                "SGD applies dampening in every step except its first: take one step before the capture"
            )
