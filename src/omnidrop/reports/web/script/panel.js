// One prompt of the page: its pictures, sounds, maps, counts and ranking.
class Panel {
  constructor(root, view, images, spectrograms) {
    Object.assign(this, { root, view, now: one("[data-now]", root) });
    const parts = all("[data-track]", root).map((figure) => {
      const track = view.tracks[Number(figure.dataset.track)], tokens = new Tokens(view, track);
      return [track, track.kind === "audio" ? new Sound(figure, tokens, spectrograms[track.sound]) : new Pictures(figure, tokens, images)];
    });
    this.parts = new Map(parts);
    this.others = all("[data-plot]", root).map((box) => new Plot(box, view));
    if (one(".ranking", root)) this.others.push(new Ranking(one(".ranking", root), view, this.parts, images));
    one("[data-survivor]", root)?.addEventListener("click", () => this.survivor());
    this.rows = all(".counts tbody tr", root);
    this.rows.forEach((row, i) => row.addEventListener("click", () => change({ layer: i - 1 })));
  }

  // To the layer and second of the best-scored token among those that last longest.
  survivor() {
    const { layer, second, track, token } = this.view.start;
    for (const part of this.parts.values()) part.mark(-1);
    this.parts.get(this.view.tracks[track])?.mark(token);
    change({ layer, second });
  }

  show() {
    if (this.root.hidden) return;
    for (const part of [...this.parts.values(), ...this.others]) part.show();
    const layer = Math.min(state.layer, this.view.layers - 1);
    this.rows.forEach((row, i) => row.classList.toggle("here", i === layer + 1));
    if (this.now) this.say(layer);
  }

  say(layer) {
    const { tokens, entering, total } = this.view;
    const count = (kind) => (layer < 0 ? tokens[kind] : entering[kind][layer]);
    const kinds = Object.keys(tokens), left = kinds.reduce((sum, kind) => sum + count(kind), 0);
    const parts = kinds.map((kind) => {
      const part = make("span", {}, make("i", { className: kind }), `${kind} ${count(kind)} of ${tokens[kind]}`);
      Object.assign(part.dataset, { kind, value: count(kind) });
      return part;
    });
    this.now.replaceChildren(
      make("b", { textContent: layer < 0 ? "Prompt" : `Layer ${layer}` }),
      make("span", { textContent: `${left} of ${total} tokens (${percent(left, total)})` }), ...parts);
  }
}
