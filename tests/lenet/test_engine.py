"""The start of OneFlow: its matrix kernels, its noise, and what is said where it cannot start.

OneFlow's OpenBLAS is older than the CPUs that it runs on, and old kernels on new CPUs can be
wrong: those that lenet/engine.py chooses compute what NumPy does, and what OpenBLAS's own do.
"""

import json
import sys

import pytest
from helpers import PROJECT, assert_one_error, cases, run_python, run_script

FLAGS = set(open("/proc/cpuinfo").read().split())
haswell = pytest.mark.skipif(not {"avx2", "fma"} <= FLAGS, reason="no AVX2 and FMA here")
OLDEST = "Prescott"  # what OpenBLAS takes for CPUs that it does not know

# Sums of products at LeNet's sizes, forward and backward; printed as JSON, with what NumPy's
# float64 gives for each.
PRODUCTS = """
import json, os, sys
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view as windows
from lenet.engine import flow
functional = flow.nn.functional
rng = np.random.default_rng(0)
print(json.dumps(os.environ["OPENBLAS_CORETYPE"]))
def compare(name, ours, exact):
    scale = np.abs(exact).max()
    print(json.dumps([name, float(np.abs(ours.numpy() - exact).max() / scale)]))
for n, inner, outer in ((25, 3136, 512), (64, 512, 10), (1, 3136, 512), (7, 33, 5)):
    x, w = rng.standard_normal((n, inner)), rng.standard_normal((outer, inner))
    a, b = (flow.tensor(v.astype("f4"), requires_grad=True) for v in (x, w))
    functional.linear(a, b).sum().backward()
    compare(f"linear {n}x{inner}x{outer}", functional.linear(a, b).detach(), x @ w.T)
    compare("its inputs' gradient", a.grad, np.ones((n, outer)) @ w)
    compare("its weights' gradient", b.grad, np.ones((outer, n)) @ x)
for n, inner, outer, side in ((25, 1, 32, 28), (25, 32, 64, 14), (2, 3, 32, 31)):
    x, w = rng.standard_normal((n, inner, side, side)), rng.standard_normal((outer, inner, 5, 5))
    g = rng.standard_normal((n, outer, side, side))
    a, b = (flow.tensor(v.astype("f4"), requires_grad=True) for v in (x, w))
    y = functional.conv2d(a, b, padding=2)
    (y * flow.tensor(g.astype("f4"))).sum().backward()
    pad = lambda v: windows(np.pad(v, ((0, 0), (0, 0), (2, 2), (2, 2))), (5, 5), (2, 3))
    compare(f"conv {inner}x{outer}", y.detach(), np.einsum("nchwij,ocij->nohw", pad(x), w, optimize=True))
    compare("its weights' gradient", b.grad, np.einsum("nohw,nchwij->ocij", g, pad(x), optimize=True))
    turned = w[:, :, ::-1, ::-1]
    compare("its inputs' gradient", a.grad, np.einsum("nohwij,ocij->nchw", pad(g), turned, optimize=True))
"""


@pytest.mark.parametrize(
    "kernels", [pytest.param(None, marks=haswell), pytest.param(OLDEST, marks=pytest.mark.slow)]
)
def test_products_are_numpys(kernels):
    """With the kernels that are chosen, and with those that somebody chose himself."""
    result = run_python("-c", PRODUCTS, env={"OPENBLAS_CORETYPE": kernels} if kernels else {})
    chosen, *errors = [json.loads(line) for line in result.out.splitlines()]
    assert chosen == (kernels or "Haswell") and len(errors) == 21, result
    for name, error in errors:
        assert error < 2e-6, (name, error)


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


def test_python_without_asserts():
    text = "OneFlow needs Python's assert statements: start python without -O (PYTHONOPTIMIZE)"
    assert_one_error(run_python("-O", "lenet_train.py"), text)
    assert_one_error(run_script("lenet_train.py", env={"PYTHONOPTIMIZE": "1"}), text)
