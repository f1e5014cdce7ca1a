"""Check that this environment and pyproject.toml agree with constraints.txt.

Every installed package must be pinned, and installed in the pinned version; every package that
pyproject.toml names must have a pin that it allows. What a CUDA build of torch brings has no pin,
so that such a build fails here too.
"""

import sys
from importlib.metadata import PackageNotFoundError, distributions, metadata, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
UNPINNED = {"pip", "proponent"}


def read_pins(path: Path) -> dict[str, Version]:
    """Return the version that applies to this Python, by canonical name."""
    pins: dict[str, Version] = {}
    for line in path.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            (specifier,) = requirement.specifier
            pins[canonicalize_name(requirement.name)] = Version(specifier.version)
    return pins


def disagreements(pins: dict[str, Version]) -> list[str]:
    """Return one line for everything that departs from the lock."""
    found = []
    for distribution in distributions():
        name = canonicalize_name(distribution.metadata["Name"])
        if name in UNPINNED:
            continue
        if name not in pins:
            found.append(f"{name} {distribution.version} is installed but not pinned")
        # A local label such as +cpu names the build, not another version.
        elif Version(Version(distribution.version).public) != pins[name]:
            found.append(f"{name} {distribution.version} is installed, {pins[name]} is pinned")
    for line in metadata("proponent").get_all("Requires-Dist") or []:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if name in UNPINNED:
            continue
        if name not in pins:
            found.append(f"pyproject.toml asks for {name}, which is not pinned")
        elif not requirement.specifier.contains(pins[name], prereleases=True):
            found.append(f"pyproject.toml asks for {requirement}, {pins[name]} is pinned")
    return sorted(set(found))


def main() -> int:
    """Print what disagrees and return the exit status."""
    try:
        version("proponent")
    except PackageNotFoundError:
        print("proponent is not installed here; run `make setup`", file=sys.stderr)
        return 1
    found = disagreements(read_pins(ROOT / "constraints.txt"))
    for line in found:
        print(f"lock: {line}", file=sys.stderr)
    if found:
        print("lock: not honoured; `make clean setup` installs the pinned set", file=sys.stderr)
        return 1
    print("lock: honoured")
    return 0


if __name__ == "__main__":
    sys.exit(main())
