// The best-scored tokens of the layer shown, each with its picture; a click goes to its second.
const RANKED = 8;
const CROP = 36; // pixels

class Ranking {
  constructor(box, view, parts, images) {
    Object.assign(this, { box, view, parts, images, list: one("ol", box), note: one(".note", box) });
  }

  show() {
    const layer = Math.min(state.layer, this.view.layers - 1), rows = ranking(this.view, layer);
    const recorded = this.view.tracks.some((track) => track.scores);
    if (recorded)
      this.note.textContent = layer < 0 ? "Scores begin with layer 0." : rows.length ? `${rows.length} tokens with a score in layer ${layer}.` : `No token is left in layer ${layer}.`;
    this.list.replaceChildren(...rows.slice(0, RANKED).map((row) => this.row(row, rows[0].score)));
  }

  row({ track, token, score }, best) {
    const bar = make("i");
    bar.style.width = `${(100 * score) / (best || 1)}%`;
    const second = track.times[Math.floor(token / (track.depth.length / track.times.length))]; // tokens of a picture share one
    const part = this.parts.get(track);
    const where = track.kind === "image" ? "image" : time(second);
    const button = make("button", { type: "button" },
      this.crop(track, token), make("span", { textContent: `${where}, ${part ? part.name(token) : track.kind}` }),
      make("span", { className: "bar" }, bar), make("b", { textContent: score.toPrecision(3) }));
    button.addEventListener("click", () => {
      for (const other of this.parts.values()) other.mark(-1);
      part?.mark(token);
      change(track.kind === "image" ? {} : { second });
    });
    return make("li", {}, button);
  }

  // The patch itself, or the colour of its kind.
  crop(track, token) {
    const canvas = make("canvas", { width: CROP, height: CROP });
    const context = canvas.getContext("2d"), size = track.rows * track.columns;
    const frame = size && track.frames.find(([grid]) => grid === Math.floor(token / size));
    if (frame) {
      const image = this.images[frame[1]], patch = token % size;
      const width = image.width / track.columns, height = image.height / track.rows;
      context.drawImage(image, (patch % track.columns) * width, Math.floor(patch / track.columns) * height, width, height, 0, 0, CROP, CROP);
    } else {
      context.fillStyle = color(track.kind);
      context.fillRect(0, CROP / 4, CROP, CROP / 2);
    }
    return canvas;
  }
}
