"""The start of OneFlow: its matrix kernels, its noise, and what is said where it cannot start."""

import sys

import numpy as np
import pytest
from helpers import PROJECT, assert_one_error, cases, losses, run_python, run_script

FLAGS = set(open("/proc/cpuinfo").read().split())
KERNELS = """
import os, sys
import lenet_train
print(os.environ["OPENBLAS_CORETYPE"], file=sys.stderr)
lenet_train.run_main(lenet_train.main)
"""


@pytest.mark.skipif(not {"avx2", "fma"} <= FLAGS, reason="no AVX2 and FMA here")
def test_losses_are_those_of_the_oldest_kernels(converted):
    """OneFlow's OpenBLAS is older than the CPUs that it runs on, and old kernels on new CPUs can be wrong.

    So those that are chosen are compared with those for CPUs that it does not know, which
    somebody chose himself; with odd sizes.
    """
    options = ["--dataset_dir", converted, "--device", "cpu", "--steps", 10, "--batch_size", 7]
    ours, oldest = (
        run_python("-c", KERNELS, *options, "--image_size", 19, env=env)
        for env in ({}, {"OPENBLAS_CORETYPE": "Prescott"})
    )
    assert ours.err.startswith("Haswell\n") and oldest.err.startswith("Prescott\n"), ours
    assert len(losses(ours)) == 10
    np.testing.assert_allclose(losses(ours), losses(oldest), rtol=1e-5)


def test_what_ends_the_import_of_oneflow_is_shown(tmp_path):
    """OneFlow's noise while it is imported is not shown, its last words are."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "class Abort:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'oneflow.framework.session_context':\n"
        "            os.write(2, b'F1126 Check failed: this machine\\n')\n"
        "            os.abort()\n"
        "sys.meta_path.insert(0, Abort())\n"
    )
    result = run_script("lenet_train.py", env={"PYTHONPATH": str(tmp_path)})
    assert result.code == -6 and result.err == "F1126 Check failed: this machine\n", result


@pytest.mark.parametrize("megabytes", cases([1000], [200, 3000]))
def test_too_little_memory_to_start(megabytes):
    """It is not said that something has to be installed."""
    words = ["sh", sys.executable, PROJECT / "lenet_train.py"]
    result = run_python("-c", f'ulimit -v {megabytes}000; exec "$@"', *words, python="/bin/sh")
    assert_one_error(result, "ulimit -v")
    assert "make train" not in result.err and "pip" not in result.err, result
