"""collect puts each released repo into both collections, once, whatever state they are in."""

import pytest

from kits.hub import Fault
from kits.programs import text_of
from kits.release import LAB, OTHER, SAE_V, SCOPED, SLUG, WRITES, World, scoped

pytest_plugins = ["kits.release_fixtures"]

TITLE = "The demo: sparse autoencoders of toy activations, small but really trained"
SHORT = "The demo: sparse autoencoders of toy activations, small but"
PAPERS = [(f"2501.{i:05}", "paper") for i in range(6)]


@pytest.fixture
def verified(world):
    """A world with a repo on its Hub, and the lines that verify passes on."""
    world.hub.add_repo(world.repo_id)
    commit = world.hub.commits(world.repo_id)[0]["id"]
    world.verified = text_of([row | {"commit": commit} for row in world.rows[SLUG]])
    return world


def collect(world: World, **env: object):
    return world.run("collect", stdin=world.verified, **env)


def items(world: World) -> dict[str, list[str]]:
    """Each collection's items by its title."""
    return {
        c["title"]: [item["id"] for item in c["items"]] for c in world.hub.collections()
    }


def url(world: World, title: str) -> str:
    (slug,) = (c["slug"] for c in world.hub.collections() if c["title"] == title)
    return f"{world.hub.endpoint}/collections/{slug}"


def wants(world: World, *collections: dict) -> None:
    world.set_catalog(collections=[{"namespace": LAB} | c for c in collections])


# By title.


def test_an_absent_one_is_created_with_a_title_cut_at_a_word(verified):
    done = collect(verified)
    assert done.code == 0, done.err
    assert items(verified) == {"sae-v": [verified.repo_id], SHORT: [verified.repo_id]}
    (made,) = (c for c in verified.hub.collections() if c["title"] == SHORT)
    assert made["description"] == TITLE
    assert made["namespace"] == LAB and not made["private"]
    assert done.err.splitlines() == [
        f"{url(verified, SHORT)}: created, gained {verified.repo_id}",
        f"{url(verified, 'sae-v')}: gained {verified.repo_id}",
    ]


def test_a_title_that_the_hub_takes_is_not_cut(verified):
    wants(verified, {"title": "Sparse Autoencoders"})
    assert collect(verified).code == 0
    made = verified.hub.collections()[-1]
    assert (made["title"], made["description"]) == ("Sparse Autoencoders", None)


@pytest.mark.parametrize("n_chars", [59, 60, 71, 150, 200])
def test_a_title_of_any_length_is_found_again(verified, n_chars):
    title = ("Sparse autoencoders of many a kind " * 9)[:n_chars].rstrip("s ") + "s"
    wants(verified, {"title": title})
    assert collect(verified).code == 0
    made = verified.hub.collections()[-1]
    assert len(made["title"]) <= 59 and title.startswith(made["title"])
    if len(title) > 59:
        assert title[len(made["title"])] == " "
        assert made["description"] == title[:150]
    assert "has all" in collect(verified).err
    assert len(verified.hub.collections()) == 2


def test_a_title_without_a_space_is_cut_where_it_must_be(verified):
    wants(verified, {"title": "x" * 80})
    assert collect(verified).code == 0
    assert verified.hub.collections()[-1]["title"] == "x" * 59


@pytest.mark.parametrize("title", [TITLE, SHORT])
def test_a_present_one_is_extended_whole_or_shortened(verified, title):
    verified.hub.shelf.add(LAB, title, "Mine")
    done = collect(verified)
    assert done.code == 0, done.err
    assert items(verified)[title] == [verified.repo_id]
    assert len(verified.hub.collections()) == 2
    assert f"{url(verified, title)}: gained {verified.repo_id}\n" in done.err


def test_the_title_as_the_catalog_has_it_goes_before_the_shortened(verified):
    verified.hub.shelf.add(LAB, SHORT)
    verified.hub.shelf.add(LAB, TITLE)
    assert collect(verified).code == 0
    assert items(verified) | {"sae-v": []} == {
        SHORT: [],
        TITLE: [verified.repo_id],
        "sae-v": [],
    }


