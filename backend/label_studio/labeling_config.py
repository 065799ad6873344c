"""Label Studio's labeling config (XML) as values: which images there are and which tags prompt and label
them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

PROMPT_KINDS = {"keypointlabels": "KeyPointLabels", "rectanglelabels": "RectangleLabels"}
BRUSH_KIND = "brushlabels"

_MAX_LENGTH = 256 << 10  # characters; a config with thousands of labels has fewer

# smart="false" on the brush is needed: Label Studio takes a brush for a smart tool too and would offer it first under
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
class Control:
    """A tag that makes regions: `kind` is its tag name in lower case, which is also the regions' `type`."""

    kind: str
    name: str
    to_names: tuple[str, ...]
    labels: tuple[str, ...]
    """As they appear in results; empty where they come from the task's data."""
    smart: bool
    """Whether Label Studio offers the tag's tool under Auto-Detect."""


@dataclass(frozen=True)
class LabelingConfig:
    """Image tags (name -> key of the task's data) and control tags (name -> control), in document order."""

    images: Mapping[str, str]
    controls: Mapping[str, Control]

    def brush_for(self, image: str) -> Control:
        """The first BrushLabels tag of an image. Raises `ConfigError` if it has none."""
        for control in self.controls.values():
            if control.kind == BRUSH_KIND and image in control.to_names:
                return control
        raise ConfigError(
            f'the labeling config has no BrushLabels tag with toName="{image}"; masks need one: add '
            f'<BrushLabels name="mask" toName="{image}" smart="false"> with the labels of the smart tag'
        )


def parse_labeling_config(xml: str) -> LabelingConfig:
    """The config's images and controls; tags that do not concern masks are left out. Raises `ConfigError`."""
    if len(xml) > _MAX_LENGTH:
        raise ConfigError(f"the labeling config has {len(xml)} characters, more than the {_MAX_LENGTH} that are read")
    try:
        root = fromstring(xml)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:  # the last ones: strange encodings
        raise ConfigError(f"the labeling config is not valid XML: {error}") from None
    images: dict[str, str] = {}
    controls: dict[str, Control] = {}
    labels = _labels(root)
    for element in root.iter():
        kind, attributes = element.tag.lower(), _attributes(element)
        name = attributes.get("name", "")
        if kind == "image" and name:
            images[name] = attributes.get("value") or attributes.get("valuelist") or ""
        elif (kind in PROMPT_KINDS or kind == BRUSH_KIND) and name:
            controls[name] = Control(
                kind=kind,
                name=name,
                to_names=tuple(part.strip() for part in attributes.get("toname", "").split(",")),
                labels=tuple(labels[element]),
                smart=_is_smart(kind, attributes),
            )
    return LabelingConfig(images, controls)


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
    smart = [control for control in prompts if control.smart]
    if not smart:
        tag = prompts[0]
        raise ConfigError(f'the {PROMPT_KINDS[tag.kind]} tag "{tag.name}" lacks the attribute smart="true"')
    for tag in smart:
        image = next((name for name in tag.to_names if name in config.images), None)
        if image is None:
            raise ConfigError(
                f'the attribute toName="{",".join(tag.to_names)}" of the {PROMPT_KINDS[tag.kind]} tag '
                f'"{tag.name}" names no Image tag; the images are: {", ".join(config.images)}'
            )
        brush = config.brush_for(image)
        for label in tag.labels:
            map_label(label, brush)
    for name, value in config.images.items():
        if not value.startswith("$"):
            raise ConfigError(f'the attribute value of the Image tag "{name}" must be a variable such as "$image"')


def labeling_config_doubts(config: LabelingConfig) -> list[str]:
    """What lets a checked config work, but not as meant; a sentence each."""
    return [
        f'the BrushLabels tag "{brush.name}" lacks the attribute smart="false": Label Studio offers the brush as the '
        "first Auto-Detect tool, and clicks with it send nothing"
        for brush in config.controls.values()
        if brush.kind == BRUSH_KIND and brush.smart
    ]


def map_label(label: str, brush: Control) -> str:
    """The brush's label for a click's label: the same, the same but for case, or the brush's only one.

    Raises `ConfigError` that lists the brush's labels if none of these exists.
    """
    if not brush.labels or label in brush.labels:
        return label
    for candidate in brush.labels:
        if candidate.casefold() == label.casefold():
            return candidate
    if len(brush.labels) == 1:
        return brush.labels[0]
    raise ConfigError(
        f'the BrushLabels tag "{brush.name}" has no label "{label}"; it has: {", ".join(brush.labels)}. '
        "Give both tags the same labels"
    )


def image_reference(config: LabelingConfig, image: str, data: Mapping[str, object], index: int | None) -> str:
    """The reference (URL, URI or path) that a task's `data` holds for an image tag; `index` picks from a
    valueList.

    Raises `ConfigError` if the tag is unknown, the data lack the key, or hold something else than text there.
    """
    if image not in config.images:
        raise ConfigError(f'the labeling config has no Image tag named "{image}"')
    value: object = data
    for key in re.sub(r"^\$", "", config.images[image]).split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, list) and value:
        value = value[index or 0] if (index or 0) < len(value) else None
    if not isinstance(value, str) or not value:
        raise ConfigError(
            f'the task\'s data hold no image under "{config.images[image]}" (Image tag "{image}"); '
            f"they have: {', '.join(sorted(data))}"
        )
    return value


def _attributes(element: Element) -> dict[str, str]:
    """Attributes by lower-case name: the editor does not mind the case, so neither do we."""
    return {name.lower(): value for name, value in element.attrib.items()}


def _is_smart(kind: str, attributes: Mapping[str, str]) -> bool:
    """A brush is a smart tool unless it says otherwise, everything else only if it says so."""
    if kind == BRUSH_KIND:
        return attributes.get("smart", "").lower() != "false"
    return "true" in (attributes.get("smart", "").lower(), attributes.get("smartonly", "").lower())


def _labels(root: Element) -> Mapping[Element, list[str]]:
    """The labels of each control tag, in document order."""
    found: defaultdict[Element, list[str]] = defaultdict(list)
    for element, control in _with_control(root):
        attributes = _attributes(element)
        label = attributes.get("alias") or attributes.get("value")
        if element.tag.lower() == "label" and control is not None and label and not label.startswith("$"):
            found[control].append(label)
    return found


def _with_control(root: Element) -> Iterator[tuple[Element, Element | None]]:
    """All tags in document order, each with the control tag that it stands in."""
    waiting: list[tuple[Element, Element | None]] = [(root, None)]
    while waiting:
        element, control = waiting.pop()
        yield element, control
        kind = element.tag.lower()
        inner = element if kind in PROMPT_KINDS or kind == BRUSH_KIND else control
        waiting.extend((child, inner) for child in reversed(element))
