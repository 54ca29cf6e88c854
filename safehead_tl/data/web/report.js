// The report's page. What it draws with is in draw.js, which comes before.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const { heads, kvSize } = data.shape;
const rankOf = new Map(data.ranked.map((index, place) => [index, place + 1]));
let chosen = data.ranked[0];
let prompt = 0;

// One cell is in the tab order, the others are reached by arrow keys.
const cells = heatmap(byId("map"), data, (index) => ({ click: () => choose(index), keydown: (event) => walk(event, index) }));
byId("legend").replaceChildren(legend(data));
byId("legend-words").textContent = legendWords(data);

function walk(event, index) {
  const to = stepFrom(data, index, event.key);
  if (to === undefined) return;
  event.preventDefault();
  choose(to);
  cells[chosen].focus();
}

function choose(index) {
  cells[chosen].setAttribute("aria-selected", "false");
  cells[chosen].tabIndex = -1;
  chosen = index;
  cells[chosen].setAttribute("aria-selected", "true");
  cells[chosen].tabIndex = 0;
  drawPanel();
}

const bytes = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
function square(text, size) {
  // Rows of a lower triangle, one byte each: 255 is all attention.
  const flat = bytes(text), rows = [];
  for (let row = 0, at = 0; row < size; at += ++row) rows.push(Array.from(flat.slice(at, at + row + 1), (value) => value / 255));
  return rows;
}
const tokensOf = (which) => data.prompts[which].tokens.map((index) => data.tokens[index]);

function strip(row, tokens) {
  const box = make("div", { class: "strip", role: "img", "aria-label": inWords(row, tokens) });
  tokens.forEach((token, place) => {
    const parts = shade(row[place]);
    box.append(make("span", { class: "token", text: token, title: percent(row[place]), style: { background: rgb(parts), color: parts[0] + parts[1] > 230 ? "#000" : "#fff" } }));
  });
  return box;
}

const likeliest = (caption, kind, pairs) => nextTokens(caption, kind, pairs.map(([token, share]) => [data.tokens[token], share]));

function drawPanel() {
  const layer = Math.floor(chosen / heads), head = chosen % heads, name = nameOf(layer, head);
  byId("h-panel").textContent = `Head ${name}`;
  byId("facts").textContent = headWords(data, chosen) + (data.perPrompt ? `; on this prompt ${number(data.perPrompt[prompt][chosen])} ${data.unit}.` : ".");
  const shown = data.prompts[prompt], tokens = tokensOf(prompt), views = byId("views"), full = data.panels[name];
  byId("asked").textContent = shown.text;
  views.replaceChildren();
  const after = `${name}: ${data.ablation}`;
  if (full) {
    const own = full[prompt], before = square(own.before, tokens.length), ablated = square(own.after, tokens.length);
    views.append(
      make("h3", { text: "What it attends to (rows attend to columns)" }),
      make("div", { class: "pair" }, attention("as it is", "before", before, tokens, views), attention(after, "after", ablated, tokens, views)),
      make("p", { class: "hint", text: inWords(before.at(-1), tokens) }),
      make("h3", { text: `What the model says next; KL ${number(own.kl)} nats` }),
      make("div", { class: "pair" }, likeliest("as it is", "before", shown.next), likeliest(after, "after", own.next)));
    if (own.answer !== undefined) views.append(make("div", { class: "pair" }, quote("answer, as it is", "before", shown.answer), quote(`answer, ${after}`, "after", own.answer)));
  } else {
    const length = tokens.length, all = lastRows(prompt);
    const row = Array.from(all.slice(chosen * length, (chosen + 1) * length), (value) => value / 255);
    views.append(
      make("h3", { text: "What it attends to from the last token, as it is" }), strip(row, tokens),
      make("p", { class: "hint", text: `${inWords(row, tokens)} The ${Object.keys(data.panels).length} highest heads have whole patterns and answers.` }),
      make("h3", { text: "What the model says next, as it is" }), likeliest("as it is", "before", shown.next));
    if (shown.answer !== undefined) views.append(quote("answer, as it is", "before", shown.answer));
  }
}
const rowsRead = new Map();
function lastRows(which) {
  if (!rowsRead.has(which)) rowsRead.set(which, bytes(data.lastRows[which]));
  return rowsRead.get(which);
}

// The table of all heads, sortable.
const columns = [["rank", "number"], ["head", ""], ["layer", "number"], [data.unit, "number"], ["KV group", "number"]];
let order = { column: 0, down: false }, short = true;
function drawTable() {
  const rows = data.ranked.map((index) => {
    const layer = Math.floor(index / heads), head = index % heads;
    return { index, cells: [rankOf.get(index), nameOf(layer, head), layer, data.scores[index], Math.floor(head / kvSize)], sort: [rankOf.get(index), index, layer, data.scores[index], Math.floor(head / kvSize)] };
  });
  rows.sort((a, b) => (order.down ? -1 : 1) * (a.sort[order.column] - b.sort[order.column]));
  const top = make("tr");
  columns.slice(0, kvSize > 1 ? 5 : 4).forEach(([title, kind], place) => {
    const sorted = place === order.column ? (order.down ? "descending" : "ascending") : "none";
    const arrow = { descending: " ▾", ascending: " ▴", none: "" }[sorted];
    top.append(make("th", { scope: "col", class: kind, "aria-sort": sorted }, make("button", { type: "button", text: title + arrow, on: { click: () => { order = { column: place, down: place === order.column ? !order.down : place === 3 }; drawTable(); } } })));
  });
  byId("table").tHead.replaceChildren(top);
  byId("table").tBodies[0].replaceChildren(...(short ? rows.slice(0, 20) : rows).map((row) => {
    const line = make("tr");
    row.cells.slice(0, kvSize > 1 ? 5 : 4).forEach((value, place) => {
      if (place === 1) line.append(make("td", {}, make("button", { type: "button", text: value, "aria-label": `show ${value}`, on: { click: () => { choose(row.index); byId("panel").focus(); byId("panel").scrollIntoView({ block: "nearest" }); } } })));
      else line.append(make("td", { class: columns[place][1], text: place === 3 ? number(value) : String(value) }));
    });
    return line;
  }));
  byId("more").textContent = short ? `Show all ${rows.length} heads` : "Show the first 20";
  byId("more").hidden = rows.length <= 20;
}

data.prompts.forEach((each, place) => byId("prompt").append(make("option", { value: String(place), text: `${place + 1}. ${each.text}`.slice(0, 120) })));
byId("prompt").addEventListener("change", (event) => { prompt = Number(event.target.value); drawPanel(); });
byId("more").addEventListener("click", () => { short = !short; drawTable(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawPanel);
drawTable();
choose(chosen);
