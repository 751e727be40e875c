"""The C++ library and its programs, compiled as their how-to says, with warnings as errors."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SOURCE = ROOT / "cpp"
EXAMPLE = ROOT / "examples/cpp/classify"

_HEADERS = {
    "nlohmann/json.hpp": "nlohmann-json3-dev",
    "openssl/evp.h": "libssl-dev",
    "jpeglib.h": "libjpeg-dev",
    "png.h": "libpng-dev",
}


def what_is_missing() -> str:
    """What this machine lacks to compile C++, for the reason of a skip; empty where nothing is missing."""
    tools = [tool for tool in ("cmake", "c++", "make") if shutil.which(tool) is None]
    if tools:
        return f"{', '.join(tools)} is not installed"
    packages = [
        package
        for header, package in _HEADERS.items()
        if subprocess.run(
            ["c++", "-x", "c++", "-E", "-"], input=f"#include <cstdio>\n#include <{header}>\n",
            text=True, capture_output=True, check=False,
        ).returncode
    ]  # fmt: skip
    return f"the headers of {', '.join(packages)} are not installed" if packages else ""


def run(*command: object, **environment: str) -> str:
    """What ``command`` prints; it must end well."""
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}"
    return done.stdout


def compiled(source: Path, folder: Path, *options: str, targets: tuple[str, ...] = ()) -> None:
    """Configure ``source`` and build ``targets``, or all, in ``folder``."""
    flags = ("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O0", "-DRESCOMPILE_WERROR=ON")
    run("cmake", "-S", source, "-B", folder, *flags, *options)
    run("cmake", "--build", folder, *(("--target", *targets) if targets else ()))


@dataclass(frozen=True)
class Native:
    """Where the compiled things are."""

    library: Path
    check: Path
    soak: Path
    classify: Path


def build_native(folder: Path) -> Native:
    """Build and install the library, then the example against what was installed."""
    prefix = folder / "prefix"
    compiled(SOURCE, folder / "library", f"-DCMAKE_INSTALL_PREFIX={prefix}", "-DCMAKE_INSTALL_LIBDIR=lib")
    run("cmake", "--install", folder / "library")
    compiled(EXAMPLE, folder / "classify", f"-DCMAKE_PREFIX_PATH={prefix}")
    tools = folder / "library/tools"
    return Native(
        library=prefix / "lib/librescompile.so",
        check=tools / "rescompile-check",
        soak=tools / "rescompile-soak",
        classify=folder / "classify/classify",
    )
