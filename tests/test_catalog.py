"""A catalog is read whole, or everything wrong with it is reported at once."""

import json
import math
import re
import subprocess
import sys

import pytest

from kits.programs import ROOT, run_program
from saepub import catalog, jsonl, kinds, numbers
from saepub.checkpoint import header
from saepub.choice import account
from saepub.stages import tables

REPO = {
    "slug": "small",
    "repo_id": "lab/small",
    "title": "SAEs",
    "base_model": "lab/model",
    "objective": "vanilla",
    "activation": "relu",
    "layers": [0, 1],
    "d_model": 8,
    "d_sae": 32,
    "run_ids": {"0": ["a"], "1": ["b"]},
}
NEEDED = ("slug", "repo_id", "title", "base_model", "objective", "activation")
NEEDED += ("layers", "d_model", "d_sae")


@pytest.fixture
def read(tmp_path):
    """Reads a catalog, given as an object or as text; returns what is wrong with it, or itself."""

    def read(raw: object):
        fpath = tmp_path / "catalog.json"
        fpath.write_text(raw if isinstance(raw, str) else json.dumps(raw))
        cat, problems = catalog.read(fpath)
        assert (cat is None) == bool(problems)
        return cat or [p.removeprefix(f"{fpath}: ") for p in problems]

    return read


def one(**changes: object) -> dict:
    return {"repos": [REPO | changes]}


def test_the_labs_own_catalog_says_all_that_its_cards_say():
    cat, _ = catalog.read(ROOT / "catalog.json")
    for repo in cat.repos:
        assert (repo.license, repo.tokens, repo.tags) == ("mit", "patch", ("dinov3",))
        assert repo.citation.startswith("@article{stevens2025towards,\n  title ")
        assert [link.label for link in repo.links][:2] == ["Homepage", "Code"]
        assert repo.expected["runs_root"].startswith("/fs/ess/")
    shards = [repo.shard for repo in cat.repos]
    assert shards == ["52ec5790", "8762551e", "3e27794f", "3e27794f"]


def test_a_repos_own_key_goes_before_the_labs(read):
    lab = {"license": "mit", "tokens": "token", "entity": "us", "tags": ["x"]}
    cat = read({"lab": lab} | one(license="cc0-1.0", tags=[]))
    (repo,) = cat.repos
    assert (repo.license, repo.tokens, repo.entity, repo.tags) == (
        *("cc0-1.0", "token", "us"),
        (),
    )


def test_text_may_be_a_list_of_lines(read):
    cat = read(one(citation=["@misc{a,", "}"]))
    assert cat.repos[0].citation == "@misc{a,\n}"


def test_several_activations_travel_on_the_lines(read):
    cat = read(one(activation=["relu", "batchtopk"]))
    assert cat.repos[0].expected["activation"] == ["relu", "batch-top-k"]


@pytest.mark.parametrize("key", NEEDED)
def test_each_missing_key_has_its_line(read, key):
    entry = {k: v for k, v in REPO.items() if k != key}
    (problem,) = read({"repos": [entry]})
    at = "repos[0]" if key == "slug" else "repos[0] (small)"
    assert problem.startswith(f'{at}: no "{key}": ')


def all_known() -> list[tuple[str, str]]:
    """Every key that a catalog may have, with the path of its object."""
    found = []
    for path, _ in catalog.all_keys():
        at, _, key = path.rpartition(".")
        found.append((at, key))
    return found


def spelt_wrong(at: str, key: str) -> dict:
    """A catalog with a misspelling of `key`, two letters the wrong way round, in `at`."""
    wrong = key[:-2] + key[-1] + key[-2] if key[-1] != key[-2] else key + key[-1]
    raw: dict = {"lab": {}, "repos": [dict(REPO)], "collections": [{}]}
    node: object = raw
    for part in filter(None, at.split(".")):
        name = part.removesuffix("[]")
        node = node.setdefault(name, [{}] if part.endswith("[]") else {})
        node = node[0] if part.endswith("[]") else node
    node[wrong] = 1
    return raw


