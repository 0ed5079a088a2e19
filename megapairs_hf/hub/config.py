"""Settings of a push. The words have the Hub's own meaning; nothing here is from the paper."""

from __future__ import annotations

from dataclasses import dataclass, field

from megapairs_hf.artifacts.storage import HUB_ID
from megapairs_hf.core.config import require
from megapairs_hf.hub.licenses import IDENTIFIER, LINK, OTHER, license_advice


@dataclass(frozen=True)
class PushConfig:
    """Settings of one push.

    Attributes:
        repo_id: `organization/name` or `user/name`.
        private: for a repository that is made by this push; one that exists and is public is refused.
        create_pr: open a pull request instead of committing.
        revision: branch to commit to, made where it is not there, or `refs/pr/N` to continue a pull request; None for
            the default branch.
        commit_message: None for one that says what was pushed.
        license: the Hub's identifier of the license (`apache-2.0`, `cc-by-4.0`, `other`); never guessed.
        license_name: of a license that is not on the Hub's list, with `license: other`.
        license_link: to its text: `LICENSE`, where that file is in the repository, or a URL.
        dry_run: write the folder that would be uploaded, and stop.
        card: another card template: a path, or the name of a shipped one (`mmret-base`); None for the package's own.
        overwrite: replace what a repository holds; for results, a number with another value.
        model: whose result records to push; None for `trained`, or the only one that was measured.
        datasets: data sets on the Hub that the model was trained on, for its card.
        benchmarks: the benchmark's data set on the Hub, by the benchmark's name, where the records do not have it.
        token: of the Hub; None for HF_TOKEN or the saved login.
    """

    repo_id: str
    private: bool = False
    create_pr: bool = False
    revision: str | None = None
    commit_message: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    dry_run: bool = False
    card: str | None = None
    overwrite: bool = False
    model: str | None = None
    datasets: tuple[str, ...] = ()
    benchmarks: dict[str, str] = field(default_factory=dict)
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        named = HUB_ID.fullmatch(self.repo_id) is not None
        require(named, "repo_id", self.repo_id, "a name of the Hub, organization/name")
        one_target = not (self.create_pr and self.revision not in {None, "main"})
        require(one_target, "revision", self.revision, "left out with create_pr: the Hub opens those against main")
        self._check_license()
        for name in self.datasets:
            require(HUB_ID.fullmatch(name) is not None, "datasets", name, "a data set on the Hub, organization/name")
        for benchmark, name in self.benchmarks.items():
            expected = f"the benchmark's data set on the Hub, organization/name, for {benchmark}"
            require(HUB_ID.fullmatch(name) is not None, "benchmarks", name, expected)

    def _check_license(self) -> None:
        if self.license is not None and IDENTIFIER.fullmatch(self.license) is None:
            require(False, "license", self.license, f"an identifier of the Hub's list; {license_advice(self.license)}")
        for name in ("license_name", "license_link"):
            value = getattr(self, name)
            require(value is None or self.license == OTHER, name, value, "left out, unless `license` is other")
        is_name = self.license_name is None or (self.license_name.isprintable() and bool(self.license_name.strip()))
        require(is_name, "license_name", self.license_name, "a name on one line")
        is_link = self.license_link is None or LINK.fullmatch(self.license_link) is not None
        require(is_link, "license_link", self.license_link, "LICENSE, LICENSE.md, LICENSE.txt or a URL")
