"""Label Studio's labeling config (XML) as values: its images, and the tags that prompt and label them.

Read as the editor reads it: tags and attributes in any case, values that are expressions (`expressions.py`), `Repeater`
tags (also nested) and labels that come from the task's data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from backend.label_studio.expressions import MissingValueError, evaluate, has_variable
from backend.label_studio.references import cleaned

PROMPT_KINDS = {"keypointlabels": "KeyPointLabels", "rectanglelabels": "RectangleLabels"}
MASK_KINDS = {"brushlabels": "BrushLabels", "bitmasklabels": "BitmaskLabels", "polygonlabels": "PolygonLabels"}
BOX_KINDS = {"rectanglelabels": "RectangleLabels", "ellipselabels": "EllipseLabels"}
_CONTROL_KINDS = PROMPT_KINDS | MASK_KINDS | BOX_KINDS
_SMART_BY_ITSELF = ("brushlabels", "bitmasklabels")

_OBJECT_KINDS = {
    *("image", "text", "hypertext", "richtext", "audio", "audioplus", "video", "paragraphs", "table", "timeseries"),
    *("list", "pdf", "chat"),
}
_MAX_LENGTH = 256 << 10  # characters; a config with thousands of labels has fewer
_MAX_TAGS = 50_000  # of a config with its Repeater tags expanded; each takes some microseconds per click
_MAX_REPEATED = 8 << 20  # characters of all attributes that Repeater tags make
_MAX_ALL_LABELS = 100_000  # of all tags, those from the task's data included
_MAX_PAIRS = 40_000  # of a tag for clicks and a tag for masks
_MAX_NESTED = 8  # Repeater tags inside each other
_MAX_LABELS = 10_000  # of one tag, from the task's data

# smart="false" on the brush is needed: Label Studio treats a brush as a smart tool too and would offer it first under
# Auto-Detect, where a click with it sends no request.
EXAMPLE = """\
<View>
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="mask" toName="image" smart="false">
    <Label value="Object" background="#1e88e5"/>
  </BrushLabels>
  <KeyPointLabels name="click" toName="image" smart="true">
    <Label value="Object" smart="true" showInline="true"/>
  </KeyPointLabels>
</View>"""


class ConfigError(ValueError):
    """The labeling config cannot be used; the message names the tag or attribute to change."""


@dataclass(frozen=True)
class Label:
    """A label of a control tag: the text shown to annotators, and the alias that results have instead, if any."""

    value: str
    alias: str = ""

    @property
    def stored(self) -> str:
        """As it appears in results."""
        return self.alias or self.value


@dataclass(frozen=True)
class Control:
    """A tag that creates regions: `kind` is its tag name in lower case, which is also the regions' `type`."""

    kind: str
    name: str
    to_names: tuple[str, ...]
    choices: tuple[Label, ...]
    smart: bool
    """Whether Label Studio offers the tag's tool under Auto-Detect."""
    any_label: bool = False
    """Whether the labels are unknown: the tag has none of its own, or they are in the data of a task not given here."""
    allow_empty: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """As they appear in results."""
        return tuple(label.stored for label in self.choices)

    @property
    def title(self) -> str:
        """The tag's name in messages."""
        return f'{_CONTROL_KINDS[self.kind]} tag "{self.name}"'


