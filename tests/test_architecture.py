"""Imports point down: cli -> train, tools -> distributed -> links -> groups, topology -> exchange -> optim, rma."""

import ast
import subprocess
import sys

import pytest

from tests.helpers.mpis import ROOT

# room -> (rooms of lsam_hpc that it may import, other packages that it may not)
RULES = {
    "errors": (set(), {"torch", "numpy", "mpi4py", "h5py", "horovod"}),
    "arguments": ({"errors"}, {"torch", "numpy", "mpi4py", "h5py", "horovod"}),
    "lazy": (set(), {"torch", "numpy", "mpi4py", "h5py", "horovod"}),
    "text": (set(), {"torch", "numpy", "mpi4py", "h5py", "horovod"}),
    "files": ({"errors"}, {"torch", "numpy", "mpi4py", "h5py", "horovod"}),
    "optionfile": ({"errors"}, {"torch", "numpy", "mpi4py", "h5py", "horovod"}),
    "rundir": ({"errors"}, {"torch", "numpy", "mpi4py", "h5py", "horovod"}),
    "optim": ({"errors", "lazy"}, {"mpi4py", "h5py", "horovod"}),
    "rma": ({"errors", "lazy"}, {"torch", "h5py", "horovod"}),
    "trajectory": ({"errors", "files", "lsam_hpc"}, {"torch", "mpi4py", "horovod"}),
    "landscape": ({"errors", "files", "trajectory", "optim", "rma"}, {"horovod"}),
    "exchange": ({"errors", "optim", "rma"}, {"h5py", "horovod"}),
    "topology": ({"optim", "rma", "exchange"}, {"h5py", "horovod"}),
    "groups": ({"errors", "optim", "rma", "exchange", "linkoptions"}, {"h5py", "horovod"}),
    "linkoptions": ({"errors", "optim", "rma"}, {"mpi4py", "h5py", "horovod"}),
    "links": ({"optim", "rma", "exchange", "topology", "linkoptions", "groups"}, {"h5py", "horovod"}),
    "distributed": ({"errors", "optim", "rma", "linkoptions", "links"}, {"h5py", "horovod"}),
    "logoptions": ({"errors", "trajectory"}, {"torch", "mpi4py", "h5py", "horovod"}),
    "runlog": ({"optim", "trajectory", "sketches", "distributed", "logoptions"}, {"h5py", "horovod"}),
    "train": (
        {
            "errors",
            "arguments",
            "text",
            "optionfile",
            "preflight",
            "rundir",
            "optim",
            "rma",
            "runlog",
            "trajectory",
            "linkoptions",
            "logoptions",
            "distributed",
        },
        {"h5py", "horovod"},
    ),
    "horovod": (
        {
            "errors",
            "optionfile",
            "preflight",
            "rundir",
            "optim",
            "rma",
            "runlog",
            "linkoptions",
            "logoptions",
            "distributed",
        },
        {"h5py"},
    ),
    "compare": ({"errors", "files", "optionfile", "trajectory", "landscape", "train"}, {"h5py", "mpi4py", "horovod"}),
    "simulate": ({"errors", "optionfile", "trajectory"}, {"torch", "mpi4py", "h5py", "horovod"}),
    "replay": ({"errors", "text", "optim", "train", "simulate"}, {"h5py", "horovod"}),
    "preflight": ({"errors"}, {"torch", "numpy", "h5py", "horovod"}),
    "launch": (
        {"errors", "arguments", "text", "optionfile", "preflight", "rma", "horovod", "lsam_hpc"},
        {"torch", "h5py"},
    ),
    "tools": (
        {
            "errors",
            "preflight",
            "arguments",
            "text",
            "files",
            "trajectory",
            "landscape",
            "optim",
            "rma",
            "distributed",
            "horovod",
            "train",
            "tools",
            "sketches",
            "compare",
            "optionfile",
            "simulate",
            "replay",
        },
        {"h5py"},
    ),
    "sketches": ({"trajectory"}, {"mpi4py", "h5py", "horovod"}),
    "cli": ({"errors", "arguments", "preflight", "lsam_hpc"}, {"torch", "h5py", "horovod"}),
    "__main__": ({"cli"}, {"torch", "h5py", "horovod"}),
    "__init__": ({"errors", "lazy", "optim", "distributed"}, {"h5py", "horovod"}),
}
FILES = sorted([*(ROOT / "lsam_hpc").rglob("*.py"), *(ROOT / "tools").glob("*.py")])


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_down(file):
    parts = file.relative_to(ROOT).parts
    room = parts[0] if parts[0] == "tools" else parts[1].removesuffix(".py")
    allowed, forbidden = RULES[room]
    for node in ast.walk(ast.parse(file.read_text())):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            modules = [node.module] if node.module != "lsam_hpc" else [f"lsam_hpc.{a.name}" for a in node.names]
        for module in modules:
            top, *rest = module.split(".")
            if top == "lsam_hpc":
                target = rest[0] if rest else "lsam_hpc"
                assert target == room or target in allowed, f"{room} imports {target}"
            else:
                assert top not in forbidden, f"{room} imports {top}"


def test_modules_stay_small():
    lengths = [len(f.read_text().splitlines()) for f in FILES]
    assert max(lengths) <= 350
    assert sum(n > 300 for n in lengths) <= len(lengths) // 10


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, lsam_hpc, lsam_hpc.cli; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert not {"torch", "mpi4py", "h5py", "horovod", "matplotlib", "numpy"} & set(loaded.split())


def test_the_optimizers_load_no_mpi():
    code = "import sys; from lsam_hpc import SAM; import lsam_hpc.optim; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert not {"mpi4py", "h5py", "horovod"} & set(loaded.split())


def test_options_are_checked_and_suites_run_without_mpi():
    code = "import sys, lsam_hpc.train.config, lsam_hpc.tools.bench_compare; print(*sys.modules)"
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


def test_the_top_level_holds_what_the_design_says():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {line.split("/")[0] for line in listed.splitlines()}
    named = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "lsam_hpc", "jobs", "tests", "tools", "docs"}
    assert {name for name in top if not name.startswith(".")} <= named


def test_one_version():
    import lsam_hpc

    assert f'version = "{lsam_hpc.__version__}"' in (ROOT / "pyproject.toml").read_text()
