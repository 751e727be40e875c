from __future__ import annotations

import subprocess
import sys

HEAVY = ("PIL", "onnx", "onnxruntime", "torch", "rescompile", "fused_kernels", "openvino")


def test_no_module_imports_a_heavy_package_or_its_user() -> None:
    """Images, graphs and engines are imported where they are used; ``calibration`` stands alone.

    ``execution``, which runs graphs in PyTorch, is itself imported only where a graph is run.
    """
    code = (
        "import pkgutil, importlib, sys, calibration\n"
        "for module in pkgutil.walk_packages(calibration.__path__, 'calibration.'):\n"
        "    if not module.name.startswith('calibration.execution'):\n"
        "        importlib.import_module(module.name)\n"
        f"print(sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_thresholds_and_scales_need_numpy_alone() -> None:
    code = (
        "import sys, calibration.methods.thresholds, calibration.scales, calibration.statistics.observers\n"
        "print('msgspec' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False True"
