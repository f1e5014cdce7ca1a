"""An Influence in other libraries, in a terminal and in a notebook."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from influence_examples import NAN, labelled

from proponent.influence import Influence

# --- other libraries


def test_to_dataframe() -> None:
    whole = labelled()
    frame = whole.to_dataframe()
    assert (frame.index.name, frame.columns.name) == ("test", "train")
    assert frame.loc[12, "c"] == whole.values[2, 2]
    assert frame.index.tolist() == [10, 11, 12, 13]
    assert frame.columns.tolist() == list("abcdefg")
    np.testing.assert_array_equal(frame.to_numpy(), whole.values)
    before = whole.values.copy()
    frame.iloc[0, 0] = 99.0
    np.testing.assert_array_equal(whole.values, before)
    single = whole.joint().to_dataframe()
    assert single.columns.tolist() == ["influence"]
    assert single.index.name == "train"
    assert single.loc["b", "influence"] == whole.joint().values[1]


def test_to_xarray() -> None:
    pytest.importorskip("xarray")
    whole = labelled()
    array = whole.to_xarray()
    assert array.dims == ("test", "train")
    assert float(array.sel(test=11, train="f")) == whole.values[1, 5]
    assert whole.std_error is not None
    assert float(array.std_error.sel(test=11, train="f")) == whole.std_error[1, 5]
    assert array.attrs["method"] == "M"
    assert json.loads(array.attrs["settings"]) == {"a": 1}
    assert json.loads(array.attrs["diagnostics"]) == {"b": 2}
    assert array.attrs["additive"] == 0
    array[0, 0] = 99.0
    assert whole.values[0, 0] != 99.0
    assert whole.joint().to_xarray().dims == ("train",)


def test_to_xarray_says_how_to_get_xarray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match="pip install xarray"):
        labelled().to_xarray()


def test_importing_is_light() -> None:
    code = (
        "import sys, proponent.influence, proponent.top; "
        "print([m for m in ('torch', 'pandas', 'sklearn', 'scipy', 'xarray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- how it looks


def test_repr() -> None:
    values = np.array([[0.5, -0.25, 0.0, NAN], [NAN] * 4, [NAN, NAN, 1e-7, NAN]])
    influence = Influence(
        values,
        train_ids=["a", "b", "c", "d"],
        test_ids=[5, 6, 700],
        method="TracInCP",
        diagnostics={"warnings": ["2 rows are not scored", "2 rows are not scored"]},
    )
    assert repr(influence).splitlines() == [
        "Influence of 4 training instances on 3 test instances (TracInCP)",
        "test  strongest proponents         strongest opponents",
        "5     a (+0.5), c (+0), b (-0.25)  b (-0.25), c (+0), a (+0.5)",
        "6     none scored                  none scored",
        "700   c (+1e-07)                   c (+1e-07)",
        "Warning: 2 rows are not scored",
    ]


def test_repr_of_large_small_and_summed() -> None:
    large = Influence(np.zeros((180, 1617)), method="M")
    lines = repr(large).splitlines()
    assert lines[0] == "Influence of 1,617 training instances on 180 test instances (M)"
    assert len(lines) == 8
    assert " ".join(lines[2].split()) == "0 0 (+0), 1 (+0), 2 (+0) 0 (+0), 1 (+0), 2 (+0)"
    assert lines[-1] == "... and 175 more test instances"
    single = repr(large[0, 0]).splitlines()[0]
    assert single == "Influence of 1 training instance on 1 test instance (M)"
    assert repr(large[:6]).splitlines()[-1] == "... and 1 more test instance"
    joint = repr(large.joint()).splitlines()
    assert joint[0] == "Joint influence of 1,617 training instances (M)"
    assert joint[1].split() == ["strongest", "proponents", "strongest", "opponents"]
    assert len(joint) == 3
    assert repr(Influence([1.0])).startswith("Influence of 1 training instance\n")
    assert repr(Influence(np.zeros((0, 0)))) == (
        "Influence of 0 training instances on 0 test instances"
    )
    assert repr(Influence([])).startswith("Influence of 0 training instances")


def test_the_warnings_of_shards_are_shown() -> None:
    parts = [
        Influence([[1.0]], train_ids=[number], diagnostics={"warnings": [f"from {number}", "both"]})
        for number in range(2)
    ]
    shown = [line for line in repr(Influence.join(parts)).splitlines() if "Warning" in line]
    assert shown == ["Warning: from 0", "Warning: both", "Warning: from 1"]


HOSTILE = [
    "<script>alert(1)</script>",
    "a\x1b[31mred\nnext",
    '"><img src=x onerror=alert(1)>',
    "&amp; \u202e right",
]


def test_html_is_escaped() -> None:
    influence = Influence(
        [[1.0, 2.0, 3.0, 4.0]] * 2,
        train_ids=HOSTILE,
        test_ids=["<b>", "</td>"],
        method="<i>M</i>",
        diagnostics={"warnings": ["<u>w</u>"]},
    )
    for result in (influence, influence.joint(), influence.group({"<s>": HOSTILE[:1]})):
        page = result._repr_html_()
        tags = {part.split(">")[0].split()[0].strip("/") for part in page.split("<")[1:]}
        assert tags <= {"div", "p", "b", "table", "thead", "tbody", "tr", "th", "td"}
        for hostile in ("<b></th>", "</td></th>", "<i>", "<u>", "<s>", "<script", "<img"):
            assert hostile not in page
    page = influence._repr_html_()
    assert "<th>&lt;b&gt;</th>" in page
    assert "&lt;i&gt;M&lt;/i&gt;" in page
    assert "&lt;u&gt;w&lt;/u&gt;" in page
    assert "&amp;amp; \\u202e right (+4)" in page
    assert page.count("<tr>") == 3


def test_terminal_text_is_harmless() -> None:
    influence = Influence([[1.0, 2.0, 3.0, 4.0]], train_ids=HOSTILE, test_ids=["\x1b[2J\r"])
    for text in (repr(influence), repr(influence.proponents(4)), influence._repr_html_()):
        assert all(character.isprintable() or character == "\n" for character in text)
    assert len(repr(influence).splitlines()) == 3
    assert "\\x1b[2J\\r" in repr(influence)
    long = repr(Influence([[1.0]], train_ids=["x" * 10_000]))
    assert "x" * 21 + "... (+1)" in long
    assert len(long) < 300


def test_html_counts_what_is_left_out() -> None:
    page = Influence(np.zeros((9, 4)))._repr_html_()
    assert "... and 4 more test instances" in page
    assert page.count("<tr>") == 6