@dataclass(frozen=True)
class LabelingConfig:
    """Image tags (name -> expression) and control tags (name -> control), in document order."""

    images: Mapping[str, str]
    controls: Mapping[str, Control]
    other_tags: Mapping[str, str] = field(default_factory=dict)
    """The kinds of all other tags that have a name."""
    template: Element | None = field(default=None, repr=False, compare=False)
    """The config itself if its tags and labels depend on a task's data."""

    def for_task(self, data: Mapping[str, Any]) -> LabelingConfig:
        """The config with the tags and labels for a task's data. Raises `ConfigError` if there are too many."""
        return self if self.template is None else _read(self.template, data)

    def mask_tags(self, image: str) -> list[Control]:
        """The tags of an image that can hold masks: BrushLabels and BitmaskLabels in document order, then
        PolygonLabels; without any of these, RectangleLabels (except smart ones, which are prompts) and EllipseLabels.
        Raises `ConfigError` if there are none."""
        tags = [control for control in self.controls.values() if image in control.to_names]
        masks = [tag for tag in tags if tag.kind in MASK_KINDS]
        boxes = [tag for tag in tags if tag.kind in BOX_KINDS and not tag.smart]
        found = sorted(masks, key=lambda tag: tag.kind == "polygonlabels") or boxes
        if not found:
            raise ConfigError(
                f'the labeling config has no BrushLabels, BitmaskLabels or PolygonLabels tag with toName="{image}"; '
                f'masks need one: add <BrushLabels name="mask" toName="{image}" smart="false"> with the labels of the '
                "smart tag"
            )
        return found


def parse_labeling_config(xml: str) -> LabelingConfig:
    """The config's images and controls, before a task's data are known: the content of a `Repeater` tag appears once,
    with the index flag in its names. Raises `ConfigError`."""
    if len(xml) > _MAX_LENGTH:
        raise ConfigError(
            f"the labeling config has {len(xml)} characters, more than the {_MAX_LENGTH} that are allowed"
        )
    try:
        root = fromstring(xml)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:  # the last ones: strange encodings
        raise ConfigError(f"the labeling config is not valid XML: {error}") from None
    return _read(root, None)


def check_labeling_config(config: LabelingConfig) -> None:
    """Raise `ConfigError`, naming the tag or attribute that is missing, unless a smart click can become a
    mask."""
    if not config.images:
        raise ConfigError('the labeling config has no Image tag: add <Image name="image" value="$image"/>')
    prompts = [control for control in config.controls.values() if control.kind in PROMPT_KINDS]
    if not prompts:
        raise ConfigError(
            "the labeling config has no KeyPointLabels tag: clicks need "
            '<KeyPointLabels name="click" toName="image" smart="true">'
        )
    if len(prompts) * len(config.controls) > _MAX_PAIRS:
        raise ConfigError(f"the labeling config has {len(config.controls)} control tags, which are too many")
    smart = [control for control in prompts if control.smart]
    if not smart:
        raise ConfigError(f'the {prompts[0].title} lacks the attribute smart="true"')
    for tag in smart:
        image = next((name for name in tag.to_names if name in config.images), None)
        if image is None:
            raise ConfigError(
                f'the attribute toName="{",".join(tag.to_names)}" of the {tag.title} names no Image tag; the images '
                f"are: {', '.join(config.images)}"
            )
        labels = _MaskLabels(config, tag, image)
        for label in tag.labels:
            labels.choose([label])
    for name, expression in config.images.items():
        if not has_variable(expression) and not any(mark in expression for mark in "/:"):
            raise ConfigError(f'the attribute value of the Image tag "{name}" must be a variable such as "$image"')


def labeling_config_doubts(config: LabelingConfig) -> list[str]:
    """Why a valid config may not work as intended, one sentence each."""
    return [
        f'the {tag.title} lacks the attribute smart="false": Label Studio offers its brush as the first Auto-Detect '
        "tool, and clicks with it send nothing"
        for tag in config.controls.values()
        if tag.kind in _SMART_BY_ITSELF and tag.smart
    ]


def prompted_image(config: LabelingConfig) -> str:
    """The image that the first smart tool is for, or else the first one; empty if there is none."""
    smart = (control for control in config.controls.values() if control.kind in PROMPT_KINDS and control.smart)
    named = (image for control in smart for image in control.to_names if image in config.images)
    return next(named, next(iter(config.images), ""))


