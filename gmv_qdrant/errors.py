"""Every error this package raises on purpose.

::

    GmvError
    ├── SettingsError            a setting, flag or name that cannot be used
    ├── SourceError              a path, table or archive that cannot be read
    ├── ImageError               one image that cannot be used (becomes a quarantine row)
    ├── ModelError               missing weights, unknown encoder, disagreeing activation
    ├── StoreError
    │   ├── StoreUnavailable     no answer, or an answer that says "later"
    │   └── CollectionMismatch   the collection is not the one that the settings describe
    └── LedgerError
        ├── LedgerLocked         another process is writing
        └── FingerprintMismatch  the evidence was made with other settings

A message is one sentence that says what is wrong, with the offending value and the way out.
"""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)``, the end of a sentence about a name that nothing has; empty where nothing is near."""
    import difflib  # only for a sentence

    names = {other.casefold(): other for other in known}
    near = difflib.get_close_matches(name.casefold(), names, n=1, cutoff=0.6 if len(name) > 3 else 0.5)
    return f" (did you mean {names[near[0]]!r}?)" if near else ""


def first_line(error: object) -> str:
    """What an exception says, on one line and without a full stop; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".: ") if lines else type(error).__name__


class GmvError(Exception):
    """Root of the tree; the command line prints its message and exits 1."""


class SettingsError(GmvError):
    """A setting, flag or name that cannot be used."""


class SourceError(GmvError):
    """A path, table or archive that cannot be read."""


class ImageError(GmvError):
    """One image that cannot be used; the pipelines turn it into a quarantine row with its ``kind``, one word."""

    def __init__(self, message: str, *, kind: str = "damaged") -> None:
        super().__init__(message)
        self.kind = kind


class ModelError(GmvError):
    """A model that cannot be had: missing weights, unknown name, wrong activation."""


class StoreError(GmvError):
    """The vector store refused or failed."""


class StoreUnavailable(StoreError):
    """The vector store did not answer in time, or is locked by another process."""


class CollectionMismatch(StoreError):
    """The collection does not have the vectors that the settings describe."""


class LedgerError(GmvError):
    """The ledger refused or failed."""


class LedgerLocked(LedgerError):
    """Another process holds the ledger's lock."""


class FingerprintMismatch(LedgerError):
    """The ledger's evidence was made with other settings."""
