// The map of all heads: a grid of buttons, layers down and heads across, in one of four colour scales.
const SCALES = { sqrt: "square root", linear: "linear", log: "logarithm", rank: "rank" };
const DECADES = 4; // that a logarithm shows below the highest
const LARGEST = 40, SMALLEST = 4, LABEL = 26; // px of a cell, and of the layers' numbers

const sizeIn = (map, score) => (map.signed ? Math.abs(score) : Math.max(score, 0));
const rankOf = (map, index) => (map.ranks ||= new Map(map.ranked.map((each, place) => [each, place + 1]))).get(index);
const topOf = (map) => Math.max(...map.scores.map((score) => (score === null ? 0 : sizeIn(map, score))), 0) || 1;

// What gives a score's place on the colours: 0 to 1, or -1 to 1 where scores have a sign.
function placing(map, scale) {
  const top = topOf(map), sizes = map.ranked.map((index) => sizeIn(map, map.scores[index])).sort((a, b) => a - b);
  const below = (size) => { let low = 0, high = sizes.length; while (low < high) { const middle = (low + high) >> 1; if (sizes[middle] < size) low = middle + 1; else high = middle; } return low; };
  const share = { linear: (size) => size / top, sqrt: (size) => Math.sqrt(size / top), log: (size) => (size > 0 ? Math.max(0, 1 + Math.log10(size / top) / DECADES) : 0), rank: (size) => below(size) / Math.max(sizes.length - 1, 1) }[scale];
  return (score) => Math.min(share(sizeIn(map, score)), 1) * (map.signed && score < 0 ? -1 : 1);
}

// Scores at the quarters of the colours, from low to high.
function quarters(map, scale) {
  const top = topOf(map);
  if (scale === "rank") return ["lowest", "", "", "", "highest"];
  const value = { linear: (share) => share * top, sqrt: (share) => share ** 2 * top, log: (share) => top * 10 ** (DECADES * (share - 1)) }[scale];
  const marks = map.signed ? [-1, -0.5, 0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1];
  return marks.map((share) => {
    const words = number(Math.sign(share) * value(Math.abs(share)) || (scale === "log" && !map.signed ? value(0) : 0));
    return scale === "log" && share === 0 ? (map.signed ? `± ${number(value(0))}` : `≤ ${words}`) : words;
  });
}

// A head in words: its score, rank, KV group and mark.
function headWords(data, index, map = data.maps[0]) {
  const { heads, kvSize } = data.shape, score = map.scores[index], name = nameOf(data, index);
  const mark = data.marked.includes(index) ? `, ${data.markedAs}` : "";
  if (score === null) return `${name}, not scored${mark}`;
  const group = kvSize > 1 ? `, KV group ${Math.floor((index % heads) / kvSize)}` : "";
  const place = rankOf(map, index), interval = map.intervals?.[index];
  const rank = place ? `, rank ${place} of ${map.ranked.length}` : ", screened only, not exact";
  return `${name}: ${place ? "" : "about "}${number(score)} ${map.unit}${interval ? ` (95 %: ${interval.map(number).join(" to ")})` : ""}${rank}${group}${mark}`;
}

// Heads that a search names: L2H6, 2.6, "layer 12", "top 5", "marked", "path". Nothing else finds any.
function find(data, text, map = data.maps[0]) {
  const said = text.trim().toLowerCase(), { layers, heads } = data.shape;
  const one = said.match(/^l?(\d+)\s*[h.,:]\s*(\d+)$/), layer = said.match(/^(?:layer\s*|l)(\d+)$/), top = said.match(/^top\s*(\d+)$/);
  if (one) return Number(one[1]) < layers && Number(one[2]) < heads ? [Number(one[1]) * heads + Number(one[2])] : [];
  if (layer) return Number(layer[1]) < layers ? Array.from({ length: heads }, (_, head) => Number(layer[1]) * heads + head) : [];
  if (top) return map.ranked.slice(0, Number(top[1]));
  if (said === "marked" || said === data.markedAs.toLowerCase()) return data.marked;
  if (said === "path" && data.path) return data.path.heads;
  return [];
}

