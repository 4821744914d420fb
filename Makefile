# Everything runs inside .venv, made on first use. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
# The release the project is tested with; any torch >= 2.10 works.
TORCH ?= torch==2.13.0
# Built against one release, the wheel must run under others: a newer one, and a CUDA build.
OTHER_TORCH ?= torch==2.14.1
EXTRAS ?= demo,test,dev
DEMO ?=
BENCH ?= --quick
FUZZ ?= 1000000
PART ?= all
GPU_CHECK ?=

bin := $(VENV)/bin
installed := $(VENV)/.installed
other := build/other-torch

.PHONY: help install demo seeds test test-wheel lint format bench fuzz gpu-check clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    train ResNet-32 on digits, dense and with NEq    (DEMO='--epochs 8' for options)"
	@echo "make seeds   final accuracy, dense and with NEq, over three seeds"
	@echo "make test    everything that runs without a GPU"
	@echo "make test-wheel   the wheel, under another torch and a CUDA build (6 GB in build/)"
	@echo "make lint    ruff, mypy, clang-format"
	@echo "make bench   microbenchmarks on this machine                  (BENCH= for the full suite)"
	@echo "make fuzz    the C ABI on FUZZ random inputs, under the sanitizers    (FUZZ=1000000)"
	@echo "make gpu-check   build, test, measure on the NVIDIA GPU here       (PART=plan says what)"
	@echo "make clean   remove $(VENV) and build/"

install: $(installed)

$(installed): pyproject.toml setup.py CMakeLists.txt $(shell find cmake csrc python -type f)
	test -x $(bin)/python || $(PYTHON) -m venv $(VENV)
	$(bin)/python -m pip install --quiet "$(TORCH)"
	$(bin)/python -m pip install --quiet --upgrade setuptools wheel cmake ninja pybind11
	$(bin)/python -m pip install --quiet --no-build-isolation --editable ".[$(EXTRAS)]"
	touch $@

demo: $(installed)
	$(bin)/python -m examples.train_digits $(DEMO)

seeds: $(installed)
	$(bin)/python -m examples.seeds --seeds 1 2 3 $(DEMO)

test: $(installed)
	$(bin)/python -m pytest

# The tests lie apart from the sources, so that they import what is installed. Left out are those
# of the source tree, and those that mostly wait for other programs.
test-wheel: $(installed)
	rm -rf build/lib* build/wheel $(other)/tests-of-wheel
	$(bin)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build/wheel .
	test -x $(other)/bin/python || $(PYTHON) -m venv $(other)
	$(other)/bin/python -m pip install --quiet "$(OTHER_TORCH)" "$$(echo build/wheel/*.whl)[test]"
	$(other)/bin/python -m pip install --quiet --no-deps --force-reinstall build/wheel/*.whl
	mkdir $(other)/tests-of-wheel
	cp -R tests bench examples docs csrc Makefile pyproject.toml README.md $(other)/tests-of-wheel
	cd $(other)/tests-of-wheel && ../bin/python -m neq_kernels && ../bin/python -m pytest \
	    $(addprefix --ignore=tests/test_,architecture.py bench.py build.py examples.py wheel.py \
	        triton_compilations.py triton_conv_aot.py triton_interpreted.py triton_linear_aot.py)

lint: $(installed)
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/mypy
	$(bin)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

format: $(installed)
	$(bin)/ruff format .
	$(bin)/ruff check --fix .
	$(bin)/clang-format -i $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

bench: $(installed)
	$(bin)/python -m bench $(BENCH)

# With clang's libFuzzer, where there is one: it keeps the inputs that reach new code and changes
# them further. Otherwise the inputs are random.
fuzz: $(installed)
	if echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }' | \
	    clang++ -fsanitize=fuzzer,address -x c++ - -o /dev/null 2>/dev/null; \
	then echo "make fuzz: clang's libFuzzer"; \
	    export CXX=clang++; build=build/fuzz; on=ON; runs="-max_len=512 -runs="; \
	else echo "make fuzz: no clang with libFuzzer; random inputs"; \
	    build=build/cpp; on=OFF; runs=; \
	fi; \
	fuzzers="$(patsubst tests/cpp/fuzz/%.cpp,fuzz_%,$(wildcard tests/cpp/fuzz/*.cpp))"; \
	$(bin)/cmake -S tests/cpp -B $$build -G Ninja -DNEQ_LIBFUZZER=$$on \
	    -DCMAKE_MAKE_PROGRAM=$(abspath $(bin)/ninja) && \
	$(bin)/cmake --build $$build --target $$fuzzers && \
	for fuzzer in $$fuzzers; do $$build/$$fuzzer $${runs}$(FUZZ) || exit 1; done

# With PYTHON as it is, its torch and its tools; nothing is downloaded. Ends with 2 where the time of
# a part (GPU_CHECK='--seconds 470') was up first: the same command goes on. COMMIT=... where there
# is no git.
gpu-check:
	$(PYTHON) -m bench.gpu --part $(PART) $(GPU_CHECK)

clean:
	rm -rf $(VENV) build *.egg-info neq_kernels/*.so
