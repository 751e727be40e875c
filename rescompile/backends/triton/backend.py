"""Triton's fused kernels as an engine: built for a target without a GPU, run by the CUDA driver alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescompile.backends.base import (
    RUN_DEFAULTS,
    Availability,
    BuildRequest,
    Int8Support,
    Payload,
    RestType,
    Runner,
    RunOptions,
)
from rescompile.backends.cuda import Gpu, driver, gpus
from rescompile.backends.triton.plan import PLAN, WEIGHTS
from rescompile.backends.triton.reading import read_plan, write_plan
from rescompile.errors import BackendUnavailable, UsageError, did_you_mean
from rescompile.files import atomic_write
from rescompile.manifest import Manifest, Precision
from rescompile.optional import installed, require

if TYPE_CHECKING:
    from fused_kernels.compiling.targets import Target

_BUILDING = "building a Triton engine"
_RUNNING = "running a Triton engine"


class Triton:
    """The backend. Any number of threads may call a runner."""

    name = "triton"
    payload_files = (PLAN, WEIGHTS)
    int8 = Int8Support("free", "free")
    simulation = "plan's reference executor (plain PyTorch on the CPU, not a GPU)"

    def availability(self, target: str | None = None) -> Availability:
        """Builds wherever Triton is; runs on the GPU that it was built for, through pycuda."""
        build = installed("triton")
        what = "Triton is installed" if build else "the package 'triton' is not installed"
        found = gpus()
        if not found:
            reason = f"{what}; running an engine needs a CUDA GPU, and there is none"
            return Availability(build=build, run=False, reason=reason)
        obstacle = _obstacle(found[0], target)
        here = f"{what} and {found[0].name} ({found[0].capability}) is here"
        if obstacle is not None:
            return Availability(build=build, run=False, reason=f"{here}, but {obstacle}")
        return Availability(build=build, run=True, reason=here)

    def rest_type(self, precision: Precision) -> RestType:
        """FP32 around INT8: in between, the kernels keep sums in fp32 and store nothing but integers."""
        return "float16" if precision == "fp16" else "float32"

    def check(self, target: str | None) -> None:
        """Refuse a target that there are no kernels for: see ``Backend.check``."""
        require("triton", _BUILDING)
        _target(target)

    def build(self, request: BuildRequest, directory: Path) -> Payload:
        """Write ``plan.json``, the machine code and ``weights.safetensors``.

        Raises:
            BackendError: the graph holds what no kernel computes, or a kernel does not compile.
            OutputError: the disk is full.
        """
        import onnx

        from rescompile.backends.triton import plan as plans
        from rescompile.backends.triton.assemble import assemble
        from rescompile.backends.triton.chains import with_chains
        from rescompile.backends.triton.lower import lower
        from rescompile.backends.triton.steps import residual_adds
        from rescompile.backends.triton.summary import summarize
        from rescompile.backends.triton.weights import write_weights

        target = _target(request.target)
        model = onnx.load(request.model)
        pixels = model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
        plane = request.image_shape[:2] if pixels else request.image_shape[1:]
        network = with_chains(lower(model, (plane[0], plane[1])))
        made = assemble(
            network,
            plans.Tensor("uint8" if pixels else "float32", request.image_shape),
            precision=request.precision,
            target=target,
            batch=request.batch,
            progress=request.progress,
        )
        for name, cubin in made.cubins.items():
            atomic_write(directory / name, cubin)
        write_weights(directory, network.weights)
        write_plan(directory, made.plan)
        cost = summarize(made.plan)
        return Payload(
            files=(PLAN, WEIGHTS, *made.cubins),
            target=target.name,
            fused_adds=residual_adds(network.steps),
            notes=(str(cost), *map(str, cost.programs)),
        )

    def load(self, directory: Path, manifest: Manifest, options: RunOptions = RUN_DEFAULTS) -> Any:
        """A ``runner.PlanRunner`` on the first GPU."""
        from rescompile.backends.triton.runner import PlanRunner

        plan = read_plan(directory, manifest)
        found = gpus()
        if not found:
            raise BackendUnavailable(
                f"{_RUNNING} needs a CUDA GPU ({manifest.target}), and there is none here; "
                "`rescompile verify` executes its plan in plain PyTorch"
            )
        obstacle = _obstacle(found[0], manifest.target)
        if obstacle is not None:
            raise BackendUnavailable(f"the engine in {directory} cannot run here: {obstacle}")
        cuda = require("pycuda.driver", _RUNNING)
        return PlanRunner(cuda, driver(), directory, plan, parallel=options.parallel)

    def simulate(self, directory: Path, manifest: Manifest) -> Runner:
        """The plan in plain PyTorch, where its GPU is not here."""
        from rescompile.backends.triton.reference import ReferenceRunner

        return ReferenceRunner(directory, read_plan(directory, manifest))


def _target(name: str | None) -> Target:
    from fused_kernels.compiling.targets import TARGETS

    known = list(TARGETS)
    if name is None:
        found = gpus()
        if not found:
            raise UsageError(
                f"--backend triton builds for one kind of GPU, and there is none here: pass --target, one of "
                f"{', '.join(known)}"
            )
        name = found[0].capability
    if name not in known:
        raise UsageError(
            f"--target {name} is unknown to the Triton engine; choose one of {', '.join(known)}."
            f"{did_you_mean(name, known)}"
        )
    return TARGETS[name]


def _obstacle(gpu: Gpu, target: str | None) -> str | None:
    """Why an engine for ``target`` does not run on ``gpu``, or None."""
    if target not in (None, gpu.capability):
        return f"it is for {target}, and {gpu.name} is {gpu.capability}; build it for this GPU"
    try:
        require("pycuda.driver", _RUNNING)
    except BackendUnavailable as error:
        return str(error)
    return None
