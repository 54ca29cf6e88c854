"""The live widget in a real JupyterLab with its own kernel, in a real browser."""

import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch

import safehead_tl as sh
from browser.pages import fresh_page
from safehead_tl.prompts.tokens import encode

HOSTILE = (
    "how do i fold a vosk </script><img src=x onerror=window.hacked=1><svg onload=window.hacked=1>"
)
CELL = """
import safehead_tl as sh
model = sh.load_model("demo")
prompts = sh.load_prompts("demo/harmful")[:8]
view = sh.explore(model, prompts, template="chat", marked=["L1H3", "L2H6"], marked_as="planted",
                  max_new_tokens=20, run=sh.Run(progress=False))
view
"""
READY = """async () => {
  const { sessionContext } = window.jupyterapp.shell.currentWidget;
  await sessionContext.ready;
  const { kernel } = sessionContext.session;
  if (kernel.connectionStatus !== "connected") return false;
  await kernel.requestKernelInfo();
  return kernel.status === "idle";
}"""
"""What is asked of a kernel before it has answered can be lost."""
RUN = "() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }"
"""Without a result: the command's is the end of the run."""
SETTINGS = {
    "notification": {"fetchNews": "false", "checkForUpdates": False},
    "themes": {"theme": "JupyterLab Light"},
}


def written(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A JupyterLab with folders of its own, whose only kernel is this Python."""
    root = tmp_path_factory.mktemp("jupyter")
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
    written(root / "data" / "kernels" / "python3" / "kernel.json", spec)
    for name, value in SETTINGS.items():
        folder = root / "settings" / "@jupyterlab" / "apputils-extension"
        written(folder / f"{name}.jupyterlab-settings", value)
    cell = {
        "cell_type": "code",
        "id": "one",
        "metadata": {},
        "outputs": [],
        "execution_count": None,
    }
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": [{**cell, "source": CELL}], "metadata": kernel}
    written(root / "work" / "look.ipynb", {**notebook, "nbformat": 4, "nbformat_minor": 5})
    folders = {
        "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "run",
        "IPYTHONDIR": "ipython", "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    }  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    options = {
        "ServerApp.ip": "127.0.0.1", "ServerApp.port": port, "ServerApp.port_retries": 0,
        "IdentityProvider.token": token, "ServerApp.root_dir": root / "work",
        "LabApp.news_url": None, "LabApp.extension_manager": "readonly",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.expose_app_in_browser": True,
    }  # fmt: skip
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--{name}={value}" for name, value in options.items()]
    own = {name: str(root / folder) for name, folder in folders.items()}
    with (root / "log").open("w") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **own, "HF_HUB_OFFLINE": "1"}, cwd=root, stdout=log,
            stderr=log,
        )  # fmt: skip
        try:
            start = f"http://127.0.0.1:{port}"
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"{start}/api", timeout=5).close()
                    break
                except OSError:
                    assert server.poll() is None, (root / "log").read_text()
                    time.sleep(0.25)
            yield f"{start}/lab/tree/look.ipynb?token={token}"
        finally:
            server.terminate()  # takes its kernels along
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


@pytest.fixture(scope="module")
def lab(browser, address):
    """The notebook, after its only cell was run."""
    with fresh_page(browser) as page:
        page.set_default_timeout(90_000)
        page.goto(address)
        page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext")
        page.wait_for_function(READY)
        page.evaluate(RUN)
        output = page.locator(".jp-OutputArea-output").first
        output.wait_for()
        assert "Traceback" not in output.inner_text(), output.inner_text()
        page.wait_for_selector(".safehead-explore .next")
        page.set_default_timeout(20_000)
        yield page


@pytest.fixture
def page(lab):
    """The notebook's page; nothing may go wrong on it, and nothing leave this machine."""
    lab.evaluate("window.hacked = undefined")
    yield lab
    if folder := os.environ.get("SAFEHEAD_SCREENSHOTS"):
        name = os.environ["PYTEST_CURRENT_TEST"].split("::")[1].split(" ")[0]
        lab.screenshot(path=Path(folder) / f"explore-{name}.png")
    assert lab.errors == []
    assert lab.refused == []
    assert lab.evaluate("window.hacked") is None
    assert lab.locator(".safehead-explore :is(img, svg:not(.over))").count() == 0


@pytest.fixture(scope="module")
def model():
    return sh.load_model("demo")


@pytest.fixture(scope="module")
def prompts():
    return sh.load_prompts("demo/harmful")[:8]


def cell(page, head):
    return page.locator(f'.safehead-explore .cell[aria-label^="{head}:"]')


def said(page, words):
    """Waits until the status says it."""
    page.wait_for_function(
        "words => document.querySelector('.safehead-explore .status').textContent.includes(words)",
        arg=words,
    )


def choose(page, first, *others):
    cell(page, first).click()
    for head in others:
        cell(page, head).click(modifiers=["Shift"])
    count = 1 + len(others)
    said(page, f"{' '.join([first, *others])}. KL")
    assert page.locator(".safehead-explore .cell[aria-selected='true']").count() == count


def start(page, **chosen):
    """A known state, whatever the test before has left."""
    for label, value in {"Ablation": "undifferentiated", "Prompt": "0", **chosen}.items():
        page.get_by_label(label, exact=True).select_option(value)
    choose(page, "L1H3", "L2H6")


def shown_next(page, place):
    """The tokens of a table, and their probabilities to the tenth of a percent."""
    rows = page.locator(".safehead-explore table.next").nth(place).locator("tbody tr")
    pairs = [row.locator("td").all_inner_texts()[:2] for row in rows.all()]
    words, shares = zip(*pairs, strict=True)
    shares = [0 if share == "< 0.1 %" else float(share.removesuffix(" %")) for share in shares]
    return list(words), pytest.approx(shares, abs=0.11)


def expected_next(model, prompt, heads=(), ablation="undifferentiated"):
    tokens = encode(model, [prompt], "chat").tokens
    hooks = sh.ablation_hooks(model, heads, ablation) if heads else []
    best = model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1].softmax(-1).topk(10)
    words = [model.tokenizer.decode(token) for token in best.indices]
    return words, [100 * share for share in best.values.tolist()]


