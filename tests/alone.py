"""A copy of the package that is imported in place of the installed one."""

import shutil
from importlib.util import find_spec
from pathlib import Path

PACKAGE = Path(find_spec("neq_kernels").origin).parent

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
    shutil.copytree(PACKAGE, folder / "neq_kernels", ignore=skip)
    (folder / "sitecustomize.py").write_text(NO_FINDER)
    return folder
