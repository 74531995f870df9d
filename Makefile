# make demo   set-up (into .venv) and the main job; leaves demo/
# make test   set-up and the tests
# make check  formatter, linter, types, layering
# make base   train the next Atelier (hours on a CPU)
# make ui     the page to work with, in .venv-ui: Gradio and the rest cannot have one Pillow
# make browser  tests of the page, the report and the questionnaire in the system's own Chromium

PYTHON ?= python3
BIN := .venv/bin
# In the environment, because there it also holds for what builds the package; pip 25.3 and later ask for the second.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt

.PHONY: demo test check base ui browser

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

SAY = @echo "The command duolora is $(1)/bin/duolora; for its short name: . $(1)/bin/activate"

demo: .venv/ready
	$(BIN)/duolora demo --out demo
	$(call SAY,.venv)

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

base: .venv/ready
	$(BIN)/python -m recipes.atelier.vae --out runs/atelier
	$(BIN)/python -m recipes.atelier.classifier --out runs/atelier --minutes 60
	$(BIN)/python -m recipes.atelier.style_encoder --out runs/atelier --minutes 24
	$(BIN)/python -m recipes.atelier.text --out runs/text
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node 2 -m recipes.atelier.base --text runs/text --out runs/atelier --minutes 600
	$(BIN)/python -m recipes.atelier.pack --base runs/atelier --text runs/text --vae runs/atelier --classifier runs/atelier --style runs/atelier --out runs/atelier/weights

# Where both files pin a package, constraints-ui.txt holds.
.venv-ui/ready: pyproject.toml constraints.txt constraints-ui.txt
	$(PYTHON) -m venv .venv-ui
	awk -F== 'NR == FNR {own[$$1]; print; next} !($$1 in own)' constraints-ui.txt constraints.txt > .venv-ui/constraints.txt
	PIP_CONSTRAINT=.venv-ui/constraints.txt .venv-ui/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[ui,browser]' pytest beartype hypothesis
	touch $@

ui: .venv-ui/ready
	$(call SAY,.venv-ui)
	.venv-ui/bin/duolora ui

browser: .venv-ui/ready
	.venv-ui/bin/python -m pytest -m browser tests/ui tests/bench
