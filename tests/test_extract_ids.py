"""extract-ids reads sweep files as people write them, and never runs them."""

import json
import re
import textwrap

import pytest

from kits.checkpoints import entry
from kits.in_process import run
from kits.programs import ROOT, Done, run_program
from loopback_wandb import LoopbackWandb

REPO = entry("vits-relu", sweep="sweeps/vits.py", layers=[6, 7])


@pytest.fixture
def lab(tmp_path):
    """Runs extract-ids over a sweep file's text; keywords change the catalog's entry."""

    def extract(text, *argv: str, n_repos: int = 1, env=None, go=run, **changes):
        (tmp_path / "sweeps").mkdir(exist_ok=True)
        text = textwrap.dedent(text).encode() if isinstance(text, str) else text
        (tmp_path / "sweeps/vits.py").write_bytes(text)
        repos = [{k: v for k, v in (REPO | changes).items() if v is not None}]
        if n_repos == 2:
            repos.append(repos[0] | {"slug": "other", "repo_id": "lab/other"})
        catalog = tmp_path / "catalog.json"
        catalog.write_text(json.dumps({"collections": [], "repos": repos}))
        env = {"SAEV_DIR": tmp_path, "CATALOG": catalog} | (env or {})
        env |= {"BUILD": tmp_path / "build", "HOME": tmp_path}
        argv = argv or ("vits-relu",)
        done = go("extract-ids", *argv, env=env)
        done.ids = [(r["layer"], r["run_id"], r["commented"]) for r in done.rows]
        return done

    return extract


def test_reads_a_dict_inside_a_function_annotated_one_id_a_line(lab):
    done = lab("""
        def make_cfgs():
            cfgs = []
            run_ids: dict[int, list[str]] = {
                6: [
                    "aaaa1111",
                    # "bbbb2222",
                ],
                7: [
                    "cccc3333",  # the best one so far
                ]
            }
            return cfgs
        """)
    assert done.err == ""
    assert done.ids == [
        (6, "aaaa1111", False),
        (6, "bbbb2222", True),
        (7, "cccc3333", False),
    ]
    assert done.rows[1]["source"].endswith("sweeps/vits.py:7")
    assert done.rows[0]["repo"] == "vits-relu"
    assert done.rows[0]["expected"] == {
        "objective": "matryoshka",
        "activation": ["relu"],
        "d_model": 8,
        "d_sae": 32,
    }


def test_reads_many_ids_a_line_with_others_commented_out_behind(lab):
    done = lab("""
        run_ids = {
            6: ["aaaa1111", "bbbb2222"], # "cccc3333", "dddd4444",
            7: ["eeee5555", # "ffff6666", "gggg7777",
                "hhhh8888"],
        }
        """)
    assert done.ids == [
        (6, "aaaa1111", False),
        (6, "bbbb2222", False),
        (6, "cccc3333", True),
        (6, "dddd4444", True),
        (7, "eeee5555", False),
        (7, "ffff6666", True),
        (7, "gggg7777", True),
        (7, "hhhh8888", False),
    ]


def test_reads_a_layer_whose_ids_are_all_commented_out(lab):
    done = lab("""
        run_ids = {
            6: [
                # "aaaa1111", 'bbbb2222',
            ],
            # 7: ["cccc3333",
            #     "dddd4444"],
        }
        """)
    assert done.ids == [
        (6, "aaaa1111", True),
        (6, "bbbb2222", True),
        (7, "cccc3333", True),
        (7, "dddd4444", True),
    ]


def test_reads_only_the_dict_that_the_catalog_names(lab):
    done = lab(
        """
        def make_cfgs():
            matryoshka_run_ids: dict[int, list[str]] = {6: ["aaaa1111"], 7: ["bbbb2222"]}
            vanilla_run_ids = {23: ["cccc3333"]}  # "dddd4444"
        """,
        variable="matryoshka_run_ids",
    )
    assert [run_id for _, run_id, _ in done.ids] == ["aaaa1111", "bbbb2222"]


