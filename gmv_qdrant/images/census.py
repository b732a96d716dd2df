"""What a source was seen to hold: every input is an image, unusable, or passed over for a reason that is said."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from gmv_qdrant.images.records import Record, Unusable


@dataclass
class Census:
    """``seen == images + sum(unusable) + sum(passed)``, for folders, archives and tables alike."""

    images: int = 0
    without_owner: int = 0
    """Of the images: those that nobody owns."""
    unusable: Counter[str] = field(default_factory=Counter)
    """What was named as an image, or was one, and can't be used: how many, by `Unusable.kind`."""
    passed: Counter[str] = field(default_factory=Counter)
    """What is no image, by what it is."""
    notes: list[str] = field(default_factory=list)
    """What a person should know: a table that wasn't used, a column that was chosen among several."""

    @property
    def seen(self) -> int:
        return self.images + sum(self.unusable.values()) + sum(self.passed.values())

    def count(self, item: Record | Unusable) -> None:
        if isinstance(item, Unusable):
            self.unusable[item.kind] += 1
        else:
            self.images += 1
            self.without_owner += not item.owners

    def clear(self) -> None:
        self.images = self.without_owner = 0
        self.unusable.clear()
        self.passed.clear()
        self.notes.clear()

    def sentence(self, failed: int = 0) -> str:
        """``seen 115: 93 images, 20 quarantined, 2 not images (1 .txt, 1 .md)``.

        failed: images that a later step quarantined.
        """
        passed = ", ".join(f"{count:,} {what}" for what, count in sorted(self.passed.items()))
        return (
            f"seen {self.seen:,}: {self.images - failed:,} images, {sum(self.unusable.values()) + failed:,} quarantined"
            + (f", {sum(self.passed.values()):,} not images ({passed})" if passed else "")
        )
