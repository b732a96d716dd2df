"""Names that print alike: they may be one payee written in two ways, or somebody who wants to be taken for another."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable

# Letters of other alphabets that look like Latin ones, after case folding.
_LOOK = str.maketrans(
    "аеорсухіјѕһԁԛԝкмтвнгёαοερκνυιτχγμηωβ" + "ıɑɡłøđ" + "01|",
    "aeopcyxijshdqwkmtbhreaoepkvuitxyunwb" + "iaglod" + "oll",
)


def skeleton(name: str) -> str:
    """What a name looks like: equal for names that print alike.

    Compatibility forms, accents' composition, case, white space, marks that don't print and look-alike letters of the
    Cyrillic and Greek alphabets don't count.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    printed = "".join(c for c in folded if unicodedata.category(c) not in ("Cf", "Cc") or c.isspace())
    return " ".join(printed.translate(_LOOK).split())


def alike(names: Iterable[str | None]) -> list[list[str]]:
    """Groups of two or more distinct names that print alike, in the order of code points."""
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for name in names:
        if name is not None:
            groups[skeleton(name)].add(name)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def spelt_out(name: str) -> str:
    """A name in which two that print alike differ: quoted, with everything but printable ASCII as escapes."""
    return ascii(name)
