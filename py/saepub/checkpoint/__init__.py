"""Checkpoints that saev wrote: file, header, archive, pickle, SAE, and the saev that loads them."""

from .file import File, load, open_memory

__all__ = ["File", "load", "open_memory"]
