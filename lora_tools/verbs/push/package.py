"""What will be on the Hub: the folder's files, checked, cleaned, and with a card."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from lora_tools.adapter import README, REPORT, Adapter, read
from lora_tools.card import SECTION, decoded, metadata, with_metadata, with_section
from lora_tools.errors import CheckpointError, FormatError, RefusedError, some
from lora_tools.files.inputs import read_input, read_text
from lora_tools.files.objects import json_object, read_object
from lora_tools.files.typed import Fields, shown
from lora_tools.model import Model, is_model, open_model
from lora_tools.text import config_text
from lora_tools.verbs.push.files import Digest, digest, select
from lora_tools.verbs.push.leaks import Leak, leaks
from lora_tools.verbs.push.paths import is_private, shorten
from lora_tools.verbs.push.picture import NAME, picture
from lora_tools.verbs.push.section import section
from lora_tools.verbs.push.strip import strip
from lora_tools.verbs.push.texts import is_searchable

TAGS = ("lora", "lora-tools")

IMAGES = (".png", ".jpg", ".jpeg", ".webp")

UNSEARCHED = "neither text, weights nor an image: nobody can tell what is in it"


@dataclass(frozen=True, slots=True)
class Destination:
    """What to publish under which name, and how."""

    repo: str
    private: bool | None = None
    """Of a new repository; None: nobody has said."""
    revision: str | None = None
    create_pr: bool = False
    message: str | None = None
    description: str = ""
    base_model: str | None = None
    license: str | None = None
    strip_metadata: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    picture: bool = True

    def seen_by(self, *, private: bool) -> "Destination":
        """Return the wish with somebody's word on who may see a new repository."""
        return replace(self, private=private)


@dataclass(frozen=True, slots=True)
class Package:
    """A folder as it will be published."""

    folder: Path
    subject: Adapter | Model
    files: Mapping[str, Path | bytes]
    """Content by name, the card among them."""
    digests: Mapping[str, Digest]
    left_out: Mapping[str, str]
    base: str | None
    notes: tuple[str, ...] = ()

    @property
    def card(self) -> str:
        """The README."""
        content = self.files[README]
        return content.decode() if isinstance(content, bytes) else read_text(content)


@dataclass(slots=True)
class PackageFiles:
    """A package before its card is written."""

    folder: Path
    subject: Adapter | Model
    files: dict[str, Path | bytes]
    left_out: Mapping[str, str]
    base: str | None
    notes: list[str] = field(default_factory=list)

    def package(self, repo: str, old: str, license: Mapping[str, str]) -> Package:
        """Return the package with a card made from an old README, which may be empty."""
        digests = {name: digest(content) for name, content in self.files.items()}
        text = card(self, repo, old, license, digests)
        if found := leaks(README, text.encode()):
            raise _refusal(self.folder, found)
        self.files[README] = text.encode()
        digests[README] = digest(text.encode())
        files = dict(sorted(self.files.items()))
        return Package(
            self.folder, self.subject, files, digests, self.left_out, self.base, tuple(self.notes)
        )


