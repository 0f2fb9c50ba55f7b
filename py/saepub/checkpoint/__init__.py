"""saev's checkpoints: file, header, archive, pickle, SAE, and loading them with saev."""

from .file import File, load, open_memory

__all__ = ["File", "load", "open_memory"]
