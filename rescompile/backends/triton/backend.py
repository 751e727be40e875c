"""The Triton backend: fused kernels, built for a target without a GPU and run by the CUDA driver alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescompile.backends import base
from rescompile.backends.cuda import devices
from rescompile.backends.cuda.driver import open_driver
from rescompile.backends.triton.plan_file import read_plan, write_plan
from rescompile.engine_files import EngineSource, files_in
from rescompile.errors import BackendUnavailable, UsageError, did_you_mean
from rescompile.files import atomic_write
from rescompile.manifest import TRITON_PLAN as PLAN
from rescompile.manifest import TRITON_WEIGHTS as WEIGHTS
from rescompile.manifest import Manifest, Precision
from rescompile.optional import installed, require

if TYPE_CHECKING:
    import onnx

    from fused_kernels.gpus import Target


class Triton:
    """The backend. Any number of threads may call a runner."""

    name = "triton"
    payload_files = (PLAN, WEIGHTS)
    int8 = base.Int8Support("free", "free")
    simulation = "plan's reference executor (plain PyTorch on the CPU, not a GPU)"

    def availability(self, target: str | None = None) -> base.Availability:
        """Engines are built wherever Triton is installed, and run on the GPU that they were built for."""
        build = installed("triton")
        what = "Triton is installed" if build else "the package 'triton' is not installed"
        found = devices.gpus()
        if not found:
            reason = f"{what}; running an engine needs a CUDA GPU, and there is none"
            return base.Availability(build=build, run=False, reason=reason)
        obstacle = devices.target_obstacle(found[0], target)
        here = f"{what} and {found[0].name} ({found[0].capability}) is here"
        if obstacle is not None:
            return base.Availability(build=build, run=False, reason=f"{here}, but {obstacle}")
        return base.Availability(build=build, run=True, reason=here)

    def rest_type(self, precision: Precision) -> base.RestType:
        """FP32 around INT8: the kernels keep sums in fp32 and store only integers."""
        return "float16" if precision == "fp16" else "float32"

    def check(self, target: str | None) -> None:
        """Check that there are kernels for ``target``: see ``Backend.check``."""
        require("triton", "building a Triton engine")
        _target(target)

    def reasons_against(self, model: onnx.ModelProto) -> tuple[str, ...]:
        """Operations that no fused kernel computes: see ``SelectiveBackend.reasons_against``."""
        from rescompile.backends.triton.refusal import reasons_against

        return reasons_against(model)

    def build(self, request: base.BuildRequest, directory: Path) -> base.Payload:
        """Write ``plan.json``, the machine code and ``weights.safetensors``.

        Raises:
            BackendError: no kernel computes a node of the graph, or a kernel does not compile.
            OutputError: the disk is full.
        """
        import onnx

        from rescompile.backends.triton import plan as plans
        from rescompile.backends.triton.lowering.chains import with_chains
        from rescompile.backends.triton.lowering.network import lower
        from rescompile.backends.triton.planning.assemble import assemble
        from rescompile.backends.triton.steps import fused_adds
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
        return base.Payload(
            files=(PLAN, WEIGHTS, *made.cubins),
            target=target.name,
            fused_adds=fused_adds(network.steps),
            notes=(str(cost), *map(str, cost.programs)),
        )

    def load(
        self, source: EngineSource, manifest: Manifest, options: base.RunOptions = base.RUN_DEFAULTS
    ) -> Any:
        """A ``PlanRunner`` on the first GPU."""
        from rescompile.backends.triton.runner import PlanRunner

        files = files_in(source)
        plan = read_plan(files, manifest)
        purpose = f"running a Triton engine for {manifest.target}"
        gpu = devices.require_gpu(purpose, "; `rescompile verify` executes its plan in plain PyTorch")
        obstacle = devices.target_obstacle(gpu, manifest.target)
        if obstacle is not None:
            raise BackendUnavailable(f"the engine in {files.directory} cannot run here: {obstacle}")
        return PlanRunner(open_driver(), files, plan, parallel=options.parallel)

    def simulate(self, source: EngineSource, manifest: Manifest) -> base.Runner:
        """The plan in plain PyTorch on the CPU."""
        from rescompile.backends.triton.reference import ReferenceRunner

        return ReferenceRunner(source, read_plan(source, manifest))


def _target(name: str | None) -> Target:
    from fused_kernels.gpus import TARGETS

    known = list(TARGETS)
    if name is None:
        found = devices.gpus()
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
