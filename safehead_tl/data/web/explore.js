// The live widget. What it draws with is in draw.js, map.js, attention.js and panel.js, which come before.
// It writes what the user wants into `asked`, under a number that grows; the kernel's answer comes
// in `shown`, under the same number. Requests are whole states, so only the last one matters.
const PATIENCE = 10000; // ms after which the kernel is no longer waited for before asking again
const MOST_SHOWN = 4; // heads whose attention is shown

function render({ model, el }) {
  const data = model.get("page"), look = { scale: "sqrt" };
  const wish = structuredClone(model.get("asked"));
  let active = wish.columns.length > 1 ? 1 : 0, unsent = false, sentAt = 0, floor = 0, drawing = 0, slow;
  const column = () => wish.columns[active];

  // What there is to choose with.
  const map = headMap(data, { pick: (index, event) => pick(index, event.shiftKey || event.ctrlKey || event.metaKey || several.checked) }, "Heads by layer; a click ablates");
  const query = make("input", { type: "search", "aria-label": "Find a head", placeholder: "L2H6, layer 2, top 5", on: { input: () => mark(), keydown: (event) => { const [first] = find(data, query.value, map.now.map); if (event.key === "Enter" && first !== undefined) pick(first, event.shiftKey || several.checked); } } });
  map.node.querySelector(".tools").prepend(query);
  const several = make("input", { type: "checkbox" }), together = make("input", { type: "checkbox", checked: true });
  const stays = make("p", { class: "hint" });
  const letters = make("div", { class: "letters", role: "radiogroup", "aria-label": "Column that clicks change" });
  const ablation = make("select", { on: { change: () => ask({ ablation: ablation.value }) } },
    ...data.ablations.map(({ key, label }) => make("option", { value: key, text: label })));
  const [least, most] = [data.smallest, data.largest].map(Math.log10);
  const epsilon = make("input", { type: "range", min: least, max: most, step: (most - least) / 100, on: { input: () => slide() } });
  const epsilonText = make("output", { class: "number" });
  const prompt = make("select", { on: { change: () => (prompt.value === "own" ? useOwn() : ask({ prompt: Number(prompt.value), text: "" })) } },
    ...data.prompts.map((text, place) => make("option", { value: String(place), text: `${place + 1}. ${text}`.slice(0, 120) })),
    make("option", { value: "own", text: "my own prompt" }));
  const own = make("textarea", { rows: 1, placeholder: "Enter shows it, Shift+Enter begins a line", on: { keydown: (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    useOwn();
  } } });
  const use = make("button", { type: "button", text: "Show", "aria-label": "Show my own prompt", on: { click: () => useOwn() } });
  const status = make("p", { class: "status", role: "status", "aria-live": "polite" });
  const notes = make("div"), asked = make("p", { class: "text" });
  const views = make("div", { class: "views" }), strip = make("div"), card = make("div"), python = make("div");
  const generate = make("button", { type: "button", text: "Generate answers", on: { click: () => ask({}, false, true) } });
  const thumbs = make("div", { class: "thumbs" }), layerTitle = make("summary"), layer = make("details", { on: { toggle: () => drawLayer() } }, layerTitle, thumbs);
  const field = (title, control, ...beside) => {
    control.id = `safehead-${Math.random().toString(36).slice(2)}`; // there may be other widgets
    return make("div", { class: "field" }, make("label", { for: control.id, text: title }), make("div", {}, control, ...beside));
  };
  const root = make("section", { class: "safehead safehead-explore", "aria-label": "Attention heads, live", "data-lm-suppress-shortcuts": "true" },
    make("div", { class: "sides", style: { "--least": `${SMALLEST * data.shape.heads + 62}px` } },
      make("div", { class: "side" },
        make("p", { class: "hint", text: `${data.lead} Click a head to ablate it; Shift+click, or Shift+Enter, adds or removes one. Arrow keys walk.` }),
        map.node, stays, letters,
        field("Ablation", ablation), field("Epsilon", epsilon, epsilonText), field("Prompt", prompt), field("My own prompt", own, use),
        make("label", { class: "check" }, several, " Each click adds or removes a head"),
        make("label", { class: "check" }, together, " The same prompt in every column"),
        layer),
      make("div", { class: "side panel" }, status, asked, notes, data.generates ? generate : "", views, strip, card, python)));
  // A notebook has shortcuts of its own: Shift+Enter would run the cell, and letters delete it.
  for (const event of ["keydown", "keyup", "keypress"]) root.addEventListener(event, (one) => one.stopPropagation());
  el.replaceChildren(root);

  function pick(index, also) {
    const name = nameOf(data, index), { heads } = column(), has = heads.includes(name);
    map.goTo(index);
    const some = !also ? [name] : has ? heads.filter((each) => each !== name) : [...heads, name];
    wish.shown = (some.length ? some : [name]).slice(-MOST_SHOWN);
    ask({ heads: some });
  }

  function mark() {
    const found = new Set(find(data, query.value, map.now.map));
    map.cells.forEach((cell, index) => cell.classList.toggle("found", found.has(index)));
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
  function ask(change, sliding = false, generating = false) {
    Object.assign(column(), change);
    wish.generate = generating;
    if (together.checked) for (const each of wish.columns) Object.assign(each, { prompt: column().prompt, text: column().text });
    unsent = true;
    if (!sliding) floor = nextNumber();
    showControls();
    say(generating ? "generating…" : "computing…", true);
    if (!waiting()) send();
  }

  const nextNumber = () => model.get("asked").number + 1;
  const waiting = () => model.get("shown").number < model.get("asked").number && Date.now() - sentAt < PATIENCE;

  function send() {
    unsent = false;
    sentAt = Date.now();
    model.set("asked", { ...structuredClone(wish), number: nextNumber() });
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
    if (busy) slow = setTimeout(() => say("Still computing, or Python is busy or has stopped.", true), PATIENCE);
  }

  function showControls() {
    const state = column();
    map.select(state.heads.map((name) => indexOf(data, name)));
    ablation.value = state.ablation;
    const { scaled } = data.ablations.find(({ key }) => key === state.ablation);
    stays.textContent = state.ablation === data.scored ? "" : "The map stays as it is: its scores are not of this ablation.";
    epsilon.disabled = !scaled;
    if (document.activeElement !== epsilon) epsilon.value = Math.log10(state.epsilon);
    epsilonText.textContent = scaled ? state.epsilon.toPrecision(3) : "none";
    epsilon.setAttribute("aria-valuetext", scaled ? state.epsilon.toFixed(3) : "none");
    prompt.value = state.prompt === null ? "own" : String(state.prompt);
    letters.replaceChildren(make("span", { text: "Clicks change" }), ...wish.columns.map((each, place) => make("button", {
      type: "button", role: "radio", class: KINDS[place], "aria-checked": String(place === active), text: LETTERS[place], title: each.heads.join(" ") || "nothing ablated",
      on: { click: () => { active = place; showControls(); } },
    })), wish.columns.length < LETTERS.length
      ? make("button", { type: "button", text: "+", "aria-label": "Add column C", on: { click: () => { wish.columns.push(structuredClone(column())); active = wish.columns.length - 1; ask({}); } } })
      : make("button", { type: "button", text: "−", "aria-label": "Remove column C", on: { click: () => { wish.columns.pop(); active = Math.min(active, wish.columns.length - 1); ask({}); } } }));
    layerTitle.textContent = `Layer ${Math.floor(lookedAt() / data.shape.heads)} at a glance`;
    drawLayer();
  }

  const lookedAt = () => indexOf(data, wish.shown.at(-1) || nameOf(data, data.maps[0].ranked[0] ?? 0));
  function drawLayer() {
    if (layer.open) map.layerView(thumbs, Math.floor(lookedAt() / data.shape.heads), column().heads.map((name) => indexOf(data, name)));
  }

  async function draw(shown) {
    const turn = ++drawing, more = () => unsent || shown.number < model.get("asked").number; // wanted by now
    if (shown.error !== undefined) {
      for (const part of [views, notes, strip, card, python]) part.replaceChildren();
      asked.textContent = "";
      if (!more()) say(shown.error, false, true);
      return;
    }
    const columns = await Promise.all(shown.columns.map(async (each, place) => ({
      ...each, letter: LETTERS[place], kind: KINDS[place], title: each.heads.length ? `${each.heads.join(" ")} ablated: ${each.words}` : "as it is",
      same: data.ablations.find(({ key }) => key === each.ablation).note,
      rows: Object.fromEntries(await Promise.all(Object.entries(each.patterns).map(async ([name, packed]) => [name, await triangle(packed)]))),
    })));
    const last = await Promise.all(shown.columns.map((each) => unpack(each.lastRows)));
    if (turn !== drawing) return; // something else was shown meanwhile
    if (!more()) { // also what another view of this widget has asked for
      wish.columns = shown.columns.map(({ heads, ablation: key, epsilon: factor, prompt: at, text }) => ({ heads, ablation: key, epsilon: factor, prompt: at, text: at === null ? text : "" }));
      wish.shown = shown.shown;
      active = Math.min(active, wish.columns.length - 1);
      showControls();
      say(shown.status, false);
    }
    asked.textContent = [...new Set(columns.map(({ text }) => text))].map((text, place, all) => `${all.length > 1 ? `Prompt of ${columns.filter((each) => each.text === text).map(({ letter }) => letter).join(", ")}` : "Prompt"}: ${text}`).join("\n");
    notes.replaceChildren(...[...new Set(columns.flatMap((each) => each.notes))].map((note) => make("p", { class: "hint", text: note })));
    drawColumns(views, columns, shown.shown, look, () => draw(shown));
    const [first] = columns, { tokens } = first, name = shown.shown.at(-1);
    if (name) {
      strip.replaceChildren(section(`What ${name} looks at from the last position, in A`, tokenStrip(data, last[0], indexOf(data, name), tokens, map), make("p", { class: "hint", text: "Point at a token to see on the map which heads look at it; a click holds it." })));
      card.replaceChildren(headCard(data, indexOf(data, name), undefined, (index, event) => pick(index, event.shiftKey || several.checked)));
    }
    if (map.now.seen) map.show({ seen: null });
    const { heads, ablation: key } = shown.columns[Math.min(active, shown.columns.length - 1)];
    python.replaceChildren(heads.length ? copied(`with sh.ablated(model, ${JSON.stringify(heads)}, "${key}"): ...`) : "");
  }

  // Light or dark as the notebook is: JupyterLab, VS Code and Colab each say it in their own way.
  function theme() {
    const lab = document.body.dataset.jpThemeLight, code = document.body.dataset.vscodeThemeKind, colab = document.documentElement.getAttribute("theme");
    const dark = lab ? lab === "false" : code ? !code.endsWith("light") : colab ? colab === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    const name = dark ? "dark" : "light";
    root.classList.toggle("in-lab", lab !== undefined); // there, the window's height is the notebook's
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
  requestAnimationFrame(() => { map.fit(); draw(model.get("shown")); });
  showControls();
  map.goTo(indexOf(data, column().heads[0] || nameOf(data, 0)));
  return () => {
    clearTimeout(slow);
    map.stop();
    watch.disconnect();
    scheme.removeEventListener("change", theme);
    model.off("change:shown", received);
  };
}

export default { render };
