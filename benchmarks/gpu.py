"""Prove on a GPU what CI cannot, time it, and write gpu-report.md: `make gpu`.

    make gpu                     (MNIST=DIR takes MNIST's four files from a folder)

Each check runs the project's own commands in processes of their own. The report
is Markdown, to be pasted into docs/gpu.md or an issue. Exits with 1 if a check failed.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from runtime.environment import installed_version

STEPS = PROJECT / "benchmarks" / "steps.py"
LIMIT = 600  # seconds that one command may take; the first on a new GPU may compile for minutes
BATCHES, CPU_BATCHES = (64, 512), (8, 16)  # images a step, of the timings
# The GPU's losses against the CPU's, relative: the first, before any update; and the first ten.
# Adam's first updates are about as large for tiny gradients as for large ones, so rounding grows:
# to 1e-2 with the tutorial's learning rate, not beyond 1e-3 with a small one (docs/gpu.md).
FIRST_CLOSE, CLOSE, USUAL_CLOSE = 1e-4, 1e-3, 1e-2
SMALL_RATE = ("--learning_rate", 3e-5)
NO_GPU = "not available: no GPU is used"
# Of PyTorch's process: what starts OneFlow's Python must not reach another one.
PYTHON_VARIABLES = ("PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH")


class Failed(Exception):
    """A check that did not hold; the text says what was seen."""


class Outcome:
    """What a command printed, how it ended, and its seconds."""

    def __init__(self, process: subprocess.Popen, started: float, printed: tuple[str, str]):
        self.code, self.out, self.err = process.returncode, *printed
        self.seconds = time.perf_counter() - started

    @property
    def losses(self) -> list[float]:
        """The losses that lenet_train.py printed."""
        return [float(text) for text in re.findall(r"^\[(\S+)\]$", self.out, re.M)]


def in_a_cell(text: str) -> str:
    """Return a text as a cell of a table can hold it."""
    return " ".join(text.replace("|", "/").split())


class Report:
    """Checks, one after the other, and the Markdown that they make."""

    def __init__(self, folder: Path, options: argparse.Namespace):
        self.folder, self.options = folder, options
        self.dataset, self.mnist = folder / "digits", folder / "mnist"
        self.lines: list[str] = []
        self.num_failed = 0
        self.batches = CPU_BATCHES if options.device == "cpu" else BATCHES

    def write(self, *lines: str) -> None:
        print(*lines, sep="\n", flush=True)
        self.lines += lines

    def check(self, title: str, function) -> None:
        """Run a check, ``function(report)``, which returns a sentence or raises Failed."""
        started = time.perf_counter()
        try:
            said, verdict = function(self), "ok"
            if said.startswith("not available"):
                verdict = "–"
        except (Failed, subprocess.TimeoutExpired) as failure:
            said, verdict = str(failure), "**failed**"
        except Exception:  # go on with the others: a GPU is not always at hand
            said, verdict = traceback.format_exc().splitlines()[-1], "**failed**"
        self.num_failed += verdict == "**failed**"
        took = f"{time.perf_counter() - started:.0f} s"
        self.write(f"| {title} | {verdict} | {in_a_cell(said)} | {took} |")

    @property
    def timing_set(self) -> Path:
        """The dataset to time with: MNIST, or the 50 digits where MNIST cannot be had."""
        converted = self.mnist / "train" / "dataset.json"
        return converted.parent if converted.exists() else self.dataset

    def timed(self, *command: object, **options: str) -> dict[str, float] | str:
        """Return what steps.py measured, or in words why it did not: a table goes on."""
        try:
            return json.loads(self.run(STEPS, *command, **options).out.splitlines()[-1])
        except (Failed, subprocess.TimeoutExpired) as failure:
            self.num_failed += 1
            return f"failed: {in_a_cell(str(failure))[-200:]}"

    # -- commands --

    def start(self, *command: object, python: str = sys.executable, **environment: str):
        variables = {**os.environ, **environment}
        if python != sys.executable:
            variables = {k: v for k, v in variables.items() if k not in PYTHON_VARIABLES}
        return subprocess.Popen(
            [python, *map(str, command)],
            cwd=PROJECT,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: object, code: int = 0, **options: str) -> Outcome:
        """Run Python with a command line. Raises Failed unless it exits with ``code``."""
        started = time.perf_counter()
        process = self.start(*command, **options)
        try:
            outcome = Outcome(process, started, process.communicate(timeout=LIMIT))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        if outcome.code != code:
            end = " / ".join(outcome.err.strip().splitlines()[-3:])
            raise Failed(f"`{' '.join(map(str, command))}` exited with {outcome.code}: {end}")
        return outcome

    def train(self, *options: object, **more: Any) -> Outcome:
        """Train on the 50 digits, on the GPU unless told otherwise."""
        device = () if "--device" in options else ("--device", self.options.device)
        data = ("--dataset_dir", self.dataset)
        return self.run("lenet_train.py", *data, *device, *options, **more)


# -- checks -----------------------------------------------------------------------------


def probe(report: Report) -> str:
    if report.options.device == "cpu":
        return NO_GPU
    outcome = report.run("-c", "from lenet.device import probe_gpu as p; print(*p(), sep='\\n')")
    name, problem = outcome.out.split("\n")[:2]
    if problem:
        raise Failed(problem)
    return f"{name}; {outcome.seconds:.0f} s with the start of OneFlow"


def digits(report: Report) -> str:
    report.run("img2ofrecord.py", "--save_dir", report.dataset)
    result = report.train()
    end = max(result.losses[-10:])
    if len(result.losses) != 100 or end >= 0.05:
        raise Failed(f"{len(result.losses)} losses, the highest of the last ten {end:g}")
    few = ", ".join(f"{loss:g}" for loss in result.losses[::20])
    accuracy = re.search(r"training accuracy: (.*)", result.err)[1]
    return f"losses {few} … {result.losses[-1]:g}; training accuracy {accuracy}"


def against_cpu(report: Report, close: float, *options: object) -> str:
    """The same steps, as dropout and crops are drawn in NumPy; TF32 would round to 10 bits."""
    exact = {"ONEFLOW_EP_CUDA_ENABLE_TF32_EXECUTION": "0"}
    on_gpu = report.train("--steps", 10, *options, **exact).losses
    again = report.train("--steps", 10, *options, **exact).losses
    on_cpu = report.train("--steps", 10, *options, "--device", "cpu").losses
    first, most = apart(on_gpu[:1], on_cpu[:1]), apart(on_gpu, on_cpu)
    text = f"first loss {first:.1e} from the CPU's, ten losses at most {most:.1e} (limit {close:g})"
    text += f"; on the GPU again: at most {apart(on_gpu, again):.1e}"
    if first > FIRST_CLOSE or most > close:
        raise Failed(f"{text}: GPU {on_gpu}, CPU {on_cpu}")
    return text


def apart(losses: list[float], others: list[float]) -> float:
    """Return the largest relative difference."""
    return max(abs(one - other) / other for one, other in zip(losses, others, strict=True))


def mnist(report: Report) -> str:
    """One epoch of MNIST, and what nvidia-smi says of memory meanwhile."""
    options = report.options
    source = ("--source", options.mnist) if options.mnist else ()
    report.run("data/get_mnist.py", "--output", report.mnist, *source)
    for split in ("train", "test"):
        root, label = report.mnist / f"{split}_set", report.mnist / f"{split}_label" / "label.txt"
        out = ("--save_dir", report.mnist / split)
        report.run("img2ofrecord.py", "--image_root", root, "--label_dir", label, *out)
    data = ("--dataset_dir", report.mnist / "train", "--eval_dataset_dir", report.mnist / "test")
    run = ("--run_dir", report.folder / "run", "--epochs", 1, "--device", options.device)
    before, used, done = gpu_memory(), [], threading.Event()

    def watch():
        while not done.wait(0.5):
            used.append(gpu_memory() or 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = report.run("lenet_train.py", "--config", "configs/mnist.yaml", *data, *run)
    finally:
        done.set()
        watcher.join()
    said = re.search(r"epoch 1/1: accuracy .*\((\S+)%\), loss (\S+),", result.err)
    speed = re.search(r"in (\S+ s), (\S+) images/s", result.err)
    text = f"{said[1]} %, loss {said[2]}; {speed[1]}, {speed[2]} images/s"
    if float(said[1]) <= 98.5:
        raise Failed(text)
    more = f", {max(used) - before} MiB of GPU memory" if used and before is not None else ""
    return f"{text}; {result.seconds:.0f} s from start to end{more}"


def gpu_memory() -> int | None:
    """The memory in use on the first GPU, in MiB."""
    answer = nvidia_smi("memory.used")
    return int(answer) if answer.isdigit() else None


def resume(report: Report) -> str:
    """Ctrl-C ends it; and what a killed run did after its checkpoint is done again."""
    run = ("--run_dir", report.folder / "stopped", "--fetch_every", 1)
    data = ("--dataset_dir", report.dataset, "--device", report.options.device)
    process = report.start("lenet_train.py", *data, *run)
    read_losses(process, 25)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LIMIT)
    if process.returncode != 130 or "saved" not in err:
        raise Failed(f"Ctrl-C: exit code {process.returncode}: {err.strip().splitlines()[-1]}")

    run = ("--run_dir", report.folder / "killed", "--fetch_every", 1, "--checkpoint_every", 20)
    process = report.start("lenet_train.py", *data, *run)
    killed = read_losses(process, 35)[20:]
    process.kill()
    process.communicate()
    resumed = report.train(*run, "--resume").losses[: len(killed)]
    first, most = apart(resumed[:1], killed[:1]), apart(resumed, killed)
    if first:
        raise Failed(f"the first loss after resuming is {first:.1e} off: {resumed}, {killed}")
    return (
        f"resumed from a checkpoint of step 20: loss 21 is the same bit for bit, "
        f"losses 21 to 35 differ by at most {most:.1e}"
    )


def read_losses(process: subprocess.Popen, number: int) -> list[float]:
    """Return the first losses of a training that goes on. Raises Failed if it ends before."""
    lines = [process.stdout.readline() for _ in range(number)]
    if not lines[-1]:
        raise Failed(f"the training ended: {process.communicate()[1].strip()}")
    return [float(line.strip("[]\n")) for line in lines]


def missing_kernels(report: Report) -> str:
    """A GPU without kernels: the driver is told to ignore machine code, or PTX."""
    if report.options.device == "cpu":
        return NO_GPU
    for name in ("CUDA_FORCE_PTX_JIT", "CUDA_DISABLE_PTX_JIT"):
        result = report.train("--steps", 1, "--device", "auto", **{name: "1"})
        if "device: cuda" in result.err:
            continue  # what it has is enough
        refused = report.train("--steps", 1, code=2, **{name: "1"}).err.strip().splitlines()
        errors = [line for line in refused if "error" in line]
        if len(errors) != 1 or "cannot run on the" not in errors[0]:
            raise Failed(f"with {name}=1: {errors}")
        return f"with {name}=1: auto trains on the CPU; cuda: `{errors[0]}`"
    return "not available: this build has both machine code and PTX for the GPU"


def graph(report: Report, *amp: str) -> str:
    if amp and report.options.device == "cpu":
        return NO_GPU
    result = report.train("--graph", *amp)
    if max(result.losses[-10:]) >= 0.05:
        raise Failed(f"the last ten losses: {result.losses[-10:]}")
    return f"last loss {result.losses[-1]:g}"


def two_ranks(report: Report) -> str:
    if report.options.device != "cpu":
        code = "import oneflow; print(oneflow.cuda.device_count())"
        if int(report.run("-c", code).out) < 2:
            return "not available: two ranks need two GPUs"
    folder, launcher = report.folder / "two_parts", ("-m", "oneflow.distributed.launch")
    report.run("img2ofrecord.py", "--part_num", 2, "--save_dir", folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        launch = ("--nproc_per_node", 2, "--master_port", free.getsockname()[1], "lenet_train.py")
    device = ("--device", report.options.device)
    result = report.run(*launcher, *launch, "--dataset_dir", folder, "--batch_size", 24, *device)
    if "on 2 ranks" not in result.err or max(result.losses[-10:]) >= 0.05:
        raise Failed(f"the last ten losses: {result.losses[-10:]}")
    return f"last loss {result.losses[-1]:g}"


def predict(report: Report) -> str:
    checkpoint = report.folder / "killed" / "best.npz"  # see resume
    images = sorted((PROJECT / "data/images/train_set").iterdir())[:5]
    result = report.run("-m", "lenet.predict", "--checkpoint", checkpoint, *images)
    lines = [Path(line).name for line in result.out.splitlines()]  # 00000000_5.png: 5 (99.98%)
    right = sum(line[9] == line[15:].split()[0] for line in lines)
    if right < 4:
        raise Failed(f"{right} of {len(lines)}: {'; '.join(lines)}")
    return f"{right} of {len(lines)} digits: {'; '.join(lines)}"


# -- timings ----------------------------------------------------------------------------


def begin_table(report: Report, title: str) -> None:
    columns = " | ".join(f"batch {batch}" for batch in report.batches)
    report.write("", title, "", f"| | {columns} |", "|---|" + "---|" * len(report.batches))


def speeds(report: Report) -> None:
    """Print a table of images/s."""
    peer = report.options.peers_python
    ways = {"op by op": ("ours", ()), "as a graph": ("ours", ("--graph",))}
    ways["as a graph, in mixed precision"] = ("ours", ("--graph", "--amp"))
    ways["PyTorch, a batch in memory"] = ("pytorch", ())
    begin_table(report, "Training, images/s:")
    for name, (way, options) in ways.items():
        cells = []
        for batch in report.batches:
            if "--amp" in options and report.options.device == "cpu":
                cells.append("not available")
            elif way == "pytorch" and not peer:
                cells.append("not installed")
            else:
                python = peer if way == "pytorch" else sys.executable
                device = ("--device", report.options.device) if way == "ours" else ()
                command = (way, report.timing_set, batch, *device, *options)
                took = report.timed(*command, python=python)
                if isinstance(took, dict):
                    took = f"{took['images'] / took['seconds']:,.0f}"
                cells.append(took)
        report.write(f"| {name} | {' | '.join(cells)} |")


def parts(report: Report) -> None:
    """Print a table of what a step's parts take."""
    device = ("--device", report.options.device)
    times = [report.timed("parts", report.timing_set, batch, *device) for batch in report.batches]
    begin_table(report, "A step op by op, ms:")
    measured = next((each for each in times if isinstance(each, dict)), {"a step": 0.0})
    for name in measured:
        cells = [each if isinstance(each, str) else f"{each[name]:.2f}" for each in times]
        report.write(f"| {name} | {' | '.join(cells)} |")


