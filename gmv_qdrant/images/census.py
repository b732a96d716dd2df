"""What a source was seen to hold: every input is an image, unusable, or passed over for a reason that is said."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from gmv_qdrant.images.records import Record, Unusable

_NOTES = 100


@dataclass
class Census:
    """``seen == images + sum(unusable) + sum(passed)``, for folders, archives and tables alike."""

    images: int = 0
    without_owner: int = 0
    """Of the images: those that nobody owns."""
    unusable: Counter[str] = field(default_factory=Counter)
    """What was named as an image, or was one, and can't be used: how many, by `Unusable.kind`."""
    passed: Counter[str] = field(default_factory=Counter)
    """What is no image, by what it is: ``.txt``, ``descriptions``, ``archives in an archive``."""
    first: dict[str, str] = field(default_factory=dict)
    """The first URI that was passed over as each of these, or that a note is about."""
    noted: Counter[str] = field(default_factory=Counter)
    whole: list[str] = field(default_factory=list, compare=False)
    """Tables and containers that were read without damage: what quarantine says of them is settled."""
    complete: bool = True
    """Whether all of it was looked at: nothing says beforehand how much a data set of the hub holds."""

    @property
    def seen(self) -> int:
        return self.images + sum(self.unusable.values()) + sum(self.passed.values())

    @property
    def total(self) -> int | None:
        """Images and what can't be used; None where only reading would tell."""
        return self.images + sum(self.unusable.values()) if self.complete else None

    @property
    def warnings(self) -> list[str]:
        """Of a plan: what should be known before a long run begins."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.unusable.most_common())
        found = [f"{sum(self.unusable.values()):,} inputs can't be used and will be in quarantine ({kinds})"]
        return [*(found if kinds else []), *self.notes]

    @property
    def notes(self) -> list[str]:
        """What a person should know: what was there and wasn't used, and what had to be decided."""
        found = [
            f"not used: {self.first[what]}" + (f" and {count - 1:,} more" if count > 1 else "") + f" ({what})"
            for what, count in sorted(self.passed.items())
            if what.endswith(_SAID)
        ]
        for text, count in self.noted.items():
            where = self.first[text]
            found.append(
                text
                + (
                    f" ({count:,} times, first {where})"
                    if where and count > 1
                    else f" ({where})"
                    if where
                    else ""
                )
            )
        return found

    def count(self, item: Record | Unusable) -> None:
        if isinstance(item, Unusable):
            self.unusable[item.kind] += 1
        else:
            self.images += 1
            self.without_owner += not item.owners

    def pass_over(self, what: str, uri: str, count: int = 1) -> None:
        """What is no image and is said to be none."""
        self.passed[what] += count
        self.first.setdefault(what, uri)

    def note(self, text: str, uri: str = "") -> None:
        if text in self.noted or len(self.noted) < _NOTES:
            self.noted[text] += 1
            self.first.setdefault(text, uri)

    def clear(self) -> None:
        self.images = self.without_owner = 0
        self.complete = True
        self.whole.clear()
        for counts in (self.unusable, self.passed, self.first, self.noted):
            counts.clear()

    def sentence(self, failed: int = 0) -> str:
        """``seen 115: 93 images, 20 quarantined, 2 not images (.md: 1, .txt: 1)``.

        failed: images that a later step quarantined.
        """
        passed = ", ".join(f"{what}: {count:,}" for what, count in sorted(self.passed.items()))
        return (
            f"seen {self.seen:,}: {self.images - failed:,} images, {sum(self.unusable.values()) + failed:,} quarantined"
            + (f", {sum(self.passed.values()):,} not images ({passed})" if passed else "")
        )

    def summary(self, quarantined: int) -> dict[str, Any]:
        """What a run tells of its inputs, of which so many were quarantined, here and in later steps."""
        failed = max(0, quarantined - sum(self.unusable.values()))
        return {
            "seen": self.seen,
            "not_images": dict(self.passed),
            "without_owner": self.without_owner,
            "inputs": self.sentence(failed),
            "notes": self.notes,
        }

    def owners_sentence(self) -> str:
        """``22 of 115 images have no owner``; empty where each has one."""
        return f"{self.without_owner:,} of {self.images:,} images have no owner" if self.without_owner else ""


_SAID = (
    "save them as CSV",
    "about no image",
    "in an archive",
    "without images",
    "without rows",
    "WebDataset sample",
    "already walked",
)
"""How what was passed over ends where a person would want to know of it by name."""