def test_prose_in_comments_is_not_an_id_and_words_after_an_id_are_not_either(lab):
    done = lab("""
        # Pareto "run_ids" for ViT-S
        run_ids = {
            # the layers "that" we keep
            # "Dense" runs were left out
            6: [
                # see the "bad" ones in the notebook; 3zih0tpa diverged
                "aaaa1111",  # lr=1e-3, "cccc3333" is its twin
                # "bbbb2222" diverged at step 3000
            ],
            7: ["dddd4444"],
        }  # "eeee5555"
        # "ffff6666"
        """)
    assert done.ids == [(6, "aaaa1111", False), (7, "dddd4444", False)]
    named = [line.split(": not taken for a run id: ") for line in done.err.splitlines()]
    assert [(where.rpartition(":")[2], text) for where, text in named] == [
        ("4", '# the layers "that" we keep'),
        ("5", '# "Dense" runs were left out'),
        ("7", '# see the "bad" ones in the notebook; 3zih0tpa diverged'),
        ("8", '# lr=1e-3, "cccc3333" is its twin'),
        ("9", '# "bbbb2222" diverged at step 3000'),
        ("12", '# "eeee5555"'),
    ]


def test_an_id_listed_and_commented_out_is_one_candidate_and_listed(lab):
    done = lab("""
        run_ids = {6: ["aaaa1111", "aaaa1111"], # "aaaa1111"
            7: [
            # "bbbb2222",
            "bbbb2222"]}
        """)
    assert done.ids == [(6, "aaaa1111", False), (7, "bbbb2222", False)]


def test_text_beyond_ascii_does_not_shift_the_columns(lab):
    done = lab("""
        ü = "éé"; run_ids = {6: ["aaaa1111"], # "bbbb2222",
            7: ["cccc3333"]}; é = "x"  # "dddd4444"
        """)
    assert [run_id for _, run_id, _ in done.ids] == ["aaaa1111", "bbbb2222", "cccc3333"]


def test_a_sweep_is_never_run(lab, tmp_path):
    done = lab(f"""
        open({str(tmp_path / "ran")!r}, "w")
        raise SystemExit("boom")
        run_ids = {{6: ["aaaa1111"], 7: ["bbbb2222"]}}
        """)
    assert done.code == 0 and len(done.ids) == 2
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("comment", "ids", "is_named"),
    [
        ('"best" of the three', [], True),
        ('(dead) "aaaaaaa4",', [], True),
        ('"bbbb2222"', ["bbbb2222"], False),
        ('"bbbb2222",', ["bbbb2222"], False),
        ("'bbbb2222', 'cccc3333'],", ["bbbb2222", "cccc3333"], False),
        ('"bbbb2222", from an earlier sweep', ["bbbb2222"], False),
        ('"bbbb2222", and not "cccc3333"', ["bbbb2222"], True),
        ('"bbbb2222",  # "cccc3333",', ["bbbb2222"], True),
        ('r"bbbb2222",', [], True),
        ('"bbbb2222,', [], True),
        ("“bbbb2222”,", [], True),
        ("don't, it's over", [], False),
    ],
)
@pytest.mark.parametrize("place", ["behind", "in", "whole layer"])
def test_one_rule_for_every_comment(lab, comment, ids, is_named, place):
    text = {
        "behind": f'run_ids = {{6: ["aaaa1111"],  # {comment}\n7: ["dddd4444"]}}',
        "in": f'run_ids = {{6: [\n# {comment}\n"aaaa1111"], 7: ["dddd4444"]}}',
        "whole layer": 'run_ids = {6: ["aaaa1111"], 7: ["dddd4444"],\n'
        f"# 6: [\n# {comment}\n}}",
    }[place]
    done = lab(text)
    assert done.code == 0, done.err
    assert [i for _, i, commented in done.ids if commented] == ids
    assert all(layer == 6 for layer, _, commented in done.ids if commented)
    assert ("not taken for a run id" in done.err) == is_named, done.err


