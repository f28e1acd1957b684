"""Charts: what is drawn are the numbers, and nothing is drawn where there are none."""

import math
import re
import xml.etree.ElementTree as xml

import numpy as np
import pytest

from dlmjax.report.charts import MOST_POINTS, Curve, chart, short


def svg(text):
    """The root of the picture in a chart."""
    return xml.fromstring(text[text.index("<svg") :])


def titles(text):
    return [node.text for node in svg(text).iter("title")]


def test_each_point_says_its_numbers_and_its_error():
    text = chart([Curve("held out", [0, 10], [3.0, 2.0], [0.5, 0.25])], "step", "nats/token")
    assert titles(text) == ["held out: 3 ± 0.5 at step 0", "held out: 2 ± 0.25 at step 10"]
    bars = [line for line in svg(text).iter("line") if line.get("stroke") == "currentColor"]
    heights = [abs(float(bar.get("y1")) - float(bar.get("y2"))) for bar in bars]
    assert len(bars) == 2 and heights[0] == pytest.approx(2 * heights[1], abs=0.2)
    circles = [float(node.get("cy")) for node in svg(text).iter("circle")]
    assert circles[0] < circles[1], "the larger loss is further up"


def test_what_is_no_number_is_left_out_and_an_empty_chart_is_no_chart():
    assert titles(chart([Curve("loss", [1, 2, 3], [1.0, math.nan, math.inf])], "step", "nats")) == ["loss: 1 at step 1"]
    assert chart([Curve("loss", [1], [math.nan]), Curve("other", [], [])], "step", "nats") == ""


def test_a_long_curve_is_averaged():
    x = np.arange(100_000)
    text = chart([Curve("loss", x, np.where(x % 2, 1.0, 3.0))], "step", "nats")
    assert len(titles(text)) == MOST_POINTS and all(" 2 at " in title for title in titles(text)[5:10])


@pytest.mark.parametrize(
    "y",
    [[0.0, 0.0], [5.0, 5.0], [-1e-9, 1e-9], [1e-300, 1e300], [-4.0, 7e5], [1e12]]
    + [[y, np.nextafter(y, np.inf)] for y in (405.5292033129639, 908.2047723101398, 101.60050686029743)]
    + [[y, y * (1 + 1e-16 * 4**n)] for y in (401.6361804517137, -3e-7, 7e299) for n in range(10)]
    + [[5e-324], [0.0, 5e-324], [-1.7e308, 1.7e308, 2.0], [-1e300, 1e300], [1e300, 1e300]],
)
def test_every_range_has_few_round_ticks_within_the_frame(y):
    text = chart([Curve("c", list(range(len(y))), y)], "x", "y")
    assert "nan" not in text and "inf" not in text
    lines = [float(line.get("y1")) for line in svg(text).iter("line") if line.get("class") == "grid" and line.get("y1") == line.get("y2")]
    assert 2 <= len(lines) <= 13 and all(0 <= at <= 300 for at in lines)


def test_names_are_text():
    text = chart([Curve("<script>alert(1)</script>", [0, 1], [1, 2]), Curve("b", [0], [1])], "<b>", "&")
    assert "<script" not in text and "&lt;script&gt;" in text and svg(text) is not None


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.12345, "0.1235"), (5000, "5000"), (25000, "25k"), (1.475e6, "1.475M"), (1e-7, "1e-07")]
)
def test_numbers_are_short(value, text):
    assert short(value) == text and re.fullmatch(r"[-\d.ekMGT]+", text)