def test_another_owners_collection_of_that_title_is_not_ours(verified):
    verified.hub.add_collection("elsewhere", SHORT)
    assert collect(verified).code == 0
    assert len(verified.hub.collections()) == 3


# By slug.


def test_the_existing_one_is_found_by_its_slug_whatever_the_words_in_it(verified):
    verified.hub.add_collection(LAB, "SAE V")
    for words in ("sae-v", "its-older-name"):
        wants(verified, {"slug": f"{LAB}/{words}-{SAE_V}"})
        assert collect(verified).code == 0
        assert items(verified) == {"sae-v": [verified.repo_id], "SAE V": []}


def test_one_that_should_exist_and_does_not_is_told_and_not_made(verified):
    slug = f"{LAB}/sae-w-{'0' * 24}"
    wants(verified, {"slug": slug}, {"slug": f"{LAB}/sae-v-{SAE_V}"})
    plan = verified.run("plan", stdin=verified.lines())
    assert plan.code == 0
    assert f"collection {slug}: not found, though the catalog names it" in plan.err
    done = collect(verified)
    assert done.code == 1
    assert done.last == (
        f"collect: collection {slug}: not found, though the catalog names it"
        " (the repos are released and verified; to continue: make release)"
    )
    assert items(verified) == {"sae-v": [verified.repo_id]}


def test_two_that_answer_to_the_name_are_left_alone(verified):
    for _ in range(2):
        verified.hub.add_collection(LAB, SHORT)
    done = collect(verified)
    assert done.code == 1
    assert f"could be {LAB}/the-demo-" in done.last
    assert "name one by its slug in the catalog" in done.last
    assert items(verified)[SHORT] == []


# Full ones, and never twice.


def test_a_repo_behind_four_other_items_is_not_added_twice(verified):
    (sae_v,) = verified.hub.shelf.all
    for item_id, item_type in [*PAPERS, (verified.repo_id, "model")]:
        verified.hub.shelf.add_item(sae_v, item_id, item_type, None)
    done = collect(verified)
    assert done.code == 0, done.err
    assert items(verified)["sae-v"].count(verified.repo_id) == 1
    assert f"{url(verified, 'sae-v')}: has all\n" in done.err


def test_other_items_stay_as_they_are(verified):
    (sae_v,) = verified.hub.shelf.all
    for item_id, item_type in PAPERS:
        verified.hub.shelf.add_item(sae_v, item_id, item_type, "theirs")
    before = list(sae_v["items"])
    assert collect(verified).code == 0
    assert sae_v["items"][:6] == before
    assert sae_v["items"][6]["id"] == verified.repo_id


def test_each_repo_has_a_short_note(verified):
    collect(verified)
    for collection in verified.hub.collections():
        (item,) = collection["items"]
        assert item["type"] == "model"
        assert item["note"] == ("4 SAE checkpoints for demo-lab/toy-b, layers 10, 11")


def test_a_second_time_changes_nothing_and_says_so(verified):
    collect(verified)
    verified.kinds()
    done = collect(verified)
    assert done.err.splitlines() == [
        f"{url(verified, SHORT)}: has all",
        f"{url(verified, 'sae-v')}: has all",
    ]
    assert not set(verified.kinds()) & set(WRITES)


def test_two_repos_are_told_on_one_line_of_each_collection(world):
    world.use("other")
    done = world.release(SLUG, OTHER)
    assert done.code == 0, done.err
    both = ", ".join(sorted((world.repo_id, world.repo_ids[OTHER])))
    assert done.err.splitlines()[-2:] == [
        f"{url(world, SHORT)}: created, gained {both}",
        f"{url(world, 'sae-v')}: gained {both}",
    ]
    assert set(items(world)["sae-v"]) == {world.repo_id, world.repo_ids[OTHER]}


# What a release does, and when.


def test_collections_are_touched_only_after_all_is_verified(world):
    world.use("other")
    assert world.release(SLUG, OTHER).code == 0
    kinds = world.kinds()
    last_read = max(i for i, kind in enumerate(kinds) if kind == "resolve")
    touched = [
        i for i, k in enumerate(kinds) if k.startswith("collection_") and k in WRITES
    ]
    assert len(touched) == 6  # a title refused, one made, and four items
    assert min(touched) > last_read > kinds.index("commit")


