// The view in the address (#layer=13&t=12), so that it can be sent, kept and returned to.
const DROPPED = ["dim", "outline", "hide"];

function fragment() {
  const parts = { layer: state.layer, t: Number(state.second.toFixed(2)) };
  if (state.dropped !== "dim") parts.dropped = state.dropped;
  if (state.scores) parts.scores = 1;
  if (state.from > 0 || state.to < end) parts.range = `${Number(state.from.toFixed(2))}-${Number(state.to.toFixed(2))}`;
  if (String(state.shown) !== String(firstShown)) parts.show = state.shown.join(",");
  if (state.pair) parts.pair = state.pair.join(",");
  return `#${Object.entries(parts).map(([name, value]) => `${name}=${value}`).join("&")}`;
}

// What an address says, as a change of state; what it says wrongly is left out.
function fromFragment(text) {
  const parts = new URLSearchParams(text.replace(/^#/, "")), update = {};
  const number = (name) => (parts.get(name)?.trim() ? Number(parts.get(name)) : NaN);
  const prompts = (name) => (parts.get(name) ?? "").split(",").filter((each) => /^\d+$/.test(each) && each < data.views.length).map(Number);
  if (Number.isInteger(number("layer"))) update.layer = clamp(number("layer"), -1, maxLayer);
  if (Number.isFinite(number("t"))) update.second = clamp(number("t"), 0, end);
  if (DROPPED.includes(parts.get("dropped"))) update.dropped = parts.get("dropped");
  if (parts.has("scores")) update.scores = parts.get("scores") === "1" && hasScores;
  const range = /^([\d.]+)-([\d.]+)$/.exec(parts.get("range") ?? "");
  if (range && Number(range[1]) < Number(range[2])) [update.from, update.to] = [Number(range[1]), Math.min(Number(range[2]), end)];
  if (prompts("show").length) update.shown = prompts("show");
  const pair = prompts("pair");
  if (pair.length === 2 && comparable(...pair)) update.pair = pair;
  return update;
}

let waiting = null;

function remember() {
  if (framed) return; // the address is not the reader's
  clearTimeout(waiting); // browsers allow few changes a second
  waiting = setTimeout(() => history.replaceState(null, "", fragment()), 250);
}
