// Maps and curves: drawn beforehand (plots.py), with a cursor each for layer and second. A click goes there.
class Plot {
  constructor(box, view) {
    Object.assign(this, { box, view, map: box.dataset.plot === "timeline" });
    this.axes = this.map ? view.timeline.axes : view.split;
    this.layers = this.axes.map(() => this.line(this.map ? "cursor across" : "cursor down"));
    this.clips = this.map ? [...new Set(view.timeline.stretches.map(([clip]) => clip))] : [];
    this.seconds = this.axes.map(() => this.clips.map(() => this.line("cursor down"))); // each clip has its own seconds
    this.ranges = this.clips.length === 1 ? this.axes.map(() => this.line("range")) : [];
    hover(box, (x, y) => this.about(x, y));
    if (this.map) selectRange(box, (x) => this.second(x), (x, y) => this.go(x, y));
    else box.addEventListener("click", (event) => this.go(...shares(event, box)));
  }

  line(name) {
    const line = make("div", { className: name });
    this.box.append(line);
    return line;
  }

  show() {
    const { layers, timeline } = this.view, { stretches } = timeline;
    const layer = Math.min(state.layer, layers - 1), share = (layer + 0.5) / layers;
    this.axes.forEach(([left, top, width, height], i) => {
      this.layers[i].hidden = layer < 0;
      if (!this.map) return put(this.layers[i], left + width * share, top, 0, height);
      put(this.layers[i], left, top + height * share, width, 0);
      this.clips.forEach((clip, c) => {
        const first = stretches.findIndex((stretch) => stretch[0] === clip);
        const columns = stretches.filter((stretch) => stretch[0] === clip).length;
        const at = Math.min(state.second / (stretches[first][2] - stretches[first][1]), columns);
        put(this.seconds[i][c], left + (width * (first + at)) / stretches.length, top, 0, height);
      });
      if (!this.ranges.length) return;
      const length = stretches[stretches.length - 1][2];
      this.ranges[i].hidden = state.from === 0 && state.to === end;
      put(this.ranges[i], left + (width * state.from) / length, top, (width * (Math.min(state.to, length) - state.from)) / length, height);
    });
  }

  // Which axes a point is in, and where in them: [number, share of the width, share of the height].
  inside(x, y) {
    const hit = this.axes.findIndex(([l, t, w, h]) => x >= l && x < l + w && y >= t && y < t + h);
    if (hit < 0) return null;
    const [left, top, width, height] = this.axes[hit];
    return [hit, (x - left) / width, (y - top) / height];
  }

  // Seconds of a share of the box's width; null outside the axes and where several clips share them.
  second(x) {
    const [left, , width] = this.axes[0], { stretches } = this.view.timeline;
    return this.ranges.length ? clamp((x - left) / width, 0, 1) * stretches[stretches.length - 1][2] : null;
  }

  go(x, y) {
    const at = this.inside(x, y), { stretches } = this.view.timeline;
    if (!at) return;
    if (!this.map) return change({ layer: Math.floor(at[1] * this.view.layers) });
    const place = at[1] * stretches.length, [, from, to] = stretches[Math.floor(place)];
    change({ layer: Math.floor(at[2] * this.view.layers), second: from + (place % 1) * (to - from) });
  }

  about(x, y) {
    const { layers, timeline, entering } = this.view, at = this.inside(x, y);
    if (!at) return "";
    if (!this.map) {
      const layer = Math.floor(at[1] * layers);
      return [`layer ${layer}`, ...Object.keys(entering).map((kind) => `${kind} ${entering[kind][layer]}`)].join("\n");
    }
    const kind = Object.keys(timeline.tokens)[at[0]];
    const column = Math.floor(at[1] * timeline.stretches.length), layer = Math.floor(at[2] * layers);
    const [, from, to] = timeline.stretches[column];
    const tokens = timeline.tokens[kind][column], kept = timeline.entering[kind][layer][column];
    return tokens ? `layer ${layer}, ${from} to ${to} s\n${kept} of ${tokens} ${kind} tokens (${percent(kept, tokens)})` : "";
  }
}

function put(line, left, top, width, height) {
  const values = { left, top, width, height };
  for (const side in values) line.style[side] = `${100 * values[side]}%`;
}