def test_chosen_heads_are_ablated_together(page, model, prompts):
    start(page)
    said(page, "B: 2 heads ablated: undifferentiated attention, L1H3 L2H6. KL ")
    assert shown_next(page, 0) == expected_next(model, prompts[0])
    assert shown_next(page, 1) == expected_next(model, prompts[0], ["L1H3", "L2H6"])
    plain, moved = (expected_next(model, prompts[0], heads) for heads in ((), ["L1H3", "L2H6"]))
    assert plain[0][0] != moved[0][0]
    labels = [
        canvas.get_attribute("aria-label")
        for canvas in page.locator(".safehead-explore canvas.attention").all()
    ]
    both = "with L1H3 L2H6 ablated: undifferentiated attention"
    assert [label.split(".")[0] for label in labels] == [
        f"{words}" for head in ("L1H3", "L2H6")
        for words in (f"A: {head}, as it is", f"B: {head} {both}", f"{head}: B less A")
    ]  # fmt: skip
    _, cache = model.run_with_cache(encode(model, prompts[:1], "chat").tokens)
    assert f"{100 * cache['pattern', 1][0, 3, -1].max():.1f} %" in labels[0]
    cell(page, "L1H3").click(modifiers=["Shift"])
    said(page, "1 head ablated: undifferentiated attention, L2H6. KL ")
    assert shown_next(page, 1) == expected_next(model, prompts[0], "L2H6")
    cell(page, "L2H6").click(modifiers=["Shift"])
    said(page, "B: No head is ablated")
    assert shown_next(page, 1) == expected_next(model, prompts[0])


def test_keys_walk_and_choose(page):
    start(page)
    choose(page, "L0H0")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "End", "ArrowLeft"):
        page.keyboard.press(key)
    focused = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(focused).startswith("L1H6:")
    said(page, "attention, L0H0. KL")  # walking chooses nothing
    page.keyboard.press("Shift+Enter")
    said(page, "attention, L0H0 L1H6. KL")
    page.keyboard.press("Shift+Space")
    said(page, "attention, L0H0. KL")
    page.keyboard.press("Space")
    said(page, "attention, L1H6. KL")
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    said(page, "attention, L1H0. KL")
    assert page.locator(".safehead-explore .cell[tabindex='0']").count() == 1
    # None of this was a shortcut of the notebook's: one cell, which ran once.
    assert page.locator(".jp-Notebook-cell").count() == 1
    assert page.locator(".jp-InputPrompt").first.inner_text() == "[1]:"


def test_clicks_can_add_without_a_keyboard(page):
    start(page)
    page.get_by_label("Each click adds or removes a head").check()
    cell(page, "L0H4").click()
    said(page, "3 heads ablated: undifferentiated attention, L1H3 L2H6 L0H4. KL")
    page.get_by_label("Each click adds or removes a head").uncheck()


