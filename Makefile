# Publish sparse autoencoders: from sweep files to verified model repos on the Hugging Face Hub.
#
# One repo is one pipe, and each of its joints is a file under build/<slug>/:
#
#   extract-ids > candidates | fetch-metrics > runs | facts > metrics
#     | classify > classified | settle > settled | select > selected, account
#     | preflight > checked | stage > staged
#     | render > rendered | summary > summary.txt            (make dry-run ends here)
#     | plan, push, collect, verify > release.json           (make release)
#
# `make help` lists the verbs. README.md tells the rest.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SECONDEXPANSION:
MAKEFLAGS += --no-builtin-rules --no-print-directory

ifeq ($(filter grouped-target,$(.FEATURES)),)
$(error GNU make 4.3 or later is needed, this is $(MAKE_VERSION); get it with: apt install make, brew install make (then gmake), or conda install make)
endif

# ---- settings: the environment first, then .env, then the demo -------------------------------

BUILD := $(or $(BUILD),build)
VENV := $(or $(VENV),.venv)
SETTINGS := SAEV_DIR RUNS_ROOT WANDB_ENTITY WANDB_PROJECT WANDB_BASE_URL METRICS_SNAPSHOT \
    NMSE_SHARD CATALOG N PIN EXCLUDE

ifneq ($(filter command,$(foreach s,HF_TOKEN WANDB_API_KEY,$(firstword $(origin $s)))),)
$(error a secret on a command line is there for all to see; export it instead)
endif

$(shell bin/drop-future $(BUILD))

ifneq ($(wildcard .env),)
include $(BUILD)/env.mk
endif

ifeq ($(strip $(SAEV_DIR)$(RUNS_ROOT)$(CATALOG)$(METRICS_SNAPSHOT)$(NMSE_SHARD)),)
SAEV_DIR := $(BUILD)/demo/saev
RUNS_ROOT := $(BUILD)/demo/runs
METRICS_SNAPSHOT := $(BUILD)/demo/snapshot.jsonl
CATALOG := $(BUILD)/demo/catalog.json
endif
CATALOG := $(or $(CATALOG),catalog.json)
is_demo := $(filter $(BUILD)/demo/%,$(CATALOG))

# What a stage tells its user to run to go on where it stopped.
AGAIN := $(or $(AGAIN),$(strip make $(MAKECMDGOALS) $(MAKEOVERRIDES)))

export AGAIN BUILD VENV
$(foreach s,$(SETTINGS) HF_ENDPOINT LOADER PRUNE JOBS EXECUTOR SLURM_PARTITION SLURM_ACCOUNT \
    SLURM_TIME,$(if $($s),$(eval export $s)))

# ---- the catalog, as make variables: SLUGS, sweep.<slug>, entry.<slug> -----------------------

NO_DATA := help setup demo test lint ci bench faults fuzz audit-deps clean distclean
ifneq ($(filter-out $(NO_DATA),$(or $(MAKECMDGOALS),help)),)
include $(BUILD)/catalog.mk
ifneq ($(and $(SLUGS),$(filter-out $(SLUGS),$(REPO))),)
$(error $(CATALOG) has no repo $(filter-out $(SLUGS),$(REPO)); it has: $(SLUGS))
endif
endif
CHOSEN := $(or $(REPO),$(SLUGS))

# What a joint depends on besides files: one file a setting, whose time is that of the
# setting's last change. Read and compared by make itself, so an unchanged one costs nothing.
# (strip, because make 4.3 does not always drop a file's last newline.)
same = $(and $(findstring x$1x,x$2x),$(findstring x$2x,x$1x))
remember = $(if $(and $(wildcard $(BUILD)/.settings/$1),$(call same,$(strip $($1)),$(strip $(file <$(BUILD)/.settings/$1)))),,\
    $(shell mkdir -p $(BUILD)/.settings)$(file >$(BUILD)/.settings/$1,$($1)))
$(foreach s,$(if $(SLUGS),$(SETTINGS) $(SLUGS:%=entry.%)),$(call remember,$s))

