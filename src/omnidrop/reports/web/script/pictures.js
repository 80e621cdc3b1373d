// The pictures of a video, or an image: one large, all small. A token is a patch of a picture.
const BORDERED = 20; // pixels of a patch from which on its border helps more than it hides
const LABELLED = 90; // from which on its score is written on it
const SHEET_WIDTH = 120; // pixels of a small picture

class Pictures {
  constructor(figure, tokens, images) {
    const { track } = tokens;
    Object.assign(this, { tokens, track, canvas: one(".stage", figure), sheet: one(".sheet", figure), marked: -1 });
    this.size = track.rows * track.columns;
    this.images = new Map(track.frames.map(([grid, place]) => [grid, images[place]]));
    this.grids = track.frames.map(([grid]) => grid);
    const { width, height } = this.images.get(this.grids[0]);
    const zoom = Math.max(1, Math.round(640 / Math.max(width, height)));
    Object.assign(this.canvas, { width: width * zoom, height: height * zoom });
    this.small = this.sheet ? this.grids.map((grid) => this.thumb(grid, width, height)) : [];
    hover(this.canvas, (x, y) => this.about(this.under(x, y)));
    this.canvas.addEventListener("click", (event) => this.follow(this.under(...shares(event, this.canvas))));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("blur", hideTip);
  }

  thumb(grid, width, height) {
    const canvas = make("canvas", { width: SHEET_WIDTH, height: Math.max(1, Math.round((SHEET_WIDTH * height) / width)) });
    canvas.addEventListener("click", () => change({ second: this.track.times[grid] }));
    hover(canvas, () => `${time(this.track.times[grid])}\n${this.count(grid)}`);
    this.sheet.append(canvas);
    return canvas;
  }

  range(grid) {
    return Array.from({ length: this.size }, (_, patch) => grid * this.size + patch);
  }

  count(grid) {
    return summary(this.tokens, this.range(grid), state.layer, "patches");
  }

  show() {
    const { times } = this.track;
    this.grid = this.grids.reduce((best, grid) => (times[grid] <= state.second + 1e-6 ? grid : best), this.grids[0]);
    this.draw(this.canvas, this.grid);
    const place = this.track.kind === "image" ? "Image" : `Picture at ${time(times[this.grid])}`;
    this.canvas.setAttribute("aria-label", `${place}: ${this.count(this.grid)}`);
    const inside = (grid) => this.grids.length === 1 || (times[grid] >= state.from - 1e-6 && times[grid] < state.to - 1e-6);
    const visible = this.grids.filter(inside).length;
    this.sheet?.style.setProperty("--thumb", visible <= 4 ? "7rem" : visible <= 8 ? "5rem" : "3.4rem");
    const look = [state.layer, state.dropped, state.scores, state.from, state.to].join(); // what small pictures depend on
    this.small.forEach((canvas, i) => {
      canvas.hidden = !inside(this.grids[i]);
      if (!canvas.hidden && look !== this.look) this.draw(canvas, this.grids[i]);
      canvas.classList.toggle("here", this.grids[i] === this.grid);
    });
    this.look = look;
  }

  draw(canvas, grid) {
    const { rows, columns } = this.track;
    const context = canvas.getContext("2d");
    const { width, height } = canvas;
    context.drawImage(this.images.get(grid), 0, 0, width, height);
    const x = (column) => Math.round((column * width) / columns), y = (row) => Math.round((row * height) / rows);
    const kinds = this.range(grid).map((token) => this.tokens.kind(token, state.layer));
    kinds.forEach((kind, patch) => {
      const column = patch % columns, row = Math.floor(patch / columns);
      const box = [x(column), y(row), x(column + 1) - x(column), y(row + 1) - y(row)];
      paint(context, kind, ...box);
      if (state.scores) this.heat(context, grid * this.size + patch, box);
    });
    this.borders(context, kinds, x, y);
    const patch = this.marked - grid * this.size;
    if (canvas === this.canvas && patch >= 0 && patch < this.size) {
      const column = patch % columns, row = Math.floor(patch / columns);
      ring(context, x(column), y(row), x(column + 1) - x(column), y(row + 1) - y(row));
    }
  }