def choose_mask_tag(
    config: LabelingConfig, prompt: Control, image: str, labels: Sequence[str]
) -> tuple[Control, tuple[str, ...]]:
    """The mask tag of `image` for a click with these labels, and what the tag calls them.

    The first tag that has all labels: as stored in results, otherwise as shown to annotators (only one of the tags may
    have an alias), otherwise ignoring case. A tag without labels accepts what no other tag has, and so does a single
    tag with a single label. Raises `ConfigError`, listing the existing labels, if no tag fits: a mask of the wrong
    class would be worse than none.
    """
    return _MaskLabels(config, prompt, image).choose(labels)


def tag_of_label(config: LabelingConfig, image: str, label: str) -> Control | None:
    """The first mask tag of `image` that has a label as stored in results; None if none has. Without a label, the first
    tag that allows empty labels. Unlike a click's, the label may come from an earlier config."""
    tags = config.mask_tags(image)
    if not label:
        return next((tag for tag in tags if tag.allow_empty), None)
    known = (tag for tag in tags if label in tag.labels)
    return next(known, next((tag for tag in tags if tag.any_label), None))


def is_paged(config: LabelingConfig, image: str, data: Mapping[str, Any]) -> bool:
    """Whether a task's `data` have several pages for an image tag of `config.for_task(data)`."""
    try:
        return isinstance(evaluate(config.images.get(image, ""), data), list)
    except MissingValueError:
        return False


def image_reference(config: LabelingConfig, image: str, data: Mapping[str, Any], index: int | None) -> str:
    """The reference (URL, URI or path) in a task's `data` for an image tag of `config.for_task(data)`; `index` selects
    from a list.

    Raises `ConfigError` if the tag is unknown, or the data have no text there.
    """
    if image not in config.images:
        raise ConfigError(f'the labeling config has no Image tag named "{image}"')
    expression, missing = config.images[image], ""
    try:
        value = evaluate(expression, data)
    except MissingValueError as error:
        value, missing = None, f": {error} is not text"
    if isinstance(value, list):
        value = value[index or 0] if (index or 0) < len(value) else None
    reference = cleaned(value) if isinstance(value, str) else ""
    if not reference:
        raise ConfigError(
            f'the task\'s data hold no image under "{expression}" (Image tag "{image}"){missing}; '
            f"they have: {', '.join(sorted(data))}"
        )
    return reference


class _MaskLabels:
    """The labels of an image's mask tags, from which the clicks of one tag choose."""

    def __init__(self, config: LabelingConfig, prompt: Control, image: str) -> None:
        self._prompt, self._image = prompt, image
        self._tags = config.mask_tags(image)
        self._shown = {label.stored: label.value for label in reversed(prompt.choices)}
        """The text shown to annotators, by the label as stored."""
        stored = [{label.stored: label.stored for label in reversed(tag.choices)} for tag in self._tags]
        shown = [
            {label.value: label.stored for label in reversed(tag.choices)} | known
            for tag, known in zip(self._tags, stored, strict=True)
        ]
        folded = [{name.casefold(): label for name, label in reversed(known.items())} for known in shown]
        self._known = (stored, shown, folded)
        """For each way of naming labels and each tag: the stored label by name; the first of equal names counts."""

    def choose(self, labels: Sequence[str]) -> tuple[Control, tuple[str, ...]]:
        """See `choose_mask_tag`."""
        if not labels:
            return self._without_label()
        stored, shown, folded = self._known
        read = [(label, self._shown.get(label, label)) for label in labels]
        in_any_case = [tuple(name.casefold() for name in names) for names in read]
        for known, called in ((stored, [(label,) for label in labels]), (shown, read), (folded, in_any_case)):
            for tag, by_name in zip(self._tags, known, strict=True):
                found = _stored_labels(by_name, called)
                if found is not None:
                    return tag, found
        for tag in self._tags:
            if tag.any_label:
                return tag, tuple(labels)
        if len(self._tags) == 1 and len(self._tags[0].choices) == 1:
            return self._tags[0], self._tags[0].labels
        raise ConfigError(self._missing(labels))

    def _without_label(self) -> tuple[Control, tuple[str, ...]]:
        for tag in self._tags:
            if tag.allow_empty:
                return tag, ()
        raise ConfigError(f"a click of the {self._prompt.title} has no label: choose one before the click")

    def _missing(self, labels: Sequence[str]) -> str:
        wanted = " and ".join(f'"{label}"' for label in labels)
        first = self._tags[0]
        if len(self._tags) == 1:
            have = ", ".join(first.labels)
            return f"the {first.title} has no label {wanted}; it has: {have}. Give both tags the same labels"
        have = "; ".join(f'"{tag.name}" with {", ".join(tag.labels)}' for tag in self._tags)
        return (
            f'no tag for masks with toName="{self._image}" has the label {wanted}; there are: {have}. Give one of '
            f"them the labels of the {self._prompt.title}"
        )


