"""What the annotating row functions have in common: settings as keywords, a journal, and one engine for each kind.

`datasets.map` calls one with a batch; the stage of the same name applies its inner part (`make_task`, or `by_function`
where no model is asked) to whole shards. What surprises: addresses and limits are settings too, so another address
may miss the cache of `datasets`; then the journal answers, and nothing is sent again.
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from megapairs_hf.annotation.config import pair_key
from megapairs_hf.annotation.corpus_reader import CorpusReader, MemoryRows
from megapairs_hf.annotation.engines.row_batch import RowBatch
from megapairs_hf.annotation.engines.session import Session
from megapairs_hf.annotation.engines.transformers_engine import LocalSession
from megapairs_hf.annotation.function_settings import build_settings
from megapairs_hf.annotation.response_watch import ResponseWatch
from megapairs_hf.annotation.row_columns import ids_as_text, outcome_columns
from megapairs_hf.annotation.rule_based.readers import parser_version
from megapairs_hf.annotation.tasks import Outcome
from megapairs_hf.artifacts.artifact import Artifact
from megapairs_hf.artifacts.fingerprints import commit_of, weights_fingerprint
from megapairs_hf.artifacts.sources import as_artifact
from megapairs_hf.core.config import config_hash
from megapairs_hf.core.distributed import device_of_rank
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.row_function import RowFunction, Rows
from megapairs_hf.core.schema import IMAGE_ID, NEGATIVE_IDS, QUERY_ID, TARGET_ID
from megapairs_hf.core.whole_data import check_dataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from datasets import Dataset, Features

    from megapairs_hf.annotation.tasks import AnnotationTask, Row
    from megapairs_hf.artifacts.lookup import IdIndex

MODEL_ENGINES = ("openai", "transformers")
KEYS = (QUERY_ID, TARGET_ID)
IDS = (IMAGE_ID, *KEYS, NEGATIVE_IDS)
IMAGE_ROW = "image_row"
JOURNALS = "megapairs-journal"


class AnnotationFunction(RowFunction):
    """A row function that a model, or rules, write for.

    Args:
        images: a `Dataset` with `image_id`, `image` and `caption`, a corpus, or the path of one.
        config: the settings as one object, instead of keywords.
        journal: folder of the journal; by default one for these settings beside the cache of `datasets`.
        model_path: where a local model is, if its name is no path and no Hub id.
        **settings: the settings by name; those of the endpoint (`urls`, `concurrency`, …) stand among them.

    Raises:
        ConfigError: an unknown setting, or a value out of range.
        ArtifactError: there are no images at this path.
    """

    CONFIG: ClassVar[type[Any]]
    SCHEMA: ClassVar[pa.Schema]  # what it adds
    NEEDS: ClassVar[tuple[str, ...]]
    USES: ClassVar[tuple[str, ...]] = ()  # what it reads where there is such a column
    BLANKS: ClassVar[dict[str, Any]] = {}  # what a value that is not there counts as, of what it needs
    HINTS: ClassVar[dict[str, str]] = {QUERY_ID: "query_row", TARGET_ID: "target_row"}  # where an id may stand
    VISION: ClassVar[bool] = True
    UNIT: ClassVar[str] = "pairs"
    TAKES: ClassVar[str] = ""  # what `one` takes beside a row, for errors
    WRITES: ClassVar[str] = ""  # what a model writes for them, in the plural; of nothing else the first are watched

    def __init__(
        self,
        images: Dataset | Artifact | str | PathLike[str] | None = None,
        *,
        config: Any = None,
        journal: str | PathLike[str] | None = None,
        model_path: str | None = None,
        **settings: Any,
    ) -> None:
        self.config = build_settings(self.CONFIG, settings, type(self).__name__) if config is None else config
        if images is not None and not isinstance(images, str | PathLike | Artifact):
            images = check_dataset(images, type(self).__name__)
        self.images: Dataset | Artifact | str | None = str(images) if isinstance(images, str | PathLike) else images
        self.journal = None if journal is None else str(journal)
        self.model_path = model_path or self.config.model
        self.local, self.weights = self.config.local, ""
        if self.config.engine in {"transformers", "clip"}:
            # what is hashed is loaded, also when the branch has moved on
            self.local = replace(self.local, revision=commit_of(self.model_path, self.local.revision))
            self.weights = weights_fingerprint(self.model_path, self.local.revision)
            if self.local.adapter is not None:
                self.weights += f" {weights_fingerprint(self.local.adapter, None)}"
        if self.config.engine == "rule_based" and self.config.edits == "captions":
            # how captions are read decides what is written
            self.weights = parser_version(self.config.parser)
        self.prompt = self.load_prompt()
        self.reset()
        # images at a path may change: what they are stands in the state, beside where they are
        self.images_fingerprint = self.source.fingerprint if isinstance(self.images, str) else ""

    def reset(self) -> None:
        """Forget the connections and the images."""
        self._session: Session | LocalSession | None = None
        self._source: Artifact | None = None
        self._memory: MemoryRows | None = None
        self._rank: int | None = None
        self._cache: dict[str, IdIndex] = {}

    @property
    def source(self) -> Any:
        """The images: a `Dataset` or an artifact.

        Raises:
            ConfigError: none are named.
            ArtifactError: there are none at the path.
        """
        if self.images is None:
            name = type(self).__name__
            raise ConfigError(f"{name} needs images here; name them: {name}(images=…)")
        if not isinstance(self.images, str):
            return self.images
        if self._source is None:
            self._source = as_artifact(self.images, "corpus")
        return self._source

    @abstractmethod
    def load_prompt(self) -> Any:
        """The prompt, which decides the result; None for an engine without one."""

    @abstractmethod
    def make_task(self, table: pa.Table) -> AnnotationTask:
        """The requests about some rows, with what their keys depend on loaded."""

    def by_function(self, rows: list[Row], advance: Callable[[], None]) -> list[Outcome]:
        """The outcomes of some rows, where the function has an engine that sends no requests.

        Args:
            rows: of a batch or a shard.
            advance: called after each row.

        Raises:
            ConfigError: it has none.
        """
        name, engines = type(self).__name__, " or ".join(MODEL_ENGINES)
        raise ConfigError(f"{name} asks a model and has no engine {self.config.engine!r}; set `engine` to {engines}")

    def watch(self) -> ResponseWatch | None:
        """A look at the first responses, where a text is what they are for."""
        return ResponseWatch(self.WRITES, vars(self.config)) if self.WRITES else None

    @property
    def asks(self) -> bool:
        """Whether a model is asked with prompts."""
        return self.config.engine in MODEL_ENGINES

    @property
    def features(self) -> Features:
        """The columns that it adds, `error` among them."""
        from datasets import Features, Value

        return Features({**Features.from_arrow_schema(self.SCHEMA), "error": Value("string")})

    def reader(self, table: pa.Table | None = None) -> CorpusReader:
        """The images and captions, and where those of some rows are supposed to stand."""
        if self._memory is not None:
            return self._memory
        hints: dict[str, int | None] = {}
        for name, hint in self.HINTS.items():
            if table is not None and hint in table.column_names:
                hints |= dict(zip(table[name].to_pylist(), table[hint].to_pylist(), strict=True))
        return CorpusReader(self.source, hints, self._cache)

    def key_of(self, row: Row) -> str:
        """The key of a row in the list of rejected ones."""
        return pair_key(row[QUERY_ID], row[TARGET_ID])

    def table_of(self, rows: Rows) -> pa.Table:
        """What it reads of a batch."""
        names = [*self.NEEDS, *(name for name in self.USES if name in rows)]
        columns = {name: rows.values(name) for name in names}
        columns |= {
            name: [blank if value is None else value for value in columns[name]] for name, blank in self.BLANKS.items()
        }
        # ids are text in an artifact too, whatever they were
        return pa.table(columns | {name: ids_as_text(columns[name]) for name in IDS if name in columns})

    def compute(self, rows: Rows, rank: int | None) -> dict[str, Any]:
        """The added columns of some rows; one without a value that is needed gets the error `missing_value`."""
        table = self.table_of(rows)
        lacking = [
            next((n for n in self.NEEDS if row[n] is None), None) for row in table.select(self.NEEDS).to_pylist()
        ]
        whole = pa.array([name is None for name in lacking], pa.bool_())
        outcomes = iter(self.outcomes(table.filter(whole), rank) if None in lacking else [])
        return self.columns(
            [next(outcomes) if n is None else Outcome(None, "missing_value", f"there is no {n}") for n in lacking]
        )

    def outcomes(self, table: pa.Table, rank: int | None = None) -> list[Outcome]:
        """What becomes of some rows.

        Raises:
            ServerUnavailableError: the servers refuse or fail every request; responses so far are kept.
            BudgetSpentError: the budget is exhausted; responses so far are kept.
        """
        self._rank = rank
        if not self.asks:
            return self.by_function(table.to_pylist(), lambda: None)
        session = self.session()
        batch = RowBatch(table, self.make_task(table))
        try:
            batch.resume(session.journal)
            session.complete(batch)
            return [outcome for _, outcome in batch.all_outcomes(session.journal)]
        except BaseException:
            self.close()
            raise
        finally:
            batch.task.close()

    def session(self) -> Session | LocalSession:
        """The connections of this process, or its model; opened with the first batch."""
        if self._session is None:
            folder = self.journal_folder()
            if self.config.engine == "transformers":
                self._session = self.local_session(folder, device_of_rank(self._rank))
            else:
                self._session = Session(self.config, folder, self.watch())
            self._at_exit = weakref.finalize(self, self._session.close)
        return self._session

    def local_session(self, folder: PathLike[str] | str, device: str | None = None) -> LocalSession:
        """The model of the settings on this machine, with its journal in a folder."""
        config, model = replace(self.config, local=self.local), (self.model_path, self.weights)
        return LocalSession(config, folder, model, vision=self.VISION, device=device)

    def journal_folder(self) -> Path:
        """The folder of the journal."""
        if self.journal is not None:
            return Path(self.journal)
        from datasets import config

        prompt = getattr(self.prompt, "digest", "")
        name = f"{type(self).__name__.lower()}-{config_hash([self.config, prompt, self.weights])}"
        return Path(config.HF_DATASETS_CACHE) / JOURNALS / name

    @contextmanager
    def using(self, images: MemoryRows) -> Iterator[None]:
        """Take these images for a moment."""
        self._memory = images
        try:
            yield
        finally:
            self._memory = None

    def close(self) -> None:
        """Close the connections; the next batch opens them again."""
        session, self._session = self._session, None
        if session is not None:
            # else a closed session would live as long as this function
            self._at_exit.detach()
            session.close()

    def one_row(self, values: dict[str, Any], wrong: str = "") -> dict[str, Any]:
        """The added columns for a row that names all that is needed.

        Args:
            values: the row.
            wrong: what was given that is no row, for the error.

        Raises:
            ConfigError: something is missing, or is no part of a row.
        """
        missing = [name for name in self.NEEDS if name not in values]
        if wrong or missing:
            named = wrong or ", ".join(values) or "nothing"
            name = f"{type(self).__name__}.one"
            raise ConfigError(f"{name} takes {self.TAKES}a row by name ({', '.join(self.NEEDS)}), not {named}")
        return RowFunction.one(self, **values)

    def columns(self, outcomes: list[Outcome]) -> dict[str, Any]:
        """Outcomes as columns, blanks where a row has an error."""
        return outcome_columns(outcomes, self.SCHEMA, self.features)
