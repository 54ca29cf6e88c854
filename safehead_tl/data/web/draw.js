"use strict";
// What the report's page and the notebook's widget draw alike: words, colours, tables, answers.
// Everything that comes from a model or a prompt goes into the page as text, never as markup.

function make(tag, attributes = {}, ...children) {
  const node = tag.startsWith("svg:") ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4)) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") node.textContent = value;
    else if (key === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    else if (key === "style") for (const [rule, set] of Object.entries(value)) node.style.setProperty(rule, set);
    else if (typeof value === "boolean") node.toggleAttribute(key, value);
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

const number = (value) => (value === 0 ? "0" : Math.abs(value) < 1e-3 ? value.toExponential(1) : value.toPrecision(3));
const percent = (share) => (share > 0 && share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);
const nameOf = (data, index) => `L${Math.floor(index / data.shape.heads)}H${index % data.shape.heads}`;
const indexOf = (data, name) => name.match(/\d+/g).reduce((layer, head) => layer * data.shape.heads + Number(head), 0);

// Cividis at nine places (Nuñez et al. 2018): even in brightness, also for the colour-blind.
const SCALE = [[0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115], [138, 134, 120], [165, 156, 116], [195, 179, 105], [254, 232, 56]];
// PuOr at eleven places (ColorBrewer): orange below zero, purple above.
const SIGNED = [[127, 59, 8], [179, 88, 6], [224, 130, 20], [253, 184, 99], [254, 224, 182], [247, 247, 247], [216, 218, 235], [178, 171, 210], [128, 115, 172], [84, 39, 136], [45, 0, 75]];
function between(scale, share) {
  const at = Math.min(Math.max(share, 0), 1) * (scale.length - 1);
  const low = Math.min(Math.floor(at), scale.length - 2);
  return scale[low].map((from, part) => Math.round(from + (scale[low + 1][part] - from) * (at - low)));
}
const shade = (share) => between(SCALE, share);
const diverging = (share) => between(SIGNED, (share + 1) / 2);
const rgb = (parts) => `rgb(${parts.join(",")})`;

// Black or white, whichever can be read on a colour.
function inkOn(parts) {
  const [red, green, blue] = parts.map((part) => { const value = part / 255; return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000" : "#fff";
}

// Bytes that were deflated and put into letters.
const unpacked = new Map();
async function unpack(text) {
  if (!unpacked.has(text)) {
    const flat = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
    const stream = new Blob([flat]).stream().pipeThrough(new DecompressionStream("deflate"));
    unpacked.set(text, new Response(stream).arrayBuffer().then((buffer) => new Uint8Array(buffer)));
  }
  return unpacked.get(text);
}
// Rows of a lower triangle, one byte each: 255 is all attention.
async function triangle(text) {
  const flat = await unpack(text), rows = [];
  for (let row = 0, at = 0; at < flat.length; at += ++row) rows.push(Array.from(flat.subarray(at, at + row + 1), (value) => value / 255));
  return rows;
}

// A token as it is read aloud: signs that stand for what cannot be seen are named.
const SIGNS = { "·": "space", "⏎": "new line", "␍": "carriage return", "⇥": "tab" };
function aloud(token) {
  const parts = token.split(/([·⏎␍⇥])/).filter(Boolean).map((part) => SIGNS[part] || `“${part}”`);
  return parts.length ? parts.join(", ") : "nothing";
}

// Pairs of a token's text and its probability.
function nextTokens(caption, kind, pairs) {
  const body = make("tbody");
  for (const [token, share] of pairs) {
    body.append(make("tr", {},
      make("td", { class: "token", text: token, title: aloud(token) }),
      make("td", { class: "number", text: percent(share) }),
      make("td", { class: kind }, make("span", { class: "bar", "aria-hidden": "true", style: { width: `${Math.max(1, 100 * share)}%` } }))));
  }
  const head = make("tr", {}, make("th", { scope: "col", text: "token" }), make("th", { scope: "col", class: "number", text: "probability" }), make("td"));
  return make("table", { class: "next" }, make("caption", { class: kind, text: caption }), make("thead", {}, head), body);
}

// An answer, with the words marked that another answer does not have in the same order.
function answer(caption, kind, text, other, verdict) {
  const title = make("h4", { class: kind }, caption);
  if (verdict) title.append(" ", make("span", { class: `badge ${verdict.kind}`, text: verdict.label }));
  const said = make("span");
  if (!text) said.append("(nothing)");
  else for (const [words, own] of other === undefined ? [[text, false]] : apart(text, other)) said.append(own ? make("mark", { text: words }) : words);
  return make("div", {}, title, make("blockquote", { class: kind }, said));
}

// A text in pieces, each with whether another text lacks it: the longest common subsequence of words.
const MOST_WORDS = 400; // beyond it all counts as changed: the table is their square
function apart(text, other) {
  const ours = text.match(/\s*\S+|\s+$/g) || [], theirs = other.match(/\S+/g) || [], word = (piece) => piece.trim();
  if (Math.max(ours.length, theirs.length) > MOST_WORDS) return [[text, text !== other]];
  const longest = Array.from({ length: ours.length + 1 }, () => new Uint16Array(theirs.length + 1));
  for (let i = ours.length - 1; i >= 0; i--) for (let j = theirs.length - 1; j >= 0; j--) {
    longest[i][j] = word(ours[i]) === theirs[j] ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
  }
  const found = [];
  for (let i = 0, j = 0; i < ours.length; i++) {
    while (j < theirs.length && word(ours[i]) !== theirs[j] && longest[i][j + 1] === longest[i][j]) j++;
    const same = j < theirs.length && word(ours[i]) === theirs[j];
    if (same) j++;
    if (found.length && found.at(-1)[1] === !same) found.at(-1)[0] += ours[i];
    else found.push([ours[i], !same]);
  }
  return found;
}

// A button that puts a text on the clipboard, or marks it where there is none.
function copied(text) {
  const code = make("code", { text });
  const act = async () => {
    try { await navigator.clipboard.writeText(code.textContent); button.textContent = "Copied"; }
    catch { getSelection().selectAllChildren(code); button.textContent = "Marked: copy it"; }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  };
  const button = make("button", { type: "button", text: "Copy", "aria-label": "Copy as Python", on: { click: act } });
  return make("p", { class: "python" }, code, " ", button);
}

function saveAs(name, content, type) {
  const link = make("a", { download: name, href: URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
