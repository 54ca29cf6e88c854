// Attention patterns as pictures: a row for each token that looks, a column for each it looks at.
// A picture can be read and zoomed, by pointer and by keyboard. All pictures of the same tokens in
// one box (or with the same `view.linked`) show the same part and point at the same cell.
const ATTENTION = {
  scales: { sqrt: "square root, up to the highest", max: "even, up to the highest", linear: "even, 0 to 100 %" },
  font: "11px ui-monospace, Menlo, Consolas, monospace",
  line: 13, largest: 26, gaps: 8, // CSS px: of a label, of the largest cell, of the smallest cell with gaps
  parts: new WeakMap(),
};

// How wide each of the figures of a `.pair` can be, in a box that is in the page.
function roomIn(box) {
  const columns = parseInt(getComputedStyle(box).getPropertyValue("--columns")) || 2;
  return Math.max((box.clientWidth - 16 * (columns - 1)) / columns, 120);
}

// The largest value of some patterns, which are shown on one scale.
const attentionTop = (...patterns) => patterns.flat().reduce((most, row) => row.reduce((high, value) => Math.max(high, Math.abs(value)), most), 0);

// Where between 0 and 1, or -1 and 1, a value lies on the scale of colours; and back.
function attentionShare(value, { scale = "sqrt", top = 1 }) {
  const share = Math.min(Math.abs(value) / (scale === "linear" ? 1 : top || 1), 1);
  return Math.sign(value) * (scale === "sqrt" ? Math.sqrt(share) : share);
}
function attentionAt(share, { scale = "sqrt", top = 1 }) {
  return Math.sign(share) * Math.abs(share) ** (scale === "sqrt" ? 2 : 1) * (scale === "linear" ? 1 : top);
}
const attentionColour = (share, view) => (view.signed ? diverging : shade)(share);
const attentionPercent = (value, { signed } = {}) => (signed && Math.abs(value) >= 0.001 ? (value > 0 ? "+" : "−") : "") + percent(Math.abs(value));

function inWords(row, tokens, view = {}) {
  const best = row.map((value, place) => [value, place]).filter(([value]) => value).sort((a, b) => Math.abs(b[0]) - Math.abs(a[0])).slice(0, 3);
  const named = best.map(([value, place]) => `${attentionPercent(value, view)} to “${tokens[place]}” (position ${place + (view.first || 0)})`);
  return `From the last token: ${named.join(", ") || "nothing"}.`;
}

function attentionLegend(view) {
  const ticks = (view.signed ? [-1, -0.5, 0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1]).map((share) => attentionPercent(attentionAt(share, view), view));
  const colours = Array.from({ length: 17 }, (_, place) => rgb(attentionColour(view.signed ? place / 8 - 1 : place / 16, view)));
  const what = view.signed ? "Attention, after less before" : "Attention", scale = ATTENTION.scales[view.scale || "sqrt"];
  return make("div", { class: "attention-legend", role: "img", "aria-label": `${what}, ${scale}: colours from ${ticks[0]} to ${ticks.at(-1)}` },
    make("span", { class: "attention-bar", style: { background: `linear-gradient(90deg, ${colours.join(",")})` } }),
    make("span", { class: "attention-ticks" }, ...ticks.map((text) => make("span", { text }))),
    make("span", { text: `${what}; ${scale}` }));
}

function attentionScale(view, change) {
  const select = make("select", { "aria-label": "Colours of attention", on: { change: () => { view.scale = select.value; change(select.value); } } },
    ...Object.entries(ATTENTION.scales).map(([value, text]) => make("option", { value, text })));
  select.value = view.scale || "sqrt";
  return select;
}

