"""dotenv: tell make the settings of `.env`."""

import os

from .. import settings
from ..cli import parser

SECRETS = ("WANDB_API_KEY",)
"""The stage that needs one reads `.env` itself; make would write it under build/."""


def main(argv: list[str]) -> None:
    p = parser("Print the settings of .env as make assignments.", "bin/dotenv")
    p.parse_args(argv)
    fpath = os.path.join(settings.ROOT, ".env")
    found = settings.dotenv(fpath) if os.path.exists(fpath) else {}
    for name, value in found.items():
        if name not in SECRETS:
            value = value.replace("$", "$$").replace("#", "\\#")
            print(f"{name} ?= {value}")