def draft(folder: Path, destination: Destination, place: Path) -> PackageFiles:
    """Check a folder and gather what will be published of it.

    Cleaned copies go to the empty folder ``place``. Raises `RefusedError` for secrets, private
    paths, links that leave the folder and a base model that is a local path, and what `read` and
    `open_model` raise if it is no adapter or model, or one that contradicts itself.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder").hint("Push a folder, not a file.")
    chosen = select(folder, destination.include, destination.exclude)
    subject = _subject(folder)
    weights = subject.tensors.path.name
    if weights not in chosen.files:
        raise RefusedError(f"{folder}: {weights} would be left out").hint("Do not --exclude it.")
    files: dict[str, Path | bytes] = {
        name: path for name, path in chosen.files.items() if is_searchable(name, path)
    }
    unsearched = dict.fromkeys(sorted(chosen.files.keys() - files.keys()), UNSEARCHED)
    named = subject.base_model if isinstance(subject, Adapter) else _stated(folder)
    base = destination.base_model or named
    ours = destination.base_model is not None and Path(destination.base_model).is_dir()
    if base and (ours or is_private(base)):
        raise RefusedError(f"{folder}: its base model is {base}, a path of this machine").hint(
            "Nobody else can load that. Name the base on the Hub: --base-model ORG/NAME."
        )
    made = PackageFiles(folder, subject, files, {**chosen.left_out, **unsearched}, base)
    if named and base and named != base and isinstance(subject, Adapter):
        _rename(made, subject.format.config_file, named, base)
    if REPORT in files:
        text = decoded(read_input(folder / REPORT), folder / REPORT)
        if shorten(text) != text:
            files[REPORT] = shorten(text).encode()
            made.notes.append(f"{REPORT}: paths of this machine are cut to their last part")
    _clean(made, place, destination.strip_metadata)
    if destination.picture and isinstance(subject, Adapter):
        if drawn := picture(subject, destination.repo, place):
            files[NAME] = drawn
        else:
            made.notes.append("no picture on the card: pip install 'lora-tools[report]'")
    return made


def card(
    made: PackageFiles,
    repo: str,
    old: str,
    license: Mapping[str, str],
    digests: Mapping[str, Digest],
) -> str:
    """Return the README: the old one with our section, and with the fields that it lacks."""
    listed = {name: found for name, found in digests.items() if name != README}
    report = _report(made.files.get(REPORT))
    text = with_section(old, section(made.subject, repo, made.base, listed, report))
    return with_metadata(text.lstrip("\n"), _fields(made, metadata(old), license))


def _fields(
    made: PackageFiles, old: Mapping[str, Any], license: Mapping[str, str]
) -> dict[str, Any]:
    """Return the fields to set: those that are missing, and a base that nobody else has."""
    fields: dict[str, Any] = {}
    adapter = isinstance(made.subject, Adapter)
    if "library_name" not in old:
        fields["library_name"] = _library(made.subject)
    if made.base:
        theirs = old.get("base_model")
        kept = theirs if isinstance(theirs, list) else [theirs]
        if made.base not in kept:
            fields["base_model"] = made.base
        if "base_model_relation" not in old:
            fields["base_model_relation"] = "adapter" if adapter else "finetune"
    if "license" not in old:
        fields |= license
    tags = _tags(old)
    wanted = [*TAGS, *([f"base_model:adapter:{made.base}"] if adapter and made.base else [])]
    if missing := [tag for tag in wanted if tag not in tags]:
        fields["tags"] = [*tags, *missing]
    return fields


def _tags(old: Mapping[str, Any]) -> list[Any]:
    tags = old.get("tags") or []
    if isinstance(tags, str):
        return [tags]
    if not isinstance(tags, list):
        raise FormatError(f"{README}: tags is {shown(tags)}, not a list of tags")
    return tags


def _library(subject: Adapter | Model) -> str:
    if isinstance(subject, Model):
        return "transformers" if "_class_name" not in subject.config else "diffusers"
    return {"peft": "peft", "mlx": "mlx", "gguf": "gguf"}.get(subject.manifest.format, "diffusers")


def _subject(folder: Path) -> Adapter | Model:
    """Read the folder as the adapter or model that it is, and check it as a whole."""
    return open_model(folder) if is_model(folder) else read(folder)


def _stated(folder: Path) -> str | None:
    """Return the base that a model's own card names."""
    file = folder / README
    found = metadata(decoded(read_input(file), file)) if file.is_file() else {}
    return found["base_model"] if isinstance(found.get("base_model"), str) else None


def _rename(made: PackageFiles, config: str | None, old: str, new: str) -> None:
    """Let the configuration name the base on the Hub."""
    if config is None or config not in made.files:
        return
    document = read_object(made.folder / config)
    text = config_text(_replaced(document, old, new))
    made.files[config] = text.encode()
    made.notes.append(f"{config}: names {new} in place of {old}")


def _replaced(value: Any, old: str, new: str) -> Any:
    match value:
        case dict():
            return {key: _replaced(item, old, new) for key, item in value.items()}
        case list():
            return [_replaced(item, old, new) for item in value]
    return new if value == old else value


def _clean(made: PackageFiles, place: Path, strip_metadata: bool) -> None:
    """Refuse leaks; those in metadata are dropped from a copy if that was asked for."""
    found: list[Leak] = []
    for name, content in list(made.files.items()):
        here = leaks(name, _theirs(content) if name == README else content)
        keys = {leak.entry for leak in here if leak.entry is not None}
        if keys and strip_metadata and isinstance(content, Path):
            here = [leak for leak in here if leak.entry is None]
            copy = place / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            strip(content, copy, keys)
            made.files[name] = copy
            made.notes.append(f"{name}: without the metadata {some(sorted(keys))}")
        found += here
    if found:
        raise _refusal(made.folder, found)


def _theirs(readme: Path | bytes) -> bytes:
    """Return a README without our section, which is written anew, and with its lines' numbers."""
    data = readme if isinstance(readme, bytes) else read_input(readme)
    text = SECTION.sub(lambda match: "\n" * match[0].count("\n"), data.decode("utf-8", "replace"))
    return text.encode()


def _refusal(folder: Path, found: Iterable[Leak]) -> RefusedError:
    found = list(found)
    lines = [str(leak) for leak in found]
    error = RefusedError(f"{folder}: would publish what is private:").listing(lines, most=5)
    for kind, fix in {leak.kind: leak.fix for leak in found if leak.fix}.items():
        error.hint(f"Whoever has seen {kind} can use it: {fix}.")
    if any(leak.entry is not None for leak in found):
        return error.hint("--strip-metadata publishes a copy without these entries.")
    if any(PurePosixPath(leak.file).suffix.lower() in IMAGES for leak in found):
        error.hint("Images lose it when they are saved without metadata.")
    return error.hint("Take it out of the file, or leave the file out with --exclude.")


def _report(content: Path | bytes | None) -> Fields:
    if content is None:
        return Fields(REPORT, {})
    data = content if isinstance(content, bytes) else read_input(content)
    try:
        return Fields(REPORT, json_object(data, REPORT, FormatError))
    except FormatError as error:
        raise error.hint(f"Leave it out: --exclude {REPORT}.") from error