def _stored_labels(by_name: Mapping[str, str], called: Sequence[Sequence[str]]) -> tuple[str, ...] | None:
    """The stored label of each that is called by one of some names; None where one of them has none."""
    found: dict[str, None] = {}
    for names in called:
        label = next((by_name[name] for name in names if name in by_name), None)
        if label is None:
            return None
        found[label] = None
    return tuple(found)


@dataclass(frozen=True)
class _Tag:
    """A tag of a config, with the index flags of the enclosing `Repeater` tags filled in."""

    kind: str
    attributes: Mapping[str, str]
    labels: list[Label]
    """A control tag has a list of its own, which the labels inside it fill."""


@dataclass(frozen=True)
class _Turn:
    """State of a walk through a config: flags to fill in all tags below, and those to fill in once more at this one."""

    flags: tuple[tuple[str, str], ...] = ()
    again: tuple[tuple[str, str], ...] = ()


def _read(root: Element, data: Mapping[str, Any] | None) -> LabelingConfig:
    tags = list(_tags(root, data))
    objects = [tag for tag in tags if tag.kind in _OBJECT_KINDS and tag.attributes.get("name")]
    only = objects[0].attributes["name"] if len(objects) == 1 else ""
    images: dict[str, str] = {}
    controls: dict[str, Control] = {}
    others: dict[str, str] = {}
    depends = any(tag.kind == "repeater" for tag in tags)
    labels_of, num_labels = cache(partial(_labels_of, data=data or {})), 0
    for tag in tags:
        name, attributes = tag.attributes.get("name", ""), tag.attributes
        if not name:
            continue
        if tag.kind == "image":
            images[name] = attributes.get("valuelist") or attributes.get("value") or ""
        elif tag.kind in _CONTROL_KINDS:
            is_open = attributes.get("value", "").startswith("$")
            depends = depends or is_open
            of_task = labels_of(attributes["value"]) if is_open and data is not None else ()
            num_labels += len(tag.labels) + len(of_task)
            if num_labels > _MAX_ALL_LABELS:
                raise ConfigError(f"the tags of the labeling config have more than {_MAX_ALL_LABELS} labels together")
            any_label = is_open and data is None
            controls[name] = _control(tag, name, attributes.get("toname") or only, (*tag.labels, *of_task), any_label)
        else:
            others[name] = tag.kind
    return LabelingConfig(images, controls, others, root if depends and data is None else None)


def _control(tag: _Tag, name: str, to_name: str, choices: tuple[Label, ...], any_label: bool) -> Control:
    attributes = tag.attributes
    return Control(
        kind=tag.kind,
        name=name,
        to_names=tuple(part.strip() for part in to_name.split(",")),
        choices=choices,
        smart=_is_smart(tag.kind, attributes),
        any_label=any_label or not choices,
        allow_empty=attributes.get("allowempty", "").lower() == "true",
    )


