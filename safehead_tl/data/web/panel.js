// What the columns beside the map show: first what the model says, then where it looks.
// A column is {letter, kind, title, notes, text, tokens, next, kl, answer, verdict, rows: {head: rows}}.
const LETTERS = ["A", "B", "C"], KINDS = ["before", "after", "third"];

const section = (title, ...children) => make("section", { class: "part" }, make("h3", { text: title }), ...children);
const beside = (columns, draw) => make("div", { class: "columns", style: { "--columns": columns.length } }, ...columns.map((column) => make("div", { class: "column" }, draw(column) || "")));

// Draws columns into a box that is in the page. `shown`: names of the heads whose attention is shown,
// `look`: how attention is drawn, kept from one drawing to the next.
function drawColumns(box, columns, shown, look, redraw) {
  const [first] = columns, parts = [];
  const said = (column) => `${column.letter}: ${column.title}`;
  if (columns.some((column) => column.answer !== undefined)) {
    parts.push(section("What the model answers", beside(columns, (column) => (column.answer === undefined ? null
      : answer(said(column), column.kind, column.answer, column === first || column.text !== first.text ? undefined : first.answer, column.verdict)))));
    if (parts.at(-1).querySelector("mark")) parts.push(make("p", { class: "hint", text: "Marked: words that A does not have there." }));
  }
  parts.push(section("What it says next", beside(columns, (column) => nextTokens(`${said(column)}${column.kl ? `; KL ${number(column.kl)} nats` : ""}`, column.kind, column.next))));
  box.replaceChildren(...parts);
  const heads = shown.filter((head) => columns.some((column) => column.rows[head]));
  if (!heads.length) return;
  const part = section("Where heads look (rows attend to columns)");
  box.append(part);
  const view = { ...look, top: attentionTop(...columns.flatMap((column) => heads.map((head) => column.rows[head] || []))) || 1 };
  const scale = attentionScale(view, (value) => { Object.assign(look, { scale: value, chosen: true }); redraw(); });
  part.append(make("div", { class: "tools" }, scale, attentionLegend(view)));
  if (look.chosen) scale.focus(); // it was drawn anew by its own change
  look.chosen = false;
  for (const head of heads) {
    const have = columns.filter((column) => column.rows[head]);
    const line = make("div", { class: "columns", style: { "--columns": have.length } });
    part.append(make("h4", { text: head }), line);
    for (const column of have) line.append(make("div", {}, attention(line, `${column.letter}: ${head}${column.title === "as it is" ? "," : " with"} ${column.title}`, column.kind, column.rows[head], column.tokens, view)));
    for (const column of have.slice(1)) {
      if (have[0] !== first || column.text !== first.text) continue;
      const [before, after] = [first.rows[head], column.rows[head]];
      const change = after.map((row, y) => row.map((value, x) => value - before[y][x]));
      const most = attentionTop(change);
      if (most < 1.5 / 255) part.append(make("p", { class: "hint", text: `${column.letter} attends as ${first.letter} does${column.same ? `: ${column.same}` : "."}` }));
      else part.append(make("details", { class: "difference", ...(look.open === false ? {} : { open: true }), on: { toggle: (event) => { look.open = event.target.open; } } },
        make("summary", { text: `${head}: ${column.letter} less ${first.letter}` }),
        attentionLegend({ ...view, signed: true, top: most }),
        attention(line, `${head}: ${column.letter} less ${first.letter}`, "", change, column.tokens, { ...view, signed: true, top: most })));
    }
    part.append(make("p", { class: "hint", text: have.map((column) => `${column.letter}: ${inWords(column.rows[head].at(-1), column.tokens)}`).join(" ") }));
  }
}

