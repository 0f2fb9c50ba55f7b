# Publish sparse autoencoders: from sweep files to verified model repos on the Hugging Face Hub.
#
# Each repo has its own pipe, and the output of each stage is a file under build/<slug>/:
#
#   extract-ids > candidates | fetch-metrics > runs | facts > metrics
#     | classify > classified | settle > settled | select > selected, account
#     | preflight > checked | stage > staged | render > rendered
#     | summary > summary.txt                                (make dry-run ends here)
#     | plan, push, collect, verify > records/<slug>/        (make release)
#
# `make help` lists the targets.

SHELL := bash
.SHELLFLAGS := -p -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

ifeq ($(filter grouped-target,$(.FEATURES)),)
$(error GNU make 4.3 or later is needed, this is $(MAKE_VERSION); get it with: apt install make, brew install make (then gmake), or conda install make)
endif

# ---- settings --------------------------------------------------------------------------------

# bin/settings resolves make's command line, the environment, .env, the demo and the catalog into
# make variables: BUILD, VENV, every setting, SLUGS (the catalog's repos), CHOSEN (REPO, or all of
# them), facts.<slug> (a repo's own facts filter). If the goals need them, it also sets up .venv
# and the demo. To add a setting, add a row in py/saepub/settings.py.

NEED_NO_DATA := setup demo init doctor tools test test-all test-fast lint bench faults fuzz clean distclean

define newline


endef
quoted = '$(subst ','\'',$1)'
ifneq ($(filter-out help,$(MAKECMDGOALS)),)
$(eval $(subst ¶,$(newline),$(shell PYTHON=$(call quoted,$(PYTHON)) bin/settings --make \
    flags=$(call quoted,$(MAKEFLAGS)) goals=$(call quoted,$(MAKECMDGOALS)) \
    overrides=$(call quoted,$(subst $(newline),¶,$(MAKEOVERRIDES))) need_no_data='$(NEED_NO_DATA)')))
ifneq ($(.SHELLSTATUS),0)
$(error bin/settings failed)
endif
endif

# Programs that make starts, and a nested make, take the settings from the environment.
MAKEOVERRIDES =
unexport BASH_ENV CDPATH ENV PYTHONHOME PYTHONPATH

