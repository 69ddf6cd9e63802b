# make train   make the dataset from the 50 digits and train LeNet on it
# make venv    only set up .venv, which the other targets do first
# make mnist   download MNIST, make datasets of it and train LeNet to 99.46 %; continues a run that was stopped
# make test    run the tests that are quick: two minutes
# make test-all   run all tests: ten minutes
# make gpu     test and time the training on a GPU
# make picture   draw the pictures of README and docs again, those of MNIST excepted
# make lint    check the code's style with ruff
# make constraints   pin what the requirements files bring along; UPGRADE=1 takes the newest of it
# make bench-growth  time it with more and more images, parts and workers
# make bench   time img2ofrecord.py against other ways (with MNIST=DIR on its images)
# make bench-load   time reading a dataset against other ways
# make bench-train  time training steps: op by op, as a graph, on two ranks, in PyTorch
# make clean   remove the datasets and caches that these made, not .venv, runs/ and data/mnist/
#
# The last three compare with other libraries (4 GB in .venv-peers) unless PEERS=no is given.
# MNIST=DIR takes MNIST's four .gz files from a folder instead of downloading them.
# .venv is set up with Python 3.10, once (tools/venv.sh).

PYTHON_RUN = .venv/bin/python
TWO_RANKS = -m oneflow.distributed.launch --nproc_per_node 2
# Without a GPU, two processes train 1.6 times as fast as one, which uses one core.
ONE_RANK = $(or $(wildcard /dev/nvidia* /dev/dxg),$(filter 1,$(shell nproc)))
PYTEST = $(PYTHON_RUN) -m pytest --durations=10
ON_TWO_CORES = -n 2 --dist loadfile

PEERS_READY = $(if $(filter no,$(PEERS)),,.venv-peers/ready)
BENCH_OPTIONS = $(if $(PEERS_READY),--peers_python .venv-peers/bin/python) $(if $(MNIST),--mnist "$$MNIST") $(BENCH)

.PHONY: train mnist test test-slow test-all lint gpu picture bench bench-growth bench-load bench-train venv venv-test constraints clean

train: venv
	$(PYTHON_RUN) img2ofrecord.py
	$(PYTHON_RUN) lenet_train.py

mnist: venv
	$(PYTHON_RUN) data/get_mnist.py $(if $(MNIST),--source "$$MNIST")
	for split in train test; do \
	  $(PYTHON_RUN) img2ofrecord.py --image_root data/mnist/$${split}_set/ --label_dir data/mnist/$${split}_label/label.txt \
	    --save_dir data/mnist/$${split}_dataset/ --part_num 4 || exit; \
	done
	OMP_NUM_THREADS=1 $(PYTHON_RUN) $(if $(ONE_RANK),,$(TWO_RANKS)) lenet_train.py \
	  $(if $(wildcard runs/mnist/config.yaml),--run_dir runs/mnist --resume,--config configs/mnist.yaml)

test: venv-test
	$(PYTEST) $(ON_TWO_CORES) -m "not slow"

test-slow: venv-test
	$(PYTEST) $(ON_TWO_CORES) -m slow

test-all: venv-test
	$(PYTEST) $(ON_TWO_CORES)

gpu: venv-test
	$(PYTHON_RUN) -m lenet.device
	$(PYTEST) -m gpu -rs
	$(PYTHON_RUN) benchmarks/train.py $(if $(wildcard .venv-peers/ready),--peers_python .venv-peers/bin/python) \
	  $(if $(MNIST),--mnist "$$MNIST") $(BENCH)

lint: venv-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

picture: venv
	$(PYTHON_RUN) img2ofrecord.py
	rm -rf runs/tutorial
	$(PYTHON_RUN) lenet_train.py --device cpu --run_dir runs/tutorial
	for name in loss predictions; do cp runs/tutorial/$$name.png data/tutorial_$$name.png || exit; done
	$(PYTHON_RUN) tools/pictures.py

bench: venv $(PEERS_READY)
	$(PYTHON_RUN) benchmarks/convert.py $(BENCH_OPTIONS)

bench-growth: venv
	$(PYTHON_RUN) benchmarks/growth.py $(if $(MNIST),--mnist "$$MNIST") $(BENCH)

bench-load: venv $(PEERS_READY)
	$(PYTHON_RUN) benchmarks/load.py $(BENCH_OPTIONS)

bench-train: venv $(PEERS_READY)
	$(PYTHON_RUN) benchmarks/train.py $(BENCH_OPTIONS)

.venv-peers/ready: benchmarks/requirements.txt  # any Python that the peers' packages have wheels for
	$(or $(PEERS_PYTHON),python3) -m venv --clear .venv-peers
	.venv-peers/bin/python -m pip install -q --disable-pip-version-check -r benchmarks/requirements.txt
	touch $@

venv:
	@sh tools/venv.sh requirements.txt

venv-test:
	@sh tools/venv.sh requirements.txt tests/requirements.txt

constraints:  # after a change in a requirements file; its uv is there after any `make test`
	UV_CUSTOM_COMPILE_COMMAND="make constraints" .venv/bin/uv pip compile -q --python-version 3.10 \
	  --annotation-style line $(if $(UPGRADE),--upgrade) -o constraints.txt requirements.txt tests/requirements.txt

clean:
	rm -rf dataset dataset_val dataset_test dataset_4 dataset_jobs exported_dataset shapes shapes.csv shapes_val shapes_test \
	  classes.txt sets digits merged exported split split_val jpeg zoo foreign damaged lenet.onnx .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -not -path './.uv/*' -prune -exec rm -rf {} +