// The prompt's tokens. Pointing at one, or walking to it by arrow keys, shows on the map how much the
// last position looks at it; a click or Enter holds that.
// `rows` is the attention of every head from there, a byte each.
function tokenStrip(data, rows, index, tokens, map) {
  const length = tokens.length, spans = [], share = (head, place) => rows[head * length + place] / 255;
  const shares = tokens.map((_, place) => share(index, place)), top = Math.max(...shares, 1e-9);
  const sharesTo = (place) => {
    const all = data.maps[0].scores.map((_, head) => share(head, place));
    return { shares: all, top: all.reduce((most, value) => Math.max(most, value), 0.001), words: `from the last position to ${aloud(tokens[place])} (position ${place})` };
  };
  let held = null, at = tokens.length - 1;
  const box = make("div", { class: "strip", role: "listbox", tabindex: "0", "aria-label": "Tokens of the prompt: how much the last position looks at each" });
  const tell = (place) => { at = place; spans.forEach((span, each) => span.classList.toggle("here", each === place)); box.setAttribute("aria-activedescendant", spans[place].id); map.show({ seen: sharesTo(place) }); };
  const leave = () => { spans.forEach((span, each) => span.classList.toggle("here", each === held)); map.show({ seen: held === null ? null : sharesTo(held) }); };
  const hold = (place) => { held = held === place ? null : place; spans.forEach((span, each) => span.setAttribute("aria-selected", String(each === held))); if (held === null) leave(); else tell(place); };
  tokens.forEach((token, place) => {
    const parts = shade(Math.sqrt(shares[place] / top)), words = `position ${place}: ${aloud(token)}, ${percent(shares[place])}`;
    spans.push(make("span", { class: "token", role: "option", id: `token-${Math.random().toString(36).slice(2)}`, "aria-selected": "false", "aria-label": words, title: words, text: token, style: { background: rgb(parts), color: inkOn(parts) },
      on: { pointerenter: () => tell(place), click: () => hold(place) } }));
  });
  box.addEventListener("pointerleave", leave);
  box.addEventListener("focus", () => box.matches(":focus-visible") && tell(at));
  box.addEventListener("blur", leave);
  box.addEventListener("keydown", (event) => {
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tokens.length - 1 }[event.key];
    if (to !== undefined) tell(Math.min(Math.max(to, 0), tokens.length - 1));
    else if (event.key === "Enter" || event.key === " ") hold(at);
    else if (event.key === "Escape" && held !== null) hold(held);
    else return;
    event.preventDefault();
  });
  box.append(...spans);
  return box;
}

// What is known of one head: what it writes, where it looks, how it scores.
function headCard(data, index, card, pick) {
  const { heads, kvSize } = data.shape, head = index % heads, layer = Math.floor(index / heads), list = make("dl", { class: "card" });
  const say = (title, ...content) => list.append(make("dt", { text: title }), make("dd", {}, ...content));
  const words = (pairs, show) => pairs.flatMap(([token, value], place) => [place ? ", " : "", make("span", { class: "token", text: data.tokens[token], title: aloud(data.tokens[token]) }), ` ${show(value)}`]);
  const map = data.maps[0], ranked = map.ranked.filter((each) => Math.floor(each / heads) === layer), place = ranked.indexOf(index);
  if (place >= 0) say("Rank", `${rankOf(map, index)} of ${map.ranked.length} in the model, ${place + 1} of ${ranked.length} in its layer`);
  if (card?.interval) say("95 % interval", `${card.interval.map(number).join(" to ")} ${map.unit}, over prompts`);
  if (card?.perPrompt) say(`On ${card.perPrompt.length} prompts`, dots(card.perPrompt, card.interval, map.unit));
  for (const other of data.maps.slice(1)) say(other.title, headWords(data, index, other).replace(/^[^:,]*[:,] /, ""));
  if (card?.promotes.length) say("It promotes", ...words(card.promotes, (value) => `+${number(value)}`));
  if (card?.suppresses.length) say("It suppresses", ...words(card.suppresses, (value) => number(value)));
  if (card?.looks.length) say("It looks at", ...words(card.looks, percent));
  if (kvSize > 1) {
    const start = index - (head % kvSize);
    say("Shares keys and values with", ...Array.from({ length: kvSize }, (_, place) => start + place).filter((each) => each !== index).flatMap((each, place) => [place ? " " : "", make("button", { type: "button", class: "link", text: nameOf(data, each), on: { click: (event) => pick(each, event) } })]));
  }
  return list.children.length ? section(`Card of ${nameOf(data, index)}`, list) : "";
}

// Numbers as dots on a line, with their interval.
function dots(values, interval, unit) {
  const some = values.filter((value) => value !== null), low = Math.min(0, ...some), high = Math.max(0, ...some) || 1;
  const at = (value) => `${(100 * (value - low)) / (high - low)}%`;
  const line = make("div", { class: "dots", role: "img", "aria-label": `${some.length} scores from ${number(Math.min(...some))} to ${number(Math.max(...some))} ${unit}` });
  if (interval) line.append(make("span", { class: "interval", style: { left: at(interval[0]), right: `${100 - parseFloat(at(interval[1]))}%` } }));
  values.forEach((value, place) => { if (value !== null) line.append(make("span", { class: "dot", title: `prompt ${place + 1}: ${number(value)} ${unit}`, style: { left: at(value) } })); });
  return make("div", {}, line, make("div", { class: "legend-ticks" }, make("span", { text: number(low) }), make("span", { text: number(high) })));
}