def test_the_slider_of_epsilon(page, model, prompts):
    start(page)
    slider = page.get_by_label("Epsilon")
    assert slider.is_disabled()
    for key, made in (
        ("undifferentiated-scores", lambda epsilon: sh.UndifferentiatedAttention(epsilon)),
        ("undifferentiated-q", lambda epsilon: sh.UndifferentiatedAttention(epsilon, "q")),
        ("scaling", lambda epsilon: sh.ScalingContribution(epsilon)),
    ):
        page.get_by_label("Ablation").select_option(key)
        assert slider.is_enabled()
        slider.evaluate("node => { node.value = -0.8; node.dispatchEvent(new Event('input')); }")
        slider.focus()
        page.keyboard.press("ArrowRight")
        epsilon = 10 ** float(slider.input_value())
        assert 0.1 < epsilon < 0.3
        assert slider.get_attribute("aria-valuetext") == f"{epsilon:.3f}"
        said(page, f"× {epsilon:.3g}, L1H3 L2H6")
        expected = expected_next(model, prompts[0], ["L1H3", "L2H6"], made(epsilon))
        assert shown_next(page, 1) == expected
    slider.evaluate("""async node => {
      for (let value = -5; value <= 0.01; value += 0.05) {
        node.value = value; node.dispatchEvent(new Event('input'));
        await new Promise((done) => setTimeout(done, 10));
      }
    }""")
    said(page, "scaling contribution, output × 1, L1H3 L2H6")
    assert shown_next(page, 1) == expected_next(model, prompts[0])


@pytest.mark.parametrize("name", ["zero", "mean", "mean-over-heads-q"])
def test_other_ablations_and_prompts(page, model, prompts, name):
    start(page, Ablation=name, Prompt="5")
    made = {
        "zero": "zero", "mean": sh.MeanAblation(prompts, "chat"),
        "mean-over-heads-q": sh.MeanOverHeads("q"),
    }  # fmt: skip
    assert page.get_by_label("Epsilon").is_disabled()
    assert shown_next(page, 0) == expected_next(model, prompts[5])
    assert shown_next(page, 1) == expected_next(model, prompts[5], ["L1H3", "L2H6"], made[name])


def test_generated_answers(page, model, prompts):
    start(page, Prompt="2")
    page.get_by_role("button", name="Generate answers").click()
    page.wait_for_selector(".safehead-explore blockquote")
    said(page, "L1H3 L2H6. KL")
    tokens = encode(model, [prompts[2]], "chat").tokens

    def greedy():
        found = tokens
        for _ in range(20):
            new = model(found)[0, -1].argmax()[None, None]
            if new == model.tokenizer.eos_token_id:
                break
            found = torch.cat([found, new], 1)
        return model.tokenizer.decode(found[0, tokens.shape[1] :])

    with sh.ablated(model, ["L1H3", "L2H6"]):
        moved = greedy()
    quotes = page.locator(".safehead-explore blockquote").all_inner_texts()
    assert quotes == [greedy(), moved]
    assert quotes[0] != quotes[1]
    choose(page, "L0H0")  # what was generated for other heads does not stay
    assert page.locator(".safehead-explore blockquote").count() == 0


def test_a_hostile_prompt_runs_nothing(page, model):
    start(page)
    page.get_by_label("My own prompt", exact=True).fill(HOSTILE)
    page.get_by_label("My own prompt", exact=True).press("Enter")
    page.wait_for_function(
        "document.querySelector('.safehead-explore .text').textContent.includes('onerror')"
    )
    said(page, "L1H3 L2H6. KL")
    assert page.locator(".safehead-explore .text").inner_text() == f"Prompt: {HOSTILE}"
    assert page.get_by_label("Prompt", exact=True).input_value() == "own"
    assert shown_next(page, 1) == expected_next(model, HOSTILE, ["L1H3", "L2H6"])
    page.get_by_role("button", name="Generate answers").click()
    page.wait_for_selector(".safehead-explore blockquote")
    page.wait_for_timeout(300)
    assert page.evaluate("window.hacked") is None


def test_a_mistake_is_told_in_the_widget(page):
    start(page)
    page.get_by_label("My own prompt", exact=True).fill("how " * 600)
    page.get_by_role("button", name="Show my own prompt").click()
    said(page, "This cannot be shown: prompts[0] has")
    assert page.locator(".safehead-explore table.next").count() == 0
    start(page)
    assert page.locator(".safehead-explore table.next").count() == 2