# Besides files, targets depend on modules and on settings, as files that bin/settings rewrites
# when a value changes. `entry.<slug>` is the repo's entry in the catalog, `expected.<slug>` the
# same without what only the card shows, `sources.<slug>` the files that the entry names. A program
# writes to a temporary file first, so a target is complete or absent.
setting = $(1:%=$(BUILD)/.settings/%)
module = $(foreach m,$1,$(wildcard py/saepub/$m.py py/saepub/*/$m.py))
joint = $(CHOSEN:%=$(BUILD)/%/$1)
temporary = $(@D)/.$(@F).$(NODE)-$$$$.tmp
aside = > $(temporary) && mv $(temporary) $@ || { rm -f $(temporary); exit 1; }

# ---- the pipe, stage by stage ----------------------------------------------------------------

$(BUILD)/%/candidates.jsonl: $(call setting,SAEV_DIR expected.% sources.%) \
        $(call module,extract_ids sources python uses files)
	@mkdir -p $(@D)
	@bin/extract-ids $* $(aside)

# W&B is asked once, and its answer is kept; `make refresh` asks again.
$(BUILD)/%/runs.jsonl: $(BUILD)/%/candidates.jsonl $(call module,fetch_metrics runs snapshot) \
        $(call setting,WANDB_ENTITY WANDB_PROJECT WANDB_BASE_URL METRICS_SNAPSHOT)
	@bin/fetch-metrics < $< $(aside)

$(BUILD)/%/metrics.jsonl: $(BUILD)/%/runs.jsonl jq/facts.jq $(call setting,sources.%)
	@$(or $(facts.$*),bin/facts) < $< $(aside)

$(BUILD)/%/classified.jsonl: $(BUILD)/%/metrics.jsonl jq/classify.jq $(call setting,EXCLUDE)
	@bin/classify < $< $(aside)

$(BUILD)/%/settled.jsonl: $(BUILD)/%/classified.jsonl $(call module,settle numbers measured digests) \
        $(call setting,NMSE_SHARD RUNS_ROOT RECORDS)
	@bin/settle < $< $(aside)

$(BUILD)/%/selected.jsonl $(BUILD)/%/account.jsonl: $(BUILD)/%/settled.jsonl \
        $(call module,select panel frontier account) $(call setting,N PIN)
	@bin/select --account $(BUILD)/$*/account.jsonl < $< $(aside)

$(BUILD)/%/checked.jsonl: $(BUILD)/%/selected.jsonl $(wildcard py/saepub/checkpoint/*.py) \
        $(call module,preflight machine) $(call setting,RUNS_ROOT SAEV_DIR)
	@bin/preflight < $< $(aside)

$(BUILD)/%/staged.jsonl: $(BUILD)/%/checked.jsonl $(call module,stage)
	@bin/stage < $< $(aside)

$(BUILD)/%/rendered.jsonl: $(BUILD)/%/staged.jsonl $(BUILD)/%/account.jsonl templates/card.md \
        $(call module,render templating plot plane frontier) $(call setting,entry.%)
	@bin/render --account $(BUILD)/$*/account.jsonl < $< $(aside)

$(BUILD)/%/summary.txt: $(BUILD)/%/rendered.jsonl $(BUILD)/%/account.jsonl \
        $(call module,summary numbers account frontier)
	@bin/summary --account $(BUILD)/$*/account.jsonl < $< $(aside)

# The chosen repos, and others that have a complete earlier dry run.
$(BUILD)/report.html: $(call joint,summary.txt) $(wildcard templates/report.*) \
        $(call module,report page panel templating plane account frontier numbers) \
        $(call setting,CATALOG REPO N PIN EXCLUDE LOADER)
	@bin/report --others --out $@ $(CHOSEN)

# Every id in PIN and EXCLUDE must be a candidate of some repo.
$(BUILD)/known-ids: $(call joint,candidates.jsonl) $(call setting,CATALOG REPO PIN EXCLUDE)
	@cat $(filter %.jsonl,$^) | bin/known-ids && touch $@

# Named here so that make doesn't delete them as intermediate files.
.PHONY: joints
joints: $(foreach j,candidates runs metrics classified settled selected account checked staged \
    rendered,$(call joint,$j.jsonl))

# ---- targets ---------------------------------------------------------------------------------

.PHONY: help setup init demo dry-run preflight refresh recheck measure report doctor plan release \
    rehearse verify docs

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## create .venv with pinned packages
	@bin/setup

init: setup ## start a catalog of your own: CATALOG=ours.json SWEEP=… VARIABLE=… (or WANDB_SWEEP=…)
	@bin/init $(foreach arg,SWEEP VARIABLE,$(if $($(arg)),$(call quoted,$($(arg))))) \
	    $(if $(WANDB_SWEEP),--wandb-sweep=$(call quoted,$(WANDB_SWEEP)))

demo: setup ## create the demo: sweeps, small real SAEs, a snapshot of W&B
	@bin/demo

# A repo that can't be released yet doesn't keep the others from being shown, on the page too.
dry-run: $(BUILD)/known-ids $(if $(is_demo),show/demo) ## show what each repo would publish; REPO=, N=, PIN=, EXCLUDE=
	@$(MAKE) --keep-going show || { bin/report --partial --out $(BUILD)/report.html $(CHOSEN); exit 1; }

.PHONY: show show/demo $(CHOSEN:%=show/%)
show: $(CHOSEN:%=show/%) $(BUILD)/report.html
	@echo "To choose by eye: $(BUILD)/report.html"
show/demo: ; @cat templates/demo.txt
$(CHOSEN:%=show/%): show/%: $(BUILD)/%/summary.txt
	@cat $<

preflight: $(call joint,checked.jsonl) ## check the chosen checkpoints

refresh: ## ask W&B again, then dry-run
	@rm -f $(call joint,candidates.jsonl) $(call joint,runs.jsonl)
	@$(MAKE) dry-run

recheck: ## reread the chosen checkpoints, then dry-run
	@rm -f $(call joint,settled.jsonl) $(call joint,checked.jsonl) $(BUILD)/executor/*.json
	@$(MAKE) dry-run

measure: $(call joint,classified.jsonl) ## measure L0 and NMSE of every candidate on its shard; REPO=, LAYERS=, SHARDS=
	@cat $^ | bin/measure $(if $(SHARDS),--shards $(call quoted,$(SHARDS))) > /dev/null

report: $(BUILD)/report.html ## show all candidates on one page, to choose by eye
	@echo $<

doctor: ## check python, packages, saev, W&B, the Hub, disk
	@bin/setup && bin/doctor

plan: $(call joint,rendered.jsonl) ## show what a release would change on the Hub
	@cat $^ | bin/plan > /dev/null

release: $(BUILD)/known-ids $(call joint,rendered.jsonl) ## push, verify, collect; REPO= for one
	@cat $(filter %.jsonl,$^) | bin/plan | bin/push | bin/verify | bin/collect | bin/announce

rehearse: $(BUILD)/known-ids $(call joint,rendered.jsonl) ## release to a Hub on this machine; then DO=verify, plan or docs
	@bin/rehearse $(if $(is_demo),env LOADER=builtin) $(MAKE) $(or $(DO),release)

verify: ## check that the Hub still holds what was released
	@bin/verify --released $(CHOSEN)

docs: ## write the section on these repos in SAEV_DIR's docs; DRY_RUN=1 only shows it
	@bin/docs $(CHOSEN)

# ---- upkeep ----------------------------------------------------------------------------------

.PHONY: tools test test-all test-fast lint bench pictures faults fuzz clean distclean
test test-all test-fast lint bench faults fuzz: tools
tools:
	@bin/setup --dev

test: ## run the tests, all but the long ones
test-all: ## run every test, as CI does
test-fast: ## leave out those that start programs, Chromium and Slurm as well
MARKS.test = -m 'not long'
MARKS.test-fast = -m 'not long and not programs and not browser and not slurm'
# Many tests wait for a server, so there is one process more than cores.
test test-all test-fast:
	@$(VENV)/bin/python -m pytest -q -n $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --dist loadfile \
	    $(MARKS.$@) $(PYTEST_ARGS)

lint: ## ruff and mypy for Python, shellcheck for shell
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy
	@$(VENV)/bin/shellcheck -e SC1091 bin/* py/*.sh tests/slurm/* .ci/run

bench: ## measure speed, memory and traffic; ROWS="fetch scale …" for some
	@$(VENV)/bin/python -m bench $(ROWS)

pictures: $(BUILD)/report.html ## draw README's pictures, of the demo; needs Chromium
	@$(if $(is_demo),,$(error README's pictures show the demo: unset SAEV_DIR and the like))
	@$(VENV)/bin/python docs/pictures.py $(BUILD)

faults: ## cause every fault that must be caught, and show the messages
	@$(VENV)/bin/python tests/faults

fuzz: ## feed corrupted input to every stage; SECONDS_EACH=600, TARGETS="select …"
	@$(VENV)/bin/python tests/fuzz/run.py --seconds $(or $(SECONDS_EACH),60) $(TARGETS)

clean: ## empty build/, except for the demo
	@bin/clean

distclean: ## remove build/ and .venv
	@bin/clean --all
