"""extract-ids reads sweep files as people write them, and never runs them."""

import json
import pathlib
import textwrap

import pytest

from kits.programs import ROOT, run_program

REPO = {
    "slug": "vits-relu",
    "repo_id": "lab/SAE",
    "title": "SAE",
    "base_model": "facebook/dinov3",
    "sweep": "sweeps/vits.py",
    "variable": "run_ids",
    "objective": "matryoshka",
    "activation": "relu",
    "layers": [6, 7],
    "d_model": 8,
    "d_sae": 32,
}


@pytest.fixture
def lab(tmp_path):
    """Runs extract-ids over a sweep file's text; keywords change the catalog's entry."""

    def extract(text: str, *argv: str, n_repos: int = 1, **entry):
        (tmp_path / "sweeps").mkdir(exist_ok=True)
        (tmp_path / "sweeps/vits.py").write_text(textwrap.dedent(text))
        repos = [{k: v for k, v in (REPO | entry).items() if v is not None}]
        if n_repos == 2:
            repos.append(REPO | {"slug": "other", "repo_id": "lab/other"} | entry)
        catalog = tmp_path / "catalog.json"
        catalog.write_text(json.dumps({"collections": [], "repos": repos}))
        argv = argv or ("vits-relu",)
        done = run_program(
            ROOT / "bin/extract-ids", *argv, SAEV_DIR=tmp_path, CATALOG=catalog
        )
        done.rows = [json.loads(line) for line in done.out.splitlines()]
        done.ids = [
            (row["layer"], row["run_id"], row["commented"]) for row in done.rows
        ]
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
    assert done.ids == [
        (6, "aaaa1111", False),
        (6, "bbbb2222", True),
        (7, "dddd4444", False),
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
    assert done.returncode == 0 and len(done.ids) == 2
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('run_ids = {6: ["aaaa1111"],\n 7: ["aaaa1111"]}', "vits.py:2: aaaa1111 is under layer 7, and under layer 6 at line 1"),
        ('run_ids = {6: ["aaaa1111"],\n 7: ["../../etc"]}', "vits.py:2: '../../etc' is not a run id"),
        ('run_ids = {6: ["aaaa1111"],\n 7: ["b\\n"]}', "vits.py:2: 'b\\n' is not a run id"),
        ('run_ids = {6: ["aaaa1111"],\n 7: [\n# "no/slash",\n]}', "vits.py:3: 'no/slash' is not a run id"),
        ('run_ids = {6: ["a"], 7: ["b"],\n 8: ["c"]}', "vits.py:2: layer 8 is not among the catalog's"),
        ('run_ids = {6: ["a"]}', "no run id under layer 7"),
        ('\nother = {6: ["a"]}', 'vits.py:1: assigns no "run_ids"'),
        ('run_ids = {}\nrun_ids = {6: ["a"]}', 'vits.py:2: assigns "run_ids" at lines 1 and 2'),
        ('run_ids = {6: ["a"], **more}', "vits.py:1: a key that is not a layer's number"),
        ('run_ids = {"6": ["a"]}', "vits.py:1: a key that is not a layer's number"),
        ('run_ids = {6: base + ["a"]}', "vits.py:1: layer 6 is not a list of strings"),
        ('run_ids = {6: [x]}', "vits.py:1: layer 6 holds what is not a string"),
        ('run_ids = {6: ["aaaa1111"\n"bbbb2222"]}', "vits.py:1: layer 6 lacks a comma"),
        ('run_ids = {6: ["a"],\n 6: ["b"]}', "vits.py:2: layer 6 again, after line 1"),
        ('run_ids = {\n# "aaaa1111",\n6: ["b"]}', 'vits.py:2: a commented-out "aaaa1111" that stands under no layer'),
        ("run_ids = {6: [", "vits.py:1: not Python"),
        ("run_ids = " + "(" * 500 + ")" * 500, "vits.py:1: not Python"),
        ("\0", "vits.py:1: not Python"),
        ("# coding: nonsense\nrun_ids = {}", "not Python"),
        ("run_ids = dict(a=1)", 'vits.py:1: "run_ids" is not a dict literal'),
    ],
)  # fmt: skip
def test_stops_with_file_and_line_at(lab, text, told):
    done = lab(text)
    assert done.returncode == 1
    assert done.out == ""
    assert told in done.err
    assert done.err.startswith("extract-ids: ") and done.err.count("\n") == 1


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
        (["--all", "vits-relu"], "one of the two"),
        (["vits-relu", "--run-ids", "6:a"], "not LAYER=ID,ID"),
        (["vits-relu", "--nonsense"], "unrecognized"),
    ],
)
def test_wrong_usage_exits_2(lab, argv, told):
    done = lab('run_ids = {6: ["a"], 7: ["b"]}', *argv)
    assert done.returncode == 2 and told in done.err


def test_a_missing_sweep_names_the_file(lab):
    done = lab("x = 1", sweep="sweeps/gone.py")
    assert done.returncode == 1
    assert str(pathlib.Path("sweeps/gone.py: no such sweep file")) in done.err
