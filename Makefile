# SPDX-License-Identifier: MIT
# Thin: Meson builds, scripts/ does the rest. BUILD names the build directory.
BUILD ?= build

.PHONY: all install install-compat demo test fuzz soak bench clean

all: $(BUILD)/build.ninja
	ninja -C $(BUILD)

$(BUILD)/build.ninja:
	scripts/install-packages build
	meson setup $(BUILD)

# PREFIX, where given, is that of the build folder from then on (as with meson configure -Dprefix=...); DESTDIR is honoured.
install: all
	$(if $(PREFIX),meson configure $(BUILD) -Dprefix=$(PREFIX) && ninja -C $(BUILD))
	meson install -C $(BUILD) --no-rebuild

# Links qemu-img, qemu-io and qemu-storage-daemon beside the installed varve; what is there already is not replaced.
install-compat:
	scripts/install-compat $(BUILD)

# Installs what is missing, builds, serves a disk, loads it, checks it. Under three minutes.
demo: all
	scripts/install-packages demo
	VARVE_BUILD=$(CURDIR)/$(BUILD) scripts/demo

# Installs what the tests need, builds all variants, runs everything. The last line counts.
test:
	scripts/install-packages test
	scripts/run-tests --build $(BUILD)

# The fuzzers, each for SECONDS, with sanitizers, from where the last run ended: the long form of what 'test' does for seconds.
SECONDS ?= 300
fuzz:
	scripts/install-packages test
	[ -f $(BUILD)-fuzz/build.ninja ] || CC=clang meson setup $(BUILD)-fuzz -Dfuzzers=true -Dtests=disabled -Db_lundef=false
	ninja -C $(BUILD)-fuzz
	tests/fuzz/run --build $(BUILD)-fuzz --seconds $(SECONDS)

# The tests that draw lots, with new seeds each time, for MINUTES; 'test' uses the same seeds in every run.
MINUTES ?= 60
soak: all
	scripts/install-packages test
	scripts/soak --build $(BUILD) --minutes $(MINUTES)

# Us and our peers on the same files, side by side.
bench: all
	scripts/install-packages bench
	VARVE_BUILD=$(CURDIR)/$(BUILD) bench/run
	VARVE_BUILD=$(CURDIR)/$(BUILD) bench/order
	VARVE_BUILD=$(CURDIR)/$(BUILD) bench/cor
	VARVE_BUILD=$(CURDIR)/$(BUILD) bench/convert
	VARVE_BUILD=$(CURDIR)/$(BUILD) bench/aio

clean:
	rm -rf $(BUILD) $(BUILD)-asan $(BUILD)-tsan $(BUILD)-clang $(BUILD)-fuzz