@pytest.mark.parametrize(
    ("comment", "is_named"),
    [
        ('7: ["cccc3333"],', True),
        ('run_ids[7] = ["cccc3333"]', True),
        ('trial_run_ids = {6: ["cccc3333"]}', False),
        ('of the "best" three', False),
        ("run_ids of the first sweep", False),
    ],
)
def test_code_in_a_comment_beside_the_brackets_is_named(lab, comment, is_named):
    text = f'# {comment}\nrun_ids = {{6: ["a"], 7: ["b"]}}\n'
    done = lab(text)
    assert [i for _, i, _ in done.ids] == ["a", "b"]
    assert ("vits.py:1: not taken for a run id" in done.err) == is_named, done.err


@pytest.mark.parametrize(
    "text",
    [
        'run_ids = {6: ["a"],\f 7: ["b"]}',
        '\f\nrun_ids = {6: ["a"],\n\f 7: ["b"]}',
        'def f():\n\f    run_ids = {6: ["a"],\n  \f  7: ["b"]}',
        'x = "\x0b\x1c\x1d\u2028\u2029\x85"; run_ids = {6: ["a"], 7: ["b"]}',
        'x = """\x1c\u2028\x85\n"""\nrun_ids = {6: ["a"],  # \x1c\u2028 é\n7: ["b"]}',
        'run_ids = {6: ["a"],\r\n7: ["b"]}\r\n',
        'run_ids = {6: ["a"],\r7: ["b"]}\r',
        '\ufeffrun_ids = {6: ["a"], 7: ["b"]}',
        '# coding: latin-1\nx = "é"; run_ids = {6: ["a"], 7: ["b"]}',
    ],
)
def test_lines_and_columns_are_those_that_people_see(lab, text):
    encoding = "latin-1" if "latin" in text else "utf-8"
    done = lab(text.encode(encoding))
    assert [i for _, i, _ in done.ids] == ["a", "b"], done.err


def test_tuple_keys_have_the_layer_where_the_catalog_says(lab):
    text = """
        run_ids = {
            (256, 6): ["aaaa1111"], (384, 6): ["bbbb2222"],
            # (256, 7): ["cccc3333"],
            (256, 7): ["dddd4444"],
        }
        for (n, layer), ids in run_ids.items():
            print(n, layer, ids)
        """
    assert lab(text, layer_at=1).ids == [
        (6, "aaaa1111", False),
        (6, "bbbb2222", False),
        (7, "cccc3333", True),
        (7, "dddd4444", False),
    ]
    done = lab(text)
    assert done.code == 1
    assert (
        'vits.py:3: the key (256, 6) is a tuple; set the layer\'s index in it with "layer_at" in the catalog (1 for 6)'
        in done.err
    )
    assert "the key (256, 6) has no layer number at 5" in lab(text, layer_at=5).err


def test_a_list_is_of_the_only_layer(lab):
    text = 'run_ids = ["aaaa1111",  # "bbbb2222",\n# "cccc3333",\n"dddd4444"]'
    ids = [(6, "aaaa1111", False), (6, "bbbb2222", True), (6, "cccc3333", True)]
    assert lab(text, layers=[6]).ids == [*ids, (6, "dddd4444", False)]
    done = lab(text)
    assert done.code == 1
    assert (
        'a list without layers; give the repo a single layer in the catalog ("layers": [23]), or list'
        in done.err
    )