def test_unverified_repos_reach_no_collection(world):
    world.hub.faults.append(Fault("resolve", status=404, times=10**6))
    done = world.release()
    assert done.code == 1
    assert "pushed but not verified; no collection was changed" in done.err
    assert items(world) == {"sae-v": []}


def test_plan_tells_what_each_collection_would_gain(world):
    told = world.run("plan", stdin=world.lines()).err
    assert (
        f'collection "{TITLE}" of {LAB}: would be created with {world.repo_id}' in told
    )
    assert f"collection {world.sae_v}: would gain {world.repo_id}" in told
    assert not set(world.kinds()) & set(WRITES)


# No rights, and faults.


def test_without_rights_the_release_stands_and_the_line_says_which_and_why(world):
    done = world.release(HF_TOKEN=SCOPED)
    assert done.code == 1
    assert world.held() == world.expected()
    assert (world.records / SLUG / "release.json").exists()
    assert [line for line in done.err.splitlines() if line.startswith("collect: ")] == [
        (
            f'collect: collection "{TITLE}" of {LAB}: can\'t create it: Forbidden: this'
            f' token lacks "collection.write" on {LAB} (403)'
        ),
        (
            f"collect: collection {world.sae_v}: can't add {world.repo_id}: Forbidden:"
            f' this token lacks "collection.write" on {LAB} (403)'
        ),
        (
            "collect: 2 problems; the repos are released and verified; to continue:"
            " make release"
        ),
    ]
    assert len(done.rows) == 4  # for the announcement
    assert items(world) == {"sae-v": []}


def test_no_rights_on_one_collection_do_not_keep_from_the_other(verified):
    verified.hub.tokens[SCOPED] = scoped(elsewhere=["collection.write"])
    wants(
        verified,
        {"slug": f"{LAB}/sae-v-{SAE_V}"},
        {"title": "T", "namespace": "elsewhere"},
    )
    done = collect(verified, HF_TOKEN=SCOPED)
    assert done.code == 1
    assert f"collection {verified.sae_v}: can't add" in done.last
    assert items(verified) == {"sae-v": [], "T": [verified.repo_id]}


KINDS = ("collection_list", "collection_get", "collection_create", "collection_add")


@pytest.mark.parametrize(
    "pair",
    [
        ({"status": 429, "headers": {"Retry-After": "0"}}, {"status": 503}),
        ({"drop": "before"}, {"drop": "after"}),
        ({"drop": "half"}, {"stall": True}),
    ],
    ids=["429, 503", "dropped before, after", "dropped half-way, stalled"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_passing_fault_is_outlasted_and_nothing_is_there_twice(verified, kind, pair):
    method = "POST" if kind in WRITES else "GET"
    faults = [Fault(kind, method=method, **fault) for fault in pair]
    verified.hub.faults += faults
    done = collect(verified, HF_HUB_DOWNLOAD_TIMEOUT=1)
    assert done.code == 0, done.err
    assert all(fault.times <= 0 for fault in faults)
    for fault in faults:
        fault.release.set()
    assert items(verified) == {"sae-v": [verified.repo_id], SHORT: [verified.repo_id]}


@pytest.mark.parametrize("kind", KINDS)
def test_a_lasting_fault_is_told_for_each_collection_and_can_be_gone_on_from(
    verified, kind
):
    verified.hub.faults.append(Fault(kind, status=503, times=10**6))
    done = collect(verified)
    assert done.code == 1
    assert "the repos are released and verified; to continue: make release" in done.last
    assert len(done.rows) == 4
    verified.hub.faults.clear()
    assert collect(verified).code == 0
    assert items(verified) == {"sae-v": [verified.repo_id], SHORT: [verified.repo_id]}


def test_a_wrong_token_is_told(verified):
    done = collect(verified, HF_TOKEN="hf_wrong")
    assert done.code == 1
    assert "HF_TOKEN is wrong or expired (401)" in done.err
    assert "hf_wrong" not in done.err
