// Three steps through the page, each a view of its own. Closed once, it stays closed in this browser; on a phone, where
// it would push the picture out of view, it begins closed.
function guide() {
  const box = one(".guide"), start = data.views[0].start;
  const layers = { prompt: -1, first: 0, last: start.layer };
  for (const link of all("a[data-step]", box)) {
    const update = { layer: layers[link.dataset.step], second: start.second };
    link.addEventListener("click", (event) => {
      event.preventDefault();
      change(update);
    });
    listeners.push(() => link.setAttribute("aria-current", String(state.layer === update.layer && Math.abs(state.second - start.second) < 0.01)));
  }
  box.open = !matchMedia("(max-width: 40rem)").matches;
  try {
    box.open = (localStorage.getItem("omnidrop-guide") ?? (box.open ? "open" : "closed")) === "open";
    // at the click: "toggle" comes later, and a page that is left in between would forget
    one("summary", box).addEventListener("click", () => localStorage.setItem("omnidrop-guide", box.open ? "closed" : "open"));
  } catch {
    // a sandbox without storage: nothing is remembered
  }
}
