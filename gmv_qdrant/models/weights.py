"""Weight files: what is known of them beforehand, where they are looked for, and how they are downloaded.

Every loader here asks `require` for its files first, and then gives its package a path or a seeded cache, so no
package downloads by surprise, retries for a minute, or falls back to other weights. What lies in a cache or a local
folder is taken as it is: it is loaded as weights only, and its hash belongs to the ledger's fingerprint. What comes
over the network is held against ``weights.toml`` first.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gmv_qdrant.errors import ModelError, first_line
from gmv_qdrant.models.devices import Progress, Runtime

TIMEOUT = 10.0
"""Seconds until a server that doesn't answer counts as unreachable; there is one attempt."""


@dataclass(frozen=True, slots=True)
class Pin:
    """What is known of a file before it is downloaded: an entry of ``weights.toml``.

    sha256: of the file, or its first digits; None: nobody publishes one, so downloading it needs ``--trust``.
    """

    sha256: str | None = None
    size: int | None = None
    licence: str | None = None
    revision: str | None = None

    @classmethod
    def of(cls, key: str) -> Pin:
        """By address, or ``hub:OWNER/NAME/FILE``; torchvision's files have digits of the hash in their names."""
        if key in _table():
            return cls(**_table()[key])
        digits = re.search(r"//download\.pytorch\.org/.*-([0-9a-f]{8})\.pth$", key)
        return cls(sha256=digits[1], licence="BSD-3-Clause") if digits else cls()