@pytest.mark.parametrize(("at", "key"), all_known())
def test_each_misspelt_key_has_its_line_with_the_nearest(read, at, key):
    problems = read(spelt_wrong(at, key))
    assert sum(f"unknown key; did you mean {key}?" in p for p in problems) == 1, (
        problems
    )


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ("", "not JSON: "),
        ("[]", "not a JSON object"),
        ({}, 'no "repos": '),
        ({"repos": []}, "repos: is []: it needs at least one"),
        ('{"repos": [], "repos": []}', 'not JSON: the key "repos" twice'),
        ("[" * 100_000, "nested too deep"),
        (one(d_model="8"), 'repos[0] (small).d_model: is "8": not a valid integer'),
        (one(d_model=True), "repos[0] (small).d_model: is true: "),
        (one(d_model=0), "repos[0] (small).d_model: is 0: not greater than 0"),
        (one(repo_id="lab"), 'repos[0] (small).repo_id: is "lab": not namespace/name'),
        (one(activation="gelu"), "activation[0]: is \"gelu\": not one of relu, topk, b"),
        (one(objective="gated"), "objective: is \"gated\": not one of matryoshka, vanilla"),
        (one(layers=[]), "layers: is []: it needs at least one"),
        (one(layers=[1, 1]), "layers: is [1, 1]: not different"),
        (one(layers=["1"]), 'layers[0]: is "1": not a valid integer'),
        (one(slug="../x"), 'slug: is "../x": not a slug'),
        (one(slug="hub"), 'repos[0] (hub).slug: "hub" is reserved'),
        (one(title="two\nlines"), "title: is \"two\\nlines\": not one line of text"),
        (one(run_ids={"x": ["a"]}), "not a layer's number"),
        (one(sweep="s.py", variable="v"), "sweep and run_ids; a repo takes only one"),
        (one(layer_at=1), 'layer_at: only for "sweep"'),
        (one(checkpoint="sae.pt"), 'not a path with "{run_id}" in it'),
        (one(checkpoint="../{run_id}"), 'not a relative path'),
        (one(links=[{"label": "a", "url": "javascript:x"}]), "links[0].url: is"),
        (one(citation="```\nx"), "not lines of text without ```"),
        (one(tokens="Patches!"), "not a word in lower case"),
        (one() | {"collections": [{"title": "T"}]}, 'collections[0]: "title" without "namespace"'),
        (one() | {"collections": [{"slug": "lab/x y"}]}, "not a collection's full slug"),
        (one() | {"lab": []}, "lab: is []: "),
        ({"repos": [REPO, REPO | {"slug": "b"}]}, 'two repos with the repo_id "lab/small"'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_by_path(read, raw, told):
    problems = read(raw)
    assert len(problems) == 1 and told in problems[0], problems


def test_all_that_is_wrong_is_told_at_once(read):
    entry = {k: v for k, v in REPO.items() if k not in ("title", "run_ids")}
    raw = {"lab": {"licence": "mit"}, "repos": [entry | {"d_sae": -1}]}
    problems = read(raw | {"collections": [{}]})
    assert [p.partition(":")[0] for p in problems] == [
        *("lab.licence", "repos[0] (small)", "repos[0] (small).d_sae"),
        *("repos[0] (small)", "collections[0]"),
    ]


@pytest.mark.parametrize(
    ("text", "n_lines"),
    [(None, 1), ("{}", 1), ('{"repos": []}', 1), ('{"repos": [{"slug": "a"}]}', 10)],
)
def test_a_stage_tells_each_in_a_line(tmp_path, text, n_lines):
    fpath = tmp_path / "own.json"
    if text is not None:
        fpath.write_text(text)
    done = run_program(ROOT / "bin/extract-ids", "--all", CATALOG=fpath)
    assert done.code == 1 and done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == n_lines
    assert all(line.startswith(f"extract-ids: {fpath}: ") for line in lines[:-1])
    assert (text is None) == ("set CATALOG" in lines[-1])


def test_readme_and_schema_are_as_the_code_has_them():
    readme = tables.README.read_text()
    assert readme == tables.with_tables(readme), "run bin/tables"
    assert tables.SCHEMA.read_text() == tables.schema_text(), "run bin/tables"


def test_every_key_of_a_line_is_added_by_one_stage():
    assert len(jsonl.KEYS) == sum(map(len, jsonl.ADDED_BY.values()))


def test_every_reason_to_drop_a_run_has_its_row():
    """Reasons as they stand in the code that gives them: classify's filter, and numbers."""
    story = (ROOT / "jq/classify.jq").read_text()
    rules = story.partition("def reason(")[2].partition("end;\n\n")[0]
    reasons = re.findall(r'(?:then|else)\s+\(?"([^"\\]+)', rules) + ["at odds"]
    reasons += re.findall(r'then "([^"\\]+)" else', rules)
    reasons += [numbers.NO_L0, numbers.NO_NMSE]
    for l0 in (math.nan, 0.0):
        reasons.append(numbers._why_impossible(numbers.Found(l0, 0.5)))
    reasons = [reason for reason in reasons if reason != "matryoshka"]
    assert len(reasons) > 10
    for reason in reasons:
        rows = [
            r for r in account.ADVICE if reason.startswith(r) or r.startswith(reason)
        ]
        assert rows, reason


def test_the_schema_knows_every_key_and_its_purpose():
    defs = catalog.schema()["$defs"]
    for name, model in (("Lab", catalog.Lab), ("Repo", catalog.Repo)):
        properties = defs[name]["properties"]
        assert set(properties) == set(model.model_fields)
        assert all(of["description"] for of in properties.values())
    assert defs["Repo"]["required"] == list(NEEDED)


SLOW_IMPORTS = {
    "select": {"pydantic", "pathlib", "inspect", "hashlib", "datetime", "tempfile"},
    "fetch_metrics": {"pydantic"},
}


@pytest.mark.parametrize("name", SLOW_IMPORTS)
def test_a_light_stage_imports_nothing_slow(name):
    code = f"import sys; sys.path.insert(0, 'py'); import saepub.stages.{name}; print(*sys.modules)"
    argv = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    assert not SLOW_IMPORTS[name] & {*done.stdout.split()}


def test_an_activation_is_added_in_one_place(read, monkeypatch):
    """One row is enough for an activation with a known rule: catalog, header and reader accept it."""
    jump = kinds.Activation("jump", "Jump", "Jump", kinds.THRESHOLD, frozenset({"key"}))
    monkeypatch.setitem(kinds.ACTIVATIONS, "jump", jump)
    monkeypatch.setitem(kinds.RULES, "jump", jump.rule)
    monkeypatch.setitem(header.ACTIVATION_KEYS, "Jump", "jump")
    monkeypatch.setitem(header.PARAMS, "Jump", jump.params)
    assert read(one(activation="jump")).repos[0].activations == ("jump",)
    cfg = {"d_model": 4, "d_sae": 8, "activation": {"cls": "Jump", "params": {}}}
    found = header.parse(json.dumps({"schema": 5, "cfg": cfg}).encode())
    assert (found.rule, found.top_k) == (kinds.THRESHOLD, None)
    assert found.shapes["activation.threshold"] == ()
