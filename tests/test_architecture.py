"""The rooms of lsam_hpc: a room imports from rooms below it only, and no modules import in a circle."""

import ast
import importlib
import subprocess
import sys

import pytest

from tests.helpers.mpis import ROOT

ALL = {"torch", "numpy", "mpi4py", "h5py", "horovod"}
# From the lowest room to the highest: room -> packages that it may not import.
ROOMS = {
    "errors": ALL,
    "util": {"torch", "numpy", "h5py", "horovod"},
    "rma": {"torch", "h5py", "horovod"},
    "trajectory": {"torch", "mpi4py", "horovod"},
    "options": ALL,
    "optim": {"mpi4py", "h5py", "horovod"},
    "distributed": {"h5py", "horovod"},
    "rundir": {"h5py", "horovod"},
    "landscape": {"horovod"},
    "train": {"h5py", "horovod"},
    "simulate": {"torch", "mpi4py", "h5py", "horovod"},
    "replay": {"h5py", "horovod"},
    "compare": {"h5py", "mpi4py", "horovod"},
    "horovod": {"h5py"},
    "adapters": {"h5py", "horovod"},
    "launch": {"torch", "h5py"},
    "tools": {"h5py"},
    "cli": {"torch", "h5py", "horovod"},
    "shell": {"torch", "h5py", "horovod"},
    "__main__": {"torch", "h5py", "horovod"},
}
ORDER = list(ROOMS)
# Imports that are forbidden although the order allows them: the mathematics is tested without MPI.
APART = {("optim", "rma"), ("optim", "trajectory"), ("landscape", "distributed"), ("train", "landscape")}


def modules():
    """Yield the name and the file of each module of the package."""
    for folder, package in ((ROOT / "lsam_hpc", "lsam_hpc"), (ROOT / "tools", "lsam_hpc.tools")):
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            if (package, parts[0]) != ("lsam_hpc", "tools"):  # a link to the other folder
                yield ".".join([package, *parts]).removesuffix(".__init__"), file


MODULES = dict(modules())
FILES = list(MODULES.values())


def imports(file):
    """Yield the dotted names of all imports in a file, also in functions and for type checkers."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            assert node.module is not None
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


def room(module):
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("module", [name for name in MODULES if name != "lsam_hpc"])
def test_imports_point_down(module):
    importer = room(module)
    for name in imports(MODULES[module]):
        top, other = name.split(".")[0], room(name)
        if top != "lsam_hpc":
            assert top not in ROOMS[importer], f"{module} imports {top}"
        elif other not in ("", importer):  # from the package itself only the version is imported
            assert ORDER.index(other) < ORDER.index(importer), f"{module} imports {name}, from a room above"
            assert (importer, other) not in APART, f"{module} imports {name}"


def test_nothing_imports_in_a_circle():
    """The modules can be ordered so that each imports from those before it only."""
    rest = {name: {other for other in imports(file) if other in MODULES} - {name} for name, file in MODULES.items()}
    while free := {name for name, needed in rest.items() if not needed & rest.keys()}:
        rest = {name: needed for name, needed in rest.items() if name not in free}
    assert not rest, f"in a circle, or importing one: {sorted(rest)}"


@pytest.mark.parametrize(
    "package", ["lsam_hpc", *(f"lsam_hpc.{room}" for room in ("optim", "rma", "trajectory", "landscape"))]
)
def test_public_names_exist_and_differ_from_module_names(package):
    # Importing a module of the same name would replace the attribute.
    loaded = importlib.import_module(package)
    assert all(getattr(loaded, name) is not None for name in loaded.__all__)
    assert not {f"{package}.{name}" for name in loaded.__all__} & MODULES.keys()


def test_modules_stay_small():
    lengths = [len(f.read_text().splitlines()) for f in FILES]
    assert max(lengths) <= 350
    assert sum(n > 300 for n in lengths) <= len(lengths) // 10


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, lsam_hpc, lsam_hpc.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    modules = set(loaded.split())
    assert not {"torch", "mpi4py", "h5py", "horovod", "matplotlib", "numpy", "tqdm"} & modules
    assert "lsam_hpc.util.version" not in modules  # it searches sys.path for the installed package


def test_the_optimizers_load_no_mpi():
    code = "import sys; from lsam_hpc import SAM; import lsam_hpc.optim; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert not {"mpi4py", "h5py", "horovod"} & set(loaded.split())


def test_options_are_checked_and_suites_run_without_mpi():
    code = "import sys, lsam_hpc.train.config, lsam_hpc.tools.bench.compare; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert "mpi4py.MPI" not in loaded.split()


def test_options_are_shown_without_torch():
    code = (
        "import sys, atexit; from lsam_hpc.cli import main; atexit.register(lambda: print(*sys.modules)); "
        "main(['train', '-h'])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert not {"torch", "mpi4py", "pandas", "matplotlib"} & set(loaded.split())
    assert "--coupling" in loaded


def test_logs_are_read_and_exported_without_torch():
    code = "import sys, lsam_hpc.landscape, lsam_hpc.tools.export; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert not {"torch", "mpi4py", "horovod", "pandas", "matplotlib"} & set(loaded.split())


def test_the_top_level_holds_no_other_files():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {line.split("/")[0] for line in listed.splitlines()}
    files = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "MANIFEST.in"}
    named = files | {"lsam_hpc", "jobs", "tests", "tools", "docs"}
    assert {name for name in top if not name.startswith(".")} <= named


def test_no_program_has_the_name_of_a_standard_module():
    """Python looks for modules in a script's folder first: `python tools/surface.py` would import tools/numbers.py."""
    names = {path.stem for folder in ("tools", "tools/bench") for path in (ROOT / folder).glob("*.py")}
    assert not names & sys.stdlib_module_names