@cache
def _table() -> dict[str, dict[str, Any]]:
    return tomllib.loads(Path(__file__).with_name("weights.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True)
class WeightFile(ABC):
    """One thing that a model needs on disk before it can be loaded.

    origin: where it is published. where: the folder that it is looked for in.
    """

    origin: str
    where: Path

    @property
    def pin(self) -> Pin:
        return Pin.of(self.origin)

    @abstractmethod
    def find(self) -> Path | None:
        """Its path when it is there."""

    @abstractmethod
    def fetch(self, progress: Progress | None = None) -> Path:
        """Download it, hold it against its pin, and put it in place in one rename. Raises `ModelError`."""


@dataclass(frozen=True, slots=True)
class UrlFile(WeightFile):
    """A file at the address ``origin``, kept under its own name, or as ``name``."""

    name: str = ""

    @property
    def path(self) -> Path:
        return self.where / (self.name or self.origin.rsplit("/", 1)[-1])

    def find(self) -> Path | None:
        return self.path if self.path.is_file() else None

    def fetch(self, progress: Progress | None = None) -> Path:
        import pooch
        import requests

        name = self.path.name

        def download(url: str, target: str, _: Any) -> None:
            pooch.HTTPDownloader(_bar(name, progress)(), chunk_size=1 << 20, timeout=TIMEOUT)(
                url, target, None
            )
            _compare(Path(target), self)

        try:
            return Path(pooch.retrieve(self.origin, None, fname=name, path=self.where, downloader=download))
        except requests.HTTPError as error:
            raise ModelError(f"the server answered {error.response.status_code}") from error
        except requests.RequestException as error:
            host = urlsplit(self.origin).hostname
            raise ModelError(f"{host} cannot be reached, or broke off: {_reason(error)}") from error
        except OSError as error:
            raise ModelError(f"{self.origin} could not be saved in {self.where}: {error}") from error


@dataclass(frozen=True, slots=True)
class UrlArchive(UrlFile):
    """A zip archive, unpacked into ``where``.

    members: what must be there afterwards.
    """

    members: tuple[str, ...] = ()

    def find(self) -> Path | None:
        return self.where if all((self.where / member).exists() for member in self.members) else None

    def fetch(self, progress: Progress | None = None) -> Path:
        archive = UrlFile(self.origin, self.where, f"{self.path.stem}.zip").fetch(progress)
        with tempfile.TemporaryDirectory(dir=self.where, prefix=".unpack-") as folder:
            try:
                shutil.unpack_archive(archive, folder, "zip")
            except (shutil.ReadError, ValueError) as error:
                raise ModelError(f"{self.origin} is not a zip archive: {error}") from error
            finally:
                archive.unlink()
            for item in Path(folder).iterdir():
                target = self.where / item.name
                if target.is_dir():
                    shutil.rmtree(target)
                item.replace(target)
        if self.find() is None:
            raise ModelError(f"{self.origin} holds no {', '.join(self.members)}: is it another release?")
        return self.where


@dataclass(frozen=True, slots=True)
class HubFile(WeightFile):
    """A file of a Hugging Face repository; ``origin`` is ``hub:OWNER/NAME/FILE``. `HubFile.of` makes one.

    revision: asked for where the pin names none. instead: other files that serve as well, in this order.
    """

    revision: str | None = None
    instead: tuple[str, ...] = ()

    @classmethod
    def of(cls, repo: str, names: Sequence[str], runtime: Runtime, revision: str | None = None) -> HubFile:
        from huggingface_hub import constants

        where = runtime.cache_dir / "huggingface" if runtime.cache_dir else Path(constants.HF_HUB_CACHE)
        return cls(f"hub:{repo}/{names[0]}", where, revision, tuple(names[1:]))

    @property
    def repo(self) -> str:
        return "/".join(self.origin.removeprefix("hub:").split("/")[:2])

    @property
    def names(self) -> tuple[str, ...]:
        return (self.origin.removeprefix(f"hub:{self.repo}/"), *self.instead)

    def find(self) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        for name in self.names:
            for revision in (self.pin.revision, self.revision):
                found = try_to_load_from_cache(self.repo, name, cache_dir=self.where, revision=revision)
                if isinstance(found, str):
                    return Path(found)
        return None

    def fetch(self, progress: Progress | None = None) -> Path:
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

        reach(constants.ENDPOINT)
        for name in self.names:
            try:
                path = hf_hub_download(
                    self.repo,
                    name,
                    revision=self.pin.revision or self.revision,
                    cache_dir=self.where,
                    etag_timeout=TIMEOUT,
                    tqdm_class=_bar(name, progress),
                )
            except EntryNotFoundError:
                continue
            except (HfHubHTTPError, OSError, ValueError) as error:
                raise ModelError(first_line(error)) from error
            try:
                _compare(Path(path), self)
            except ModelError:
                Path(path).resolve().unlink()
                raise
            return Path(path)
        raise ModelError(f"the repository {self.repo} holds none of {', '.join(self.names)}")


def require(name: str, files: Sequence[WeightFile], runtime: Runtime) -> list[Path]:
    """The paths of the files that ``name`` needs: see `require_all`."""
    return require_all({name: files}, runtime)[name]


def require_all(models: Mapping[str, Sequence[WeightFile]], runtime: Runtime) -> dict[str, list[Path]]:
    """The paths of all files by model, after downloading what is missing.

    Raises `ModelError` at once, before anything is downloaded, when that isn't allowed or can't be verified, or at
    the first file that can't be had: one sentence that names all models that lack something, and the way out.
    """
    try:
        _fetch([file for files in missing(models).values() for file in files], runtime)
    except ModelError as error:
        raise ModelError(what_is_missing(missing(models), str(error))) from error
    return {name: [path for file in files if (path := file.find())] for name, files in models.items()}


def _fetch(wanted: Sequence[WeightFile], runtime: Runtime) -> None:
    if wanted and is_offline(runtime):
        raise ModelError("this run is offline")
    unknown = [file.origin for file in wanted if file.pin.sha256 is None]
    if unknown and not runtime.trust:
        raise ModelError(f"nobody publishes a SHA-256 of {' and '.join(unknown)}")
    for file in wanted:
        file.fetch(runtime.progress)


def missing(models: Mapping[str, Sequence[WeightFile]]) -> dict[str, list[WeightFile]]:
    """The files that aren't here, of the models that lack any."""
    lacking = {name: [file for file in files if file.find() is None] for name, files in models.items()}
    return {name: files for name, files in lacking.items() if files}


def what_is_missing(lacking: Mapping[str, Sequence[WeightFile]], reason: str) -> str:
    """One sentence for all models: how much, under which licences, why, and the way out."""
    unverified = any(file.pin.sha256 is None for files in lacking.values() for file in files)
    trust, why = (
        " --trust",
        ", which takes those without a published SHA-256 as they come",
    ) * unverified or ("", "")
    models = ", ".join(f"{name} ({_about(files)})" for name, files in lacking.items())
    return (
        f"weights are missing of {models}; {reason}; get them by 'gmv-qdrant models fetch{trust} {' '.join(lacking)}' "
        f"where there is a network{why}, or make a workspace that needs none with 'gmv-qdrant init --preset light'"
    )


def _about(files: Sequence[WeightFile]) -> str:
    """``605 MB, MIT``: as far as it is known."""
    sizes = [file.pin.size for file in files]
    unknown = "more than " if any(sizes) and None in sizes else ""
    size = f"{unknown}{sum(filter(None, sizes)) / 1e6:,.0f} MB" if any(sizes) else "of unknown size"
    return ", ".join([size, *dict.fromkeys(file.pin.licence or "licence not known" for file in files)])


def is_offline(runtime: Runtime) -> bool:
    """Whether the network is out of bounds: ``Runtime.offline`` or the usual environment variables."""
    switches = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return runtime.offline or any(value.upper() in {"1", "ON", "YES", "TRUE"} for value in switches)


def torch_cache(runtime: Runtime) -> Path:
    """The folder that ``torch.hub`` calls its hub directory, by the same rule (importing torch takes seconds)."""
    if runtime.cache_dir:
        return runtime.cache_dir / "torch"
    home = os.environ.get("TORCH_HOME") or _user_cache() / "torch"
    return Path(home).expanduser() / "hub"


def own_cache(runtime: Runtime) -> Path:
    """Our folder, for packages whose own default is the current directory."""
    return runtime.cache_dir or _user_cache() / "gmv_qdrant"


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def reach(endpoint: str) -> None:
    """One short attempt, because the hub's own client retries for most of a minute. Raises `ModelError`."""
    import requests

    try:
        requests.head(endpoint, timeout=TIMEOUT)
    except requests.RequestException as error:
        raise ModelError(f"{urlsplit(endpoint).hostname} cannot be reached: {_reason(error)}") from error


def _compare(path: Path, file: WeightFile) -> None:
    if file.pin.sha256 is None:
        return
    with path.open("rb") as stream:
        seen = hashlib.file_digest(stream, "sha256").hexdigest()
    if not seen.startswith(file.pin.sha256):
        raise ModelError(f"{file.origin} has the SHA-256 {seen}, not {file.pin.sha256}, and was not kept")


def _reason(error: BaseException) -> str:
    """What was at the bottom of a network error, without its layers of objects."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return first_line(error)


def _bar(name: str, progress: Progress | None) -> Any:
    """A tqdm class that reports to ``progress`` and prints nothing."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})
            self.done = int(kwargs.get("initial", 0))

        def __bool__(self) -> bool:
            return True  # pooch asks whether there is a bar, and tqdm would answer whether it has items

        def update(self, n: float | None = 1) -> bool | None:
            total = int(self.total) if self.total else None
            self.done = min(self.done + int(n or 0), total or self.done + int(n or 0))
            if progress:
                progress(name, self.done, total)
            return None

    return Bar