// The map with what belongs to it. `acts.pick(index, event)` is told of clicks and keys that choose,
// `acts.walk(index)` of arrow keys, `acts.changed()` of another scale or other scores.
function headMap(data, acts, label = "Heads by layer") {
  const { layers, heads, kvSize } = data.shape, count = layers * heads, cells = [], rows = [];
  const now = { map: data.maps[0], scale: "sqrt", seen: null };
  const marked = new Set(data.marked);
  let focus = now.map.ranked[0] ?? 0;

  const grid = make("div", { class: "heatmap", role: "grid", "aria-label": label, "aria-multiselectable": "true", "aria-rowcount": layers, "aria-colcount": heads });
  for (let layer = 0; layer < layers; layer++) {
    const row = make("div", { role: "row", class: "layer" }, make("span", { class: "tick", role: "rowheader" }, make("span", { class: "unseen", text: "layer " }), String(layer)));
    for (let head = 0; head < heads; head++) {
      const index = layer * heads + head, edge = kvSize > 1 && head && head % kvSize === 0;
      cells[index] = make("button", { type: "button", role: "gridcell", tabindex: "-1", class: `cell${marked.has(index) ? " marked" : ""}${edge ? " edge" : ""}`, "aria-selected": "false" });
      cells[index].dataset.index = index;
      row.append(cells[index]);
    }
    rows[layer] = make("span", { class: "margin", "aria-hidden": "true" }, make("span"));
    row.append(rows[layer]);
    grid.append(row);
  }
  const foot = make("div", { class: "foot", "aria-hidden": "true" });
  const over = make("svg:svg", { class: "over", "aria-hidden": "true" });
  const box = make("div", { class: "map-box" }, grid, over, foot);
  const legend = make("div", { class: "legend" }), words = make("p", { class: "hint map-words" });
  const scale = make("select", { "aria-label": "Colour scale", on: { change: () => show({ scale: scale.value }) } }, ...Object.entries(SCALES).map(([value, text]) => make("option", { value, text })));
  const which = make("select", { "aria-label": "Scores", on: { change: () => { const map = data.maps[Number(which.value)]; show({ map, scale: map.intervals ? "linear" : "sqrt" }); } } }, ...data.maps.map((map, place) => make("option", { value: place, text: map.title })));
  const tools = make("div", { class: "tools" }, ...(data.maps.length > 1 ? [make("label", {}, "Scores ", which)] : []), make("label", {}, "Colours ", scale));
  for (const [key, text, title] of [["path", data.path && "Sahara's steps", data.path?.words], ["arrows", data.arrows.length && "Knock-out", "Without the head that an arrow leaves, the one that it reaches does less (whole line) or more (broken line)."]]) {
    if (!text) continue;
    const shown = make("input", { type: "checkbox", checked: true, on: { change: () => { now[`no${key}`] = !shown.checked; overlay(); } } });
    tools.append(make("label", { class: "check", title }, shown, ` ${text}`));
  }

  const take = make("div", { class: "tools" }, ...[["Scores as CSV", () => saveAs("scores.csv", table(), "text/csv")], ["Map as PNG", async () => saveAs("heads.png", await picture(data.lead), "image/png")]].map(([text, click]) => make("button", { type: "button", text, on: { click } })));

  const cellAt = (event) => event.target.closest?.(".cell");
  grid.addEventListener("click", (event) => { const cell = cellAt(event); if (cell) { goTo(Number(cell.dataset.index)); acts.pick(Number(cell.dataset.index), event); } });
  grid.addEventListener("pointerover", (event) => { const cell = cellAt(event); if (cell) cell.title = cell.ariaLabel; });
  grid.addEventListener("keyup", (event) => { if (event.key === " ") event.preventDefault(); }); // a button would be clicked by it
  grid.addEventListener("keydown", (event) => {
    const cell = cellAt(event), to = cell && stepFrom(Number(cell.dataset.index), event.key);
    if (to !== undefined && to !== null) { goTo(to, true); acts.walk?.(to); }
    else if (cell && (event.key === "Enter" || event.key === " ")) acts.pick(Number(cell.dataset.index), event);
    else return;
    event.preventDefault();
  });

  function stepFrom(index, key) {
    const layer = Math.floor(index / heads), head = index % heads;
    const to = { ArrowRight: [layer, head + 1], ArrowLeft: [layer, head - 1], ArrowDown: [layer + 1, head], ArrowUp: [layer - 1, head], Home: [layer, 0], End: [layer, heads - 1] }[key];
    if (!to) return undefined;
    return Math.min(Math.max(to[0], 0), layers - 1) * heads + Math.min(Math.max(to[1], 0), heads - 1);
  }

  function goTo(index, there = false) { // one cell is in the tab order
    cells[focus].tabIndex = -1;
    focus = index;
    cells[focus].tabIndex = 0;
    if (there) cells[focus].focus();
  }

  // Cells as large as there is room for, in whole pixels: else their steps would differ.
  function fit() {
    const room = box.parentElement?.clientWidth;
    if (!room) return;
    const bars = room > 340 ? 52 : 26, most = Math.floor((room - LABEL - bars - 2) / heads);
    const step = Math.min(Math.max(most, SMALLEST), LARGEST), gap = step >= 16 ? 2 : step >= 8 ? 1 : 0;
    for (const [name, value] of Object.entries({ "--step": step, "--gap": gap, "--label": LABEL, "--bars": bars, "--heads": heads })) box.style.setProperty(name, name === "--heads" ? value : `${value}px`);
    now.step = step;
    const every = Math.ceil(20 / step), down = Math.ceil(13 / step);
    rows.forEach((row, layer) => row.parentElement.firstChild.classList.toggle("quiet-tick", layer % down !== 0));
    foot.replaceChildren(...Array.from({ length: Math.ceil(heads / every) }, (_, place) => make("span", { text: place * every, style: { left: `${LABEL + (place * every + 0.5) * step}px` } })), make("span", { class: "margin-title", text: bars > 40 ? "mean" : "", style: { left: `${LABEL + heads * step + 8}px` } }));
    overlay();
  }

  const centre = (index) => [LABEL + (index % heads + 0.5) * now.step, (Math.floor(index / heads) + 0.5) * now.step];

  // Sahara's steps, numbered and joined; and arrows from a head to those that change without it.
  function overlay() {
    if (!now.step) return;
    const parts = [], line = (from, to, name, title) => {
      const [[x1, y1], [x2, y2]] = [centre(from), centre(to)], long = Math.hypot(x2 - x1, y2 - y1) || 1, off = Math.min(now.step / 2, 9) / long;
      parts.push(make("svg:line", { class: name, x1: x1 + (x2 - x1) * off, y1: y1 + (y2 - y1) * off, x2: x2 - (x2 - x1) * off, y2: y2 - (y2 - y1) * off, ...(name === "path" ? {} : { "marker-end": `url(#${tip})` }) }, make("svg:title", { text: title })));
    };
    const tip = `tip-${Math.random().toString(36).slice(2)}`; // there may be other widgets
    if (data.path && !now.nopath) {
      data.path.heads.forEach((index, step, all) => { if (step) line(all[step - 1], index, "path", ""); });
      data.path.heads.forEach((index, step) => {
        const [cx, cy] = centre(index), r = Math.max(7, Math.min(now.step / 2 - 2, 10));
        parts.push(make("svg:circle", { class: "path", cx, cy, r }), make("svg:text", { class: "path", x: cx, y: cy, text: step + 1 }));
      });
    }
    if (data.arrows.length && !now.noarrows) {
      parts.push(make("svg:defs", {}, make("svg:marker", { id: tip, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 5, markerHeight: 5, orient: "auto-start-reverse" }, make("svg:path", { d: "M0 0L8 4L0 8z" }))));
      for (const arrow of data.arrows) line(arrow.from, arrow.to, arrow.change < 0 ? "arrow falls" : "arrow grows", arrow.words);
    }
    over.replaceChildren(...parts);
  }

  // Other scores, another scale, or attention to a token in place of scores.
  function show(change = {}) {
    Object.assign(now, change);
    const { map, seen } = now, place = seen ? (share) => Math.sqrt(share / seen.top) : placing(map, now.scale);
    const pale = new Set(map.pale || []);
    cells.forEach((cell, index) => {
      const value = seen ? seen.shares[index] : map.scores[index];
      const parts = value === null ? null : (map.signed && !seen ? diverging : shade)(place(value));
      cell.style.background = parts ? rgb(parts) : "transparent";
      cell.style.opacity = !seen && pale.has(index) ? 0.4 : "";
      cell.style.setProperty("--cross", parts ? inkOn(parts) : "var(--ink)");
      cell.setAttribute("aria-label", seen ? `${nameOf(data, index)}: ${percent(value)} ${seen.words}` : headWords(data, index, map));
    });
    const sums = rows.map((_, layer) => { const some = map.scores.slice(layer * heads, (layer + 1) * heads).filter((score) => score !== null); return some.length ? some.reduce((sum, score) => sum + score, 0) / some.length : null; });
    const most = Math.max(...sums.map((mean) => Math.abs(mean ?? 0))) || 1;
    rows.forEach((row, layer) => {
      row.firstChild.style.width = `${100 * Math.abs(sums[layer] ?? 0) / most}%`;
      row.title = sums[layer] === null ? `layer ${layer}: not scored` : `layer ${layer}: mean ${number(sums[layer])} ${map.unit}`;
    });
    const scaleWords = seen ? ["0", "", percent(seen.top / 4), "", percent(seen.top)] : quarters(map, now.scale);
    const colours = (map.signed && !seen ? SIGNED : SCALE).map(rgb).join(",");
    legend.replaceChildren(make("span", { class: "legend-bar", style: { background: `linear-gradient(90deg, ${colours})` } }), make("div", { class: "legend-ticks" }, ...scaleWords.map((text) => make("span", { text }))));
    words.textContent = seen ? `Attention ${seen.words}, as it is, of every head; square-root colours.` : [
      `${SCALES[now.scale].replace(/^./, (letter) => letter.toUpperCase())} colours: ${map.title}, ${map.words}.`,
      map.signed && now.scale === "log" ? `Nearer to zero than a 10,000th of the furthest is white.` : "",
      data.marked.length ? `Crosses: ${data.markedAs}.` : "", pale.size ? "Pale: to first order only." : "",
      kvSize > 1 ? `Lines separate KV groups of ${kvSize} heads.` : "",
    ].filter(Boolean).join(" ");
    scale.value = now.scale;
    which.value = String(data.maps.indexOf(map));
    if (change.map || change.scale) acts.changed?.();
  }

  function select(some) {
    const chosen = new Set(some);
    cells.forEach((cell, index) => { if ((cell.getAttribute("aria-selected") === "true") !== chosen.has(index)) cell.setAttribute("aria-selected", String(chosen.has(index))); });
  }

  // Heads in every layer's turn: thumbnails of how each attends.
  async function layerView(box, layer, chosen) {
    const flat = await unpack(data.thumbnails), size = flat.length / count;
    box.replaceChildren(...Array.from({ length: heads }, (_, head) => {
      const index = layer * heads + head, name = nameOf(data, index);
      const button = make("button", { type: "button", class: "thumb", "aria-pressed": String(chosen.includes(index)), "aria-label": `${name}: look at it`, title: headWords(data, index, now.map), on: { click: (event) => { goTo(index); acts.pick(index, event); } } }, thumbnail(flat.subarray(index * size, (index + 1) * size), name), make("span", { text: head }));
      return button;
    }));
  }

  // The map as a picture, with its title and its scale, for a PNG.
  function picture(title) {
    const step = Math.max(now.step, 12), side = [LABEL + heads * step + 24, layers * step + 104], canvas = make("canvas"), place = placing(now.map, now.scale);
    [canvas.width, canvas.height] = [Math.max(side[0], 420) * 2, side[1] * 2];
    const pen = canvas.getContext("2d");
    pen.scale(2, 2);
    pen.fillStyle = "#fff"; pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.fillStyle = "#1b1f24"; pen.font = "13px sans-serif";
    pen.fillText(title, 8, 20); pen.fillText(words.textContent.slice(0, Math.floor(canvas.width / 14)), 8, 38);
    pen.font = "10px sans-serif";
    now.map.scores.forEach((score, index) => {
      const [x, y] = [LABEL + (index % heads) * step, 50 + Math.floor(index / heads) * step];
      pen.fillStyle = score === null ? "#eee" : rgb((now.map.signed ? diverging : shade)(place(score)));
      pen.fillRect(x, y, step - (step > 8), step - (step > 8));
      if (marked.has(index)) { pen.fillStyle = cells[index].style.getPropertyValue("--cross"); pen.fillText("×", x + step / 2 - 3, y + step / 2 + 4); }
      if (cells[index].getAttribute("aria-selected") === "true") { pen.strokeStyle = "#b0307a"; pen.lineWidth = 2; pen.strokeRect(x, y, step - 1, step - 1); }
    });
    pen.fillStyle = "#1b1f24";
    for (let layer = 0; layer < layers; layer += Math.ceil(13 / step)) pen.fillText(layer, 6, 50 + (layer + 0.5) * step + 4);
    for (let head = 0; head < heads; head += Math.ceil(20 / step)) pen.fillText(head, LABEL + (head + 0.5) * step - 4, 50 + layers * step + 12);
    const bar = pen.createLinearGradient(LABEL, 0, LABEL + 240, 0), colours = now.map.signed ? SIGNED : SCALE;
    colours.forEach((parts, at) => bar.addColorStop(at / (colours.length - 1), rgb(parts)));
    pen.fillStyle = bar; pen.fillRect(LABEL, 50 + layers * step + 22, 240, 10);
    pen.fillStyle = "#1b1f24";
    quarters(now.map, now.scale).forEach((text, at) => pen.fillText(text, LABEL + at * 58, 50 + layers * step + 46));
    return new Promise((done) => canvas.toBlob(done, "image/png"));
  }

  // Every head's score as a table to be read elsewhere.
  const table = () => ["layer,head,score,rank,exact", ...now.map.scores.map((score, index) => {
    const place = rankOf(now.map, index);
    return [Math.floor(index / heads), index % heads, score ?? "", place ?? "", place !== undefined].join(",");
  })].join("\n") + "\n";

  const watch = new ResizeObserver(fit);
  const node = make("div", { class: "map" }, tools, box, legend, words, take);
  watch.observe(node);
  show();
  goTo(focus);
  return { node, cells, now, show, select, goTo, fit, layerView, stop: () => watch.disconnect() };
}
