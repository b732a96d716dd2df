"""Which training images are meant: one way to say it, in every command."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gmv_qdrant.errors import SettingsError, did_you_mean
from gmv_qdrant.ledger.database import Connection, Readable
from gmv_qdrant.ledger.names import find_images, named, nfc, require_owner

if TYPE_CHECKING:
    import pyarrow as pa

YES = ("1", "1.0", "true", "t", "yes", "y")
"""Values of an attribute that is named alone: they mean that an image has it."""


_NAMED = "EXISTS (SELECT 1 FROM named n WHERE n.key = s.training_key AND (n.uri IS NULL OR n.uri = s.uri))"


@dataclass(frozen=True, slots=True)
class Selection:
    """Training images by owner, by a pattern of URIs, by names, or by an attribute: by exactly one of them.

    uri: ``*`` stands for any characters, ``?`` for one; all others, brackets too, mean themselves.
    ids: URIs, ends of URIs, ids or content hashes.
    attribute: ``FIELD=VALUE`` (also ``label=`` and ``licence=``), or ``FIELD`` for those where it says yes.
    """

    owner: str | None = None
    uri: str | None = None
    ids: tuple[str, ...] = ()
    attribute: str | None = None

    def __post_init__(self) -> None:
        if len(self._given()) != 1:
            raise SettingsError(
                "say which training images are meant by exactly one of owner, uri, ids and attribute"
            )

    def _given(self) -> list[str]:
        return [
            name
            for name in ("owner", "uri", "ids", "attribute")
            if getattr(self, name) is not None and getattr(self, name) != ()
        ]

    @property
    def by(self) -> str:
        """What is selected by; never whose or which."""
        return self._given()[0]

    def describe(self) -> str:
        return f"{len(self.ids)} ids" if self.ids else f"{self.by} {getattr(self, self.by)!r}"

    def sources(self, ledger: Readable) -> pa.Table:
        """The sources that are meant: training_key, uri, owner. Raises `SettingsError` when there are none.

        Where an id or a hash was given, all sources of the image; where a URI was, this one. Names in ``ids`` that
        nothing goes by are passed over: see `unknown`.
        """
        if self.ids:
            tables = {"named": named(ledger, self.ids)[0]}
            condition: str = _NAMED
            values: dict[str, Any] = {}
        else:
            tables = {}
            condition, values = self._condition()
        found = ledger.query(
            f"""SELECT s.training_key, s.uri, s.owner FROM sources s JOIN training USING (training_key)
            WHERE version_withdrawn IS NULL AND {condition} ORDER BY ALL""",
            values,
            **tables,
        )
        if not found.num_rows:
            self._refuse(ledger)
        return found

    def unknown(self, ledger: Readable) -> list[str]:
        """Names in ``ids`` that no training image goes by."""
        return named(ledger, self.ids)[1] if self.ids else []

    def keys(self, ledger: Readable) -> list[int]:
        """Keys of the training images that are meant, ascending. Raises `SettingsError` for unknown ``ids``, too."""
        if self.ids:
            find_images(ledger, self.ids)
        return sorted(set(self.sources(ledger)["training_key"].to_pylist()))

    def _condition(self) -> tuple[str, dict[str, Any]]:
        if self.owner is not None:
            return "s.owner = $owner", {"owner": nfc(self.owner)}
        if self.uri is not None:
            return "regexp_full_match(s.uri, $uri)", {"uri": expression(self.uri)}
        field, wanted = self._attribute()
        own = f"lower({field})" if wanted is None else field
        return f"{own} IN (SELECT unnest($wanted::VARCHAR[]))", {
            "wanted": list(YES) if wanted is None else [nfc(wanted)]
        }

    def _attribute(self) -> tuple[str, str | None]:
        """A field of sources as SQL, and the value that is wanted; None is yes."""
        name, equals, wanted = (self.attribute or "").partition("=")
        return _field(name), wanted if equals else None

    def _refuse(self, ledger: Readable) -> None:
        """Say what is near."""
        if self.owner is not None:
            require_owner(ledger, self.owner)
        if self.ids:
            find_images(ledger, self.ids)
        if self.attribute is None:
            raise SettingsError(f"no training image has {self.describe()}")
        name, wanted = self.attribute.partition("=")[0], self._attribute()[1]
        own = _field(name)
        seen = ledger.query(
            f"SELECT DISTINCT {own} AS own FROM sources s WHERE {own} IS NOT NULL ORDER BY own"
        )
        values = seen["own"].to_pylist()
        if not values:
            fields = ["label", "licence", *_attributes(ledger)]
            raise SettingsError(
                f"no training image has the attribute {name!r}{did_you_mean(name, fields)} in its metadata"
            )
        kinds = ", ".join(map(repr, values[:6])) + (", ..." if values[6:] else "")
        raise SettingsError(
            f"the attribute {self.attribute!r} picks no training image{did_you_mean(wanted or '', values)}: "
            f"its values are {kinds}: give {name}=VALUE"
        )


def _field(name: str) -> str:
    if name in ("label", "licence"):
        return f"s.{name}"
    quoted = ("/" + name.replace("~", "~0").replace("/", "~1")).replace("'", "''")
    return f"json_extract_string(s.attributes, '{quoted}')"


def _attributes(ledger: Readable) -> Iterable[str]:
    found = ledger.query("SELECT DISTINCT unnest(json_keys(attributes)) AS name FROM sources ORDER BY name")
    return [str(name) for name in found["name"].to_pylist()]


def expression(pattern: str) -> str:
    """A pattern with ``*`` and ``?`` as a regular expression; brackets in file names mean themselves."""
    return "(?s)" + "".join({"*": ".*", "?": "."}.get(char) or re.escape(char) for char in nfc(pattern))


STAYING = """SELECT * FROM sources s WHERE NOT EXISTS (SELECT 1 FROM leaving l
    WHERE l.training_key = s.training_key AND l.uri = s.uri AND l.owner IS NOT DISTINCT FROM s.owner)"""
"""Sources that don't leave, once `select` has made ``leaving``."""


def select(con: Connection, sources: pa.Table) -> None:
    """Make the temporary tables ``leaving`` (these sources) and ``gone`` (images that lose their last source)."""
    con.register("selected_sources", sources)
    con.execute("CREATE TEMP TABLE leaving AS FROM selected_sources")
    con.unregister("selected_sources")
    con.execute(
        f"""CREATE TEMP TABLE gone AS SELECT training_key, point_id, content_hash FROM training
        WHERE training_key IN (SELECT training_key FROM leaving)
        AND training_key NOT IN (SELECT training_key FROM ({STAYING}))"""
    )


def lines(text: str, where: str) -> Sequence[str]:
    """The names in a file of ids: one a line, each once. Raises `SettingsError` when there are none."""
    names = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not names:
        raise SettingsError(f"{where} names no image")
    return names
