"""Fixtures over kits.release, for `pytest_plugins` in the tests of what reaches the Hub."""

import os
import pathlib

import pytest

from kits import release as release_kit
from kits.once import once
from kits.release import TOKENS, TRANSPORTS, Hub, Stages, World


@pytest.fixture(scope="session")
def one_hub(tmp_path_factory):
    with Hub(tmp_path_factory.mktemp("hub"), tokens=TOKENS) as hub:
        yield hub


@pytest.fixture(scope="session")
def stages(one_hub):
    stages = Stages(release_kit.client_settings(one_hub))
    yield stages
    stages.close()


@pytest.fixture(scope="session")
def made(tmp_path_factory, demo, stages) -> pathlib.Path:
    """What `VARIANTS` names, staged. Not to be changed."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    return once(shared / "made", lambda dpath: release_kit.make(dpath, demo, stages))


@pytest.fixture
def hub(one_hub):
    yield one_hub
    one_hub.empty()
    errors, one_hub.errors = one_hub.errors, []
    assert errors == []


@pytest.fixture
def world(tmp_path, made, demo, stages, hub):
    """Over the default transport."""
    return World(tmp_path, made, demo, stages, hub)


@pytest.fixture(params=TRANSPORTS)
def either(request, world):
    """A world over each transport."""
    return world.over(request.param)