settings = $(foreach s,$1,$(BUILD)/.settings/$s)
code = $(foreach s,$1,$(wildcard py/saepub/$s.py py/saepub/*/$s.py))
aside = > $@.$$$$.tmp && mv $@.$$$$.tmp $@

$(BUILD)/env.mk: .env py/saepub/stages/dotenv.py
	@mkdir -p $(@D) && bin/dotenv $(aside)

$(BUILD)/catalog.mk: $(CATALOG) bin/catalog-mk | $(VENV)/.ready
	@mkdir -p $(@D) && bin/catalog-mk $< $(aside)

$(VENV)/.ready: requirements.txt constraints.txt
	@bin/setup $(VENV) requirements.txt && touch $@

$(VENV)/.ready-dev: requirements-dev.txt $(VENV)/.ready
	@bin/setup $(VENV) requirements-dev.txt && touch $@

$(BUILD)/demo/catalog.json: | $(VENV)/.ready
	@bin/demo

# ---- the pipe, joint by joint ----------------------------------------------------------------

$(BUILD)/%/candidates.jsonl: $$(call settings,SAEV_DIR CATALOG entry.$$*) $(call code,extract_ids) \
        $$(wildcard $(SAEV_DIR)/$$(sweep.$$*)) | $(VENV)/.ready
	@mkdir -p $(@D) && bin/extract-ids $* $(aside)

# W&B is asked once, and what it said is kept; `make refresh` asks again.
$(BUILD)/%/runs.jsonl: $(BUILD)/%/candidates.jsonl $(call settings,WANDB_ENTITY WANDB_PROJECT \
        WANDB_BASE_URL METRICS_SNAPSHOT) $(wildcard $(METRICS_SNAPSHOT)) \
        $(call code,fetch_metrics runs snapshot)
	@bin/fetch-metrics < $< $(aside)

$(BUILD)/%/metrics.jsonl: $(BUILD)/%/runs.jsonl bin/facts
	@bin/facts < $< $(aside)

$(BUILD)/%/classified.jsonl: $(BUILD)/%/metrics.jsonl bin/classify $(call settings,EXCLUDE)
	@bin/classify < $< $(aside)

$(BUILD)/%/settled.jsonl: $(BUILD)/%/classified.jsonl $(wildcard $(or $(RECORDS),records)/measured) \
        $(call settings,NMSE_SHARD RUNS_ROOT) $(call code,settle numbers measured digests)
	@bin/settle < $< $(aside)

$(BUILD)/%/selected.jsonl $(BUILD)/%/account.jsonl: $(BUILD)/%/settled.jsonl \
        $(call settings,N PIN) $(call code,select frontier panel account)
	@bin/select --account $(BUILD)/$*/account.jsonl --pin="$$(IDS="$${PIN-}" bin/among $<)" < $< \
	    > $(BUILD)/$*/selected.jsonl.$$$$.tmp && mv $(BUILD)/$*/selected.jsonl{.$$$$.tmp,}

$(BUILD)/%/checked.jsonl: $(BUILD)/%/selected.jsonl $(call settings,RUNS_ROOT SAEV_DIR) \
        $(wildcard py/saepub/checkpoint/*.py) \
        $(call code,preflight machine)
	@bin/preflight < $< $(aside)

$(BUILD)/%/staged.jsonl: $(BUILD)/%/checked.jsonl $(call code,stage) \
        $$(if $$(wildcard $(BUILD)/$$*/stage/manifest.jsonl),,again)
	@bin/stage < $< $(aside)

$(BUILD)/%/rendered.jsonl: $(BUILD)/%/staged.jsonl $(BUILD)/%/account.jsonl templates/card.md \
        $(call code,render templating plot frontier) $$(call settings,entry.$$*)
	@bin/render --account $(BUILD)/$*/account.jsonl < $< $(aside)

$(BUILD)/%/summary.txt: $(BUILD)/%/rendered.jsonl $(BUILD)/%/account.jsonl $(call code,summary numbers frontier account)
	@bin/summary --account $(BUILD)/$*/account.jsonl < $< $(aside)

# Every repo that has got this far, also those made by earlier runs.
$(BUILD)/report.html: $$(call joint,summary.txt) $(call settings,N PIN EXCLUDE) \
        $(wildcard templates/report.*) $(call code,report panel frontier)
	@bin/report --out $@ $$(cd $(BUILD) && ls -d */summary.txt | cut -d/ -f1)

joint = $(CHOSEN:%=$(BUILD)/%/$1)

# Named here, so that make doesn't take them for intermediate files, which it would delete,
# and not make again when they are gone.
.PHONY: again joints known-ids
again:
joints: $(foreach j,candidates runs metrics classified settled selected account checked staged \
    rendered,$(call joint,$j.jsonl))

known-ids: $(call joint,candidates.jsonl)
	@$(if $(strip $(PIN)$(EXCLUDE)),cat $^ | IDS="$${PIN-} $${EXCLUDE-}" bin/check-ids)

# ---- the verbs -------------------------------------------------------------------------------

.PHONY: help setup demo dry-run preflight refresh recheck

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.ready ## make .venv with everything pinned

demo: $(VENV)/.ready ## make the demo: sweeps, small real SAEs, a snapshot of W&B
	@bin/demo

dry-run: known-ids $(call joint,summary.txt) $(BUILD)/report.html ## show what each repo would publish; REPO=, N=, PIN=, EXCLUDE=
	@cat $(if $(is_demo),templates/demo.txt) $(filter %.txt,$^)
	@echo "To choose by eye: $(BUILD)/report.html"

preflight: $(call joint,checked.jsonl) ## check the chosen checkpoints

refresh: ## ask W&B again, then dry-run
	@rm -f $(call joint,runs.jsonl)
	@$(MAKE) dry-run

recheck: ## read the chosen checkpoints again, then dry-run
	@rm -f $(call joint,settled.jsonl) $(call joint,checked.jsonl) $(BUILD)/executor/*.json
	@$(MAKE) dry-run

.PHONY: remeasure report doctor plan release rehearse verify docs

remeasure: $(call joint,checked.jsonl) ## measure L0 and NMSE again on SHARDS=, and compare
	@cat $^ | bin/remeasure --shards $(or $(SHARDS),$(if $(is_demo),$(BUILD)/demo/shards,\
	    $(error say where activations are: SHARDS=<dir>))) | bin/compare

report: $(BUILD)/report.html ## all candidates on one page, to choose by eye
	@echo $<

doctor: | $(VENV)/.ready ## check python, packages, saev, W&B, the Hub, disk
	@bin/doctor

plan: $(call joint,rendered.jsonl) ## show what a release would change on the Hub
	@cat $^ | bin/plan > /dev/null

release: known-ids $(call joint,rendered.jsonl) ## publish, verify, collect; REPO= for one
	@cat $(filter %/rendered.jsonl,$^) | bin/plan | bin/push | bin/verify | bin/collect | bin/announce

rehearse: known-ids $(call joint,rendered.jsonl) ## release to a Hub on this machine; no token needed
	@bin/rehearse $(if $(is_demo),env LOADER=builtin) $(MAKE) release REPO="$(REPO)"

verify: | $(VENV)/.ready ## check that the Hub still holds what was released
	@bin/verify --released $(CHOSEN)

docs: | $(VENV)/.ready ## write the section on these repos into SAEV_DIR's docs; DRY_RUN=1 shows it
	@bin/docs $(CHOSEN)

# ---- upkeep ----------------------------------------------------------------------------------

.PHONY: test lint bench faults fuzz audit-deps ci clean distclean

test: $(VENV)/.ready-dev ## run the whole test suite
	@$(VENV)/bin/python -m pytest -q -n auto --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.ready-dev ## ruff for Python, shellcheck for shell
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	@$(VENV)/bin/shellcheck -e SC1091 $$(grep -lE '^#!.*(ba)?sh$$' bin/* tests/slurm/* .ci/run) py/launch.sh

bench: $(VENV)/.ready-dev ## measure speed, memory and bytes; ROWS="fetch scale …" for some
	@$(VENV)/bin/python -m bench $(ROWS)

faults: $(VENV)/.ready-dev ## bring about every fault that must be caught; show what is seen
	@$(VENV)/bin/python tests/faults

fuzz: $(VENV)/.ready-dev ## spoil the input of every stage; SECONDS_EACH=600, TARGETS="select …"
	@$(VENV)/bin/python tests/fuzz/run.py --seconds $(or $(SECONDS_EACH),60) $(TARGETS)

audit-deps: $(VENV)/.ready-dev ## ask for known vulnerabilities in the pinned packages
	@bin/audit-deps $(VENV)

ci: lint test ## what continuous integration runs

clean: ## remove build/, all but the demo
	@find $(BUILD) -mindepth 1 -maxdepth 1 ! -name demo -exec rm -rf {} + 2> /dev/null || true

distclean: ## remove build/ and .venv
	@rm -rf $(BUILD) $(VENV)
