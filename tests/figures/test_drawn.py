import base64
import copy
import gzip
import hashlib
import io
import json
import re

import plotly.graph_objects as go
import plotly.io as pio
import pytest

import safehead_tl as sh
from made import scan

BUTTON = "sendChartToCloud"
"""As plotly calls it, which uploads the figure."""


@pytest.fixture
def figure():
    return scan().heatmap("L1H3", marked_as="<planted> & 'found'")


def inside(page, name):
    """What a page holds compressed."""
    packed = re.search(rf'id="{name}">([^<]*)</script>', page)[1]
    return gzip.decompress(base64.b64decode(packed)).decode()


def test_a_page_says_what_it_is(figure, tmp_path):
    figure.write_html(tmp_path / "figure.html")
    page = (tmp_path / "figure.html").read_text(encoding="utf-8")
    assert page.startswith('<!-- written by safehead_tl -->\n<!doctype html>\n<html lang="en">')
    name = "Ships under undifferentiated attention (epsilon 1e-05)"
    assert f"<title>{name}</title>" in page
    assert f"<h1>{name}</h1>" in page
    assert (
        "outlined: the 3 highest; cross: &lt;planted&gt; &amp; &#x27;found&#x27; (L1H3)</p>" in page
    )
    assert 'name="viewport" content="width=device-width' in page
    assert len(page) < 1.5e6
    assert "Permission is hereby granted" in page
    assert page == "<!-- written by safehead_tl -->\n" + figure.to_html()
    scan(80, 64).heatmap().write_html(tmp_path / "figure.html")
    assert (tmp_path / "figure.html").stat().st_size < 1.5e6


def test_a_page_lets_in_its_own_two_scripts_alone(figure):
    page = figure.to_html()
    own = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(own) == 1
    allowed = re.search(r"script-src ([^;]*);", page)[1].replace("'", "").split()
    assert allowed == [
        "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (own[0], inside(page, "plotly"))
    ]
    assert "default-src 'none'" in page
    assert inside(page, "plotly").startswith("/**\n* plotly.js (cartesian - minified) v")
    assert not re.search(r"(src|href)=", page.split("<script")[0])


def test_a_page_holds_the_figure_without_its_header(figure):
    told = json.loads(inside(figure.to_html({"displayModeBar": False}), "data"))
    drawn, whole = told["figure"], json.loads(figure.to_json())
    assert drawn["data"] == whole["data"]
    assert "title" not in drawn["layout"]
    header = whole["layout"]["height"] - drawn["layout"]["height"]
    assert header > 40
    assert whole["layout"]["margin"]["t"] - drawn["layout"]["margin"]["t"] == pytest.approx(header)
    assert told["config"] == {
        "displaylogo": False, "showSendToCloud": False, "displayModeBar": False,
    }  # fmt: skip
    assert figure.layout.title.text


def test_no_figure_offers_an_upload(figure, tmp_path, monkeypatch):
    """Nor a logo: as a page, in a notebook, and where anything else draws it."""
    quiet = {"displaylogo": False, "showSendToCloud": False}
    for renderer in ("plotly_mimetype", "notebook"):
        monkeypatch.setattr(pio.renderers, "_default_renderers", [pio.renderers[renderer]])
        bundle = figure._repr_mimebundle_()
        if renderer == "plotly_mimetype":
            config = bundle["application/vnd.plotly.v1+json"]["config"]
            assert quiet.items() <= config.items()
        else:
            assert '"showSendToCloud": false' in bundle["text/html"]
            assert '"displaylogo": false' in bundle["text/html"]
    assert '"displaylogo": false' in figure.to_html(full_html=False, include_plotlyjs=False)
    figure.write_html(tmp_path / "plotly.html", include_plotlyjs=False)
    assert '"showSendToCloud": false' in (tmp_path / "plotly.html").read_text(encoding="utf-8")
    for again in (go.Figure(figure), pio.from_json(figure.to_json()), copy.deepcopy(figure)):
        assert BUTTON in again.layout.modebar.remove


def test_show_passes_it_on(figure, monkeypatch):
    shown = []
    monkeypatch.setattr(pio, "show", lambda *args, **told: shown.append(told["config"]))
    figure.show()
    figure.show(config={"scrollZoom": True, "displaylogo": True})
    monkeypatch.setattr(pio.renderers, "render_on_display", True)
    monkeypatch.setattr(pio.renderers, "default", "json")
    figure._ipython_display_()
    quiet = {"displaylogo": False, "showSendToCloud": False}
    assert shown == [quiet, {**quiet, "scrollZoom": True, "displaylogo": True}, quiet]


def test_a_figure_is_plotlys_in_all_else(figure, tmp_path):
    assert isinstance(figure, go.Figure)
    with io.StringIO() as file:
        figure.write_html(file)
        assert file.getvalue() == figure.to_html()
    (tmp_path / "figure.html").write_text("somebody's")
    figure.write_html(str(tmp_path / "figure.html"))
    assert "somebody" not in (tmp_path / "figure.html").read_text(encoding="utf-8")
    with pytest.raises(sh.SafeheadError, match="name it"):
        figure.write_html(tmp_path / "figure.png")
    assert figure.update_layout(title="Mine <b>&lt;3</b>") is figure
    assert "<h1>Mine &lt;3</h1>" in figure.to_html()
