// What a kernel would answer the widget, made up in the page itself: `page` and `made` come before.
const heard = {}, state = { page };

function answered(asked) {
  const columns = asked.columns.map((column) => {
    const { label } = page.ablations.find(({ key }) => key === column.ablation), ablated = column.heads.length > 0;
    return {
      ...made, ...column, words: label, notes: [], kl: ablated ? 0.5 : 0,
      text: column.prompt === null ? column.text : page.prompts[column.prompt],
      answer: asked.generate ? (ablated ? "sure mix flour" : "sorry no") : undefined,
      patterns: Object.fromEntries(asked.shown.map((name) => [name, ablated ? made.after : made.before])),
    };
  });
  return { number: asked.number, shown: asked.shown, status: `${columns.length} columns.`, columns };
}

const column = { ablation: "undifferentiated", epsilon: 1e-5, prompt: 0, text: "" };
state.asked = { number: 0, shown: [page.first], generate: false, columns: [{ heads: [], ...column }, { heads: [page.first], ...column }] };
state.shown = answered(state.asked);
window.asked = [];
const model = {
  get: (name) => state[name],
  set: (name, value) => { state[name] = value; },
  on: (name, act) => { heard[name] = act; },
  off() {},
  save_changes() {
    window.asked.push(state.asked);
    setTimeout(() => { state.shown = answered(state.asked); heard["change:shown"](); }, 5);
  },
};
render({ model, el: document.querySelector("#widget") });
