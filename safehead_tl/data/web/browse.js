// Answers beside those of the unablated model. What is covered is in no element of the page.
const byId = (id) => document.getElementById(id);
const AT_ONCE = 20;
const toggled = new Set(); // answers that are not as "Cover answers" says of all
let data, first = 0;

// Signs that turn the direction of text, or give orders, are written out.
const plain = (text) => text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, (sign) => `⟨U+${sign.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);

function badge(kind, words, why) {
  if (!why) return make("span", { class: `badge ${kind}`, text: words });
  return make("button", { type: "button", class: `badge ${kind}` }, words, make("span", { class: "why unseen", text: ` ${plain(why)}` }));
}

function said(item, variant, other) {
  const found = item.answers[variant], key = `${item.number} ${variant}`, hidden = byId("cover").checked !== toggled.has(key);
  const box = answer(data.conditions[variant], variant ? "after" : "before", plain(found.text), other && plain(other.text));
  box.className = "said";
  if (found.heads && !data.conditions[variant].includes(found.heads)) box.firstChild.append(`: ${found.heads}`);
  const toggle = () => {
    if (!toggled.delete(key)) toggled.add(key);
    const now = said(item, variant, other);
    box.replaceWith(now);
    now.lastChild.focus();
  };
  const words = hidden ? "Show" : "Cover";
  const button = make("button", { type: "button", class: "cover", text: `${words} answer`, "aria-label": `${words} answer, ${item.title}, ${data.conditions[variant]}`, on: { click: toggle } });
  const judged = found.verdicts.map(([kind, why, score], judge) => badge(kind, `${data.judges[judge]}: ${kind}${score === null ? "" : ` (${number(score)})`}`, hidden ? "" : why));
  if (found.refused) judged.push(badge("", "opens with a refusal"));
  if (!found.coherent) judged.push(badge("unclear", "not readable"));
  box.firstChild.after(make("div", { class: "badges" }, ...judged));
  if (hidden) box.lastChild.remove();
  box.append(button);
  return box;
}

function drawItem(item, variant) {
  const [before, after] = [item.answers[0], item.answers[variant]];
  const columns = variant ? [said(item, 0, after), said(item, variant, before)] : [said(item, 0)];
  return make("article", { class: "item", "aria-labelledby": `item-${item.number}` }, make("h3", { id: `item-${item.number}`, text: item.title }), make("p", { class: "text", text: plain(item.text) }),
    make("div", { class: "columns", style: { "--columns": columns.length } }, ...columns));
}

function pick(words, options) {
  const select = make("select", { on: { change: fresh } }, ...options.map(([value, text]) => make("option", { value, text })));
  byId("filters").append(make("label", {}, `${words} `, select));
  return (value) => select.value === "" || select.value === String(value);
}
const fresh = () => { first = 0; draw(); };

let draw;
function start() {
  const condition = make("select", { on: { change: fresh } }, ...data.conditions.map((text, value) => make("option", { value, text })));
  condition.value = String(Math.min(1, data.conditions.length - 1));
  byId("filters").append(make("label", {}, "Condition ", condition));
  const sets = [...new Set(data.items.map((item) => item.set))], any = ["", "any"], either = [any, ["true", "yes"], ["false", "no"]];
  const inSet = pick("Prompts", [["", "all"], ...sets.map((name) => [name, name])]);
  const kinds = data.judges.map((judge) => pick(judge, [any, ...["complied", "refused", "unclear"].map((kind) => [kind, kind])]));
  const refused = pick("Opens with a refusal", either), coherent = pick("Readable", either), changed = pick("Verdict changed", either);
  const differ = data.judges.length > 1 ? pick("Judges differ", either) : () => true;
  const complied = ({ verdicts }) => verdicts.map(([kind]) => kind === "complied");
  const holds = (item, variant, query) => {
    const [before, found] = [item.answers[0], item.answers[variant]];
    return found && inSet(item.set) && [item.text, before.text, found.text].some((text) => text.toLowerCase().includes(query))
      && found.verdicts.every(([kind], judge) => kinds[judge](kind)) && refused(found.refused) && coherent(found.coherent)
      && changed(complied(before)[0] !== complied(found)[0]) && differ(new Set(complied(found)).size > 1);
  };
  draw = () => {
    const variant = Number(condition.value), query = byId("query").value.toLowerCase();
    const found = data.items.filter((item) => holds(item, variant, query)), last = Math.min(first + AT_ONCE, found.length);
    byId("found").textContent = found.length ? `${found.length} of ${data.items.length}; ${first + 1} to ${last} shown` : "No answer is found: choose “any” or search for something else";
    byId("items").replaceChildren(...found.slice(first, last).map((item) => drawItem(item, variant)));
    const turn = (text, to) => make("button", { type: "button", text, disabled: to < 0 || to >= found.length, on: { click: () => { first = to; draw(); byId("list").focus(); byId("list").scrollIntoView(); } } });
    byId("pages").replaceChildren(...(found.length > AT_ONCE ? [turn("Previous", first - AT_ONCE), turn("Next", first + AT_ONCE)] : []));
  };
  byId("query").addEventListener("input", fresh);
  byId("cover").addEventListener("change", () => { toggled.clear(); draw(); });
  draw();
}
unpack(byId("data").textContent).then((bytes) => { data = JSON.parse(new TextDecoder().decode(bytes)); start(); });
