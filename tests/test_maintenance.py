"""Whatever happens to a workspace, its credits are those that plain numpy computes from what is in it now."""

from __future__ import annotations

import contextlib
import copy
import fnmatch
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
import tiny_workspace
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gmv_qdrant import Workspace
from gmv_qdrant.errors import SettingsError
from gmv_qdrant.ledger.database import Ledger
from gmv_qdrant.vectors.embedded.store import EdgeStore
from gmv_qdrant.vectors.matrices import Matrix

EXAMPLES = int(os.environ.get("GMV_EXAMPLES", "4"))
STEPS = int(os.environ.get("GMV_STEPS", "12"))


class Crash(BaseException):
    """Not an Exception: nothing in the package may catch it."""


@contextmanager
def crash_at(crossing: int) -> Iterator[None]:
    """Crash before or after the n-th write to a matrix, the store or the ledger."""
    left = crossing

    def cross() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Crash

    def around(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            cross()
            result = original(*args, **kwargs)
            cross()
            return result

        return call

    write = Ledger.write

    @contextmanager
    def crossing_write(self: Ledger) -> Iterator[Any]:
        with write(self) as con:
            yield con
            cross()  # before the commit
        cross()

    places: list[tuple[type, str]] = [(Matrix, n) for n in ("write", "zero", "_put")]
    places += [(EdgeStore, n) for n in ("upsert", "delete", "flush", "purge", "optimize")]
    places += [(Ledger, "rewrite")]
    with ExitStack() as stack:
        for owner, name in places:
            stack.enter_context(patch.object(owner, name, around(getattr(owner, name))))
        stack.enter_context(patch.object(Ledger, "write", crossing_write))
        with contextlib.suppress(Crash):
            yield


@dataclass
class Model:
    """What is in the workspace: training seed -> uri -> owner; withdrawn seeds; (batch, uri) -> generated seed."""

    training: dict[int, dict[str, str]] = field(default_factory=dict)
    withdrawn: set[int] = field(default_factory=set)
    generated: dict[tuple[str, str], int] = field(default_factory=dict)

    def ingest(self, paths: list[Path], owner: str, readmit: bool) -> None:
        for path in paths:
            seed = int(path.stem)
            if readmit or seed not in self.withdrawn:
                self.withdrawn.discard(seed)
                self.training.setdefault(seed, {})[str(path)] = owner

    def withdraw(self, leaves: Callable[[int, str, str], bool]) -> None:
        for seed, sources in list(self.training.items()):
            stay = {uri: owner for uri, owner in sources.items() if not leaves(seed, uri, owner)}
            if stay:
                self.training[seed] = stay
            else:
                del self.training[seed]
                self.withdrawn.add(seed)

    def values(self, candidates: int, k: int | None) -> dict[str, float]:
        totals = dict.fromkeys(self.training, 0.0)
        for seed in self.generated.values():
            for one, share in tiny_workspace.contributions(seed, self.training, candidates, k).items():
                totals[one] += share
        return {str(tiny_workspace.point(seed)): value for seed, value in totals.items()}

    def owners(self, values: dict[str, float]) -> dict[str, float]:
        totals: dict[str, float] = {}
        for seed, sources in self.training.items():
            for owner in sources.values():
                totals[owner] = totals.get(owner, 0.0) + values[str(tiny_workspace.point(seed))] / len(
                    sources
                )
        return totals


OWNERS = st.sampled_from(["ada", "bo", "chi"])
FOLDERS = st.sampled_from(["x", "y[1]"])
SEEDS = st.sets(st.integers(0, 11), min_size=1, max_size=5)
CRASHES = st.one_of(st.none(), st.integers(1, 24))


class Life(RuleBasedStateMachine):
    """Any order of commands, each crashing now and then; compared with the model whenever nothing is stale."""

    settings: ClassVar[dict[str, Any]] = tiny_workspace.SETTINGS
    k: int | None = 3
    first: range | None = None

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self.root = self._stack.enter_context(tiny_workspace.scratch())
        self.workspace = Workspace.init(self.root / "workspace", **self.settings)
        self.model = Model()

    @initialize()
    def begin(self) -> None:
        if self.first:
            self.workspace.ingest(tiny_workspace.write(self.root / "first", self.first), owner="ada")
            self.model.ingest([self.root / "first" / f"{seed}.png" for seed in self.first], "ada", False)

    def perform(
        self,
        command: Callable[[Workspace], Any],
        change: Callable[[Model], None],
        crash: int | None,
        again: bool,
    ) -> None:
        """Run a command; where it crashes, what is in the ledger must be all of it or nothing."""
        after = copy.deepcopy(self.model)
        change(after)
        if crash is None:
            command(self.workspace)
            self.model = after
            return
        with crash_at(crash):
            command(self.workspace)
        self.workspace = Workspace(self.workspace.path)
        if again:
            with contextlib.suppress(SettingsError):  # a withdrawal may be through already
                command(self.workspace)
            self.model = after
        else:
            found = self.contents()
            assert found in (self._contents_of(self.model), self._contents_of(after))
            if found == self._contents_of(after):
                self.model = after

    def contents(self) -> Any:
        sql = self.workspace.sql
        sources = "SELECT point_id, uri, owner FROM sources JOIN training USING (training_key) ORDER BY ALL"
        return (
            sql(sources).fetchall(),
            sql("SELECT batch, uri, point_id FROM generated ORDER BY ALL").fetchall(),
        )

    def _contents_of(self, model: Model) -> Any:
        sources = [
            (str(tiny_workspace.point(s)), uri, owner)
            for s, of in model.training.items()
            for uri, owner in of.items()
        ]
        generated = [
            (batch, uri, str(tiny_workspace.point(seed))) for (batch, uri), seed in model.generated.items()
        ]
        return sorted(sources), sorted(generated)

    @rule(
        seeds=SEEDS,
        folder=FOLDERS,
        owner=OWNERS,
        readmit=st.booleans(),
        update=st.booleans(),
        crash=CRASHES,
        again=st.booleans(),
    )
    def ingest(
        self,
        seeds: set[int],
        folder: str,
        owner: str,
        readmit: bool,
        update: bool,
        crash: int | None,
        again: bool,
    ) -> None:
        paths = tiny_workspace.write(self.root / folder, sorted(seeds))
        self.perform(
            lambda w: w.ingest(paths, owner=owner, readmit=readmit, update=update),
            lambda model: model.ingest(paths, owner, readmit),
            crash,
            again,
        )
        if update and crash is None:
            assert self.workspace.stale() == 0

    @precondition(lambda self: self.model.training)
    @rule(
        seeds=st.sets(st.integers(50, 57), min_size=1, max_size=3),
        batch=st.sampled_from(["one", "two"]),
        crash=CRASHES,
        again=st.booleans(),
    )
    def value(self, seeds: set[int], batch: str, crash: int | None, again: bool) -> None:
        paths = tiny_workspace.write(self.root / "generated", sorted(seeds))
        self.perform(
            lambda w: w.value([*paths, paths[0]], batch=batch),
            lambda model: model.generated.update({(batch, str(path)): int(path.stem) for path in paths}),
            crash,
            again,
        )

    @rule(crash=CRASHES, again=st.booleans())
    def update(self, crash: int | None, again: bool) -> None:
        self.perform(lambda w: w.update(), lambda model: None, crash, again)
        if crash is None:
            assert self.workspace.stale() == 0

    def _withdraw(
        self,
        crash: int | None,
        again: bool,
        leaves: Callable[[int, str, str], bool],
        update: bool = True,
        **selection: Any,
    ) -> None:
        if any(leaves(s, uri, owner) for s, of in self.model.training.items() for uri, owner in of.items()):
            self.perform(
                lambda w: w.withdraw(**selection, update=update),
                lambda model: model.withdraw(leaves),
                crash,
                again,
            )
            if update and crash is None:
                assert self.workspace.stale() == 0
        else:
            with pytest.raises(SettingsError, match=r"no training image (has|is called)|there is no "):
                self.workspace.withdraw(**selection)

    @rule(owner=OWNERS, crash=CRASHES, again=st.booleans())
    def withdraw_owner(self, owner: str, crash: int | None, again: bool) -> None:
        self._withdraw(crash, again, lambda seed, uri, of: of == owner, owner=owner)

    @rule(
        pattern=st.sampled_from(["*/x/1*.png", "*/y[[]1]/?.png", "*/y*"]), crash=CRASHES, again=st.booleans()
    )
    def withdraw_uri(self, pattern: str, crash: int | None, again: bool) -> None:
        self._withdraw(
            crash,
            again,
            lambda seed, uri, of: fnmatch.fnmatchcase(uri, pattern),
            uri=pattern.replace("[[]", "["),  # to us, brackets in a name are what they are
        )

    @rule(seeds=SEEDS, update=st.booleans(), crash=CRASHES, again=st.booleans())
    def withdraw_ids(self, seeds: set[int], update: bool, crash: int | None, again: bool) -> None:
        self._withdraw(
            crash,
            again,
            lambda seed, uri, of: seed in seeds,
            update,
            ids=[str(tiny_workspace.point(seed)).upper() for seed in seeds],
        )

    @invariant()
    def credits_are_exact(self) -> None:
        if self.workspace.stale():
            return
        expected = self.model.values(self.settings["candidates"], self.k)
        assert tiny_workspace.values(self.workspace, self.k) == pytest.approx(
            expected, abs=tiny_workspace.CLOSE
        )
        assert tiny_workspace.owners(self.workspace, self.k) == pytest.approx(
            self.model.owners(expected), abs=tiny_workspace.CLOSE
        )

    def teardown(self) -> None:
        try:
            self.workspace.update()
            self.credits_are_exact()
            assert [str(finding) for finding in self.workspace.check(read_images=True)] == []
        finally:
            self._stack.close()


class CodedLife(Life):
    """The same with product quantization; all images are candidates, so that the codes can't change who is one."""

    settings: ClassVar[dict[str, Any]] = {**tiny_workspace.SETTINGS, "quantization": "pq", "candidates": 400}
    first = range(1000, 1262)
    k = 30

    @rule()
    def optimize(self) -> None:
        with tiny_workspace.spaces(self.workspace) as spaces:
            spaces.store.optimize(force=True)

    def teardown(self) -> None:
        if self.model.training:
            assert self.workspace.status()["store"]["points"] == len(self.model.training)
        super().teardown()


quick = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize="GMV_EXAMPLES" not in os.environ,
    print_blob=True,
)
TestLife = Life.TestCase
TestLife.settings = quick
TestCodedLife = CodedLife.TestCase
TestCodedLife.settings = settings(quick, max_examples=max(1, EXAMPLES // 4), stateful_step_count=8)
