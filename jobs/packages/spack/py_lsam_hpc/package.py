# lsam-hpc for Spack 1.x: copy the folder py_lsam_hpc into packages/ of a repository of your own (`spack repo create`).
#
# lsam-hpc has no release yet: the checksum is a placeholder. Spack has no package for simpy (lsam simulate) and
# pytorch-optimizer (LARS, LAMB): pip install them into a virtual environment on top, if you use them.
from spack.package import *
from spack_repo.builtin.build_systems.python import PythonPackage


class PyLsamHpc(PythonPackage):
    """Landscape-Smoothed SAM on MPI: sharpness-aware training of PyTorch models by chains that meet asynchronously."""

    pypi = "lsam-hpc/lsam_hpc-0.1.0.tar.gz"

    license("Apache-2.0")

    version("0.1.0", sha256="0000000000000000000000000000000000000000000000000000000000000000")

    variant("train", default=True, description="What lsam train needs")
    variant("analysis", default=True, description="Figures, diagnosis, reports, export")

    depends_on("py-setuptools@77:", type="build")
    depends_on("py-setuptools-scm@8:", type="build")

    with default_args(type=("build", "run")):
        depends_on("python@3.10:")
        depends_on("py-torch@2.4:")
        depends_on("py-numpy@1.26:")
        depends_on("py-mpi4py@4:")
        depends_on("py-h5py@3.10:")
        depends_on("py-tqdm@4.66:")

    with default_args(type="run"):
        with when("+train"):
            depends_on("py-pillow@10:")
            depends_on("py-pyyaml@6:")
            depends_on("py-tomli@2:", when="^python@:3.10")
            depends_on("py-ml-dtypes@0.4:")
        with when("+analysis"):
            depends_on("py-matplotlib@3.8:")
            depends_on("py-pandas@2:")
            depends_on("py-xarray@2024.1:")
            depends_on("py-hdf5plugin@4.4:")
            depends_on("py-pyarrow@15:")
            depends_on("py-tensorboard@2.15:")
            depends_on("py-arviz@0.20:0")
            depends_on("py-plotly@5.20:")
            depends_on("py-jinja2@3.1:")

    import_modules = ["lsam_hpc", "lsam_hpc.rma", "lsam_hpc.trajectory"]
