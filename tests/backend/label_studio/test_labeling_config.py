"""Protects the reading of labeling configs, and that an unusable one is told what it lacks."""

from __future__ import annotations

import pytest

from backend.label_studio.labeling_config import (
    EXAMPLE,
    ConfigError,
    check_labeling_config,
    image_reference,
    map_label,
    parse_labeling_config,
)
from tests.support.recorded import recorded_requests


def check(xml: str) -> None:
    check_labeling_config(parse_labeling_config(xml))


def test_the_recorded_config_and_the_one_we_print_are_usable() -> None:
    recorded = recorded_requests("01", "/setup")[0]["body"]["schema"]
    for xml in (recorded, EXAMPLE):
        check(xml)
    config = parse_labeling_config(recorded)
    assert config.images == {"image": "$image"}
    assert [(c.kind, c.name, c.smart) for c in config.controls.values()] == [
        ("brushlabels", "tag", True),
        ("keypointlabels", "tag2", True),
        ("rectanglelabels", "tag3", True),
    ]
    assert config.brush_for("image").labels == ("Ski", "Helmet")


IMAGE = '<Image name="image" value="$image"/>'
BRUSH = '<BrushLabels name="b" toName="image"><Label value="A"/><Label value="B"/></BrushLabels>'
POINT = '<KeyPointLabels name="k" toName="image" smart="true"><Label value="A"/></KeyPointLabels>'


@pytest.mark.parametrize(
    ("xml", "missing"),
    [
        ("", "not valid XML"),
        ("<View>", "not valid XML"),
        (f"<View>{BRUSH}{POINT}</View>", "no Image tag"),
        (f"<View>{IMAGE}{BRUSH}</View>", "no KeyPointLabels tag"),
        (f"<View>{IMAGE}{POINT}</View>", 'no BrushLabels tag with toName="image"'),
        (f"<View>{IMAGE}{BRUSH}{POINT}</View>".replace(' smart="true"', ""), '"k" lacks the attribute smart="true"'),
        (f"<View>{IMAGE}{BRUSH}{POINT.replace('image', 'other')}</View>", 'toName="other" of the KeyPointLabels tag'),
        (f"<View>{IMAGE}{BRUSH.replace('image', 'other')}{POINT}</View>", "no BrushLabels tag"),
        (f"<View>{IMAGE}{BRUSH}{POINT.replace('A', 'C')}</View>", '"b" has no label "C"; it has: A, B'),
        (f"<View>{IMAGE.replace('$', '')}{BRUSH}{POINT}</View>", 'value of the Image tag "image" must be a variable'),
        (
            '<!DOCTYPE x [<!ENTITY e "boom">]><View>&e;</View>',
            "not valid XML",  # entities are refused, not expanded
        ),
    ],
)
def test_an_unusable_config_is_told_what_it_lacks(xml: str, missing: str) -> None:
    with pytest.raises(ConfigError) as error:
        check(xml)
    assert missing in str(error.value)


def test_tags_and_attributes_in_any_case_and_nesting() -> None:
    check(
        '<view><view><image Name="image" value="$image"/></view><brushlabels name="b" toname="image">'
        '<view><label value="A"/></view></brushlabels><Keypointlabels name="k" toName="image" smartOnly="TRUE"/></view>'
    )


def test_the_brush_of_the_same_image_is_found() -> None:
    config = parse_labeling_config(
        '<View><Image name="one" value="$one"/><Image name="two" value="$two"/>'
        '<BrushLabels name="b1" toName="one"/><BrushLabels name="b2" toName="two"/></View>'
    )
    assert config.brush_for("one").name == "b1"
    assert config.brush_for("two").name == "b2"


def test_labels_are_mapped_to_the_brush() -> None:
    brush = parse_labeling_config(f"<View>{IMAGE}{BRUSH}</View>").brush_for("image")
    assert map_label("A", brush) == map_label("a", brush) == "A"
    with pytest.raises(ConfigError, match='no label "C"; it has: A, B'):
        map_label("C", brush)
    single = BRUSH.replace('<Label value="B"/>', "")
    assert map_label("C", parse_labeling_config(f"<View>{single}</View>").brush_for("image")) == "A"
    dynamic = '<BrushLabels name="b" toName="image" value="$labels"/>'
    assert map_label("C", parse_labeling_config(f"<View>{dynamic}</View>").brush_for("image")) == "C"


def test_an_alias_is_what_results_carry() -> None:
    brush = BRUSH.replace('value="A"', 'value="A long name" alias="A"')
    assert parse_labeling_config(f"<View>{brush}</View>").brush_for("image").labels == ("A", "B")


def test_image_references() -> None:
    config = parse_labeling_config(
        '<View><Image name="a" value="$image"/><Image name="b" value="$deep.image"/>'
        '<Image name="c" valueList="$pages"/></View>'
    )
    data = {"image": "/a.png", "deep": {"image": "/b.png"}, "pages": ["/c0.png", "/c1.png"], "empty": ""}
    assert image_reference(config, "a", data, None) == "/a.png"
    assert image_reference(config, "b", data, None) == "/b.png"
    assert image_reference(config, "c", data, 1) == "/c1.png"
    with pytest.raises(ConfigError, match='no image under "\\$pages"'):
        image_reference(config, "c", data, 2)
    with pytest.raises(ConfigError, match="they have: img"):
        image_reference(config, "a", {"img": "/a.png"}, None)
    with pytest.raises(ConfigError, match='no Image tag named "d"'):
        image_reference(config, "d", data, None)
