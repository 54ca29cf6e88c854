"use strict";
// What the report's page and the notebook's widget draw alike: heatmap, attention, next tokens.
// Everything that comes from a model or a prompt goes into the page as text, never as markup.

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") node.textContent = value;
    else if (key === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    else if (key === "style") for (const [rule, set] of Object.entries(value)) node.style.setProperty(rule, set);
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

const number = (value) => (value === 0 ? "0" : Math.abs(value) < 1e-3 ? value.toExponential(1) : value.toPrecision(3));
const percent = (share) => (share > 0 && share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);
const nameOf = (layer, head) => `L${layer}H${head}`;

// Cividis at nine places (Nuñez et al. 2018): even in brightness, also for the colour-blind.
const SCALE = [[0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115], [138, 134, 120], [165, 156, 116], [195, 179, 105], [254, 232, 56]];
function shade(share) {
  const at = Math.min(Math.max(share, 0), 1) * (SCALE.length - 1);
  const low = Math.min(Math.floor(at), SCALE.length - 2);
  return SCALE[low].map((from, part) => Math.round(from + (SCALE[low + 1][part] - from) * (at - low)));
}
const rgb = (parts) => `rgb(${parts.join(",")})`;
const highestOf = (data) => Math.max(...data.ranked.slice(0, 1).map((index) => data.scores[index]), 0) || 1;

// A head in words: its score, rank, KV group and mark.
function headWords(data, index) {
  const { heads, kvSize } = data.shape, layer = Math.floor(index / heads), head = index % heads, score = data.scores[index];
  if (score === null) return `${nameOf(layer, head)}, not scored`;
  const group = kvSize > 1 ? `, KV group ${Math.floor(head / kvSize)}` : "";
  const mark = data.marked.includes(index) ? `, ${data.markedAs}` : "";
  return `${nameOf(layer, head)}: ${number(score)} ${data.unit}, rank ${data.ranked.indexOf(index) + 1} of ${data.ranked.length}${group}${mark}`;
}

// The heatmap: a button for each head, which `on(index)` says what to do with. Returns them.
function heatmap(map, data, on) {
  const { layers, heads, kvSize } = data.shape, highest = highestOf(data), marked = new Set(data.marked), cells = [];
  const size = heads > 40 ? 11 : heads > 20 ? 13 : heads > 12 ? 26 : 36;
  map.style.setProperty("grid-template-columns", `auto repeat(${heads}, minmax(${heads > 12 ? size : 22}px, 1fr))`);
  map.setAttribute("aria-rowcount", layers);
  map.setAttribute("aria-colcount", heads);
  const every = heads > 32 ? 8 : heads > 16 ? 4 : 1, rows = layers > 32 ? 8 : layers > 16 ? 4 : 1;
  for (let layer = 0; layer < layers; layer++) {
    const row = make("div", { role: "row", style: { display: "contents" } });
    row.append(make("span", { class: "tick", role: "rowheader", text: layer % rows ? "" : String(layer), "aria-label": `layer ${layer}` }));
    for (let head = 0; head < heads; head++) {
      const index = layer * heads + head, score = data.scores[index];
      const parts = shade(score === null ? 0 : score / highest), words = headWords(data, index);
      const cell = make("button", {
        type: "button", class: marked.has(index) ? "cell marked" : "cell", role: "gridcell", tabindex: "-1",
        "aria-label": words, title: words, "aria-selected": "false",
        style: {
          height: `${size}px`, background: score === null ? "transparent" : rgb(parts),
          "--cross": parts[0] + parts[1] > 270 ? "#000" : "#fff",
          "margin-left": kvSize > 1 && head && head % kvSize === 0 ? "3px" : "0",
        },
        on: on(index),
      });
      cells[index] = cell;
      row.append(cell);
    }
    map.append(row);
  }
  const foot = make("div", { style: { display: "contents" }, "aria-hidden": "true" }, make("span", { class: "tick" }));
  for (let head = 0; head < heads; head++) foot.append(make("span", { class: "tick", text: head % every ? "" : String(head) }));
  map.append(foot);
  return cells;
}

// Where a key leads from a head; nothing for other keys.
function stepFrom(data, index, key) {
  const { layers, heads } = data.shape, layer = Math.floor(index / heads), head = index % heads;
  const to = {
    ArrowRight: [layer, head + 1], ArrowLeft: [layer, head - 1], ArrowDown: [layer + 1, head],
    ArrowUp: [layer - 1, head], Home: [layer, 0], End: [layer, heads - 1],
  }[key];
  if (!to) return undefined;
  const [row, column] = [Math.min(Math.max(to[0], 0), layers - 1), Math.min(Math.max(to[1], 0), heads - 1)];
  return row * heads + column;
}

const legend = (data) => make("div", { class: "legend", "aria-hidden": "true" },
  make("span", { text: "0" }),
  make("span", { class: "legend-bar", style: { background: `linear-gradient(90deg, ${SCALE.map(rgb).join(",")})` } }),
  make("span", { text: number(highestOf(data)) }));

const legendWords = (data) => `Rows are layers, columns heads, both from 0. ${data.scale}` + (data.marked.length ? ` Crosses: ${data.markedAs}.` : "") + (data.shape.kvSize > 1 ? ` Gaps separate KV groups of ${data.shape.kvSize} heads.` : "");

// How wide each of two figures in a `.pair` can be, in a box that is in the page.
function roomIn(box) {
  const one = getComputedStyle(box).getPropertyValue("--columns").trim() === "1";
  return Math.max(one ? box.clientWidth : (box.clientWidth - 16) / 2, 120);
}

// A pattern as a picture, with its last row in words, for a box in the page to hold.
function attention(caption, kind, rows, tokens, box) {
  const room = roomIn(box), label = Math.min(92, Math.round(0.3 * room));
  const cell = Math.max(4, Math.min(26, (room - label - 2) / tokens.length)), size = Math.max(5, Math.min(13, cell));
  const canvas = make("canvas", { role: "img", "aria-label": `${caption}. ${inWords(rows.at(-1), tokens)}` });
  const side = Math.ceil(label + cell * tokens.length);
  canvas.width = canvas.height = side * 2;
  canvas.style.setProperty("max-width", `${side}px`);
  const pen = canvas.getContext("2d");
  pen.scale(2, 2);
  rows.forEach((row, y) => row.forEach((value, x) => {
    pen.fillStyle = rgb(shade(value));
    pen.fillRect(label + x * cell, label + y * cell, cell - 0.5, cell - 0.5);
  }));
  pen.fillStyle = getComputedStyle(box).color;
  pen.font = `${size}px ui-monospace, monospace`;
  pen.textBaseline = "middle";
  const most = Math.max(2, Math.floor((label - 6) / (0.61 * size)));
  const cut = (token) => (token.length > most ? `${token.slice(0, most - 1)}…` : token);
  tokens.forEach((token, place) => {
    const at = label + (place + 0.5) * cell;
    pen.textAlign = "right";
    pen.fillText(cut(token), label - 4, at);
    pen.save(); pen.translate(at, label - 4); pen.rotate(-Math.PI / 2); pen.textAlign = "left";
    pen.fillText(cut(token), 0, 0);
    pen.restore();
  });
  return make("figure", {}, make("figcaption", { class: kind, text: caption }), canvas);
}

function inWords(row, tokens) {
  const best = row.map((value, place) => [value, place]).sort((a, b) => b[0] - a[0]).slice(0, 3);
  return `From the last token: ${best.map(([value, place]) => `${percent(value)} to “${tokens[place]}”`).join(", ")}.`;
}

// Pairs of a token's text and its probability.
function nextTokens(caption, kind, pairs) {
  const body = make("tbody");
  for (const [token, share] of pairs) {
    body.append(make("tr", {},
      make("td", { class: "token", text: token }),
      make("td", { class: "number", text: percent(share) }),
      make("td", { class: kind }, make("span", { class: "bar", "aria-hidden": "true", style: { width: `${Math.max(1, 100 * share)}%` } }))));
  }
  const head = make("tr", {}, make("th", { scope: "col", text: "token" }), make("th", { scope: "col", class: "number", text: "probability" }), make("td"));
  return make("table", { class: "next" }, make("caption", { class: kind, text: caption }), make("thead", {}, head), body);
}

const quote = (caption, kind, text) => make("div", {}, make("h3", { class: kind, text: caption }), make("blockquote", { class: kind }, make("span", { text: text || "(nothing)" })));
