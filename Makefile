# Entry points. Each installs what is missing (once, and says so) and leaves nothing running.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-full differential bench fmt lint deny

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what the other targets need
	@scripts/setup.sh

demo: ## The whole fleet on this machine, with a live display; KEEP=1 leaves it running
	@KEEP=$(KEEP) scripts/demo.sh

test: ## Format, lints, dependencies, unit, integration and conformance tests
	@scripts/test.sh

test-full: ## The same with all versions, topologies and the long runs
	@FLEET_TEST_TIER=full scripts/test.sh

differential: ## Random job sequences through npm bullmq and through us; SEED=n COUNT=n [VERSION=bullmq-5|bullmq-6] [STEPS=n]
	@FOR=demo scripts/setup.sh
	@cargo run --quiet --locked -p mpanel-testkit --bin differential -- \
		--seed $(or $(SEED),1) --count $(or $(COUNT),1000) --steps $(or $(STEPS),30) $(if $(VERSION),--version $(VERSION))

bench: ## The fleet beside npm bullmq and four crates, and its targets; ARGS=--help
	@FOR=demo scripts/setup.sh
	@cargo build --release --locked --quiet --manifest-path bench/peers/Cargo.toml
	@cargo run --release --locked -p mpanel-bench -- $(ARGS)

fmt: ## Format the code
	@cargo fmt --all

lint: ## Format check and clippy, warnings denied
	@scripts/test.sh fmt clippy

deny: ## Licences, banned and duplicate crates, sources, advisories
	@scripts/test.sh deny
