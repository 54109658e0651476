# Each target installs what it needs first; nothing has to be activated.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON := /usr/bin/python3.11
BIN := .venv/bin
SCALE := 549k
SAMPLE := $(or $(PGEARTH_SAMPLE),../shared/sample)

.PHONY: help demo test test-qgis test-spark bench lint start stop psql docs server-packages qgis-packages spark-packages clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

demo: start ## The main job: build an archive from the sample data and query it (pictures in build/demo)
	$(BIN)/pgearth demo --sample "$(SAMPLE)" --output build/demo

test: .venv/.installed lint ## Run all checks and tests, on two servers of their own
	$(BIN)/pytest --numprocesses 2 --dist loadfile

test-qgis: .venv/.installed qgis-packages ## Test the map layers in QGIS itself (maps in build/qgis)
	$(BIN)/pytest tests/qgis

test-spark: .venv/.installed spark-packages ## Test loading, annotating and exporting on a Spark cluster of several processes
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[spark]'
	$(BIN)/pytest tests/spark

bench: .venv/.installed ## Measure every claim against its peer, on a server that may use the machine's memory (two hours; SCALE=10m: at 10.3 million, 15 GB, 40 minutes)
	$(BIN)/pgearth server stop
	$(BIN)/pgearth server start --memory $$(free --mebi | awk '/^Mem:/ {print $$2}')
	$(BIN)/pgearth migrate
	benchmarks/run $(SCALE)

lint: .venv/.installed ## ruff, mypy, which package may import which, and sqlfluff where it can parse
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/sqlfluff lint --processes 2 sql

start: .venv/.installed ## Start the checkout's private server and bring its schema up to date
	$(BIN)/pgearth server start
	$(BIN)/pgearth migrate

stop: .venv/.installed ## Stop the private server
	$(BIN)/pgearth server stop

psql: start ## Open psql on the archive
	$(BIN)/pgearth server psql

docs: start ## Regenerate docs/functions.md from the database's comments
	$(BIN)/python -m pgearth.loaders.server.function_reference docs/functions.md

server-packages: ## Install PostgreSQL, PostGIS, plpython3u and pgvector (Debian)
	docker/install-server.sh

qgis-packages: ## Install QGIS with its Python bindings (Debian)
	docker/install-optional.sh qgis

spark-packages: ## Install Java, which Spark runs on (Debian)
	docker/install-optional.sh spark

.venv/.installed: pyproject.toml constraints.txt docker/install-server.sh | server-packages
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean: ## Remove what the targets made, except the virtual environment and the archive
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
