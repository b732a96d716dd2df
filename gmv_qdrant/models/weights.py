"""Weight files: where they come from, where they are looked for, and one way to download them.

Every loader here asks `require` for its files first, and then gives the package a path or a seeded cache, so
no package downloads by surprise, retries for a minute, or falls back to other weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gmv_qdrant.errors import ModelError
from gmv_qdrant.models.checkpoints import first_line
from gmv_qdrant.models.devices import Runtime

Progress = Callable[[str, int, int | None], None]
"""Called with the file's name, the bytes done, and the bytes in all when they are known."""

TIMEOUT = 10.0
"""Seconds until a server that doesn't answer counts as unreachable; there is one attempt."""


class WeightFile(Protocol):
    """One thing that a model needs on disk before it can be loaded."""

    @property
    def origin(self) -> str:
        """Where it is published, for people."""
        ...

    @property
    def where(self) -> Path:
        """The folder that it is looked for in."""
        ...

    @property
    def size(self) -> int | None:
        """About how many bytes, when known."""
        ...

    @property
    def sha256(self) -> str | None:
        """The published hash, or its first digits, when there is one."""
        ...

    def find(self) -> Path | None:
        """Its path when it is there."""
        ...

    def fetch(self, progress: Progress | None = None) -> Path:
        """Download it, verify it and put it in place in one rename. Raises `ModelError`."""
        ...


@dataclass(frozen=True, slots=True)
class UrlFile:
    """A file at an address, kept as ``where / name``."""

    url: str
    where: Path
    name: str
    size: int | None = None
    sha256: str | None = None

    @property
    def origin(self) -> str:
        return self.url

    def find(self) -> Path | None:
        path = self.where / self.name
        return path if path.is_file() else None

    def fetch(self, progress: Progress | None = None) -> Path:
        with _downloaded(self.url, self.where, self.name, self.sha256, progress) as path:
            os.replace(path, self.where / self.name)
        return self.where / self.name


