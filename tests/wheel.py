"""Install a wheel into an empty environment, beside nothing but what it says it needs, and use it there.

``python tests/wheel.py dist/*.whl``. What it needs is linked from the environment of the Python that runs this, so
that it takes seconds and no network; everything else of that environment stays out of sight.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement

STEPS = Path(__file__).with_name("wheel_steps.py")


def main(wheel: Path) -> None:
    check_contents(wheel)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        python = empty_environment(home / "environment")
        install(wheel, python)
        link_needed(requirements_of(wheel), site_of(python))
        steps = home / STEPS.name
        steps.write_bytes(STEPS.read_bytes())
        for arguments in (
            [str(steps)],
            ["-m", "classbalance_losses.report"],
            ["-m", "classbalance_losses.stats", "--help"],
        ):
            subprocess.run([python, "-W", "error", *arguments], cwd=home, check=True)


def check_contents(wheel: Path) -> None:
    """See that the package, its marker of types and its licence are in the wheel, and nothing else."""
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    heads = {name.split("/")[0] for name in names}
    strange = {head for head in heads if head != "classbalance_losses" and not head.endswith(".dist-info")}
    if strange:
        raise SystemExit(f"Expected the package alone in {wheel.name}, got {sorted(strange)} beside it.")
    package = STEPS.parents[1] / "classbalance_losses"
    files = [path for path in package.rglob("*") if path.suffix == ".py" or path.name == "py.typed"]
    expected = {path.relative_to(package.parent).as_posix() for path in files}
    packed = {name for name in names if name.startswith("classbalance_losses/")}
    if packed != expected or not any(name.endswith("/licenses/LICENSE") for name in names):
        raise SystemExit(
            f"Missing from {wheel.name}: {sorted(expected - packed)}; too many: {sorted(packed - expected)}."
        )


def empty_environment(folder: Path) -> Path:
    """Make an environment with no package at all, and return its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin" / "python"


def site_of(python: Path) -> Path:
    """Return where packages of an environment lie."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(
        subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    )


def install(wheel: Path, python: Path) -> None:
    """Install the wheel alone, by this environment's pip."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
    ]
    subprocess.run([*pip, str(wheel)], check=True)


def requirements_of(wheel: Path) -> list[str]:
    """Return what the wheel says that it needs, extras apart."""
    with ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return re.findall(r"^Requires-Dist: (.+)$", archive.read(metadata).decode(), re.MULTILINE)


def link_needed(requirements: list[str], site: Path) -> None:
    """Link the packages that are asked for, and those that they ask for, into an environment."""
    seen: dict[str, Distribution | None] = {}
    while requirements:
        requirement = Requirement(requirements.pop())
        if requirement.name in seen or (
            requirement.marker and not requirement.marker.evaluate({"extra": ""})
        ):
            continue
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError as error:
            raise SystemExit(f"Expected {requirement} beside {sys.executable}, which has none.") from error
        seen[requirement.name] = found
        requirements += found.requires or []
        for head in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            if not (site / head).exists():
                (site / head).symlink_to(Path(str(found.locate_file(head))))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
