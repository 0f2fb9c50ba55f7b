"""A Hub on this machine's loopback address, for rehearsing a release.

It speaks the Hub's protocol to an unmodified `huggingface_hub` client, over both transports
(LFS and Xet), and refuses what the Hub refuses. Everything that it receives is kept under a
directory, in a form that a person can look at. It needs only the standard library, except to
read back a Xet upload, with the client's own `hf_xet` (in a child process), and a model card's
YAML, with the client's own PyYAML.
"""

from .server import Fault, LoopbackHub
from .store import InUse
from .wire import Drop, HubError

__all__ = ["Drop", "Fault", "HubError", "InUse", "LoopbackHub"]
