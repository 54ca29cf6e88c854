// The notebook's widget. What it draws with is in draw.js, which comes before.
// It writes what the user wants into `asked`, under a number that grows; the kernel's answer comes
// in `shown`, under the same number. Requests are whole states, so only the last one matters.
const PATIENCE = 10000; // ms after which the kernel is no longer waited for before asking again

function render({ model, el }) {
  const data = model.get("page"), { heads } = data.shape;
  const wish = { ...model.get("asked") };
  let unsent = false, sentAt = 0, floor = 0, focus = 0, slow;

  // What there is to choose with.
  const cells = [];
  const map = make("div", { class: "heatmap", role: "grid", "aria-label": "Heads by layer", "aria-multiselectable": "true" });
  cells.push(...heatmap(map, data, (index) => ({
    click: (event) => pick(index, event.shiftKey || event.ctrlKey || event.metaKey || several.checked),
    keydown: (event) => key(event, index),
    keyup: (event) => event.key === " " && event.preventDefault(), // a button would be clicked by it
  })));
  const several = make("input", { type: "checkbox" });
  const ablation = make("select", { on: { change: () => ask({ ablation: ablation.value }) } },
    ...data.ablations.map(({ key, label }) => make("option", { value: key, text: label })));
  const [least, most] = [data.smallest, data.largest].map(Math.log10);
  const epsilon = make("input", { type: "range", min: least, max: most, step: (most - least) / 100, on: { input: () => slide() } });
  const epsilonText = make("output", { class: "number" });
  const prompt = make("select", { on: { change: () => (prompt.value === "own" ? useOwn() : ask({ prompt: Number(prompt.value), text: "" })) } },
    ...data.prompts.map((text, place) => make("option", { value: String(place), text: `${place + 1}. ${text}`.slice(0, 120) })),
    make("option", { value: "own", text: "my own prompt" }));
  const own = make("textarea", { rows: 2, placeholder: "Enter shows it, Shift+Enter begins a line", on: { keydown: (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    useOwn();
  } } });
  const use = make("button", { type: "button", text: "Show", "aria-label": "Show my own prompt", on: { click: () => useOwn() } });
  const status = make("p", { class: "status", role: "status", "aria-live": "polite" });
  const asked = make("p", { class: "text" });
  const views = make("div", { class: "views" });
  const generate = make("button", { type: "button", text: "Generate answers", on: { click: () => ask({ generate: true }) } });
  const answers = make("div", { "aria-live": "polite" });
  const field = (title, control, ...beside) => {
    control.id = `safehead-${Math.random().toString(36).slice(2)}`; // there may be other widgets
    return make("div", { class: "field" }, make("label", { for: control.id, text: title }), make("div", {}, control, ...beside));
  };
  const root = make("section", { class: "safehead safehead-explore", "aria-label": "Attention heads, live", "data-lm-suppress-shortcuts": "true" },
    make("div", { class: "sides" },
      make("div", { class: "side" },
        make("p", { class: "hint", text: `${data.lead} Click a head to ablate it; Shift+click, or Shift+Enter, adds or removes one. Arrow keys walk.` }),
        make("div", { class: "scroll" }, map), legend(data), make("p", { class: "hint", text: legendWords(data) }),
        make("label", { class: "check" }, several, " Each click adds or removes a head"),
        field("Ablation", ablation),
        field("Epsilon", epsilon, epsilonText),
        field("Prompt", prompt),
        field("My own prompt", own, use)),
      make("div", { class: "side panel" }, status, asked, views, data.generates ? generate : "", answers)));
  // A notebook has shortcuts of its own: Shift+Enter would run the cell, and letters delete it.
  for (const event of ["keydown", "keyup", "keypress"]) root.addEventListener(event, (one) => one.stopPropagation());
  el.replaceChildren(root);

  function pick(index, also) {
    const name = nameOf(Math.floor(index / heads), index % heads), has = wish.heads.includes(name);
    walkTo(index);
    if (!also) ask({ heads: [name] });
    else ask({ heads: has ? wish.heads.filter((each) => each !== name) : [...wish.heads, name] });
  }

  function key(event, index) {
    const to = stepFrom(data, index, event.key);
    if (to !== undefined) walkTo(to, true);
    else if (event.key === "Enter" || event.key === " ") pick(index, event.shiftKey || several.checked);
    else return;
    event.preventDefault();
  }

  function walkTo(index, there = false) { // one cell is in the tab order
    cells[focus].tabIndex = -1;
    focus = index;
    cells[focus].tabIndex = 0;
    if (there) cells[focus].focus();
  }

  function slide() {
    const value = Number(epsilon.value);
    ask({ epsilon: value <= least ? data.smallest : value >= most ? data.largest : 10 ** value }, true);
  }

  function useOwn() {
    if (own.value.trim()) ask({ prompt: null, text: own.value });
    else own.focus();
  }

  // A change by sliding lets answers in that are on their way, so that tables move with the slider;
  // after any other change, what was asked before is no longer wanted.
  function ask(change, sliding = false) {
    Object.assign(wish, { generate: false }, change);
    unsent = true;
    if (!sliding) floor = nextNumber();
    showControls(wish);
    say(wish.generate ? "generating…" : "computing…", true);
    if (!waiting()) send();
  }

  const nextNumber = () => model.get("asked").number + 1;
  const waiting = () => model.get("shown").number < model.get("asked").number && Date.now() - sentAt < PATIENCE;

  function send() {
    unsent = false;
    sentAt = Date.now();
    model.set("asked", { ...wish, number: nextNumber() });
    model.save_changes();
    wish.generate = false;
  }

  function received() {
    const shown = model.get("shown");
    if (shown.number >= floor) draw(shown);
    if (unsent) send();
  }

  function say(text, busy, wrong = false) {
    status.textContent = text;
    status.classList.toggle("wrong", wrong);
    views.setAttribute("aria-busy", String(busy));
    clearTimeout(slow);
    if (busy) slow = setTimeout(() => say("Still computing, or the kernel is busy or has stopped.", true), PATIENCE);
  }

  function showControls(state) {
    const chosen = new Set(state.heads);
    cells.forEach((cell, index) => cell.setAttribute("aria-selected", String(chosen.has(nameOf(Math.floor(index / heads), index % heads)))));
    ablation.value = state.ablation;
    const { scaled } = data.ablations.find(({ key }) => key === state.ablation);
    epsilon.disabled = !scaled;
    if (document.activeElement !== epsilon) epsilon.value = Math.log10(state.epsilon);
    epsilonText.textContent = scaled ? number(state.epsilon) : "–";
    epsilon.setAttribute("aria-valuetext", scaled ? number(state.epsilon) : "this ablation has none");
    prompt.value = state.prompt === null ? "own" : String(state.prompt);
  }

  function draw(shown) {
    const more = unsent || shown.number < model.get("asked").number;
    if (shown.error !== undefined) {
      views.replaceChildren();
      answers.replaceChildren();
      asked.textContent = "";
      if (!more) say(shown.error, false, true);
      return;
    }
    if (!more) { // also what another view of this widget has asked for
      for (const part of ["heads", "ablation", "epsilon", "prompt", "text"]) wish[part] = shown[part];
      showControls(wish);
      say(shown.status, false);
    }
    asked.textContent = `Prompt: ${shown.text}`;
    const { tokens } = shown, parts = [];
    for (const note of shown.notes) parts.push(make("p", { class: "hint", text: note }));
    for (const { head, before, after } of shown.patterns) {
      parts.push(
        make("h3", { text: `What ${head} attends to (rows attend to columns)` }),
        make("div", { class: "pair" }, ...[["original", "before", before], ["ablated", "after", after]].map(([name, kind, rows]) =>
          make("div", {}, attention(`${head}, ${name}`, kind, rows, tokens, views), make("p", { class: "hint", text: inWords(rows.at(-1), tokens) })))));
    }
    const [plain, moved] = shown.next;
    parts.push(make("h3", { text: shown.heads.length ? `What the model says next; KL ${number(shown.kl)} nats` : "What the model says next" }));
    parts.push(make("div", { class: "pair" }, nextTokens("original", "before", plain), shown.heads.length ? nextTokens("ablated", "after", moved) : ""));
    views.replaceChildren(...parts);
    const [first, second] = shown.answers || [];
    answers.replaceChildren(...(first === undefined ? [] : [make("div", { class: "pair" }, quote("answer, original", "before", first), second === undefined ? "" : quote("answer, ablated", "after", second))]));
  }

  // Light or dark as the notebook is: JupyterLab, VS Code and Colab each say it in their own way.
  function theme() {
    const lab = document.body.dataset.jpThemeLight, code = document.body.dataset.vscodeThemeKind, colab = document.documentElement.getAttribute("theme");
    const dark = lab ? lab === "false" : code ? !code.endsWith("light") : colab ? colab === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    const name = dark ? "dark" : "light";
    if (root.dataset.theme === name) return;
    root.dataset.theme = name;
    const shown = model.get("shown");
    if (root.isConnected && shown.number >= floor) draw(shown); // the pictures have their colours in them
  }
  const watch = new MutationObserver(theme), scheme = matchMedia("(prefers-color-scheme: dark)");
  watch.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-vscode-theme-kind"] });
  watch.observe(document.documentElement, { attributes: true, attributeFilter: ["theme"] });
  scheme.addEventListener("change", theme);
  model.on("change:shown", received);

  theme();
  // Drawn when it is in the page: only there it has its colours.
  requestAnimationFrame(() => draw(model.get("shown")));
  showControls(wish);
  walkTo(Math.max(cells.findIndex((cell) => cell.getAttribute("aria-selected") === "true"), 0));
  return () => {
    clearTimeout(slow);
    watch.disconnect();
    scheme.removeEventListener("change", theme);
    model.off("change:shown", received);
  };
}

export default { render };
