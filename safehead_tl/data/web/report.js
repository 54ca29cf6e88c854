// The report's page. What it draws with is in draw.js, map.js, attention.js and panel.js, which come before.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const { heads, kvSize } = data.shape, main = data.maps[0];
const look = { scale: "sqrt" };

// What is looked at: a head, a prompt for each column, and what is ablated in it: "none", "group", or
// an ablation's key, done to the head that is looked at. The address says the same.
const view = { head: main.ranked[0] ?? 0, prompts: [0, 0], columns: ["none", data.ablations[0].key] };
const labelOf = (key) => (key === "none" ? "as it is" : key === "group" ? `${data.group.label} ablated` : `${nameOf(data, view.head)} ablated: ${data.ablations.find((one) => one.key === key).label}`);
const allowed = ["none", ...data.ablations.map(({ key }) => key), ...(data.group ? ["group"] : [])];

let started = false, drawing = 0;
const map = headMap(data, { pick: (index) => choose(index), walk: (index) => choose(index), changed: () => { if (started) { drawTable(); say(); } } });
byId("map").append(map.node);
function choose(index) {
  view.head = index;
  draw();
}

// A column's contents, or nothing if it was not computed.
async function columnOf(place) {
  const key = view.columns[place], prompt = view.prompts[place], name = nameOf(data, view.head), shown = data.prompts[prompt];
  const found = key === "none" ? shown : key === "group" ? data.group.prompts[prompt] : data.ablated[name]?.[key]?.[prompt];
  if (!found) return null;
  const after = key === "none" ? null : key === "group" ? found.after[name] : found.after;
  const pattern = after ?? data.before[name]?.[prompt]; // a pattern that stays as it is is not told twice
  return {
    letter: LETTERS[place], kind: KINDS[place], title: labelOf(key), text: shown.text, tokens: shown.tokens.map((token) => data.tokens[token]),
    next: found.next.map(([token, share]) => [data.tokens[token], share]), kl: found.kl, answer: found.answer, verdict: found.verdict,
    rows: pattern ? { [name]: await triangle(pattern) } : {}, same: data.ablations.find((one) => one.key === key)?.note,
  };
}

async function draw() {
  const turn = ++drawing, name = nameOf(data, view.head), prompt = view.prompts[0];
  map.select([view.head]);
  map.goTo(view.head);
  byId("h-panel").textContent = `Head ${name}`;
  byId("prompt").value = String(prompt);
  byId("asked").textContent = data.prompts[prompt].text;
  drawChoices();
  const columns = (await Promise.all(view.columns.map((_, place) => columnOf(place)))).filter(Boolean);
  const rows = await unpack(data.prompts[prompt].lastRows), each = data.perPrompt && new Float32Array((await unpack(data.perPrompt)).slice().buffer);
  if (turn !== drawing) return; // something else was chosen meanwhile
  const own = each ? each[prompt * main.scores.length + view.head] : NaN, here = Number.isNaN(own) ? "" : `; on this prompt ${number(own)} ${main.unit}`;
  byId("facts").textContent = `${headWords(data, view.head)}${here}.`;
  byId("missing").textContent = columns.length < view.columns.length ? `Whole patterns and ablated runs were kept of ${Object.keys(data.before).length} heads: the highest${data.marked.length ? `, the ${data.markedAs}` : ""}${data.group ? ", the group" : ""}. ${name} is shown as it is.` : "";
  drawColumns(byId("views"), columns, [name], look, draw);
  const tokens = data.prompts[prompt].tokens.map((token) => data.tokens[token]), start = view.head * tokens.length;
  const last = Array.from(rows.subarray(start, start + tokens.length), (value) => value / 255);
  byId("strip").replaceChildren(section(`What ${name} looks at from the last position`, tokenStrip(data, rows, view.head, tokens, map),
    make("p", { class: "hint", text: `${inWords(last, tokens)} Point at a token to see on the map which heads look at it; a click holds it.` })));
  if (map.now.seen) map.show({ seen: null });
  byId("card").replaceChildren(headCard(data, view.head, data.cards[name], choose));
  byId("python").replaceChildren(copied(`with sh.ablated(model, ["${name}"], "${data.ablations[0].key}"): ...`));
  byId("h-layer").textContent = `Layer ${Math.floor(view.head / heads)} at a glance`;
  if (byId("layer").open) map.layerView(byId("thumbs"), Math.floor(view.head / heads), [view.head]);
  lightRow();
  say();
}

// What each column shows, to be chosen; the third comes and goes.
function drawChoices() {
  const most = Math.min(allowed.length, LETTERS.length);
  byId("choices").replaceChildren(...view.columns.map((key, place) => make("div", { class: "choice" },
    make("label", { class: KINDS[place], for: `column-${place}`, text: LETTERS[place] }),
    pickOf(`column-${place}`, allowed.map((one) => [one, labelOf(one)]), key, (value) => { view.columns[place] = value; draw(); }),
    place ? pickOf(`prompt-${place}`, data.prompts.map((_, at) => [String(at), `prompt ${at + 1}`]), String(view.prompts[place]), (value) => { view.prompts[place] = Number(value); draw(); }, `Prompt of column ${LETTERS[place]}`) : "",
    place === 2 ? make("button", { type: "button", text: "×", "aria-label": "Remove column C", on: { click: () => { view.columns.pop(); view.prompts.pop(); draw(); } } }) : "")),
    view.columns.length < most ? make("button", { type: "button", text: "Add column C", on: { click: () => { view.columns.push(allowed.find((one) => !view.columns.includes(one))); view.prompts.push(view.prompts[0]); draw(); } } }) : "");
}