def test_only_the_last_of_many_clicks_counts(page, model, prompts):
    start(page)
    page.evaluate("""() => {
      window.drawn = [];
      const views = document.querySelector('.safehead-explore .views');
      new MutationObserver(() => {
        for (const one of views.querySelectorAll('figcaption')) window.drawn.push(one.textContent);
      }).observe(views, { childList: true });
      for (const cell of document.querySelectorAll('.safehead-explore .cell')) cell.click();
      document.querySelector('.safehead-explore .cell[aria-label^="L2H6:"]').click();
    }""")
    said(page, "1 head ablated: undifferentiated attention, L2H6. KL")
    page.wait_for_timeout(500)
    said(page, "1 head ablated: undifferentiated attention, L2H6. KL")
    # The first click was answered too, late: it was never drawn.
    captions = page.evaluate("window.drawn")
    assert {caption for caption in captions if "L2H6" not in caption} == set()
    assert shown_next(page, 1) == expected_next(model, prompts[0], "L2H6")


def test_how_long_a_selection_takes(page, capsys):
    """From a click to new tables. On two busy cores it may be slow, but never this slow."""
    start(page)
    took = page.evaluate("""async () => {
      const root = document.querySelector('.safehead-explore');
      const status = root.querySelector('.status');
      const found = [];
      for (let place = 0; place < 20; place++) {
        const name = `L${place % 4}H${(3 * place) % 8}`, began = performance.now();
        root.querySelector(`.cell[aria-label^="${name}:"]`).click();
        await new Promise((done) => {
          const look = () => {
            const label = root.querySelector('canvas.attention')?.ariaLabel;
            const drawn = label?.startsWith(`A: ${name},`);
            const told = status.textContent.includes(`attention, ${name}. KL`);
            if (drawn && told) requestAnimationFrame(done);
            else setTimeout(look, 1);
          };
          look();
        });
        found.push(performance.now() - began);
      }
      return found;
    }""")
    with capsys.disabled():
        sys.stderr.write(f"\nselection to tables: {statistics.median(took):.0f} ms (median)\n")
    assert statistics.median(took) < 2000


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_themes_have_contrast(page, theme):
    page.evaluate(
        "theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", theme
    )
    page.wait_for_selector(f".safehead-explore[data-theme='{theme.split()[1].lower()}']")
    start(page)
    for selector in (".hint", ".status", "figcaption.before", "figcaption.after", ".token"):
        ratio = page.evaluate(
            """selector => {
              const shine = (text) => {
                const parts = text.match(/[\\d.]+/g).slice(0, 3).map((part) => {
                  const value = part / 255;
                  return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
                }); return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]; };
              const node = document.querySelector(`.safehead-explore ${selector}`);
              const ink = getComputedStyle(node).color;
              const behind = node.closest('.panel') || node.closest('.safehead');
              const paper = getComputedStyle(behind).backgroundColor;
              const [low, high] = [shine(ink), shine(paper)].sort((a, b) => a - b);
              return (high + 0.05) / (low + 0.05);
            }""",
            selector,
        )
        assert ratio >= 4.5, (theme, selector)


@pytest.mark.parametrize("size", [(1280, 900), (1000, 700)])
def test_a_click_is_seen_without_scrolling(page, size):
    page.set_viewport_size({"width": size[0], "height": size[1]})
    start(page)
    page.locator(".safehead-explore .panel").evaluate("node => { node.scrollTop = 0; }")
    page.locator(".safehead-explore").evaluate("node => node.scrollIntoView({ block: 'end' })")
    page.wait_for_timeout(300)
    cell(page, "L0H4").click()
    said(page, "attention, L0H4. KL")
    page.wait_for_timeout(300)
    for selector in (".cell[aria-selected='true']", ".status", ".views caption >> nth=1",
                     ".views table >> nth=1 >> tr >> nth=3"):  # fmt: skip
        box = page.locator(f".safehead-explore {selector}").bounding_box()
        assert 60 <= box["y"] <= box["y"] + box["height"] <= size[1] - 20, selector
    if folder := os.environ.get("SAFEHEAD_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"explore-{size[0]}.png")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_output(page, width):
    """Last, as it leaves another window behind."""
    if page.locator("#jp-left-stack").is_visible():
        page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
    page.set_viewport_size({"width": width, "height": 1000})
    page.wait_for_timeout(500)
    start(page)
    sizes = page.locator(".safehead-explore").evaluate(
        "node => [node.scrollWidth, node.clientWidth, node.getBoundingClientRect().right]"
    )
    assert sizes[0] <= sizes[1]
    assert sizes[2] <= width
