// What the reader has chosen. `change` is the only way to alter it; every part of the page redraws from it.
const state = {
  layer: 0, // -1: the prompt, before anything is dropped
  second: 0, // of each clip
  from: 0, // the range of seconds shown
  to: 0,
  dropped: "dim", // or "outline", "hide"
  scores: false, // drawn over pictures and sound
  shown: [], // numbers of the prompts on view
  pair: null, // [A, B]: the prompts whose difference is on view
};
const listeners = [];
let end = 0; // seconds of the longest clip

function change(update) {
  Object.assign(state, update);
  state.second = clamp(state.second, 0, end);
  if (state.second < state.from || state.second > state.to) [state.from, state.to] = [0, end]; // never out of view
  for (const listener of listeners) listener();
}