BASE = 'run_ids = {6: ["a"], 7: ["b"]}\n'
CHANGES = {
    "item": 'run_ids[7] = ["c"]',
    "element": 'run_ids[7][0] = "c"',
    "slice": 'run_ids[7][:] = ["c"]',
    "append": 'run_ids[7].append("c")',
    "extend": 'run_ids[7].extend(["c"])',
    "in place": 'run_ids[7] += ["c"]',
    "union in place": 'run_ids |= {7: ["c"]}',
    "update": 'run_ids.update({7: ["c"]})',
    "setdefault": 'run_ids.setdefault(8, []).append("c")',
    "pop": "run_ids.pop(7)",
    "clear": "run_ids.clear()",
    "del item": "del run_ids[7]",
    "del element": "del run_ids[7][0]",
    "del": "del run_ids",
    "tuple": 'x, run_ids[7] = 1, ["c"]',
    "star": "*run_ids[7], x = list_of()",
    "loop target": "for run_ids[7] in [[]]: pass",
    "loop variable": "for run_ids in [{}]: pass",
    "with": "with open('x') as run_ids[7]: pass",
    "walrus": "print(run_ids := {})",
    "walrus in a comprehension": "[x for x in [1] if (run_ids := {})]",
    "import": "import run_ids",
    "import as": "import json as run_ids",
    "from import": "from x import y as run_ids",
    "star import": "from x import *",
    "def": "def run_ids(): pass",
    "class": "class run_ids: pass",
    "except": "try: pass\nexcept E as run_ids: pass",
    "match": "match {}:\n  case run_ids: pass",
    "global": "def f():\n  global run_ids\n  run_ids = {}\n  run_ids[7] = []",
    "in a function": 'def f():\n  run_ids[7].append("c")',
    "alias": 'ids = run_ids\nids[7] = ["c"]',
    "alias of a list": 'ids = run_ids[7]\nids.append("c")',
    "alias by get": 'ids = run_ids.get(7)\nids += ["c"]',
    "alias in a loop": 'for layer, ids in run_ids.items():\n  ids.append("c")',
    "alias by values": 'for ids in run_ids.values():\n  ids.remove("b")',
    "alias by enumerate": 'for i, ids in enumerate(run_ids.values()):\n  ids[0] = "c"',
    "alias by zip": 'for x, ids in zip("ab", run_ids.values()):\n  ids[0] = "c"',
    "alias in a container": 'pair = (1, run_ids)\npair[1][7] = ["c"]',
    "alias in a list": 'all = []\nall.append(run_ids[7])\nall[0].append("c")',
    "alias in a dict": 'cfg = {}\ncfg["ids"] = run_ids[7]\ncfg["ids"].append("c")',
    "alias in a comprehension": '[ids.append("c") for ids in run_ids.values()]',
    "alias by a walrus": '(ids := run_ids[7]).append("c")',
    "alias by a copy": 'run_ids.copy()[7].append("c")',
    "alias by dict": 'dict(run_ids)[7].append("c")',
    "alias by a conditional": 'ids = run_ids[7] if 1 else []\nids.append("c")',
    "method": 'add = run_ids[7].append\nadd("c")',
    "own function": 'def add(ids):\n  ids[7] = ["c"]\nadd(run_ids)',
    "own function, by name": "def add(n, ids=None):\n  ids.clear()\nadd(1, ids=run_ids)",
    "own function's default": "def add(ids=run_ids):\n  ids.clear()\nadd()",
    "own function's result": "def same(ids):\n  return ids\nsame(run_ids).clear()",
    "own function's star": "def f(*args):\n  args[0].clear()\nf(run_ids)",
    "generator": "def each():\n  yield from run_ids.values()\nfor ids in each():\n  ids.clear()",
    "lambda": "f = lambda: run_ids.clear()",
    "foreign function": "from x import add\nadd(run_ids)",
    "foreign method": "x.add(run_ids[7])",
    "operator": "import operator\noperator.setitem(run_ids, 7, [])",
    "dict.update": "dict.update(run_ids, {})",
    "exec": 'exec("run_ids = {}")',
    "globals": 'globals()["run_ids"] = {}',
    "setattr": 'import x\nsetattr(x, "run_ids", {})',
    "delattr": 'import x\ndelattr(x, "run_ids")',
    "exec by another name": 'e = exec\ne("run_ids = {}")',
    "exec from builtins": "from builtins import exec as e\ne('run_ids = {}')",
    "builtins": "import builtins\nbuiltins.exec('run_ids = {}')",
    "__builtins__": "__builtins__.exec('run_ids = {}')",
    "sys.modules": "import sys\nsys.modules[__name__].run_ids = {}",
    "sys.modules, imported": "from sys import modules\nmodules[__name__].run_ids = {}",
    "__main__": "import __main__ as m\nm.run_ids = {}",
    "import_module": "from importlib import import_module\nimport_module(__name__).run_ids = {}",
    "__import__": "__import__(__name__).run_ids = {}",
    "f_globals": "import sys\nsys._getframe().f_globals['run_ids'] = {}",
    "__globals__": "def f(): pass\nf.__globals__['run_ids'] = {}",
    "lambda's default": "f = lambda ids=run_ids: ids.clear()\nf()",
    "lambda's result": "f = lambda: run_ids\nf().clear()",
    "key of a sort": "sorted(run_ids.values(), key=lambda ids: ids.pop())",
    "own function as a key": "def f(ids):\n  ids.pop()\nmin(run_ids.values(), key=f)",
    "method as a key": "min(run_ids.values(), key=list.pop)",
    "min": 'min(run_ids.values(), key=len).append("c")',
    "max": 'max(run_ids.values()).append("c")',
    "sum of nothing": 'sum([], run_ids[7]).append("c")',
    "unpacked star": 'x, *ids = run_ids.values()\nids[0].append("c")',
    "loop's star": 'for x, *ids in run_ids.items():\n  ids[0].append("c")',
    "match, deep": 'match {"x": [run_ids]}:\n  case {"x": [ids]}:\n    ids.clear()',
    "attribute": "class C:\n  def __init__(self):\n    self.ids = run_ids\nC().ids.clear()",
    "class's attribute": "class C:\n  ids = run_ids\nC.ids.clear()",
    "property": "class C:\n  @property\n  def ids(self):\n    return run_ids\nC().ids.clear()",
    "own method's result": "class C:\n  def ids(self):\n    return run_ids\nC().ids().clear()",
    "own operator": "class C:\n  def __getitem__(self, i):\n    return run_ids\nC()[0].clear()",
    "own context": "@contextmanager\ndef f():\n  yield run_ids\nwith f() as ids:\n  ids.clear()",
    "function's function": "def f():\n  def g():\n    return run_ids\n  return g\nf()().clear()",
    "value of a dict()": 'cfg = dict(ids=run_ids[7])\ncfg["ids"].append("c")',
    "update's keyword": 'cfg = {}\ncfg.update(ids=run_ids[7])\ncfg["ids"].append("c")',
    "keywords of a dict": 'def f(ids):\n  ids.clear()\ncfg = {"ids": run_ids[7]}\nf(**cfg)',
    "its name in a comprehension": '[run_ids.append("c") for run_ids in run_ids.values()]',
    "its name in a class": "class C:\n  run_ids = 1\n  def f(self):\n    run_ids.clear()",
    "one function or another": "def f(ids): ids.clear()\nif x:\n  def f(ids): pass\nf(run_ids)",
    "attribute of an attribute": "class C:\n  def f(self):\n    self.a.append(run_ids)\nC().a[0].clear()",
    "lambda's yield": "f = lambda: (yield run_ids)",
    "unknown statement": "match run_ids:\n  case {7: ids}:\n    print(ids)",
    "function in a dict": "def f():\n  return run_ids\nt = {1: f}\nt[1]().clear()",
}  # fmt: skip
WITH_DEFINITION = {
    "another name": 'ids = run_ids = {6: ["a"], 7: ["b"]}\nids.clear()',
    "global of a function": 'def f():\n  global run_ids\n  run_ids = {6: ["a"], 7: ["b"]}\n'
    "f()\nrun_ids.clear()",
}
"""Where the definition itself makes it possible."""


