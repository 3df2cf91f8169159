"""Exit 0 when the running Python has everything requirements.txt asks for, 1 otherwise.

    python scripts/check_requirements.py
"""

import sys
from importlib import metadata
from pathlib import Path


def missing(lines: list[str]) -> list[str]:
    """The requirements among `lines` that this Python does not meet."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        from pip._vendor.packaging.requirements import Requirement
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return [str(requirement) for requirement in wanted if not _met(requirement)]


def _met(requirement) -> bool:
    try:
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


if __name__ == "__main__":
    text = (Path(__file__).resolve().parent.parent / "requirements.txt").read_text(encoding="utf-8")
    sys.exit(1 if missing([line.split("#")[0].strip() for line in text.splitlines()]) else 0)