// A canvas of one pixel a cell, the lower triangle; `share(x, y)` is where a value lies on the scale.
function coloured(size, view, share) {
  const canvas = make("canvas"), image = new ImageData(size, size), pixels = new Uint32Array(image.data.buffer);
  const table = Uint32Array.from({ length: 1021 }, (_, place) => {
    const [red, green, blue] = attentionColour(place / 510 - 1, view);
    return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  });
  canvas.width = canvas.height = size;
  for (let y = 0; y < size; y++) for (let x = 0; x <= y; x++) {
    pixels[y * size + x] = table[Math.round(510 * (share(x, y) + 1))];
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// A head's attention on 16 by 16 places of a prompt, as a lower triangle row by row.
function thumbnail(flat, title) {
  const canvas = coloured(16, {}, (x, y) => Math.sqrt(flat[(y * (y + 1)) / 2 + x] / 255));
  for (const [key, value] of Object.entries({ class: "thumbnail", role: "img", "aria-label": title, title })) canvas.setAttribute(key, value);
  return canvas;
}

// The part that is seen: `zoom` is 1 for all of it, `x` and `y` are its first column and row, `cell` is pointed at.
function attentionPart(key, size) {
  const { parts } = ATTENTION;
  if (!parts.has(key)) parts.set(key, new Map());
  if (!parts.get(key).has(size)) parts.get(key).set(size, { zoom: 1, x: 0, y: 0, cell: null });
  return parts.get(key).get(size);
}

// A pattern as a picture, for a box in the page to hold.
function attention(box, caption, kind, rows, tokens, view = {}) {
  const size = tokens.length, first = view.first || 0, part = attentionPart(view.linked || box, size), { line, largest } = ATTENTION;
  const look = { ...view, top: view.top ?? attentionTop(rows) };
  const canvas = make("canvas", {
    class: "attention", role: "application", tabindex: "0", "aria-roledescription": "attention pattern",
    "aria-label": `${caption}. ${inWords(rows.at(-1), tokens, look)} Arrow keys read cells, plus and minus zoom.`,
    on: { pointerdown, pointermove, pointerup, pointercancel: () => { drag = null; }, pointerleave: () => point(null), wheel, keydown, blur: () => point(null), dblclick: () => zoom(0) },
  });
  const readout = make("span", { class: "readout" }), pen = canvas.getContext("2d");
  const buttons = make("span", { class: "zoom" }, ...[["+", "zoom in", 1.5], ["−", "zoom out", 1 / 1.5], ["⤢", "show all", 0]].map(([text, words, factor]) =>
    make("button", { type: "button", text, title: words, "aria-label": `${caption}: ${words}`, on: { click: () => zoom(factor) } })));
  const figure = make("figure", { class: "attention-figure" }, make("figcaption", { class: kind, text: caption }), canvas, make("div", { class: "attention-foot" }, readout, buttons));
  let room = 0, ratio = 1, gutter, away, base, plot, side, cell, step, drag = null;
  const pictures = new Map(), cuts = new Map();

  // Each cell a pixel, or the largest of `block` × `block` cells where cells are smaller than a pixel.
  function picture(block) {
    if (!pictures.has(block)) pictures.set(block, coloured(Math.ceil(size / block), look, (x, y) => {
      if (block === 1) return attentionShare(rows[y][x], look);
      const at = largestIn(x * block, y * block, block);
      return attentionShare(rows[at.y][at.x], look);
    }));
    return pictures.get(block);
  }
  function largestIn(x, y, block) {
    let best = { x, y: Math.min(y, size - 1) };
    if (block > 1) for (let row = y; row < Math.min(y + block, size); row++) for (let column = x; column < Math.min(x + block, row + 1); column++) {
      if (Math.abs(rows[row][column]) > Math.abs(rows[best.y][best.x])) best = { x: column, y: row };
    }
    return best;
  }
  const block = () => Math.ceil(1 / (cell * ratio) - 1e-6);

  function fit(width) {
    room = width;
    ratio = matchMedia("print").matches ? 3 : devicePixelRatio || 1;
    pen.font = ATTENTION.font;
    const crowded = size * line > 0.7 * room, longest = Math.max(...tokens.map((_, place) => pen.measureText(label(place, crowded)).width));
    away = crowded ? 8 : 3; // from labels to the plot: those of the first row and column must not meet
    gutter = Math.ceil(Math.min(longest + away + 2, 96, 0.3 * room));
    base = Math.min((room - gutter - line / 2 - 1) / size, largest);
    plot = base * size;
    side = Math.ceil(gutter + plot + Math.max(0, (line - base) / 2));
    buttons.hidden = base > line;
    cuts.clear();
    canvas.width = canvas.height = Math.round(side * ratio);
    canvas.style.setProperty("width", `${side}px`);
    draw();
  }

  // Where not every token has a label, those that have say their position.
  const label = (place, some) => (some ? `${place + first} ${tokens[place]}` : tokens[place]);
  function cut(text) {
    if (!cuts.has(text)) {
      const chars = [...text], fits = (words) => pen.measureText(words).width <= gutter - away - 1;
      let shown = text;
      while (!fits(shown) && chars.length) { chars.pop(); shown = `${chars.join("")}…`; }
      cuts.set(text, shown);
    }
    return cuts.get(text);
  }

  function draw() {
    const span = size / part.zoom, ink = getComputedStyle(box), snap = (value) => Math.round(value * ratio) / ratio;
    cell = base * part.zoom;
    step = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((count) => count * cell >= line) || 1000;
    const inPlot = (place, from) => gutter + (place - from) * cell;
    canvas.style.setProperty("touch-action", part.zoom > 1 ? "none" : "auto");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, side, side);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(picture(block()), ...[part.x, part.y, span, span].map((value) => value / block()), gutter, gutter, plot, plot);
    if (cell >= ATTENTION.gaps) {
      const gap = Math.round(ratio) / ratio;
      for (let at = Math.ceil(part.x); at <= part.x + span; at++) pen.clearRect(snap(inPlot(at, part.x)) - gap, gutter, gap, plot);
      for (let at = Math.ceil(part.y); at <= part.y + span; at++) pen.clearRect(gutter, snap(inPlot(at, part.y)) - gap, plot, gap);
    }
    pen.font = ATTENTION.font;
    pen.textBaseline = "middle";
    const { cell: at } = part, inSight = (place, from) => place >= from && place < from + span;
    const mark = ink.getPropertyValue("--mark");
    if (view.held != null && inSight(view.held, part.x)) frame(inPlot(view.held, part.x), gutter, cell, plot, mark);
    if (at && inSight(at.x, part.x) && inSight(at.y, part.y)) frame(inPlot(at.x, part.x), inPlot(at.y, part.y), cell, cell, mark);
    readout.textContent = at ? `from “${tokens[at.y]}” (${at.y + first}) to “${tokens[at.x]}” (${at.x + first}): ${attentionPercent(rows[at.y][at.x], view)}` : "Point at a cell, or use arrow keys.";
    const [least, most] = [gutter + line / 2 - away, side - line / 2];
    for (const [across, from, pointed] of [[true, part.x, [at?.x, view.held]], [false, part.y, [at?.y]]]) {
      const taken = []; // what is pointed at comes first
      const put = (place, where, colour) => {
        if (taken.some((other) => Math.abs(other - where) < line - 0.01)) return;
        taken.push(where);
        write(label(place, step > 1), where, across, colour);
      };
      for (const place of pointed) {
        if (place != null && inSight(place, from)) put(place, Math.min(Math.max(inPlot(place + 0.5, from), least), most), mark);
      }
      for (let place = Math.ceil(from / step) * step; place < Math.min(from + span, size); place += step) {
        const where = inPlot(place + 0.5, from);
        if (where >= least && where <= most) put(place, where, ink.color);
      }
    }
  }
  function frame(x, y, width, height, colour) { // at least as large as can be seen
    const more = Math.max(0, 6 - Math.min(width, height)) / 2;
    pen.strokeStyle = colour || "#b0307a";
    pen.lineWidth = 2;
    pen.strokeRect(x - more, y - more, width + 2 * more, height + 2 * more);
  }
  function write(text, at, across, colour) {
    pen.save();
    pen.fillStyle = colour;
    pen.textAlign = across ? "left" : "right";
    pen.translate(across ? at : gutter, across ? gutter : at);
    if (across) pen.rotate(-Math.PI / 2); // then it is written as a row's label is
    pen.fillText(cut(text), across ? away : -away, 0);
    pen.globalAlpha = 0.5;
    if (away > 3) pen.fillRect(across ? 1 : -5, -0.5, 4, 1);
    pen.restore();
  }

  const drawAll = () => canvas.getRootNode().querySelectorAll("canvas.attention").forEach((each) => each.showing === part && each.redraw());
  function point(to, aloud = "off") {
    if (to?.x === part.cell?.x && to?.y === part.cell?.y) return;
    readout.setAttribute("aria-live", aloud);
    part.cell = to;
    drawAll();
  }
  function zoom(factor, x = 0.5, y = 0.5) { // 0: all of it; x and y: what stays where it is, in shares of the plot
    const before = size / part.zoom;
    part.zoom = factor && Math.min(Math.max(part.zoom * factor, 1), Math.max(largest / base, 1)) || 1;
    move(part.x + x * (before - size / part.zoom), part.y + y * (before - size / part.zoom));
  }
  function move(x, y) {
    const room = size - size / part.zoom;
    [part.x, part.y] = [x, y].map((value) => Math.min(Math.max(value, 0), room));
    drawAll();
  }

  function within({ clientX, clientY }) { // a place in the plot, in shares
    const { left, top, width } = canvas.getBoundingClientRect();
    return [clientX - left, clientY - top].map((value) => (value * side / width - gutter) / plot);
  }
  function under(event) {
    const [x, y] = within(event), span = size / part.zoom, by = block();
    if (x < 0 || y < 0 || x >= 1 || y >= 1) return null;
    const at = [part.x + x * span, part.y + y * span].map((value) => Math.floor(value / by) * by);
    return at[0] <= at[1] ? largestIn(...at, by) : null;
  }
  function pointerdown(event) {
    canvas.setPointerCapture(event.pointerId);
    drag = { from: within(event), x: part.x, y: part.y, moved: false };
    point(under(event));
  }
  function pointermove(event) {
    if (!drag || part.zoom === 1) return point(under(event));
    const [x, y] = within(event).map((value, axis) => value - drag.from[axis]), span = size / part.zoom;
    drag.moved ||= Math.hypot(x, y) * plot > 3;
    if (drag.moved) move(drag.x - x * span, drag.y - y * span);
  }
  function pointerup() {
    if (drag && !drag.moved && part.cell) view.on?.hold?.(part.cell.x);
    drag = null;
  }
  function wheel(event) {
    if (!event.ctrlKey) return;
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, ...within(event));
  }
  function keydown(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { x, y } = part.cell || { x: rows.at(-1).indexOf(Math.max(...rows.at(-1))), y: size - 1 }, span = size / part.zoom;
    const to = {
      ArrowLeft: [x - 1, y], ArrowRight: [x + 1, y], ArrowUp: [x, y - 1], ArrowDown: [x, y + 1],
      Home: [0, y], End: [y, y], PageUp: [x, y - 10], PageDown: [x, y + 10],
    }[event.key];
    const factor = { "+": 1.5, "=": 1.5, "-": 1 / 1.5, 0: 0 }[event.key];
    if (to) {
      const row = Math.min(Math.max(to[1], 0), size - 1), column = Math.min(Math.max(to[0], 0), row);
      point(part.cell ? { x: column, y: row } : { x, y }, "polite");
      move(...[[part.x, column], [part.y, row]].map(([from, at]) => Math.min(Math.max(from, at + 1 - span), at)));
    } else if (factor !== undefined) zoom(factor, ...[[x, part.x], [y, part.y]].map(([at, from]) => Math.min(Math.max((at + 0.5 - from) / span, 0), 1)));
    else if (["Enter", " "].includes(event.key) && view.on?.hold) view.on.hold(x);
    else return;
    event.preventDefault();
  }

  canvas.showing = part;
  canvas.redraw = (again = false) => (again ? fit(room) : draw());
  new ResizeObserver(() => { if (figure.clientWidth && Math.abs(figure.clientWidth - room) > 1) fit(figure.clientWidth); }).observe(figure);
  fit(roomIn(box));
  return figure;
}

// Paper is light, and finer than a screen.
matchMedia("print").addEventListener("change", () => document.querySelectorAll("canvas.attention").forEach((each) => each.redraw(true)));
