"""Read files from a Xet chunk store: a child process of the loopback Hub.

stdin has {"dpath", "files": [{"xet_hash", "size", "fpath"}]} as JSON. Each file is written to
its `fpath`. stdout gets the list of their sha256, with null for one that can't be read.
"""

import hashlib
import json
import sys
import time
import typing

import hf_xet

BUFFER = "16mb"
"""The library's default buffers would hold a whole checkpoint, twice."""


def main() -> None:
    request = json.load(sys.stdin)
    config = hf_xet.XetConfig().with_config(
        {
            "reconstruction.download_buffer_size": BUFFER,
            "reconstruction.download_buffer_perfile_size": BUFFER,
            "reconstruction.download_buffer_limit": BUFFER,
            "reconstruction.min_reconstruction_fetch_size": BUFFER,
            "reconstruction.max_reconstruction_fetch_size": BUFFER,
            "reconstruction.min_prefetch_buffer": BUFFER,
            "telemetry.enabled": False,
        }
    )
    group = hf_xet.XetSession(config).new_download_stream_group(
        endpoint="local://" + request["dpath"],
        token="unused",
        token_expiry_unix_secs=int(time.time()) + 3600,
    )
    found = [read(group, **file) for file in request["files"]]
    json.dump(found, sys.stdout)


def read(group: typing.Any, xet_hash: str, size: int, fpath: str) -> str | None:
    digest = hashlib.sha256()
    try:
        with open(fpath, "wb") as fd:
            for chunk in group.download_stream(hf_xet.XetFileInfo(xet_hash, size)):
                digest.update(chunk)
                fd.write(chunk)
    except (RuntimeError, hf_xet.XetObjectNotFoundError):
        return None
    return digest.hexdigest()


main()
