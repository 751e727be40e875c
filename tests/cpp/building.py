"""The C++ library and its programs, compiled by the commands of their how-to, with warnings as errors."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SOURCE = ROOT / "cpp"
PAGE = (ROOT / "docs/how-to/embed-cpp.md").read_text("utf-8")

_HEADERS = {
    "nlohmann/json.hpp": "nlohmann-json3-dev",
    "openssl/evp.h": "libssl-dev",
    "jpeglib.h": "libjpeg-dev",
    "png.h": "libpng-dev",
}


def what_is_missing() -> str:
    """The reason why C++ cannot be compiled here; empty where it can."""
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
    """The output of ``command``, which must succeed."""
    # as in an activated environment: CMake finds OpenVINO in the wheel of the Python in PATH
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        env={**os.environ, "PATH": path, **environment},
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}"
    return done.stdout


def blocks(language: str) -> list[str]:
    """The blocks of the how-to in ``language``."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Every command of the how-to, in its order."""
    return "".join(blocks("sh")).splitlines()


def obey(command: str, folder: Path, **environment: str) -> str:
    """Run a command of the how-to in ``folder``, a root of the repository; what it compiles is quick to compile."""
    assert command in commands(), f"not in the how-to: {command}"
    return quickly("bash", "-e", "-c", f"cd {folder}\n{command}", **environment)


def quickly(*command: object, **environment: str) -> str:
    """Run a command that compiles, without optimization and with line numbers only, warnings being errors."""
    flags = "-O0 -g1 -Werror"
    return run(*command, CMAKE_BUILD_TYPE="Quick", CFLAGS=flags, CXXFLAGS=flags, **environment)


def compiled(folder: Path, *options: str, targets: tuple[str, ...]) -> None:
    """Configure the library with ``options`` and build ``targets`` in ``folder``."""
    quickly("cmake", "-S", SOURCE, "-B", folder, *options)
    run("cmake", "--build", folder, "--target", *targets)


@dataclass(frozen=True)
class Native:
    """A root of the repository in which the how-to was obeyed, and where the compiled things are."""

    root: Path

    @property
    def prefix(self) -> Path:
        return self.root / "build/prefix"

    @property
    def library(self) -> Path:
        return self.prefix / "lib/librescompile.so"

    @property
    def soak(self) -> Path:
        return self.root / "build/librescompile/tools/rescompile-soak"

    @property
    def classify(self) -> Path:
        return self.root / "build/classify/classify"

    @property
    def classify_folder(self) -> Path:
        return self.classify.with_name("classify-folder")


def build_native(root: Path) -> Native:
    """Build and install the library, then the example against what was installed."""
    root.mkdir(parents=True, exist_ok=True)
    for name in ("cpp", "examples", "calibration"):
        if not (root / name).exists():
            (root / name).symlink_to(ROOT / name)
    native = Native(root)
    example, *library = (
        command for command in commands() if command.startswith("cmake") and "fuzz" not in command
    )
    for command in library:
        obey(command, root)
    obey(example, root, CMAKE_PREFIX_PATH=str(native.prefix))
    return native
