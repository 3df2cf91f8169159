"""Exit 0 when the running Python has everything that files ask for (default: requirements.txt), 1 otherwise.

    python scripts/check_requirements.py [FILE...]
"""

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path


def requirements(path: Path) -> Iterator[str]:
    """The requirements in a file and in those that it names by -r."""
    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            yield from requirements(path.parent / line[3:])
        elif line:
            yield line


def met(line: str) -> bool:
    """Whether this Python meets a requirement."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        from pip._vendor.packaging.requirements import Requirement
    requirement = Requirement(line)
    try:
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


if __name__ == "__main__":
    root = Path(__file__).resolve().parent.parent
    sys.exit(not all(met(line) for name in sys.argv[1:] or ["requirements.txt"] for line in requirements(root / name)))