def nvidia_smi(query: str) -> str:
    """Return what nvidia-smi says of the first GPU; empty where it says nothing."""
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    printed = subprocess.run(command, capture_output=True, text=True).stdout
    return printed.splitlines()[0].strip() if printed else ""


def describe_machine(report: Report) -> None:
    peer = report.options.peers_python
    gpu, driver, capability = (
        nvidia_smi(query) or "unknown" for query in ("name", "driver_version", "compute_cap")
    )
    versions = [f"OneFlow {installed_version('oneflow')}", f"Python {platform.python_version()}"]
    versions += [f"NumPy {installed_version('numpy')}"]
    if peer:
        code = "import torch; print('PyTorch', torch.__version__)"
        found = report.start("-c", code, python=peer).communicate()[0].strip()
        versions.append(found or f"no PyTorch in {Path(peer).name}")
    report.write(
        f"# GPU report: {gpu}",
        "",
        f"Compute capability {capability}, driver {driver}; {os.cpu_count()} CPU cores; "
        f"{', '.join(versions)}; --device {report.options.device}; {time.strftime('%Y-%m-%d')}.",
        "",
        "| check | | seen | took |",
        "|---|---|---|---|",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", metavar="DIR", help="folder of MNIST's four files")
    parser.add_argument("--peers_python", metavar="FILE", help="Python that has PyTorch")
    parser.add_argument("--device", default="cuda", help="cpu: to try this script without a GPU")
    parser.add_argument("--report", default="gpu-report.md", help="default: %(default)s")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        report = Report(Path(folder), options)
        try:
            describe_machine(report)
            report.check("a test step on the GPU", probe)
            if not report.num_failed:  # there is a GPU to try
                try_all(report)
            failed = report.num_failed
            report.write("", f"{failed} failed" if failed else "All that is available works.")
        finally:  # a report that was stopped is one, too
            Path(options.report).write_text("\n".join(report.lines) + "\n")
    return 1 if failed else 0


def try_all(report: Report) -> None:
    report.check("the 50 digits: the loss falls below 0.05", digits)
    title = "the first ten losses against the CPU's"
    report.check(title, lambda r: against_cpu(r, USUAL_CLOSE))
    title += f", {' '.join(map(str, SMALL_RATE))}"
    report.check(title, lambda r: against_cpu(r, CLOSE, *SMALL_RATE))
    report.check("MNIST, one epoch: above 98.5 %", mnist)
    report.check("Ctrl-C and --resume", resume)
    report.check("a GPU that OneFlow has no kernels for", missing_kernels)
    report.check("as a graph", graph)
    report.check("as a graph, in mixed precision", lambda r: graph(r, "--amp"))
    report.check("on two ranks", two_ranks)
    report.check("prediction with a model that was trained here", predict)
    speeds(report)
    parts(report)


if __name__ == "__main__":
    sys.exit(main())
