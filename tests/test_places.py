"""Where a run's files are: where a setting says, or else the catalog's part of the line."""

import pytest

from saepub import places
from saepub.cli import UserError

NAMES = ("RUNS_ROOT", "SHARDS_ROOT", "WANDB_ENTITY", "WANDB_PROJECT")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def line(**expected: object) -> dict:
    return {"repo": "small", "run_id": "a1", "expected": expected}


def test_a_checkpoint_is_where_the_catalog_says():
    own = line(runs_root="/runs", checkpoint="{run_id}/sae.pt")
    assert str(places.checkpoint_fpath(own)) == "/runs/a1/sae.pt"
    own = line(runs_root="/runs")
    assert str(places.checkpoint_fpath(own)) == "/runs/a1/checkpoint/sae.pt"


def test_a_setting_goes_before_the_catalog(monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, f"/{name.lower()}")
    own = line(runs_root="/a", shards_root="/b", entity="c", project="d")
    assert str(places.runs_root(own)) == "/runs_root"
    assert str(places.shards_root(own)) == "/shards_root"
    assert places.project(own) == ("/wandb_entity", "/wandb_project")


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (places.runs_root, 'no RUNS_ROOT; write "runs_root" in the catalog, or set'),
        (places.shards_root, 'no SHARDS_ROOT; write "shards_root" in the catalog, or'),
    ],
)
def test_what_nobody_names_is_told_with_both_ways_out(ask, told):
    with pytest.raises(UserError, match=told):
        ask(line())
