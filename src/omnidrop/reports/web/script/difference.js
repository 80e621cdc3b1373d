// Two prompts about the same clip, token by token: kept by A only, by B only, by both, by neither.
class Difference {
  constructor(root, images, spectrograms) {
    Object.assign(this, { root, images, spectrograms, toggle: one("#compare"), bars: one(".by-layer", root), parts: [] });
    this.selects = ["#side-a", "#side-b"].map((id) => one(id, root));
    this.figures = one(".figures", root);
    for (const option of all("option", root)) if (partner(Number(option.value)) === undefined) option.remove();
    this.toggle.addEventListener("change", () => change({ pair: this.toggle.checked ? this.proposed() : null }));
    this.selects.forEach((select, side) => select.addEventListener("change", () => {
      const pair = this.selects.map((each) => Number(each.value));
      if (!comparable(...pair)) pair[1 - side] = partner(pair[side]);
      change({ pair });
    }));
    this.bars.addEventListener("click", (event) => change({ layer: Math.floor(shares(event, this.bars)[0] * this.layers) }));
    hover(this.bars, (x) => this.tell(Math.floor(x * this.layers)));
  }

  // The first two prompts on view, or else of the page, that are about the same clip.
  proposed() {
    const [a, b] = state.shown;
    if (a !== undefined && b !== undefined && comparable(a, b)) return [a, b];
    const first = [...state.shown, ...data.views.keys()].find((number) => partner(number) !== undefined);
    return [first, partner(first)];
  }

  build(pair) {
    [this.pair, this.views] = [pair, pair.map((number) => data.views[number])];
    const [a, b] = this.views;
    this.layers = Math.max(a.layers, b.layers);
    this.tokens = a.tracks.map((track, i) => new Compared(new Tokens(a, track), new Tokens(b, b.tracks[i])));
    this.figures.replaceChildren();
    const ordered = [...this.tokens].sort((p, q) => (q.track.kind === "audio") - (p.track.kind === "audio")); // fills the columns
    this.parts = ordered.map((tokens) => this.figure(tokens)).filter(Boolean);
  }

  figure(tokens) {
    const { track } = tokens, kind = track.frames.length ? "pictures" : "sound";
    if (kind === "sound" && track.kind !== "audio") return null; // pictures that are not on this page
    const figure = one(`#figure-${kind}`).content.firstElementChild.cloneNode(true);
    one("small", figure).textContent = track.name;
    if (kind === "pictures" && track.frames.length === 1) one(".sheet", figure).remove();
    this.figures.append(figure);
    return kind === "pictures" ? new Pictures(figure, tokens, this.images) : new Sound(figure, tokens, this.spectrograms[track.sound]);
  }

  counts(layer) {
    const counts = Object.fromEntries(Compared.kinds.map((kind) => [kind, 0]));
    for (const tokens of this.tokens) tokens.track.depth.forEach((_, token) => counts[tokens.kind(token, layer)]++);
    return counts;
  }

  tell(layer) {
    return [`layer ${layer}`, ...Object.entries(this.counts(layer)).map(([kind, count]) => `${KIND_NAMES[kind]} ${count}`)].join("\n");
  }

  show() {
    this.toggle.checked = state.pair !== null;
    this.root.hidden = state.pair === null;
    if (!state.pair) return;
    if (String(this.pair) !== String(state.pair)) this.build(state.pair);
    this.selects.forEach((select, side) => (select.value = String(state.pair[side])));
    for (const part of this.parts) part.show();
    const counts = this.counts(state.layer);
    one(".now", this.root).replaceChildren(
      make("b", { textContent: state.layer < 0 ? "Prompt" : `Layer ${state.layer}` }),
      ...Compared.kinds.map((kind) => {
        const part = make("span", {}, make("i", { className: kind }), `${KIND_NAMES[kind]} ${counts[kind]}`);
        Object.assign(part.dataset, { kind, value: counts[kind] });
        return part;
      }));
    this.drawBars();
  }

  // One column a layer: shares of the tokens that either keeps.
  drawBars() {
    const context = this.bars.getContext("2d"), { width, height } = this.bars, each = width / this.layers;
    context.clearRect(0, 0, width, height);
    const most = Math.max(1, ...Array.from({ length: this.layers }, (_, layer) => this.kept(layer)));
    for (let layer = 0; layer < this.layers; layer++) {
      let top = height;
      const counts = this.counts(layer);
      for (const kind of ["both", "a", "b"]) {
        const tall = (counts[kind] / most) * height;
        top -= tall;
        context.fillStyle = color(STRIPES[kind]);
        context.fillRect(layer * each + 1, top, each - 2, tall);
      }
      if (layer !== state.layer) continue;
      context.strokeStyle = color("ink");
      context.lineWidth = 2;
      context.strokeRect(layer * each + 1, 1, each - 2, height - 2);
    }
    this.bars.setAttribute("aria-label", `Tokens kept by one prompt or both, by layer. ${this.tell(Math.max(state.layer, 0))}`);
  }

  kept(layer) {
    const { both, a, b } = this.counts(layer);
    return both + a + b;
  }
}

const comparable = (a, b) => a !== b && data.views[a]?.group === data.views[b]?.group && data.views[a]?.total > 0;
const partner = (a) => [...data.views.keys()].find((b) => comparable(a, b));
