# What a developer or an operator types. Everything that takes long is kept by the content of what it was
# made from, in $FALCON_CACHE (~/.cache/falcon), so a second run is quick.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
# As it was typed: no dollar of it is for make.
SOFTROCE_COMMAND := $(value CMD)
export SOFTROCE_COMMAND
export FALCON_CACHE ?= $(HOME)/.cache/falcon

.DEFAULT_GOAL := help
.PHONY: help setup build images check format test test-softroce softroce demo demo-divergence sim bench-fabric bench-log bench-vm bench-transfer clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '  make %-15s %s\n' "$$name" "$$text"; done

setup: ## install Debian packages and npm packages that are missing
	@cluster/setup

build: setup ## compile the native addon, its test programs and all TypeScript
	@cluster/build/addon >/dev/null
	@cluster/build/typescript

images: setup ## build the patched QEMU and the guest image
	@cluster/qemu/build >/dev/null
	@cluster/guest/build >/dev/null

check: build ## format, lint, types and layers, in seconds
	@cluster/build/check

format: setup ## rewrite all sources in the project's format
	@npx --no-install prettier --log-level warn --write .
	@find native test/native -not -path 'native/qemu/*' \( -name '*.h' -o -name '*.cc' -o -name '*.c' \) -print0 | xargs -0 -r clang-format -i --style=file:native/.clang-format

test: check images ## run all tests: TYPES="unit golden" for some of them
	@if [[ -z '$(TYPES)' || ' $(TYPES) ' == *' qemu '* ]]; then cluster/setup test/packages; fi
	@if [[ -z '$(TYPES)' || ' $(TYPES) ' == *' softroce '* ]]; then cluster/setup cluster/softroce/test-packages || echo 'softroce: not all packages; its tests are skipped' >&2; fi
	@cluster/build/run-tests $(TYPES)

test-softroce: build ## run only the tests on soft-RoCE, and skip none
	@cluster/setup cluster/softroce/test-packages
	@FALCON_SOFTROCE=required cluster/build/run-tests softroce

softroce: ## run CMD='...' on a machine with RDMA devices (soft-RoCE): OUT=folder that it may write
	@cluster/setup cluster/softroce/test-packages
	@cluster/softroce/run $(if $(OUT),--out '$(OUT)') $(if $(SOFTROCE_COMMAND),-- "$$SOFTROCE_COMMAND",--help)

demo: build images ## kill the primary under a client: SEED= IDLE= KILLS= HOSTS= JSON=1
	@cluster/demo/run

demo-divergence: build images ## flip a bit in a backup's memory under a client: SEED= JSON=1 LOGS=
	@cluster/demo/run divergence

sim: build ## simulate whole clusters: SEEDS=1000 or SEED=17
	@node dist/test/sim/main.js

bench-fabric: build ## one-sided writes and commits of each fabric, beside floors: FABRICS="shm tcp verbs"
	@cluster/setup bench/packages cluster/softroce/test-packages
	@node dist/bench/fabric.js

bench-log: build ## latency and throughput of the log, beside floors
	@node dist/bench/log.js

bench-vm: build images ## Redis in a VM: alone, with one replica, with three
	@cluster/setup bench/packages
	@node dist/bench/vm.js

bench-transfer: build images ## state transfer: bytes, pause and what the client notices, beside all dirty pages
	@cluster/setup bench/packages
	@node dist/bench/transfer.js

clean: ## remove what was built here; the cache stays
	@rm -rf dist build .tap