@dataclass(frozen=True, slots=True)
class UrlArchive:
    """A zip archive at an address, unpacked into ``where``.

    members: what must be there afterwards. top: the new name of the archive's one top folder (the archives of
    GitHub repositories have a revision in it), or None when it is unpacked as it is.
    """

    url: str
    where: Path
    members: tuple[str, ...]
    top: str | None = None
    size: int | None = None
    sha256: str | None = None

    @property
    def origin(self) -> str:
        return self.url

    def find(self) -> Path | None:
        return self.where if all((self.where / member).exists() for member in self.members) else None

    def fetch(self, progress: Progress | None = None) -> Path:
        name = self.url.rsplit("/", 1)[-1]
        with (
            _downloaded(self.url, self.where, name, self.sha256, progress) as path,
            tempfile.TemporaryDirectory(dir=self.where, prefix=".unpack-") as folder,
        ):
            try:
                with zipfile.ZipFile(path) as archive:
                    archive.extractall(folder)
            except zipfile.BadZipFile as error:
                raise ModelError(f"{self.url} is not a zip archive: {error}") from error
            found = sorted(Path(folder).iterdir())
            if self.top is not None and len(found) != 1:
                raise ModelError(f"{self.url} should hold one folder, not {len(found)}")
            for item in found:
                target = self.where / (self.top or item.name)
                if target.is_dir():
                    shutil.rmtree(target)
                os.replace(item, target)
        if self.find() is None:
            raise ModelError(f"{self.url} holds no {', '.join(self.members)}: is it another release?")
        return self.where


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a Hugging Face repository; ``names`` are alternatives, the first that exists is taken."""

    repo: str
    names: tuple[str, ...]
    cache_dir: Path | None = None
    revision: str | None = None
    size: int | None = None
    sha256: str | None = None

    @property
    def origin(self) -> str:
        return f"{self.names[0]} of the Hugging Face repository {self.repo}"

    @property
    def where(self) -> Path:
        from huggingface_hub import constants

        return self.cache_dir or Path(constants.HF_HUB_CACHE)

    def find(self) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        for name in self.names:
            found = try_to_load_from_cache(self.repo, name, cache_dir=self.where, revision=self.revision)
            if isinstance(found, str):
                return Path(found)
        return None

    def fetch(self, progress: Progress | None = None) -> Path:
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

        if constants.HF_HUB_OFFLINE:
            raise ModelError("HF_HUB_OFFLINE is set")
        reach(constants.ENDPOINT)
        for name in self.names:
            try:
                path = hf_hub_download(
                    self.repo,
                    name,
                    revision=self.revision,
                    cache_dir=self.where,
                    etag_timeout=TIMEOUT,
                    tqdm_class=_reporter(name, progress),
                )
            except EntryNotFoundError:
                continue
            except (HfHubHTTPError, OSError, ValueError) as error:
                raise ModelError(first_line(error)) from error
            return Path(path)
        raise ModelError(f"the repository {self.repo} holds none of {', '.join(self.names)}")


def is_offline(runtime: Runtime) -> bool:
    """Whether the network is out of bounds: ``Runtime.offline`` or the usual environment variables."""
    switches = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return runtime.offline or any(value.upper() in {"1", "ON", "YES", "TRUE"} for value in switches)


def require(
    name: str, files: Sequence[WeightFile], runtime: Runtime, progress: Progress | None = None
) -> list[Path]:
    """The paths of ``files``, downloading what is missing unless the run is offline.

    Raises `ModelError` at once: what ``name`` lacks, where it was looked for, and how to get it.
    """
    paths = []
    for file in files:
        path = file.find()
        if path is None:
            lack = f"{name} needs {file.origin}, which is not in {file.where}"
            if is_offline(runtime):
                raise ModelError(f"{lack}, and this run is offline: run 'gmv-qdrant models fetch {name}'")
            try:
                path = file.fetch(progress)
            except ModelError as error:
                raise ModelError(
                    f"{lack}, and could not be downloaded ({error}): "
                    f"run 'gmv-qdrant models fetch {name}' where there is a network"
                ) from error
        paths.append(path)
    return paths


def hub_cache(runtime: Runtime) -> Path | None:
    """``cache_dir`` of the Hugging Face libraries; None means their own default."""
    return runtime.cache_dir / "huggingface" if runtime.cache_dir else None


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


def _open(url: str) -> Any:
    request = urllib.request.Request(url, headers={"User-Agent": "gmv-qdrant"})
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        raise ModelError(f"the server answered {error.code}") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ModelError(f"{request.host} cannot be reached: {reason}") from error


def reach(endpoint: str) -> None:
    """One short attempt, because the hub's own client retries for most of a minute. Raises `ModelError`."""
    request = urllib.request.Request(endpoint, method="HEAD", headers={"User-Agent": "gmv-qdrant"})
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT).close()
    except urllib.error.HTTPError:
        return  # it answers
    except OSError as error:
        raise ModelError(f"{request.host} cannot be reached: {getattr(error, 'reason', error)}") from error


@contextlib.contextmanager
def _downloaded(
    url: str, folder: Path, name: str, sha256: str | None, progress: Progress | None
) -> Iterator[str]:
    """A verified temporary file in ``folder``; removed at the end if it is still there."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, path = tempfile.mkstemp(dir=folder, prefix=f".{name}-")
    try:
        with os.fdopen(handle, "wb") as out, _open(url) as response:
            digest, done = hashlib.sha256(), 0
            length = response.headers.get("Content-Length")
            total = int(length) if length else None
            while block := response.read(1 << 20):
                out.write(block)
                digest.update(block)
                done += len(block)
                if progress:
                    progress(name, done, total)
        if total is not None and done != total:
            raise ModelError(f"{url} broke off after {done} of {total} bytes")
        if sha256 and not digest.hexdigest().startswith(sha256):
            raise ModelError(f"{url} has SHA-256 {digest.hexdigest()}, not {sha256}")
        yield path
    except OSError as error:
        raise ModelError(f"{url} could not be saved in {folder}: {error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _reporter(name: str, progress: Progress | None) -> Any:
    """A tqdm class that reports to ``progress`` and prints nothing."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Reporter(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})
            self.done = int(kwargs.get("initial", 0))

        def update(self, n: float | None = 1) -> bool | None:
            self.done += int(n or 0)
            if progress:
                progress(name, self.done, int(self.total) if self.total else None)
            return None

    return Reporter
