# make demo    the whole pipeline on drawn pictures, without a download of data
# make photo   captions of the photographs in demo/photos, or of PICTURE=file or folder, by
#              the run RUN=flickr8k: figures, and a page that shows attention word by word
# make test    the tests, or those in TESTS=
# make quick   two minutes of them, to run while working: model, decoding, tokens, options...
# make test-1.9, test-1.15, test-2   likewise, with another TensorFlow, installed in
#                                    .venv-1.9, ...
# make test-versions                 these three, one after the other
# make torture kills, full disks, bad input, fuzzing: 15 minutes, a table of faults
# make bench   speed, compared with the published design
# make bench-peers  speed, compared with PyTorch, in .venv-torch (a download of some GB)
# make bench-gpu    speed on this machine's GPU, with TensorFlow 2
# make horovod adds Horovod to .venv, for several processes; needs MPI and a C++ compiler
# make mpi     adds mpi4py and Open MPI to .venv-2: the same with TensorFlow 2, no compiler
# make lint    flake8 and codespell
# make clean   removes the demo's files and caches; make distclean: .venv too
#
# Each of them first makes .venv (tools/make_env.sh); PYTHON=/path/to/python chooses its
# Python, GPU=1 or GPU=0 the build of TensorFlow (default: the GPU build if there is a
# GPU). JOBS=4 runs that many tests at once (default 2).
PY = .venv/bin/python
JOBS ?= 2
RUN ?= flickr8k
QUICK = house options flags model decode maps grid schedule rewards consensus
export GPU PICTURE

.PHONY: help env demo photo test quick test-versions torture bench bench-peers bench-gpu horovod mpi lint clean distclean

help:
	@sed -n '/^PY/q; s/^# //p' Makefile

env:
	@./tools/make_env.sh

env-%:
	@./tools/make_env.sh $*

demo: env
	$(PY) -m demo.draw_scenes --data demo/data
	$(PY) extract_features.py --data demo/data --network efficientnet-lite2 --side 292
	$(PY) tokenize_captions.py --data demo/data
	$(PY) train.py --data demo/data --run demo @recipes/demo.txt
	$(PY) evaluate.py --run demo
	$(PY) -m demo.score_scenes --run demo
	$(PY) -m analysis.pointing --run demo
	$(PY) plot_attention.py --run demo
	$(PY) -m analysis.report --run demo

photo: env
	@$(PY) -m analysis.report --run "$(RUN)" --pictures="$${PICTURE:-demo/photos}"

# In parts: TensorFlow 1.10 keeps every function that was ever compiled in a process
test: env
	@set -- "$(TESTS)"; [ -n "$$1" ] || set -- 'tests/test_[a-e]*.py' \
		'tests/test_[f-k]*.py' 'tests/test_[l-s]*.py' 'tests/test_[t-z]*.py'; \
	status=0; for part; do \
		$(PY) -m pytest -n $(JOBS) --dist loadfile $$part || status=$$?; \
	done; exit $$status

quick: env
	@$(MAKE) --no-print-directory test TESTS="$(patsubst %,tests/test_%.py,$(QUICK))"

test-%:
	@./tools/make_env.sh $*
	.venv-$*/bin/python -m pytest -n $(JOBS) --dist loadfile $(TESTS)

test-versions: test-1.9 test-1.15 test-2

torture: env
	$(PY) -m pytest -n $(JOBS) --dist loadfile -m fault --tally -o python_files="test_*.py torture_*.py"

bench: env
	$(PY) -m benchmarks.bench

bench-peers: env
	@./tools/make_env.sh 2
	[ -x .venv-torch/bin/python ] || .venv-2/bin/python -m venv .venv-torch
	.venv-torch/bin/python -m pip install -q -r requirements/torch.txt
	$(PY) -m benchmarks.peers $(PY) .venv-2/bin/python --torch .venv-torch/bin/python

bench-gpu:
	@./tools/make_env.sh 2
	.venv-2/bin/python -m benchmarks.gpu

# Horovod finds MPI and TensorFlow while it is built. With CUDA and NCCL, have its sums
# made on the GPUs: make horovod HOROVOD_GPU_ALLREDUCE=NCCL
horovod: env
	@$(PY) -c "import sys; sys.version_info < (3, 8) or sys.exit('make horovod: Horovod \
	0.19.5 needs TensorFlow 1.x; make it with: make distclean, then make horovod \
	PYTHON=python3.6')"
	$(PY) -m pip install --no-deps -r requirements/horovod.txt
	CC=$${CC:-gcc} CXX=$${CXX:-g++} CXXFLAGS=-std=c++11 HOROVOD_WITH_TENSORFLOW=1 \
	HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITHOUT_GLOO=1 \
		$(PY) -m pip install --no-deps --no-build-isolation horovod==0.19.5
	.venv/bin/horovodrun --check-build

mpi:
	@./tools/make_env.sh 2
	.venv-2/bin/python -m pip install --no-deps -r requirements/mpi.txt

lint: env
	$(PY) -m flake8
	$(PY) -m codespell_lib

clean:
	rm -rf demo/data checkpoints/demo .pytest_cache
	find . -name __pycache__ -not -path "./.venv*" -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .venv-* .venv.*