@pytest.mark.parametrize("name", CHANGES)
def test_any_other_statement_that_may_change_the_variable_stops(lab, name):
    done = lab(BASE + CHANGES[name])
    assert (done.code, done.out) == (1, "")
    lineno = re.search(r"vits\.py:(\d+): ", done.err)[1]
    n_lines = CHANGES[name].count("\n") + 1
    assert 2 <= int(lineno) <= 1 + n_lines, done.err
    assert "or list the ids in the catalog instead" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("name", WITH_DEFINITION)
def test_what_its_definition_lets_change_it_stops(lab, name):
    done = lab(WITH_DEFINITION[name])
    assert (done.code, done.out) == (1, "")
    assert ": calls .clear() of " in done.err


READS = {
    "loop": "for layer, ids in run_ids.items():\n  for i in ids:\n    cfgs.append({'run': join(root, i), 'layer': f(layer)})",
    "items of two": "for layer, ids in list(run_ids.items()) + list(more.items()):\n  for i in ids: make(i)",
    "loop over several": "for ids_by, x in ((run_ids, 1), (other, 2)):\n  for layer, ids in ids_by.items(): print(ids)",
    "sorted": "for layer in sorted(run_ids): make(layer, len(run_ids[layer]))",
    "copies": "all = [i for ids in run_ids.values() for i in ids]\nall.append('x')\nall[0] = 'y'",
    "config": "cfgs = []\nfor layer, ids in run_ids.items():\n  cfgs.append({'ids': ids})\n  cfgs.sort()\ncfgs += [1]",
    "copy of a list": "ids = list(run_ids[7])\nids.append('c')\nids = run_ids[7] + ['x']\nids.clear()",
    "another scope": "def f(run_ids):\n  run_ids[7] = []\n  run_ids = 1",
    "another variable": "other = {}\nother[7] = []\ndef g():\n  ids = []\n  ids.append(1)",
    "returned": "def f():\n  return run_ids\nfor layer, ids in f().items(): print(ids)",
    "told": "import logging\nlogging.info('%s', run_ids)\nfor ids in tqdm(run_ids.values()): print(ids)",
    "module's own": "import sys, torch\nmodel.eval()\nlist(model.modules())\nif __name__ == '__main__':\n  print(sys.argv)",
    "own function": "def make(cfgs, ids, *, n=run_ids):\n  cfgs.append({i: len(n[7]) for i in ids})\n  cfgs.append(1)\nmake([], run_ids)",
    "parts at once": "ids, n = run_ids[7], 1\nn += 1\nx, y = {**run_ids}, [*ids]\nx[8] = []\ny.append('c')",
    "sum": "ids = sum(run_ids.values(), [])\nids.append('x')\nn = max(len(i) for i in run_ids.values())",
    "text": "print(f'{run_ids}', ', '.join(run_ids[7]), 7 in run_ids, run_ids == {})",
}  # fmt: skip