  heat(context, token, [x, y, width, height]) {
    const worth = this.tokens.worth(token, state.layer);
    if (worth === null) return;
    context.fillStyle = heat(worth);
    context.fillRect(x, y, width, height);
    if (width >= LABELLED) label(context, scoresIn(this.track, state.layer)[token].toPrecision(3), x + 8, y + height - 6);
  }

  // Lines where tokens of different kinds meet.
  borders(context, kinds, x, y) {
    const { rows, columns } = this.track, { width } = context.canvas;
    if (width / columns < BORDERED && state.dropped !== "outline") return;
    const line = Math.max(width / columns < BORDERED ? 1 : 2, Math.round(width / 200));
    context.fillStyle = KEPT;
    for (let row = 0; row < rows; row++)
      for (let column = 0; column < columns; column++) {
        const patch = row * columns + column;
        if (column && kinds[patch] !== kinds[patch - 1])
          context.fillRect(x(column) - line / 2, y(row), line, y(row + 1) - y(row));
        if (row && kinds[patch] !== kinds[patch - columns])
          context.fillRect(x(column), y(row) - line / 2, x(column + 1) - x(column), line);
      }
    if (state.dropped === "outline" && kinds.every((kind) => !LOST.has(kind))) {
      context.lineWidth = 2 * line; // a picture that is kept whole has no border inside
      context.strokeStyle = KEPT;
      context.strokeRect(0, 0, context.canvas.width, context.canvas.height);
    }
  }

  // The token at shares of the large picture's width and height.
  under(x, y) {
    const { rows, columns } = this.track;
    return this.grid * this.size + Math.floor(y * rows) * columns + Math.floor(x * columns);
  }

  name(token) {
    const patch = token % this.size;
    return `row ${Math.floor(patch / this.track.columns) + 1}, column ${(patch % this.track.columns) + 1}`;
  }

  about(token) {
    return `${this.name(token)}\n${this.tokens.tell(token, state.layer)}`;
  }

  mark(token) {
    this.marked = token;
  }

  // To the last layer that has the token.
  follow(token) {
    this.mark(token);
    change({ layer: this.tokens.last(token) });
  }

  key(event) {
    const { columns, rows, times } = this.track;
    const here = Math.floor(this.marked / this.size) === this.grid ? this.marked % this.size : 0;
    const [column, row] = [here % columns, Math.floor(here / columns)];
    const to = {
      ArrowLeft: [column - 1, row], ArrowRight: [column + 1, row], ArrowUp: [column, row - 1], ArrowDown: [column, row + 1],
      Home: [0, row], End: [columns - 1, row],
    }[event.key];
    const turn = { PageUp: -1, PageDown: 1 }[event.key];
    if (event.key === "Enter" && this.marked >= 0) this.follow(this.marked);
    else if (turn) {
      const grid = this.grids[clamp(this.grids.indexOf(this.grid) + turn, 0, this.grids.length - 1)];
      this.mark(grid * this.size + here);
      change({ second: times[grid] });
    } else if (to) {
      this.mark(this.grid * this.size + clamp(to[1], 0, rows - 1) * columns + clamp(to[0], 0, columns - 1));
      this.draw(this.canvas, this.grid);
    } else return;
    event.preventDefault();
    this.speak();
  }

  speak() {
    const text = this.about(this.marked), patch = this.marked % this.size, box = this.canvas.getBoundingClientRect();
    const x = box.left + (((patch % this.track.columns) + 0.5) / this.track.columns) * box.width;
    showTip(text, x, box.top + ((Math.floor(patch / this.track.columns) + 0.5) / this.track.rows) * box.height);
    announce(`${this.track.kind === "image" ? "" : `${time(this.track.times[this.grid])}\n`}${text}`);
  }
}
