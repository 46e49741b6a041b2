# One command for each thing that one does here; each brings what it needs on a Debian 12 with Rust,
# make and a C compiler. `make demo` needs neither root nor anything that is not built here.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

TARGET := x86_64-unknown-linux-gnu
DEVICE := target/$(TARGET)/device/switchback
# Without the second flag a static binary finds no getrandom() and polls /dev/random, for minutes where entropy is rare.
STATIC := RUSTFLAGS='-C target-feature=+crt-static --cfg getrandom_backend="linux_getrandom"' cargo build --locked \
    --profile device --target $(TARGET)

help:           ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

build:          ## the command line with the author's verbs: target/debug/switchback
	cargo build --locked -p switchback

device:         ## the device's binary: static, small, without the author's verbs
	$(STATIC) --no-default-features -p switchback
	@ls -l $(DEVICE)

appliance-init:
	$(STATIC) -p switchback-appliance-init

deb: device     ## the Debian package: target/debian/switchback_VERSION_ARCHITECTURE.deb
	packaging/deb $(DEVICE) target/debian

deb-test: lab-parts device  ## the package in a fresh Debian 12: installed, used, removed, purged; needs root
	cargo test --locked -q -p switchback-tests --test package

demo:           ## the life of an update on an image file: no root, no network, no virtual machine
	cargo build --locked -p switchback -p switchback-tests --bins
	target/debug/demo target/debug/switchback

lab-parts:
	tests/tools/setup
	tests/tools/fetch cosign2 cosign3 oras systemd257 systemd262 ukify kernel61 kernel612 >/dev/null

lab: lab-parts build device

demo-boot: lab  ## the same story on a disk that firmware boots, in QEMU; shows the console
	cargo test --locked -q -p switchback-tests --test boot -- --demo

test: lab       ## everything that must pass before a change lands, a sample of the boot lab included
	cargo test --locked --workspace
	@if [ "$$(id -u)" = 0 ]; then cargo test --locked -p switchback-tests --test bound; \
	else echo "test: not root, so services in containers went untested; as root: make service-test"; fi

service-test: lab-parts  ## services moved under load, good and bad: what was sent, answered and lost; needs root
	cargo build --locked -p switchback -p switchback-tests --bins
	cargo test --locked -p switchback-tests --test services -- --test-threads 1 --nocapture
	cargo test --locked -p switchback-tests --test bound

appliance-parts: lab appliance-init
	cargo build --locked -p switchback-tests --bins

appliance: appliance-parts  ## the reference appliance: its releases and a disk; prints what they take
	cargo test --locked -q -p switchback-tests --test appliance -- --disk

appliance-tour: appliance-parts  ## the appliance in QEMU, from switched off to moved under load; needs root
	cargo test --locked -q -p switchback-tests --test appliance -- --tour

appliance-test: appliance-parts  ## the appliance moved, killed and restarted while clients ask; needs root
	cargo test --locked -q -p switchback-tests --test appliance

pay-once: lab-parts  ## an install of 1 GiB, killed twenty times: the bytes that are fetched in all
	cargo build --locked -p switchback
	cargo test --locked -p switchback-tests --test pay_once -- --nocapture

boot-test: lab  ## every scenario of the boot lab
	cargo test --locked -q -p switchback-tests --test boot -- --all

power-cut:      ## every story of an update, cut at every step: the table of crash images and broken promises
	cargo build --locked --release -p switchback
	cargo test --locked --release -q -p switchback-tests --test power_cut -- --all

power-cut-selftest: build  ## updaters with one mistake each, and the promise that catches it
	cargo test --locked -q -p switchback-tests --test power_cut -- --selftest

power-cut-mutants: build  ## single flushes taken out of the updater, and whether the simulator notices
	tests/tools/power-cut-mutants

boot-replay: lab  ## power cuts at the flushes of a recorded update: every disk read, a sample booted
	cargo test --locked -q -p switchback-tests --test boot_replay

test-all: test check power-cut-selftest boot-test boot-replay appliance-test pay-once deb-test  ## all of the above, and the checks

check:          ## format, lints, licences, the repository's own rules
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked -p switchback-tests --test boot_replay --test package --test services --test bound --test appliance --test pay_once -- -D warnings
	cargo test --locked -q -p switchback-tests --test tidy
	@if command -v cargo-deny >/dev/null; then cargo deny check bans licenses sources; \
	else echo "check: cargo-deny is not installed, so licences and bans went unchecked: cargo install cargo-deny"; fi

bench: lab-parts  ## installs and updates against the plain limit and against others: bytes, time, processor, memory; under 40 minutes
	tests/bench/tools
	cargo build --locked --release -p switchback
	tests/bench/install
	tests/bench/update
	tests/bench/growth
