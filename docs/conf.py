"""The documentation site: `make docs` writes it to build/docs.

Its sources are the Markdown pages of this folder, which GitHub shows as well, and the docstrings.
"""

from __future__ import annotations

import re
from importlib.metadata import version as version_of
from inspect import Signature
from inspect import signature as signature_of
from typing import Any

from docutils import nodes
from docutils.utils import unescape
from docutils.utils.math import latex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.inspect import stringify_signature

import safehead_tl
import safehead_tl.organism

project = "safehead_tl"
author = "the authors of safehead_tl"
project_copyright = author
release = version = version_of("safehead-tl")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3

default_role = "name"  # docstrings write `name`, as Markdown does
add_module_names = True
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

WORDS = "Backend Condition Ending HeadLike HeadMask HeadsLike Hook Kind Metric Model Panel Part"
WORDS += " Clusters Direction Group Kept PairMeasure Positions Prompts Reading Scale Screen Site"
WORDS += " Cluster Coalition CompiledKind Learning Measure Met Objective Oracle Outcome Subject"
WORDS += " Scores SpecialTokens Split StreamSite Template Texts Variant Variants"
PARTS = "Accuracy Answers Changes Difference Exploration Limits Pair PromptBatch Rate Responses"
PARTS += " Answer Answered Asked Rubric RubricJudge Said Calibration Met Opinion Outcome PerQuery"
PARTS += " Elsewhere Shared Significance Submission Summary Taken"
FOREIGN = (
    "Bool DataFrame Figure Int Float Path PretrainedConfig PreTrainedModel"
    " PreTrainedTokenizer(Base|Fast) Tensor Module"
)
nitpick_ignore_regex = [
    # Short names of types in signatures: docs/api/index.md says what can be given.
    ("py:class", WORDS.replace(" ", "|")),
    # What a result is made of, by its short name.
    ("py:class", rf"(safehead_tl(\.\w+)+\.)?({PARTS.replace(' ', '|')})"),
    # Other projects' names, which a build without a network cannot look up; words for shapes.
    ("py:class", rf"(\w+\.)*({FOREIGN.replace(' ', '|')})"),
    ("py:class", r"(collections\.abc|torch)\.\w+|'.*'|rank"),
]

html_theme = "furo"
html_title = f"safehead_tl {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False

linkcheck_ignore = [r"http://localhost.*"]


def visit_inline(translator: Any, node: nodes.math) -> None:
    """Writes MathML, which browsers draw by themselves: no script, no network, no fonts."""
    translator.body.append(latex2mathml.tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def visit_block(translator: Any, node: nodes.math_block) -> None:
    """The same for a line of its own, which scrolls by itself where it is too wide."""
    formula = latex2mathml.tex2mathml(node.astext(), as_block=True)
    translator.body.append(f'<div class="math">{formula}</div>\n')
    raise nodes.SkipNode


def name_role(
    role: str, raw: str, text: str, line: int, inliner: Any, options: Any = None, content: Any = ()
) -> tuple[list[nodes.Node], list[nodes.Node]]:
    """What stands between single backticks: code, and a link if it is a public name."""
    shown = nodes.literal(raw, unescape(text, restore_backslashes=True))
    for module in (safehead_tl, safehead_tl.organism):
        if text in module.__all__:
            target = {"refdomain": "py", "reftype": "obj", "reftarget": f"{module.__name__}.{text}"}
            page = inliner.document.settings.env.docname
            return [addnodes.pending_xref(raw, shown, refdoc=page, refexplicit=True, **target)], []
    return [shown], []


def written_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Shows types as the source has them, `Template` and not what it is short for."""
    if what not in ("function", "method", "class"):
        return None
    try:
        found = signature_of(obj)
    except (TypeError, ValueError):
        return None
    parameters = list(found.parameters.values())
    if what == "method" and parameters and parameters[0].name == "self":
        found = found.replace(parameters=parameters[1:])
    if what == "class":
        found = found.replace(return_annotation=Signature.empty)
    told = stringify_signature(found, unqualified_typehints=True).replace("<factory>", "...")
    shown, arrow, result = told.partition(") -> ")
    return (f"{shown})", result) if arrow else (told, "")


def untyped_returns(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Keeps napoleon from taking what stands before a colon for a type: ours are annotations."""
    nothing = "\\ "  # an escaped space, which is not shown
    if what in ("attribute", "data", "property"):
        lines.insert(0, nothing)
    for index in [number for number, line in enumerate(lines) if line == "Returns:"]:
        lines.insert(index + 1, "    " + nothing)


def without_files(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Leaves out in which file a linked name is defined."""
    for reference in doctree.findall(nodes.reference):
        if "reftitle" in reference:
            place = r"^safehead_tl(\.\w+)+(?=\.[A-Z])"
            reference["reftitle"] = re.sub(place, "safehead_tl", reference["reftitle"])


def setup(app: Sphinx) -> None:
    """Adds the things above."""
    app.add_html_math_renderer(
        "mathml", inline_renderers=(visit_inline, None), block_renderers=(visit_block, None)
    )
    app.add_role("name", name_role)
    app.connect("autodoc-process-signature", written_signature)
    app.connect("doctree-resolved", without_files)
    app.connect("autodoc-process-docstring", untyped_returns, priority=100)
