// The page's only script: two sliders (layer, second), and everything that follows them. Numbers come from #data; text
// from outside is only ever set as textContent.
"use strict";
(() => {
  const SHADE = "rgba(9, 11, 15, 0.68)";
  const KEPT = "#ffd84d"; // the border between kept and dropped patches: seen on dark and light pictures
  const BORDERED = 20; // pixels of a patch from which on its border helps more than it hides
  const SHEET_WIDTH = 120; // pixels of a small picture
  const SOUND = { width: 1000, height: 180, stripe: 14 };
  const data = JSON.parse(document.getElementById("data").textContent);
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const layerSlider = one("#layer"), timeSlider = one("#second"), playButton = one("#play"), tip = one("#tip");
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const percent = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(1)} %` : "–");
  const time = (seconds) => `${seconds.toFixed(1)} s`;
  const load = (address) => {
    const image = new Image();
    image.src = address;
    return image.decode().then(() => image);
  };

  // One prompt -------------------------------------------------------------------------------------------------------

  class Panel {
    constructor(root, view, pictures, sounds) {
      Object.assign(this, { root, view });
      this.now = one("[data-now]", root);
      this.tracks = all("[data-track]", root).map((figure) => {
        const track = view.tracks[Number(figure.dataset.track)];
        return track.kind === "audio" ? new Sound(figure, view, track, sounds[track.sound]) : new Pictures(figure, view, track, pictures);
      });
      this.plots = all("[data-plot]", root).map((box) => new Plot(box, view));
    }

    show(layer, second) {
      if (this.root.hidden) return;
      const at = Math.min(layer, this.view.layers - 1);
      for (const part of [...this.tracks, ...this.plots]) part.show(at, second);
      all(".counts tbody tr", this.root).forEach((row, i) => row.classList.toggle("here", i === at + 1));
      if (this.now) this.say(at);
    }

    say(layer) {
      const { tokens, entering, total } = this.view;
      const count = (kind) => (layer < 0 ? tokens[kind] : entering[kind][layer]);
      const kinds = Object.keys(tokens);
      const left = kinds.reduce((sum, kind) => sum + count(kind), 0);
      const name = document.createElement("b");
      name.textContent = layer < 0 ? "Prompt" : `Layer ${layer}`;
      const sum = document.createElement("span");
      sum.textContent = `${left} of ${total} tokens (${percent(left, total)})`;
      const parts = kinds.map((kind) => {
        const part = document.createElement("span"), swatch = document.createElement("i");
        swatch.style.background = `var(--${kind})`;
        part.append(swatch, `${kind} ${count(kind)} of ${tokens[kind]}`);
        Object.assign(part.dataset, { kind, value: count(kind) });
        return part;
      });
      this.now.replaceChildren(name, sum, ...parts);
    }
  }

  // Where a token went, and what it was worth in the layer shown, if scores were recorded.
  function fate(track, token, layer, view) {
    const depth = track.depth[token];
    const end = depth === 0 ? "dropped before layer 0" : depth >= view.layers ? "reaches the last layer" : `last layer: ${depth - 1}`;
    if (!track.scores || layer < 0 || depth <= layer) return end;
    const place = track.depth.slice(0, token).filter((other) => other > layer).length;
    const score = track.scores[layer][place];
    const rivals = view.tracks.flatMap((other) => (other.scores ? other.scores[layer] : []));
    const rank = 1 + rivals.filter((other) => other > score).length;
    return `${end}\nscore in layer ${layer}: ${score.toPrecision(3)} (rank ${rank} of ${rivals.length})`;
  }

  // What is dropped loses its colour and most of its light.
  function shade(context, x, y, width, height) {
    context.globalCompositeOperation = "saturation";
    context.fillStyle = "#808080";
    context.fillRect(x, y, width, height);
    context.globalCompositeOperation = "source-over";
    context.fillStyle = SHADE;
    context.fillRect(x, y, width, height);
  }

  // Pictures with what is dropped in the shade -----------------------------------------------------------------------

  class Pictures {
    constructor(figure, view, track, pictures) {
      Object.assign(this, { view, track, canvas: one(".stage", figure), sheet: one(".sheet", figure) });
      this.images = new Map(track.frames.map(([grid, place]) => [grid, pictures[place]]));
      this.grids = track.frames.map(([grid]) => grid);
      const { width, height } = this.images.get(this.grids[0]);
      const zoom = Math.max(1, Math.round(640 / Math.max(width, height)));
      Object.assign(this.canvas, { width: width * zoom, height: height * zoom });
      this.small = this.sheet ? this.grids.map((grid) => this.thumb(grid, width, height)) : [];
      hover(this.canvas, (x, y) => this.about(x, y));
    }

    thumb(grid, width, height) {
      const canvas = document.createElement("canvas");
      Object.assign(canvas, { width: SHEET_WIDTH, height: Math.max(1, Math.round((SHEET_WIDTH * height) / width)) });
      canvas.addEventListener("click", () => seek(this.track.times[grid]));
      this.sheet.append(canvas);
      return canvas;
    }

    show(layer, second) {
      const { times } = this.track;
      this.layer = layer;
      this.grid = this.grids.reduce((best, grid) => (times[grid] <= second + 1e-6 ? grid : best), this.grids[0]);
      const kept = this.draw(this.canvas, this.grid);
      const place = this.track.kind === "image" ? "Image" : `Picture at ${time(times[this.grid])}`;
      const where = layer < 0 ? "of the prompt" : `in layer ${layer}`;
      this.canvas.setAttribute("aria-label", `${place}: ${kept} of ${this.size} patches ${where}`);
      this.small.forEach((canvas, i) => {
        this.draw(canvas, this.grids[i]);
        canvas.classList.toggle("here", this.grids[i] === this.grid);
      });
    }

    // When kept and dropped stand side by side: there a look is worth most.
    best(layer) {
      const { depth, times } = this.track;
      const worth = (grid) => {
        const kept = depth.slice(grid * this.size, (grid + 1) * this.size).filter((layers) => layers > layer).length;
        return Math.min(kept, this.size - kept);
      };
      return times[this.grids.reduce((best, grid) => (worth(grid) > worth(best) ? grid : best))];
    }

    get size() {
      return this.track.rows * this.track.columns;
    }

    draw(canvas, grid) {
      const { rows, columns, depth } = this.track;
      const context = canvas.getContext("2d");
      const { width, height } = canvas;
      context.imageSmoothingEnabled = true;
      context.drawImage(this.images.get(grid), 0, 0, width, height);
      const alive = (row, column) => depth[grid * this.size + row * columns + column] > this.layer;
      const x = (column) => Math.round((column * width) / columns), y = (row) => Math.round((row * height) / rows);
      let kept = 0;
      for (let row = 0; row < rows; row++)
        for (let column = 0; column < columns; column++) {
          if (alive(row, column)) kept++;
          else shade(context, x(column), y(row), x(column + 1) - x(column), y(row + 1) - y(row));
        }
      if (width / columns < BORDERED) return kept;
      context.fillStyle = KEPT;
      const line = Math.max(2, Math.round(width / 200));
      for (let row = 0; row < rows; row++)
        for (let column = 0; column < columns; column++) {
          if (column && alive(row, column) !== alive(row, column - 1))
            context.fillRect(x(column) - line / 2, y(row), line, y(row + 1) - y(row));
          if (row && alive(row, column) !== alive(row - 1, column))
            context.fillRect(x(column), y(row) - line / 2, x(column + 1) - x(column), line);
        }
      return kept;
    }

    about(x, y) {
      const { rows, columns } = this.track;
      const row = Math.min(rows - 1, Math.floor(y * rows)), column = Math.min(columns - 1, Math.floor(x * columns));
      const token = this.grid * this.size + row * columns + column;
      return `row ${row + 1}, column ${column + 1}\n${fate(this.track, token, this.layer, this.view)}`;
    }
  }

  // Sound with what is dropped in the shade --------------------------------------------------------------------------

  class Sound {
    constructor(figure, view, track, image) {
      Object.assign(this, { view, track, image, canvas: one(".stage", figure) });
      Object.assign(this.canvas, { width: SOUND.width, height: SOUND.height });
      hover(this.canvas, (x) => this.about(x));
      this.canvas.addEventListener("click", (event) => seek((event.offsetX / this.canvas.clientWidth) * track.end));
    }

    show(layer, second) {
      const { depth, times, step, end } = this.track;
      this.layer = layer;
      const context = this.canvas.getContext("2d");
      const { width, height, stripe } = SOUND;
      const tall = height - stripe;
      context.clearRect(0, 0, width, height);
      if (this.image) context.drawImage(this.image, 0, 0, width, tall);
      const x = (seconds) => (Math.min(seconds, end) / end) * width;
      const ink = color("audio");
      let kept = 0;
      depth.forEach((layers, token) => {
        const left = x(times[token]), right = x(times[token] + step);
        const alive = layers > layer;
        kept += alive;
        if (!alive) return shade(context, left, 0, right - left, tall);
        context.fillStyle = ink;
        context.fillRect(left, tall + 2, right - left + 0.5, stripe - 2);
      });
      context.fillStyle = "#ffffff";
      context.fillRect(Math.max(0, x(second) - 1), 0, 2, tall);
      const where = layer < 0 ? "of the prompt" : `in layer ${layer}`;
      this.canvas.setAttribute("aria-label", `Sound of ${time(end)}: ${kept} of ${depth.length} tokens ${where}`);
    }

    about(x) {
      const { depth, times, step, end } = this.track;
      const token = Math.floor((x * end) / step);
      return token < depth.length ? `${time(times[token])}\n${fate(this.track, token, this.layer, this.view)}` : "";
    }
  }

  // Maps and curves: drawn beforehand, with a cursor each for layer and second -----------------------------------------

  class Plot {
    constructor(box, view) {
      Object.assign(this, { box, view, map: box.dataset.plot === "timeline" });
      this.axes = this.map ? view.timeline.axes : view.split;
      this.layers = this.axes.map(() => this.cursor(this.map ? "across" : "down"));
      this.clips = this.map ? [...new Set(view.timeline.stretches.map(([clip]) => clip))] : [];
      this.seconds = this.axes.map(() => this.clips.map(() => this.cursor("down"))); // each clip has its own seconds
      if (this.map) hover(box, (x, y) => this.about(x, y));
    }

    cursor(kind) {
      const line = document.createElement("div");
      line.className = `cursor ${kind}`;
      this.box.append(line);
      return line;
    }

    show(layer, second) {
      const { layers, timeline } = this.view;
      const { stretches } = timeline;
      this.axes.forEach(([left, top, width, height], i) => {
        const share = (layer + 0.5) / layers;
        this.layers[i].hidden = layer < 0;
        if (!this.map) return place(this.layers[i], left + width * share, top, 0, height);
        place(this.layers[i], left, top + height * share, width, 0);
        this.clips.forEach((clip, c) => {
          const first = stretches.findIndex((stretch) => stretch[0] === clip);
          const columns = stretches.filter((stretch) => stretch[0] === clip).length;
          const at = Math.min(second / (stretches[first][2] - stretches[first][1]), columns);
          place(this.seconds[i][c], left + (width * (first + at)) / stretches.length, top, 0, height);
        });
      });
    }

    about(x, y) {
      const { layers, timeline } = this.view;
      const hit = this.axes.findIndex(([l, t, w, h]) => x >= l && x < l + w && y >= t && y < t + h);
      if (hit < 0) return "";
      const [left, top, width, height] = this.axes[hit];
      const kind = Object.keys(timeline.tokens)[hit];
      const column = Math.floor(((x - left) / width) * timeline.stretches.length);
      const layer = Math.floor(((y - top) / height) * layers);
      const [, start, end] = timeline.stretches[column];
      const tokens = timeline.tokens[kind][column], kept = timeline.entering[kind][layer][column];
      return tokens ? `layer ${layer}, ${start} to ${end} s\n${kept} of ${tokens} ${kind} tokens (${percent(kept, tokens)})` : "";
    }
  }

  const place = (line, left, top, width, height) => {
    const values = { left, top, width, height };
    for (const side in values) line.style[side] = `${100 * values[side]}%`;
  };

  // What is said under the pointer: `about` gets shares of the element's width and height ------------------------------

  function hover(element, about) {
    element.addEventListener("pointermove", (event) => {
      const box = element.getBoundingClientRect();
      const at = (value, length) => Math.max(0, Math.min(0.999999, value / length));
      tip.textContent = about(at(event.clientX - box.left, box.width), at(event.clientY - box.top, box.height));
      tip.hidden = !tip.textContent;
      const left = Math.min(event.clientX + 14, document.documentElement.clientWidth - tip.offsetWidth - 8);
      tip.style.left = `${Math.max(8, left)}px`;
      tip.style.top = `${event.clientY + 18}px`;
    });
    element.addEventListener("pointerleave", () => (tip.hidden = true));
  }

  // The two sliders ----------------------------------------------------------------------------------------------------

  let panels = [], timer = null;

  function show() {
    const layer = Number(layerSlider.value), second = Number(timeSlider.value);
    one("#layer-value").textContent = layer < 0 ? "prompt" : String(layer);
    layerSlider.setAttribute("aria-valuetext", layer < 0 ? "the prompt, before anything is dropped" : `layer ${layer}`);
    one("#second-value").textContent = second.toFixed(1);
    timeSlider.setAttribute("aria-valuetext", time(second));
    for (const panel of panels) panel.show(layer, second);
  }

  function seek(second) {
    timeSlider.value = second;
    show();
  }

  function play(on) {
    clearInterval(timer);
    timer = on ? setInterval(step, 500) : null;
    playButton.setAttribute("aria-pressed", String(on));
    playButton.textContent = on ? "Pause" : "Play";
  }

  function step() {
    if (Number(timeSlider.value) >= Number(timeSlider.max)) return play(false);
    timeSlider.stepUp();
    show();
  }

  async function start() {
    const [pictures, sounds] = await Promise.all([data.pictures, data.sounds].map((list) => Promise.all(list.map(load))));
    panels = data.views.map((view, i) => new Panel(one(`#panel-${i}`), view, pictures, sounds));
    const tracks = data.views.flatMap((view) => view.tracks.filter((track) => track.step > 0));
    const steps = tracks.filter((track) => track.kind === "video").map((track) => track.step);
    const length = steps.length ? Math.min(...steps) : 0.5;
    const last = Math.max(0, ...tracks.map((track) => track.times[track.times.length - 1]));
    timeSlider.step = length;
    timeSlider.max = Math.floor(last / length + 1e-6) * length; // on the slider's own steps: playing ends there
    timeSlider.disabled = playButton.disabled = Number(timeSlider.max) === 0;
    layerSlider.addEventListener("input", show);
    timeSlider.addEventListener("input", show);
    playButton.addEventListener("click", () => {
      if (timer === null && Number(timeSlider.value) >= Number(timeSlider.max)) seek(0);
      play(timer === null);
    });
    for (const box of all("[data-panel]"))
      box.addEventListener("change", () => {
        one(`#panel-${box.dataset.panel}`).hidden = !box.checked;
        show();
      });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
    const first = panels[0].tracks.find((part) => part.track.kind === "video" && part instanceof Pictures);
    seek(first ? first.best(Number(layerSlider.value)) : 0);
    document.documentElement.dataset.ready = "true";
  }

  start();

  // In a frame (the page of `omnidrop app`): say how tall this page is.
  if (parent !== window) {
    const page = document.documentElement;
    const tell = () => parent.postMessage({ omnidropHeight: page.offsetHeight }, "*");
    tell();  // a frame out of view is not drawn, and nothing is observed in it
    new ResizeObserver(tell).observe(page);
  }
})();
