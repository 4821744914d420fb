"""A copy of the package that is imported in place of the installed one."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parent.parent

# An editable install leaves a finder that would lend the copy the installed extension.
NO_FINDER = """
import sys
sys.meta_path[:] = [
    finder for finder in sys.meta_path
    if not getattr(finder, "__module__", "").startswith("__editable__")
]
"""


def copy_without_extension(folder: Path) -> Path:
    """Copy neq_kernels, but not its extension, into ``folder``, to be put on PYTHONPATH."""
    skip = shutil.ignore_patterns("_C*", "__pycache__")
    shutil.copytree(ROOT / "neq_kernels", folder / "neq_kernels", ignore=skip)
    (folder / "sitecustomize.py").write_text(NO_FINDER)
    return folder
