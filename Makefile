.PHONY: help setup demo test test-more judge soak scenarios sweep bench regimes picture check
.DEFAULT_GOAL := help

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 11

setup: ## install what is missing: PostgreSQL's and Redis's programs, curl, a linker
	@scripts/setup

demo: ## run the load test and show what the pool does; options in ARGS="..."
	@scripts/setup demo
	@echo "The first build takes a few minutes."
	cargo run --release --quiet --example load_test --features axum -- $(ARGS)

scenarios: ## play the scenarios on virtual time and judge the controllers; options in ARGS="..."
	@echo "The first build takes a few minutes; the scenarios less than five."
	cargo run --release --quiet --example scenarios -- $(ARGS)

sweep: ## play scenarios drawn at random and report how regret and harm are distributed; options in ARGS="..."
	@echo "The first build takes a few minutes; a thousand scenarios another ten."
	cargo run --release --quiet --example scenarios -- sweep $(ARGS)

test: setup ## run the tests: all but the few of test-more
	cargo test --all-features

# Each of these takes over ten seconds, or needs more than PostgreSQL, Redis and curl; `test = false` in Cargo.toml.
MORE := --test cancel --test commit_patience --test load_test --test model --test pgbouncer --test soak

test-more: ## run the tests that take longer or need more programs, such as PgBouncer
	@scripts/setup more
	cargo test --all-features $(MORE)
	$(MAKE) judge

# Optimised: what a debug build plays in these minutes is not worth playing. The seeds are none that the law was tuned on.
judge: ## the named scenarios and forty drawn at random, held to what the default law loses now
	cargo run --release --quiet --example scenarios -- --controllers adaptive
	cargo run --release --quiet --example scenarios -- sweep --scenarios 40 --seed 3000000 --controllers adaptive,queue_depth \
		--at-most 7.5 3.5

soak: setup ## five minutes of load and random faults; SOAK_SECONDS=... for another length
	SOAK_SECONDS=$${SOAK_SECONDS:-300} cargo test --release --all-features --test soak -- --nocapture

bench: ## run the benchmarks
	cargo bench --all-features

# A round is 6 pools of 5 scenarios at 11 s and, of `mixed`, 5 pools (none over 20 connections) at 8 s: 370 s. There are 5
# rounds of each scenario, and up to 15 where the intervals are wide.
regimes: ## where more connections pay, do not pay, and cost: fixed sizes and the adaptive ones, in turns (30 to 95 minutes)
	@scripts/setup demo
	@mkdir -p target/regimes
	cargo run --release --quiet --example load_test --features axum -- --rounds 5 --until-half-width 0.02 --phase-seconds 3 \
		--scenario burst --scenario incident --scenario cpu --scenario lock --scenario lock-nowait --scenario mixed \
		--pool fixed:5 --pool fixed:10 --pool fixed:20 --pool fixed:50 --pool adaptive --pool adaptive:warm \
		--json target/regimes/summary.json --svg target/regimes/regimes.svg $(ARGS)

picture: ARGS += --svg docs/demo.svg --json target/demo.json
picture: demo ## run the demo and draw docs/demo.svg

check: ## formatting, lints, documentation, each feature alone, the oldest compiler
	cargo fmt --check
	cargo clippy --all-targets --all-features -- -D warnings
	cargo clippy --all-features $(MORE) -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --all-features
	@set -e; for feature in "" postgres axum deadpool tonic tracing; do \
		echo "cargo clippy --lib, with no feature but '$$feature'"; \
		cargo clippy --lib --no-default-features --features "$$feature" -- -D warnings; \
	done
	cargo check --all-targets --no-default-features
	scripts/check-msrv
