"""What a repo holds, on the Hub and as it should be. Imports no client, which is slow to import."""

import typing as tp

NEVER_EXTRA = (".gitattributes",)
"""Files that the Hub creates."""

Status = tp.Literal["match", "differ", "missing", "extra"]
"""The result of comparing a file: the Hub has the same file, a different one, or none; or the
release doesn't have it."""


class File(tp.NamedTuple):
    """A file as it should be in a repo."""

    path: str
    bytes: int
    sha256: str


class RemoteFile(tp.NamedTuple):
    path: str
    bytes: int
    sha256: str | None
    """A large file's; None for one stored in git."""
    blob_id: str
    """git's hash of the blob."""


Compared = tuple[File | RemoteFile, Status]
"""A file as it should be, or an extra one as it is on the Hub; and the result."""


class Remote(tp.NamedTuple):
    """A repo as it is on the Hub. `commit` is None if it doesn't exist."""

    commit: str | None
    files: dict[str, RemoteFile]
    repo_id: str = ""
    """Its name there, which differs from the one asked for if it was renamed."""
    private: bool = False
    gated: bool = False
    disabled: bool = False

    @property
    def is_fresh(self) -> bool:
        """Whether nobody has added a file to it yet."""
        return not self.files.keys() - set(NEVER_EXTRA)


class Changes(tp.NamedTuple):
    """What a push would do to a repo."""

    add: list[File]
    change: list[File]
    keep: list[File]
    extra: list[RemoteFile]

    def is_done(self, prune: bool) -> bool:
        """Whether a push would have nothing to do."""
        return not self.add and not self.change and not (prune and self.extra)

    def by_file(self) -> list[Compared]:
        """Every file of the release and of the repo, with its status."""
        parts: tuple[tuple[tp.Sequence[File | RemoteFile], Status], ...] = (
            (self.keep, "match"),
            (self.change, "differ"),
            (self.add, "missing"),
            (self.extra, "extra"),
        )
        found = [(file, status) for files, status in parts for file in files]
        return sorted(found, key=lambda pair: pair[0].path)
