"""The repository's own rules: imports go down, the core knows neither torch nor Python."""

import ast
import importlib
import inspect
import re
import subprocess
from pathlib import Path

import pytest

import neq_kernels

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "neq_kernels"
LEVELS = {
    "active": 0, "reference": 0, "reference_conv": 0, "reference_rows": 0, "sources": 0,
    "native": 1, "kernels": 1,
    "backends": 2, "planner": 2,
    "gradients": 3, "ops": 3, "sets": 3,
    "autograd": 4, "zeroing": 4,
    "layer": 5, "modules": 5,
    "first_forward": 6, "reach": 6, "tether": 6, "convert": 6, "report": 6, "optim": 6,
    "backward_graph": 6, "example": 6,
    "equilibrium": 7, "flops": 7, "quick_bench": 8, "profile": 7, "distributed": 7, "pruning": 7,
    "integrations": 8,
    "__init__": 9, "__main__": 9,
}  # fmt: skip
LONGEST = 400
SOURCES = (".py", ".cpp", ".h", ".cu", ".cuh", ".md", ".txt", ".toml")
MODULES = sorted(PACKAGE.rglob("*.py"))


def dotted(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def unit(module):
    """The part of the floor plan that a module of the package belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def imported(path):
    """Modules of the package that the file imports, also inside functions."""
    names = {dotted(p) for p in MODULES}
    for node in ast.walk(ast.parse(path.read_text())):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[:-1]
            above = [] if node.level == 0 else package[: len(package) - node.level + 1]
            source = ".".join([*above, *([node.module] if node.module else [])])
            inner = [f"{source}.{alias.name}" for alias in node.names]
            found = [name if name in names else source for name in inner]
        yield from (name for name in found if name.split(".")[0] == "neq_kernels")


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_go_down(path):
    here = unit(dotted(path))
    assert here in LEVELS, f"{here} has no level: give it one"
    for name in imported(path):
        assert LEVELS[unit(name)] <= LEVELS[here], f"{dotted(path)} imports {name}, which is above"


def test_imports_have_no_cycle():
    graph = {dotted(path): set(imported(path)) for path in MODULES}
    while leaves := [module for module, needs in graph.items() if not needs & graph.keys()]:
        for module in leaves:
            del graph[module]
    assert not graph, f"a cycle among {sorted(graph)}"


def includes(path):
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def cpp(folder):
    return [
        p for p in sorted((ROOT / folder).rglob("*")) if p.suffix in (".cpp", ".h", ".cu", ".cuh")
    ]


def test_the_core_includes_neither_torch_nor_python_nor_openmp():
    assert cpp("csrc")
    for path in cpp("csrc"):
        for header in includes(path):
            assert not re.match(r"(torch|ATen|c10|pybind11|Python\.h|omp\.h)", header), (
                f"{path.relative_to(ROOT)} includes {header}"
            )
        assert "#pragma omp" not in path.read_text(), path.name


def test_the_bridge_stays_inside_the_stable_abi():
    assert cpp("python")
    for path in cpp("python"):
        for header in includes(path):
            unstable = re.match(r"(torch/(extension|all|script|library|torch)\.h|ATen|c10)", header)
            assert not unstable, f"{path.relative_to(ROOT)} includes {header}"


def tracked():
    """Files of the repository, or of the folder where there is no git."""
    git = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    names = git.stdout.split("\n") if git.returncode == 0 else []
    found = [ROOT / name for name in names if name] or [
        path
        for folder in ("neq_kernels", "csrc", "python", "tests", "bench", "examples")
        for path in (ROOT / folder).rglob("*")
    ]
    return [path for path in found if path.is_file() and path.suffix in SOURCES]


def test_no_file_is_longer_than_anybody_reads():
    long = {
        str(path.relative_to(ROOT)): length
        for path in tracked()
        if (length := path.read_text().count("\n")) > LONGEST
    }
    assert not long


def test_public_names_are_what_all_says_and_documented():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    bound = {
        (alias.asname or alias.name).split(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(bound) == sorted(neq_kernels.__all__)
    for name in neq_kernels.__all__:
        assert inspect.getdoc(getattr(neq_kernels, name)), f"neq_kernels.{name}: no docstring"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_public_functions_and_methods_are_documented(path):
    """Also methods: users reach them through the objects that public functions return."""
    tree = ast.parse(path.read_text())
    assert path.name == "__main__.py" or ast.get_docstring(tree), "no module docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name}: no docstring"


DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        assert file.exists(), f"{document.name} links to {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{document.name} links to {target}"


def anchors(document):
    """The names GitHub gives to the headings of a document."""
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+\s+(.*?)\s*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_modules_import_on_their_own(path):
    importlib.import_module(dotted(path).removesuffix(".__init__"))