def _is_smart(kind: str, attributes: Mapping[str, str]) -> bool:
    """Brushes, including those of bitmasks, are smart tools unless they say otherwise; other tags only if they say
    so."""
    if kind in _SMART_BY_ITSELF:
        return attributes.get("smart", "").lower() != "false"
    return "true" in (attributes.get("smart", "").lower(), attributes.get("smartonly", "").lower())


def _labels_of(expression: str, data: Mapping[str, Any]) -> tuple[Label, ...]:
    """The labels that a task's data list for a tag: objects with a value, possibly with nested ones."""
    found: list[Label] = []
    try:
        waiting = [evaluate(expression, data)]
    except MissingValueError:
        return ()
    while waiting:
        listed = waiting.pop()
        for item in listed if isinstance(listed, list) else ():
            if not isinstance(item, dict):
                continue
            shown, alias = item.get("value"), item.get("alias")
            if isinstance(shown, str) or isinstance(alias, str):
                found.append(Label(shown if isinstance(shown, str) else "", alias if isinstance(alias, str) else ""))
            waiting.append(item.get("children"))
            if len(found) > _MAX_LABELS:
                raise ConfigError(f"the task's data list more labels for a tag than the {_MAX_LABELS} that are allowed")
    return tuple(found)


def _tags(root: Element, data: Mapping[str, Any] | None) -> Iterator[_Tag]:
    """All tags in document order. Without `data` a `Repeater` is a tag like others; with them its content comes once
    for each item of its list."""
    waiting: list[tuple[Element, _Turn, list[Label]]] = [(root, _Turn(), [])]
    num_repeated = num_characters = 0
    while waiting:
        element, turn, labels = waiting.pop()
        kind, attributes = element.tag.lower(), _attributes(element, turn)
        if kind == "label" and (attributes.get("value") or attributes.get("alias")):
            labels.append(Label(attributes.get("value", ""), attributes.get("alias", "")))
        if kind in _CONTROL_KINDS:
            labels = []
        turns = [_Turn(turn.flags)]
        if kind == "repeater" and data is not None:
            turns = _turns(attributes, turn, data)
        if turn.flags or len(turns) > 1:
            num_repeated += len(turns) * (1 + len(element))
            num_characters += sum(map(len, attributes.values()))
        if num_repeated > _MAX_TAGS or num_characters > _MAX_REPEATED:
            raise ConfigError(
                f"the Repeater tags of the labeling config create more than {_MAX_TAGS} tags, or "
                f"{_MAX_REPEATED >> 20} MB of attributes, for this task"
            )
        waiting.extend((child, inner, labels) for inner in reversed(turns) for child in reversed(element))
        yield _Tag(kind, attributes, labels)


def _turns(attributes: Mapping[str, str], turn: _Turn, data: Mapping[str, Any]) -> list[_Turn]:
    """One for each item of a `Repeater`'s list. The editor fills in a flag once per attribute, and all flags once more
    in the tags directly inside."""
    if len(turn.flags) == _MAX_NESTED:
        raise ConfigError(f"the labeling config nests Repeater tags more than {_MAX_NESTED} deep")
    try:
        items = evaluate(attributes.get("on", ""), data)
    except MissingValueError:
        return []
    num_items = min(len(items), _MAX_TAGS + 1) if isinstance(items, list) else 0
    flag = attributes.get("indexflag", "{{idx}}")
    again = dict(turn.again)
    return [
        _Turn((*turn.flags, (flag, str(index))), tuple((again | {flag: str(index)}).items()))
        for index in range(num_items)
    ]


def _attributes(element: Element, turn: _Turn) -> dict[str, str]:
    """Attributes by lower-case name: the editor ignores case, and so do we."""
    found = {}
    for name, value in element.attrib.items():
        for flag, index in (*turn.flags, *turn.again):
            value = value.replace(flag, index, 1)
        found[name.lower()] = value
    return found