@pytest.mark.parametrize("name", READS)
def test_what_only_reads_the_variable_does_not(lab, name):
    done = lab(BASE + READS[name])
    assert [i for _, i, _ in done.ids] == ["a", "b"], done.err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('run_ids = {6: ["aaaa1111"],\n 7: ["aaaa1111"]}', "vits.py:2: aaaa1111 is under layer 7, but also under layer 6 at line 1"),
        ('run_ids = {6: ["aaaa1111"],\n 7: ["../../etc"]}', "vits.py:2: '../../etc' is not a run id"),
        ('run_ids = {6: ["aaaa1111"],\n 7: ["b\\n"]}', "vits.py:2: 'b\\n' is not a run id"),
        ('run_ids = {6: ["aaaa1111"],\n 7: [\n# "no/slash",\n]}', "vits.py:3: 'no/slash' is not a run id"),
        ('run_ids = {6: ["a"], 7: ["b"],\n 8: ["c"]}', "vits.py:2: layer 8 is not one of"),
        ('run_ids = {6: ["a"]}', "no run id under layer 7"),
        ('\nother = {6: ["a"]}', 'vits.py:1: assigns no "run_ids", which the catalog names; it has other'),
        ('run_ids = {}\nrun_ids = {6: ["a"]}', 'vits.py:2: assigns "run_ids" at lines 1 and 2'),
        ('run_ids = {6: ["a"], **more}', "vits.py:1: the key ** has no layer number"),
        ('run_ids = {"6": ["a"]}', "vits.py:1: the key '6' has no layer number; list the ids in the catalog"),
        ('run_ids = {6: base + ["a"]}', "vits.py:1: layer 6 is not a literal list"),
        ('run_ids = {6: [x]}', "vits.py:1: layer 6 has an item that is not a literal string"),
        ('run_ids = {6: [f"a{x}"]}', "vits.py:1: layer 6 has an item that is not a literal string"),
        ('run_ids = {6: ["aaaa1111"\n"bbbb2222"]}', "vits.py:1: layer 6 lacks a comma"),
        ('run_ids = {6: ["a"],\n 6: ["b"]}', "vits.py:2: key 6 again, after line 1"),
        ('run_ids = {\n# "aaaa1111",\n6: ["b"]}', 'vits.py:2: a commented-out "aaaa1111" under no layer'),
        ("# coding: nonsense\nrun_ids = {}", "vits.py:1: not text: "),
        ("run_ids = dict(a=1)", 'vits.py:1: "run_ids" is not a literal dict or list'),
        ("run_ids = {i: [] for i in x}", 'vits.py:1: "run_ids" is not a literal dict or list'),
    ],
)  # fmt: skip
def test_stops_with_file_and_line_at(lab, text, told):
    done = lab(text)
    assert done.code == 1
    assert done.out == ""
    assert told in done.err
    assert done.err.startswith("extract-ids: ") and done.err.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    ["run_ids = {6: [", "run_ids = " + "(" * 500 + ")" * 500, "\0", "x = = 1",
     "x = " + "-" * 100_000 + "1"],
)  # fmt: skip
def test_what_this_python_cannot_parse_may_be_newer_python(lab, text):
    done = lab(text)
    assert done.code == 1 and done.err.count("\n") == 1
    assert re.search(r"vits\.py:\d: Python 3\.\d+\.\d+ can't parse this: ", done.err)
    assert "if a newer one can, set PYTHON to it" in done.err


