# Recipes that start servers `exec` them: a shell in between would take SIGTERM and leave them running.
set positional-arguments

export PATH := justfile_directory() / ".venv/bin" + ":" + env("PATH")

# List the recipes
default:
    @just --list --unsorted

# Install everything into .venv
setup: _ready

# Serve the API with its embedded parts, for development
dev *args: (_ready "demo")
    exec easel serve "$@"

# One designer chat from sign-up to saved image: ./just demo "a gray tabby cat hugging an otter"
demo *args: (_ready "demo")
    @exec easel demo "$@"

# Bring the database to the newest schema
migrate: (_ready "demo")
    @exec easel migrate

# Write a migration from what the models changed: ./just revision "add titles"
revision message: _ready
    alembic revision --autogenerate --message "$1"

# Write migrations/rights.txt, which readiness compares, from what the migrations grant
rights: _ready
    python -m migrations.rights

# Run the tests but the slow ones, many at once as they wait a lot; arguments go to pytest, and then none is left out
test *args: _ready
    pytest {{ at_once }} {{ if args == "" { "-m 'not prove and not slow'" } else { "" } }} "$@"

# Run the slow tests: each takes seconds, mostly as it starts processes
slow: _ready
    pytest {{ at_once }} -m 'slow and not prove'

at_once := "--numprocesses $((2 * " + num_cpus() + "))"

# Run the full-size fault and attack suites
prove *args: _ready
    EASEL_PROVE=1 pytest -m "prove or proof" "$@"

# Measure the service beside the least it could cost, and write docs/bench.md; ./just bench --quick counts alone
bench *args: _ready
    @exec python -m tests.bench "$@"

# Check style, formatting and spelling, and that no file is large or holds a secret
lint: _ready
    ruff check .
    ruff format --check .
    {{ files }} | xargs -0 codespell
    {{ files }} | xargs -0 check-added-large-files --enforce-all --maxkb=500
    {{ files }} | xargs -0 -n 50 -P 4 detect-secrets-hook --baseline .secrets.baseline

# Write openapi.json, docs/api.md and docs/events.md from the code
openapi: _ready
    python -m docs.generate

# Check types
types: _ready
    basedpyright

# Check code, workflows and packages for known weaknesses
supply-chain: _ready
    @python .ci/supply_chain.py

# Have git check each commit: ./just hooks, once in a clone
hooks: _ready
    pre-commit install

# Everything CI runs
check: lint types supply-chain test slow (bench "--quick")

# Build the wheel into dist/
wheel: _ready
    python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

# Write the lock files from pyproject.toml; ./just lock --upgrade takes in newer packages
lock *args: _ready
    uv pip compile {{ compile }} --extra dev --output-file requirements.lock pyproject.toml "$@"
    uv pip compile {{ compile }} --constraint requirements.lock --extra demo --output-file requirements-demo.lock pyproject.toml
    uv pip compile {{ compile }} --constraint requirements.lock --output-file requirements-production.lock pyproject.toml

compile := "--quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command './just lock'"

# Files under version control, and new ones that .gitignore does not name
files := "git ls-files -z --cached --others --exclude-standard"

# Answers at once where .venv matches the lock; makes `just` from elsewhere work like ./just. `demo` needs less.
_ready needs="":
    @EASEL_NEEDS={{ needs }} ./just --version >/dev/null
