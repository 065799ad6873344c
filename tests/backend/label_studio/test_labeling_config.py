"""Protects the reading of labeling configs, and that an unusable one is told what it lacks."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import pytest

from backend.label_studio.labeling_config import (
    EXAMPLE,
    ConfigError,
    check_labeling_config,
    choose_mask_tag,
    image_reference,
    is_paged,
    labeling_config_doubts,
    parse_labeling_config,
    prompted_image,
    tag_of_label,
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
    assert config.controls["tag"].labels == ("Ski", "Helmet")


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
        (f"<View>{IMAGE}{POINT}</View>", 'no BrushLabels, BitmaskLabels or PolygonLabels tag with toName="image"'),
        (f"<View>{IMAGE}{BRUSH}{POINT}</View>".replace(' smart="true"', ""), '"k" lacks the attribute smart="true"'),
        (f"<View>{IMAGE}{BRUSH}{POINT.replace('image', 'other')}</View>", 'toName="other" of the KeyPointLabels tag'),
        (
            f"<View>{IMAGE}{BRUSH.replace('image', 'other')}{POINT}</View>",
            "no BrushLabels, BitmaskLabels or PolygonLabels tag",
        ),
        (
            f"<View>{IMAGE}{POINT}{POINT.replace('KeyPoint', 'Rectangle').replace('k', 'r')}</View>",
            "no BrushLabels, BitmaskLabels or PolygonLabels tag",  # a smart rectangle is a prompt
        ),
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


def choose(
    xml: str, *labels: str, data: dict[str, Any] | None = None, image: str = "image"
) -> tuple[str, tuple[str, ...]]:
    """Name of the mask tag, and what it calls the labels, for a click of the tag "k"."""
    config = parse_labeling_config(f"<View>{xml}</View>").for_task(data or {})
    tag, found = choose_mask_tag(config, config.controls["k"], image, labels)
    return tag.name, found


def brush(name: str, *labels: str, image: str = "image", attributes: str = "") -> str:
    """A mask tag; a label such as "Ski=s" has an alias."""
    inner = "".join(label(one) for one in labels)
    return f'<BrushLabels name="{name}" toName="{image}" {attributes}>{inner}</BrushLabels>'


def point(*labels: str, attributes: str = "") -> str:
    inner = "".join(label(one) for one in labels)
    return f'<KeyPointLabels name="k" toName="image" smart="true" {attributes}>{inner}</KeyPointLabels>'


def label(text: str) -> str:
    value, _, alias = text.partition("=")
    return f'<Label value="{value}"' + f' alias="{alias}"' * bool(alias) + "/>"


def test_the_mask_tag_is_the_one_of_the_image_that_has_the_label() -> None:
    tags = brush("b0", "Ski", image="other") + brush("b1", "Tree", "Person") + brush("b2", "Ski", "Helmet")
    xml = IMAGE + tags + point("Ski", "Person", "Helmet", "helmet")
    assert choose(xml, "Ski") == ("b2", ("Ski",))
    assert choose(xml, "Person") == ("b1", ("Person",))
    assert choose(xml, "Ski", image="other") == ("b0", ("Ski",))
    assert choose(xml, "helmet") == ("b2", ("Helmet",))
    check(f"<View>{xml}</View>")


def test_the_exact_label_beats_one_in_another_case_whatever_the_order() -> None:
    xml = brush("b1", "ski") + brush("b2", "Ski") + point("Ski", "SKI")
    assert choose(xml, "Ski") == ("b2", ("Ski",))
    assert choose(xml, "SKI") == ("b1", ("ski",))
    assert choose(brush("b1", "Ski") + brush("b2", "Ski") + point("Ski"), "Ski") == ("b1", ("Ski",))


def test_a_label_that_no_mask_tag_has_is_an_error_and_never_another_class() -> None:
    with pytest.raises(ConfigError, match=r'no tag for masks .* the label "Ski"; there are: "b1" with A; "b2" with B'):
        choose(brush("b1", "A") + brush("b2", "B") + point("Ski"), "Ski")
    with pytest.raises(ConfigError, match=r'"b1" has no label "Ski"; it has: A, B\. Give both tags the same'):
        choose(brush("b1", "A", "B") + point("Ski"), "Ski")
    with pytest.raises(ConfigError, match='there are: "b1" with A; "b2" with B'):
        check(f"<View>{IMAGE}{brush('b1', 'A')}{brush('b2', 'B')}{point('A', 'Ski')}</View>")


def test_an_only_label_of_an_only_mask_tag_takes_every_click() -> None:
    assert choose(brush("b", "Object=o") + point("Ski"), "Ski") == ("b", ("o",))


@pytest.mark.parametrize(
    ("mask", "click", "sent", "answered"),
    [
        (["Ski=s", "Helmet=h"], ["Ski=s", "Helmet=h"], "h", "h"),  # the editor sends the alias
        (["Ski=s", "Helmet=h"], ["Ski", "Helmet"], "Helmet", "h"),
        (["Ski", "Helmet"], ["Ski=s", "Helmet=h"], "h", "Helmet"),
        (["Ski=1", "Helmet=2"], ["Ski=a", "Helmet=b"], "b", "2"),
        (["ski=1", "helmet=2"], ["Ski=a", "Helmet=b"], "b", "2"),
        (["Ski=Helmet", "Helmet=Ski"], ["Ski=Helmet", "Helmet=Ski"], "Ski", "Ski"),
        (["$name", "x"], ["$name"], "$name", "$name"),  # results carry the attribute as it is written
    ],
)
def test_an_alias_in_either_tag(mask: list[str], click: list[str], sent: str, answered: str) -> None:
    xml = IMAGE + brush("b", *mask) + point(*click)
    assert choose(xml, sent) == ("b", (answered,))
    check(f"<View>{xml}</View>")


def test_all_labels_of_a_click_are_passed_on_together() -> None:
    xml = brush("b1", "A", "C") + brush("b2", "A", "B=b") + point("A", "B")
    assert choose(xml, "A", "B") == ("b2", ("A", "b"))
    assert choose(xml, "C", "A") == ("b1", ("C", "A"))
    with pytest.raises(ConfigError, match='the label "C" and "B"'):
        choose(xml, "C", "B")


def test_a_click_without_a_label() -> None:
    with pytest.raises(ConfigError, match="choose one before the click"):
        choose(brush("b1", "A") + point("A"))
    assert choose(brush("b1", "A") + brush("b2", "A", attributes='allowEmpty="true"') + point("A")) == ("b2", ())


LABELS = {"labels": [{"value": "Ski", "alias": "s"}, {"value": "Helmet", "children": [{"value": "Visor"}]}, "x", 3]}


@pytest.mark.parametrize(("sent", "answered"), [("s", "s"), ("Ski", "s"), ("Helmet", "Helmet"), ("Visor", "Visor")])
def test_labels_from_the_tasks_data(sent: str, answered: str) -> None:
    tags = brush("b1", "A") + brush("b2", attributes='value="$labels"') + point(attributes='value="$labels"')
    assert choose(tags, sent, data=LABELS) == ("b2", (answered,))
    check(f"<View>{IMAGE}{tags}</View>")  # before there is a task, nobody knows them
    check("<View>" + IMAGE + brush("b2", attributes='value="$labels"') + point("Ski") + "</View>")
    with pytest.raises(ConfigError, match="s, Helmet, Visor"):
        choose(tags, "Tree", data=LABELS)


def test_a_mask_tag_without_labels_takes_what_no_other_has() -> None:
    tags = brush("b1") + brush("b2", "Ski") + point("Ski")
    assert choose(tags, "Ski") == ("b2", ("Ski",))
    assert choose(tags, "Tree") == ("b1", ("Tree",))
    assert choose(brush("b", attributes='value="$labels"') + point("Ski"), "Ski") == ("b", ("Ski",))


def test_more_labels_than_are_read() -> None:
    data = {"labels": [{"value": str(number)} for number in range(20_000)]}
    with pytest.raises(ConfigError, match="than the 10000 that are allowed"):
        choose(brush("b", attributes='value="$labels"') + point("1"), "1", data=data)


def test_a_missing_to_name_is_the_only_object() -> None:
    xml = IMAGE + '<BrushLabels name="b"><Label value="A"/></BrushLabels><KeyPointLabels name="k" smart="true"/>'
    check(f"<View>{xml}</View>")
    with pytest.raises(ConfigError, match='toName=""'):
        check(f'<View>{xml}<Text name="t" value="$t"/></View>')


PAGES = (
    '<View><Repeater on="$document" indexFlag="{{idx}}"><Image name="page_{{idx}}" value="$document[{{idx}}].page"/>'
    '<View><BrushLabels name="mask_{{idx}}" toName="page_{{idx}}"><Label value="A"/></BrushLabels></View>'
    '<KeyPointLabels name="k_{{idx}}" toName="page_{{idx}}" smart="true"><Label value="A"/></KeyPointLabels>'
    "</Repeater></View>"
)


def test_a_repeater_comes_once_for_each_item_of_its_list() -> None:
    check(PAGES)
    data = {"document": [{"page": "/0.png"}, {"page": "/1.png"}]}
    config = parse_labeling_config(PAGES).for_task(data)
    assert config.images == {"page_0": "$document[0].page", "page_1": "$document[1].page"}
    assert list(config.controls) == ["mask_0", "k_0", "mask_1", "k_1"]
    assert config.controls["mask_1"].to_names == ("page_1",)
    assert image_reference(config, "page_1", data, None) == "/1.png"
    assert choose_mask_tag(config, config.controls["k_1"], "page_1", ["A"])[0].name == "mask_1"
    assert prompted_image(config) == "page_0"
    assert parse_labeling_config(PAGES).for_task({"document": "text"}).images == {}
    assert parse_labeling_config(PAGES).for_task({}).images == {}


def test_repeaters_inside_each_other_and_flags_of_their_own() -> None:
    xml = (
        '<View><Repeater on="$books" indexFlag="{{b}}"><View><Repeater on="$books[{{b}}].pages" indexFlag="@">'
        '<Image name="i_{{b}}_@" value="$books[{{b}}].pages[@]"/></Repeater></View></Repeater></View>'
    )
    data = {"books": [{"pages": ["a"]}, {"pages": ["b", "c"]}]}
    config = parse_labeling_config(xml).for_task(data)
    assert [image_reference(config, name, data, None) for name in ("i_0_0", "i_1_0", "i_1_1")] == ["a", "b", "c"]


def test_a_flag_is_filled_in_as_often_as_the_editor_does() -> None:
    """Once per attribute, and once more in the tags directly inside the Repeater."""
    tags = '<Image name="{{idx}}{{idx}}{{idx}}"/><View><Image name="x{{idx}}{{idx}}"/></View>'
    config = parse_labeling_config(f'<View><Repeater on="$p">{tags}</Repeater></View>')
    assert list(config.for_task({"p": [1]}).images) == ["00{{idx}}", "x0{{idx}}"]


def test_endless_repetition_is_refused() -> None:
    data = {"p": [0] * 1000}
    nested = '<View><Repeater on="$p"><Repeater on="$p"><Image name="i"/></Repeater></Repeater></View>'
    with pytest.raises(ConfigError, match="more than 50000 tags"):
        parse_labeling_config(nested).for_task(data)
    with pytest.raises(ConfigError, match="more than 50000 tags"):
        parse_labeling_config(PAGES).for_task({"document": [0] * 10**6})
    deep = '<View><Repeater on="$p"><Image name="i"/></Repeater></View>'
    for _ in range(9):
        deep = f'<View><Repeater on="$p">{deep}</Repeater></View>'
    with pytest.raises(ConfigError, match="Repeater tags more than 8 deep"):
        parse_labeling_config(deep).for_task({"p": [0]})


def test_a_brush_is_smart_unless_it_says_otherwise() -> None:
    found = labeling_config_doubts(parse_labeling_config(f"<View>{IMAGE}{BRUSH}{POINT}</View>"))
    assert [doubt.startswith('the BrushLabels tag "b" lacks the attribute smart="false"') for doubt in found] == [True]
    assert labeling_config_doubts(parse_labeling_config(EXAMPLE)) == []


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


@pytest.mark.parametrize(
    ("attributes", "data", "expected"),
    [
        ('value="$images[1].url"', {"images": [{"url": "/0.png"}, {"url": "/1.png"}]}, "/1.png"),
        ('value="$image.url"', {"image.url": "/flat.png", "image": {"url": "/deep.png"}}, "/flat.png"),
        ('value="https://host/$folder/$name"', {"folder": "a", "name": "b.png"}, "https://host/a/b.png"),
        ('value="$images"', {"images": ["/0.png", "/1.png"]}, "/0.png"),
        ('value="$images" valueList="$pages"', {"images": "/i.png", "pages": ["/p.png"]}, "/p.png"),
        ('value="https://host/legend.png"', {}, "https://host/legend.png"),
        ('value="$image"', {"image": " \n/a\tb.png\r\n"}, "/ab.png"),
    ],
)
def test_an_image_value_is_an_expression(attributes: str, data: dict[str, Any], expected: str) -> None:
    xml = f'<View><Image name="image" {attributes}/>{BRUSH}{POINT}</View>'
    check(xml)
    assert image_reference(parse_labeling_config(xml).for_task(data), "image", data, None) == expected


def test_a_text_with_a_missing_variable_is_no_image() -> None:
    config = parse_labeling_config('<View><Image name="image" value="https://host/$folder/$name"/></View>')
    with pytest.raises(
        ConfigError, match=r'under "https://host/\$folder/\$name" .*: \$name is not text; they have: folder'
    ):
        image_reference(config, "image", {"folder": "a"}, None)


def tag(kind: str, name: str, labels: str = "A", attributes: str = 'smart="false"') -> str:
    choices = "".join(f'<Label value="{label}"/>' for label in labels)
    return f'<{kind} name="{name}" toName="image" {attributes}>{choices}</{kind}>'


@pytest.mark.parametrize(
    ("tags", "chosen"),
    [
        ([tag("BrushLabels", "b")], "b"),
        ([tag("BitmaskLabels", "m")], "m"),
        ([tag("PolygonLabels", "p")], "p"),
        ([tag("RectangleLabels", "r")], "r"),
        ([tag("EllipseLabels", "e")], "e"),
        ([tag("PolygonLabels", "p"), tag("BitmaskLabels", "m"), tag("BrushLabels", "b")], "m"),
        ([tag("RectangleLabels", "r"), tag("PolygonLabels", "p")], "p"),
        ([tag("BrushLabels", "b", "B"), tag("PolygonLabels", "p")], "p"),
        ([tag("RectangleLabels", "r", attributes='smart="true"'), tag("EllipseLabels", "e")], "e"),
    ],
)
def test_masks_go_to_the_kind_of_tag_that_the_config_has(tags: list[str], chosen: str) -> None:
    xml = f"<View>{IMAGE}{''.join(tags)}{POINT}</View>"
    check(xml)
    config = parse_labeling_config(xml)
    assert choose_mask_tag(config, config.controls["k"], "image", ["A"])[0].name == chosen


@pytest.mark.parametrize("kind", ["BrushLabels", "BitmaskLabels"])
def test_brushes_that_are_smart_by_themselves_are_told(kind: str) -> None:
    (doubt,) = labeling_config_doubts(
        parse_labeling_config(f"<View>{IMAGE}{tag(kind, 'm', attributes='')}{POINT}</View>")
    )
    assert f'the {kind} tag "m" lacks the attribute smart="false"' in doubt
    assert not labeling_config_doubts(parse_labeling_config(f"<View>{IMAGE}{tag(kind, 'm')}{POINT}</View>"))


OPEN = '<BrushLabels name="open" toName="image"/>'
POLYGON = '<PolygonLabels name="p" toName="image" allowEmpty="true"><Label value="Boot" alias="b"/></PolygonLabels>'


@pytest.mark.parametrize(
    ("tags", "label", "name"),
    [
        (BRUSH, "B", "b"),
        (BRUSH, "b", None),
        (BRUSH, "Boot", None),
        (BRUSH, "", None),
        (BRUSH + POLYGON, "b", "p"),
        (BRUSH + POLYGON, "Boot", None),
        (BRUSH + POLYGON, "", "p"),
        (OPEN + BRUSH, "A", "b"),
        (OPEN + BRUSH, "Boot", "open"),
    ],
)
def test_an_accepted_label_belongs_to_the_tag_that_has_it_now(tags: str, label: str, name: str | None) -> None:
    """No guess, unlike for a click: the label may be one that was taken out of the config."""
    tag = tag_of_label(parse_labeling_config(f"<View>{IMAGE}{tags}{POINT}</View>"), "image", label)
    assert (tag and tag.name) == name


def test_a_list_of_images_has_pages() -> None:
    config = parse_labeling_config(f"<View>{IMAGE}{BRUSH}{POINT}</View>")
    assert is_paged(config, "image", {"image": ["/a.png", "/b.png"]})
    assert not is_paged(config, "image", {"image": "/a.png"})
    assert not is_paged(config, "image", {"text": "none"})
    assert not is_paged(config, "other", {})


@pytest.mark.parametrize(
    ("xml", "data", "trouble"),
    [
        (
            '<View><Repeater on="$a"><Image name="i{{idx}}" value="$%s{{idx}}"/></Repeater></View>' % ("x" * 100_000),
            {"a": [0] * 5000},
            "create more than",
        ),
        (
            "<View>" + "".join(f'<BrushLabels name="b{n}" toName="i" value="$l"/>' for n in range(1000)) + "</View>",
            {"l": [{"value": str(n)} for n in range(9000)]},
            "labels together",
        ),
    ],
    ids=["attributes", "labels"],
)
def test_no_task_makes_more_of_a_config_than_memory_holds(xml: str, data: dict[str, Any], trouble: str) -> None:
    config = parse_labeling_config(xml)
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match=trouble):
            config.for_task(data)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_a_config_of_thousands_of_tags_is_refused_at_once() -> None:
    tags = "".join(
        f'<KeyPointLabels name="k{n}" toName="i" smart="true"/><BrushLabels name="b{n}" toName="i"/>'
        for n in range(2000)
    )
    config = parse_labeling_config(f'<View><Image name="i" value="$image"/>{tags}</View>')
    begin = time.process_time()
    with pytest.raises(ConfigError, match="4000 control tags, which are too many"):
        check_labeling_config(config)
    assert time.process_time() - begin < 1


def test_labels_that_no_tag_has_are_not_all_looked_up() -> None:
    tags = "".join(f'<BrushLabels name="b{n}" toName="i"><Label value="l{n}"/></BrushLabels>' for n in range(2000))
    config = parse_labeling_config(
        f'<View><Image name="i" value="$image"/><KeyPointLabels name="k" toName="i"/>{tags}</View>'
    )
    begin = time.process_time()
    with pytest.raises(ConfigError, match="no tag for masks"):
        choose_mask_tag(config, config.controls["k"], "i", [f"x{n}" for n in range(1000)])
    assert time.process_time() - begin < 2