# Files.


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ids.csv", "layer,run_id,note\n6,aaaa1111,x\n7,bbbb2222,\n"),
        ("ids.csv", "\ufeffrun_id,layer\r\naaaa1111,6\r\nbbbb2222,7\r\n"),
        ("ids.json", '{"6": ["aaaa1111"], "7": ["bbbb2222"]}'),
        ("ids.json", '[{"run_id": "aaaa1111", "layer": 6},\n{"run_id": "bbbb2222", "layer": "7"}]'),
        ("ids.jsonl", '{"run_id": "aaaa1111", "layer": 6}\n\n{"run_id": "bbbb2222", "layer": 7}\n'),
    ],
)  # fmt: skip
def test_ids_from_a_file(lab, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    done = lab("", sweep=None, variable=None, run_ids_file=name)
    assert done.ids == [(6, "aaaa1111", False), (7, "bbbb2222", False)], done.err
    assert re.search(rf"/{name}:\d$", done.rows[1]["source"])


def test_ids_from_a_text_file_for_each_layer(lab, tmp_path):
    for layer, text in ((6, "# the good ones\naaaa1111\n\n"), (7, "bbbb2222 # best\n")):
        (tmp_path / f"layer_{layer}.txt").write_text(text)
    done = lab("", sweep=None, variable=None, run_ids_file="layer_{layer}.txt")
    assert done.ids == [(6, "aaaa1111", False), (7, "bbbb2222", False)], done.err
    done = lab("", sweep=None, variable=None, run_ids_file="layer_6.txt", layers=[6])
    assert done.ids == [(6, "aaaa1111", False)]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("ids.csv", "id,layer\na,6\n", 'ids.csv:2: no "run_id"; its keys: id, layer'),
        ("ids.csv", "run_id\na\n", "ids.csv:2: no \"layer\" with a number"),
        ("ids.txt", "a\n", "ids.txt:1: no \"layer\" with a number"),
        ("ids.jsonl", "{}\n[]\n", 'ids.jsonl:1: no "run_id"'),
        ("ids.jsonl", "x\n", "ids.jsonl:1: not JSON"),
        ("ids.json", "7", "ids.json:1: neither a list of runs"),
        ("ids.yaml", "", "use one of .txt, .csv, .json, .jsonl"),
        ("ids.csv", "run_id,layer\n../x,6\nb,7", "ids.csv:2: '../x' is not a run id"),
        ("gone.csv", None, "gone.csv: No such file or directory; check the catalog"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_told_by_line(lab, tmp_path, name, text, told):
    if text is not None:
        (tmp_path / name).write_text(text)
    done = lab("", sweep=None, variable=None, run_ids_file=name)
    assert done.code == 1 and told in done.err, done.err


# W&B.


@pytest.fixture
def from_wandb(lab):
    """Runs extract-ids over a W&B with runs of two sweeps; keywords are the catalog's."""
    configs = {
        "aaaa1111": {"train_data": {"layer": 6}},
        "bbbb2222": {"train_data": {"layer": 7}, "hook": {"at": 6}},
        "cccc3333": {"train_data": {"layer": 8}, "hook": {"at": 7}},
        "dddd4444": {},
        "eeee5555": {"train_data": {"layer": 6}},
    }
    runs = [
        {
            **{"name": name, "config": config, "summary": {}, "state": "finished"},
            "createdAt": f"2026-01-0{9 - i}T00:00:00Z",
            "sweep": "other" if name == "eeee5555" else "s1",
        }
        for i, (name, config) in enumerate(configs.items())
    ]
    own = {"sweep": None, "variable": None, "entity": "us", "project": "audio"}
    with LoopbackWandb(runs, entity="us", project="audio") as server:
        env = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": server.key}
        # The client starts a program of its own, so this is one too.
        yield lambda **wanted: lab("", env=env, go=run_apart, **own, wandb=wanted)


def run_apart(name: str, *argv: str, env: dict) -> Done:
    return run_program(ROOT / "bin" / name, *argv, **env)


def test_ids_from_a_sweep_of_wandb_with_the_layer_from_each_config(from_wandb):
    done = from_wandb(sweep="s1")
    assert done.ids == [(7, "bbbb2222", False), (6, "aaaa1111", False)], done.err
    assert done.rows[0]["source"] == "us/audio/bbbb2222:1"
    assert "run dddd4444 left out: its config has no layer number at" in done.err
    done = from_wandb(sweep="s1", layer="hook.at")
    assert done.ids == [(7, "cccc3333", False), (6, "bbbb2222", False)]


def test_ids_by_filters_of_wandb(from_wandb):
    done = from_wandb(filters={"sweep": "other"})
    assert done.code == 1 and "no run id under layer 7" in done.err
    assert len(from_wandb(filters={"state": "finished"}).ids) == 3


def test_a_sweep_that_wandb_does_not_have_is_told(from_wandb):
    done = from_wandb(sweep="gone")
    assert done.code == 1 and done.err.count("\n") == 1
    assert "no run id under layers 6, 7, which the catalog lists" in done.err


def test_ids_in_the_catalog_replace_the_sweep(lab):
    own = {"run_ids": {"6": ["aaaa1111"], "7": ["bbbb2222"]}}
    done = lab("not python", **own, sweep=None, variable=None)
    assert done.ids == [(6, "aaaa1111", False), (7, "bbbb2222", False)]
    assert "catalog.json:" in done.rows[0]["source"]


def test_ids_on_the_command_line_replace_the_sweep(lab):
    argv = ("vits-relu", "--run-ids", "6=aaaa1111,bbbb2222", "--run-ids", "7=cccc3333")
    assert [run_id for _, run_id, _ in lab("not python", *argv).ids] == [
        "aaaa1111",
        "bbbb2222",
        "cccc3333",
    ]


def test_all_lists_every_repo(lab):
    done = lab('run_ids = {6: ["a"], 7: ["b"]}', "--all", n_repos=2)
    assert [row["repo"] for row in done.rows] == ["vits-relu"] * 2 + ["other"] * 2


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["vits-rel"], "did you mean vits-relu?"),
        (["--all", "vits-relu"], "give either repos"),
        (["vits-relu", "--run-ids", "6:a"], "not LAYER=ID,ID"),
        (["vits-relu", "--nonsense"], "unrecognized"),
    ],
)
def test_wrong_usage_exits_2(lab, argv, told):
    done = lab('run_ids = {6: ["a"], 7: ["b"]}', *argv)
    assert done.code == 2 and told in done.err


def test_a_missing_sweep_names_the_file(lab):
    done = lab("x = 1", sweep="sweeps/gone.py")
    assert done.code == 1
    assert "sweeps/gone.py: No such file or directory; check the catalog" in done.err
