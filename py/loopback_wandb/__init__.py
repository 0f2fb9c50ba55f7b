"""A W&B on this machine's loopback address: as much of its GraphQL API as reading runs needs.

    with LoopbackWandb(runs) as server:
        wandb.Api(overrides={"base_url": server.url}, api_key=server.key)

Every query is parsed and answered field by field; a field, argument or filter that it doesn't
know is an error, as on W&B's own server.
"""

from .server import DROP, HANG, KEY, LoopbackWandb, Status

__all__ = ["DROP", "HANG", "KEY", "LoopbackWandb", "Status"]