function pickOf(id, options, value, act, label) {
  const select = make("select", { id, ...(label ? { "aria-label": label } : {}), on: { change: () => { act(select.value); byId(id)?.focus(); } } }, ...options.map(([key, text]) => make("option", { value: key, text })));
  select.value = value;
  return select;
}

// The table of all heads: it sorts by every column, and holds what the search finds.
const MOST_ROWS = 200;
let order = { column: 0, down: false }, all = false;
function drawTable() {
  const shown = map.now.map, query = byId("query").value, found = new Set(find(data, query, shown)), searched = query.trim() !== "";
  const titles = [["rank", "number"], ["head", ""], ["layer", "number"], [shown.unit, "number"], ...(kvSize > 1 ? [["KV group", "number"]] : [])];
  const rows = [...shown.ranked, ...(shown.pale || [])].filter((index) => !searched || found.has(index)).map((index) => {
    const layer = Math.floor(index / heads), score = shown.scores[index], group = Math.floor((index % heads) / kvSize);
    return { index, cells: [rankOf(shown, index) ?? "–", nameOf(data, index), layer, number(score), group], sort: [rankOf(shown, index) ?? Infinity, index, layer, score, group] };
  });
  rows.sort((a, b) => (order.down ? -1 : 1) * (a.sort[order.column] - b.sort[order.column]) || a.index - b.index);
  byId("table").tHead.replaceChildren(make("tr", {}, ...titles.map(([title, kind], place) => {
    const sorted = place === order.column ? (order.down ? "descending" : "ascending") : "none", arrow = { descending: " ▾", ascending: " ▴", none: "" }[sorted];
    return make("th", { scope: "col", class: kind, "aria-sort": sorted }, make("button", { type: "button", text: title + arrow, on: { click: () => { order = { column: place, down: place === order.column ? !order.down : place === 3 }; drawTable(); } } }));
  })));
  const some = all ? rows : rows.slice(0, MOST_ROWS);
  byId("table").tBodies[0].replaceChildren(...some.map((row) => make("tr", { "data-index": row.index }, ...titles.map(([, kind], place) => (place === 1
    ? make("td", {}, make("button", { type: "button", class: "link", text: row.cells[1], "aria-label": `show ${row.cells[1]}` })) : make("td", { class: kind, text: String(row.cells[place]) }))))));
  byId("rows").textContent = searched && !rows.length ? "No head is found: try L2H6, 2.6, layer 2, top 5 or marked." : `${rows.length} of ${main.scores.length} heads.`;
  if (rows.length > some.length) byId("rows").append(` The first ${MOST_ROWS} are shown. `, make("button", { type: "button", class: "link", text: "Show all", on: { click: () => { all = true; drawTable(); } } }));
  map.cells.forEach((cell, index) => cell.classList.toggle("found", searched && found.has(index)));
  lightRow();
}
function lightRow() {
  for (const row of byId("table").tBodies[0].rows) row.classList.toggle("chosen", Number(row.dataset.index) === view.head);
}
byId("table").addEventListener("click", (event) => { const row = event.target.closest("tbody tr"); if (row) choose(Number(row.dataset.index)); });

// The address: #L2H6&prompt=3&b=scaling&c=group&colours=log&scores=1
function say() {
  const parts = [nameOf(data, view.head), `prompt=${view.prompts[0] + 1}`];
  view.columns.forEach((key, place) => { if (place || key !== "none") parts.push(`${"abc"[place]}=${key}`); if (view.prompts[place] !== view.prompts[0]) parts.push(`prompt-${"abc"[place]}=${view.prompts[place] + 1}`); });
  if (map.now.scale !== "sqrt") parts.push(`colours=${map.now.scale}`);
  if (map.now.map !== main) parts.push(`scores=${data.maps.indexOf(map.now.map) + 1}`);
  history.replaceState(null, "", `#${parts.map(encodeURIComponent).join("&").replaceAll("%3D", "=")}`);
}
function read() {
  const [head, ...rest] = (location.hash.slice(1) || data.start || "").split("&").map(decodeURIComponent), told = new Map(rest.map((part) => part.split("=")));
  const [index] = find(data, head), prompt = (text, other) => { const at = Number(text) - 1; return data.prompts[at] ? at : other; };
  if (index !== undefined) view.head = index;
  view.prompts = view.prompts.map(() => prompt(told.get("prompt"), 0));
  ["a", "b", "c"].forEach((letter, place) => {
    const key = told.get(letter);
    if (!allowed.includes(key) || place > view.columns.length) return;
    view.columns[place] = key;
    view.prompts[place] = prompt(told.get(`prompt-${letter}`), view.prompts[0]);
  });
  map.show({ scale: told.get("colours") in SCALES ? told.get("colours") : map.now.scale, map: data.maps[Number(told.get("scores")) - 1] || main });
}

data.prompts.forEach((each, place) => byId("prompt").append(make("option", { value: String(place), text: `${place + 1}. ${each.text}`.slice(0, 120) })));
byId("prompt").addEventListener("change", (event) => { view.prompts = view.prompts.map(() => Number(event.target.value)); draw(); });
byId("query").addEventListener("input", drawTable);
byId("find").addEventListener("submit", (event) => { event.preventDefault(); const [index] = find(data, byId("query").value, map.now.map); if (index !== undefined) choose(index); });
byId("layer").addEventListener("toggle", () => { if (byId("layer").open) map.layerView(byId("thumbs"), Math.floor(view.head / heads), [view.head]); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
addEventListener("hashchange", () => { read(); draw(); });
addEventListener("beforeprint", () => map.fit());
if (matchMedia("(max-width: 860px)").matches) byId("scores").open = false; // the head comes before the table
read();
started = true;
drawTable();
draw();
