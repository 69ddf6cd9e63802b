# make train   convert the 50 digits to a dataset and train LeNet on it
# make mnist   download MNIST, convert it and train LeNet to 99.4 %; resumes a run that was stopped
# make test    run the fast tests: five minutes at most
# make test-all   run all tests: a quarter of an hour
# make gpu     run only the tests that need a GPU
# make lint    check the code's style with ruff
# make bench   compare the speed of img2ofrecord.py with other converters
# make bench-load   compare the speed of reading a dataset with other loaders
# make bench-train  compare training steps: op by op, as a graph, on two ranks, in PyTorch
# make clean   remove the datasets and caches made by these, but not .venv, runs/ and data/mnist/
#
# Each of them first sets up .venv with Python 3.8 to 3.10, once (tools/venv.sh).
# MNIST=DIR reads MNIST's four .gz files from a folder instead of downloading them; the
# benchmarks use MNIST only with it.

PYTHON_RUN = .venv/bin/python
PYTEST = $(PYTHON_RUN) -m pytest --durations=10

.PHONY: train mnist test test-slow test-all lint gpu picture bench bench-load bench-train venv venv-test clean

train: venv
	$(PYTHON_RUN) img2ofrecord.py
	$(PYTHON_RUN) lenet_train.py

mnist: venv
	$(PYTHON_RUN) data/get_mnist.py $(if $(MNIST),--source $(MNIST))
	for split in train test; do \
	  $(PYTHON_RUN) img2ofrecord.py --image_root data/mnist/$${split}_set/ --label_dir data/mnist/$${split}_label/label.txt \
	    --save_dir data/mnist/$${split}_dataset/ || exit; \
	done
	$(PYTHON_RUN) lenet_train.py --config configs/mnist.yaml $(if $(wildcard runs/mnist/config.yaml),--resume)

test: venv-test
	$(PYTEST) -m "not slow"

test-slow: venv-test
	$(PYTEST) -m slow

test-all: venv-test
	$(PYTEST)

gpu: venv-test
	$(PYTEST) -m gpu -rs

lint: venv-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check tests

picture: venv  # the README's
	$(PYTHON_RUN) img2ofrecord.py
	$(PYTHON_RUN) lenet_train.py --device cpu --picture data/tutorial.png

bench: venv .venv-peers/ready
	$(PYTHON_RUN) benchmarks/convert.py --peers_python .venv-peers/bin/python $(if $(MNIST),--mnist $(MNIST)) $(BENCH)

bench-load: venv .venv-peers/ready
	$(PYTHON_RUN) benchmarks/load.py --peers_python .venv-peers/bin/python $(if $(MNIST),--mnist $(MNIST)) $(BENCH)

bench-train: venv .venv-peers/ready
	$(PYTHON_RUN) benchmarks/train.py --peers_python .venv-peers/bin/python $(if $(MNIST),--mnist $(MNIST)) $(BENCH)

.venv-peers/ready: benchmarks/requirements.txt  # any Python that the peers' packages have wheels for
	$(or $(PEERS_PYTHON),python3) -m venv --clear .venv-peers
	.venv-peers/bin/python -m pip install -q --disable-pip-version-check -r benchmarks/requirements.txt
	touch $@

venv:
	@sh tools/venv.sh requirements.txt

venv-test:
	@sh tools/venv.sh requirements.txt tests/requirements.txt

clean:
	rm -rf dataset dataset_val dataset_4 .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
