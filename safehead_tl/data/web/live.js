// The widget on a page that the command serves: what it asks is posted to the page's own address.
const state = JSON.parse(document.getElementById("data").textContent), GONE = "Nothing answers: the command has ended. Start it again, and open its new address.";
let heard, waiting;
const model = {
  get: (name) => state[name],
  set: (name, value) => { state[name] = value; },
  on: (name, act) => { heard = act; },
  off() {},
  async save_changes() {
    const { asked } = state;
    waiting?.abort(); // whoever has not begun with it drops it
    waiting = new AbortController();
    const told = { method: "POST", body: JSON.stringify(asked), signal: waiting.signal };
    const shown = await fetch("", told).then((answer) => answer.json()).catch(() => ({ error: GONE }));
    if (asked !== state.asked) return;
    state.shown = { ...shown, number: asked.number };
    heard();
  },
};
render({ model, el: document.getElementById("live") });
