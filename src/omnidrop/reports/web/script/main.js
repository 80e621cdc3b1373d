// The controls above, and the start. All files are joined in the order of page.py, inside one function.
const layerSlider = one("#layer"), timeSlider = one("#second");
const maxLayer = Math.max(...data.views.map((view) => view.layers)) - 1;
const hasScores = data.views.some((view) => view.tracks.some((track) => track.scores));
let lastStart = 0; // the last moment at which something begins
const firstShown = all("[data-panel]").filter((box) => box.checked).map((box) => Number(box.dataset.panel));

function showControls() {
  const { layer, second, from, to } = state;
  const step = Number(timeSlider.step);
  timeSlider.min = Math.floor(from / step + 1e-6) * step; // on the pictures' own times
  timeSlider.max = Math.max(Number(timeSlider.min), Math.min(to, lastStart));
  [layerSlider.value, timeSlider.value] = [layer, second];
  one("#layer-value").textContent = layer < 0 ? "prompt" : String(layer);
  layerSlider.setAttribute("aria-valuetext", layer < 0 ? "the prompt, before anything is dropped" : `layer ${layer}`);
  one("#second-value").textContent = second.toFixed(1);
  timeSlider.setAttribute("aria-valuetext", time(second));
  one("#paper").textContent = `${layer < 0 ? "The prompt" : `Layer ${layer}`}, second ${second.toFixed(1)}.`;
  for (const choice of all("[name=dropped]")) choice.checked = choice.value === state.dropped;
  one("#scores").checked = state.scores;
  document.documentElement.classList.toggle("scores", state.scores);
  for (const box of all("[data-panel]")) {
    box.checked = state.shown.includes(Number(box.dataset.panel));
    one(`#panel-${box.dataset.panel}`).hidden = !box.checked;
  }
  for (const group of all("[data-group]")) group.hidden = !one(".panel:not([hidden])", group);
}

// The second slider's step is the shortest of a video's pictures.
function slider() {
  const tracks = data.views.flatMap((view) => view.tracks.filter((track) => track.step > 0));
  const steps = tracks.filter((track) => track.kind === "video").map((track) => track.step);
  const length = steps.length ? Math.min(...steps) : 0.5;
  timeSlider.step = length;
  lastStart = Math.max(0, ...tracks.map((track) => track.times[track.times.length - 1]));
  end = Math.max(0, ...tracks.map((track) => track.end));
  timeSlider.disabled = one("#play").disabled = end === 0;
}

function controls() {
  layerSlider.addEventListener("input", () => change({ layer: Number(layerSlider.value) }));
  timeSlider.addEventListener("input", () => change({ second: Number(timeSlider.value) }));
  for (const choice of all("[name=dropped]")) choice.addEventListener("change", () => change({ dropped: choice.value }));
  one("#scores").addEventListener("change", () => change({ scores: one("#scores").checked }));
  for (const box of all("[data-panel]"))
    box.addEventListener("change", () => {
      const number = Number(box.dataset.panel), others = state.shown.filter((each) => each !== number);
      change({ shown: box.checked ? [...others, number].sort((a, b) => a - b) : others });
    });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    colors.clear();
    change({});
  });
  addEventListener("hashchange", () => change(fromFragment(location.hash)));
  rangeControls();
}

async function start() {
  const load = async (address) => {
    const image = Object.assign(new Image(), { src: address });
    await image.decode();
    return image;
  };
  slider();
  const [images, spectrograms] = await Promise.all([data.pictures, data.sounds].map((list) => Promise.all(list.map(load))));
  const panels = data.views.map((view, i) => new Panel(one(`#panel-${i}`), view, images, spectrograms));
  const audible = () => panels.filter((panel) => !panel.root.hidden).flatMap((panel) => [...panel.parts.values()])
    .map((part) => part.tokens).find(({ track }) => typeof track.audio === "number") ?? null;
  playButton(one("#play"), audible);
  controls();
  guide();
  const parts = [...panels, ...(one("#difference") ? [new Difference(one("#difference"), images, spectrograms)] : [])];
  listeners.push(showControls, () => parts.forEach((part) => part.show()), follow);
  const { layer, second } = data.views[0].start;
  change({ layer, second, from: 0, to: end, shown: firstShown, ...fromFragment(location.hash) });
  listeners.push(remember);
  document.documentElement.dataset.ready = "true";
}

start();

// In a frame (the page of `omnidrop app`): say how tall this page is.
if (framed) {
  const page = document.documentElement;
  const tell = () => parent.postMessage({ omnidropHeight: page.offsetHeight }, "*");
  tell(); // a frame out of view is not drawn, and nothing is observed in it
  new ResizeObserver(tell).observe(page);
}
