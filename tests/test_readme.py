"""What README and --help tell people to type works when it is typed."""

import re
import shutil

import pytest

from kits import reader
from kits.programs import ROOT, Done
from kits.tree import Tree, fresh

pytestmark = pytest.mark.long

README = (ROOT / "README.md").read_text()
PROGRAMS = sorted(f.name for f in (ROOT / "bin").iterdir())
JQ = sorted(f.stem for f in (ROOT / "jq").iterdir())
SHELL = ["push-dinov3", "setup"]
OVER_THE_HUB = ["announce", "collect", "plan", "verify"]
STAGES = [name for name in PROGRAMS if name not in JQ + SHELL]
# First those that need what a dry run left: the others make parts of it anew, or remove it.
STAGES.sort(key=lambda name: name not in OVER_THE_HUB)


@pytest.fixture(scope="module")
def tree(tmp_path_factory, demo):
    return fresh(tmp_path_factory.mktemp("readme"), demo, "dry-run")


def sh(tree: Tree, text: str) -> Done:
    return tree.run("bash", "-o", "pipefail", "-c", text)


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(title: str) -> list[str]:
    return reader.blocks(section(title), "sh")


@pytest.fixture(scope="module")
def rehearsed(tree):
    """What README's rehearsal prints, after which the Hub on this machine has the release."""
    (block,) = blocks("Releasing")
    done = sh(tree, block)
    assert done.code == 0, done.err
    return done.out


def test_the_rehearsal_works_as_told(rehearsed):
    assert "verified" in rehearsed


def test_a_dry_run_prints_what_it_says(tree):
    (block,) = reader.blocks(section("What you see"), "text")
    printed = iter(tree.out.splitlines())
    for text in block.splitlines():
        assert text.strip() == "…" or text in printed, text


def test_the_pictures_are_there_and_small():
    shown = re.findall(r"docs/[\w.]+\.png", README)
    assert shown == ["docs/page.png", "docs/plot.png"]
    for path in shown:
        assert 5_000 < (ROOT / path).stat().st_size < 150_000


@pytest.mark.browser
def test_make_draws_the_pictures(tree):
    if not shutil.which("chromium"):
        pytest.skip("no Chromium to look with: apt-get install chromium")
    before = {
        name: (ROOT / "docs" / name).stat().st_size for name in ("page.png", "plot.png")
    }
    (tree.dpath / "docs/page.png").unlink()
    tree.make("pictures")
    for name, n_bytes in before.items():
        size = (tree.dpath / "docs" / name).stat().st_size
        assert 0.5 < size / n_bytes < 2


def test_every_target_in_the_readme_is_one(tree):
    listed = set(re.findall(r"^([\w-]+) ", tree.make("help").out, re.MULTILINE))
    named = set(re.findall(r"(?:^ *|`)make ([a-z][a-z-]+)", README, re.MULTILINE))
    assert named - {"install"} <= listed, named - listed


def test_every_pinned_package_is_explained():
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "requirements.txt").read_text(), re.M)
    for name in pinned:
        assert re.search(rf"\b{name}\b", section("What it stands on")), name


def test_nothing_speaks_of_a_placeholder():
    assert "{{" not in README and "TODO" not in README


@pytest.mark.parametrize("name", JQ)
def test_a_jq_filter_is_executable_and_tells_its_purpose_and_example(
    tree, name, request
):
    told = sh(tree, f"bin/{name} --help")
    assert told.code == 0 and told.out and not told.err
    try_example(tree, name, told.out, request)


@pytest.mark.parametrize("name", STAGES)
def test_help_has_a_purpose_options_and_an_example_that_works(tree, name, request):
    done = sh(tree, f"bin/{name} --help")
    assert done.code == 0 and done.err == ""
    assert re.match(rf"usage: {name} .*\n\n[A-Z].*\.\n", done.out, re.DOTALL)
    assert "options:" in done.out
    try_example(tree, name, done.out, request)


def try_example(tree, name: str, help_text: str, request) -> None:
    """Run the example of a program's --help, over a Hub on this machine where it needs one."""
    example = help_text.split("\nexample:\n")[1]
    if name in OVER_THE_HUB:
        request.getfixturevalue("rehearsed")
        quoted = example.replace("'", "'\\''")
        example = f"LOADER=builtin bin/rehearse bash -o pipefail -c '{quoted}'"
    done = sh(tree, example)
    assert done.code == 0, (example, done.out, done.err)


@pytest.mark.parametrize("name", STAGES)
def test_wrong_usage_is_exit_2_and_no_traceback(tree, name):
    done = sh(tree, f"bin/{name} --no-such-option")
    assert done.code == 2
    assert "Traceback" not in done.err and done.err.startswith("usage: ")


def test_the_debugging_session_works_as_told(tree):
    # The last: it leaves the tree with another N, for which all others would make it anew.
    outs = []
    for block in blocks("Piping by hand"):
        done = sh(tree, block)
        assert done.code == 0, (block, done.err)
        outs.append(done.out)
    assert re.search(r"1 not Matryoshka", outs[0])
    assert re.fullmatch(r"\w{8} \S+/vitl_ade20k_inference\.py:\d+\n", outs[1])
    assert len(outs[2].splitlines()) == len(outs[3].splitlines()) == 3
