// A recording: its spectrogram with what is dropped in the shade, and a stripe of what is kept. A token is a moment.
const SOUND = { width: 1000, height: 180, stripe: 14 };

class Sound {
  constructor(figure, tokens, image) {
    Object.assign(this, { tokens, track: tokens.track, image, canvas: one(".stage", figure), marked: -1 });
    Object.assign(this.canvas, { width: SOUND.width, height: SOUND.height });
    hover(this.canvas, (x) => this.about(this.under(x)));
    selectRange(this.canvas, (x) => this.second(x), (x) => {
      this.mark(this.under(x));
      change({ second: this.second(x) });
    });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("blur", hideTip);
    for (const button of all("[data-play]", figure)) playButton(button, () => tokens);
  }

  // The seconds that the canvas spans.
  get span() {
    const to = Math.min(state.to, this.track.end);
    return state.from < to ? [state.from, to] : [0, this.track.end];
  }

  second(x) {
    const [from, to] = this.span;
    return from + x * (to - from);
  }

  under(x) {
    const { times, step } = this.track;
    return clamp(Math.floor((this.second(x) - times[0]) / step + 1e-6), 0, times.length - 1);
  }

  show() {
    const { depth, times, step, end } = this.track, { width, height, stripe } = SOUND;
    const tall = height - stripe, [from, to] = this.span;
    const context = this.canvas.getContext("2d");
    const x = (seconds) => ((clamp(seconds, from, to) - from) / (to - from)) * width;
    context.clearRect(0, 0, width, height);
    if (!this.image) {
      context.fillStyle = color("audio"); // what is kept shows as a surface
      context.fillRect(0, 0, width, tall);
    } else {
      const scale = this.image.width / end;
      context.drawImage(this.image, from * scale, 0, (to - from) * scale, this.image.height, 0, 0, width, tall);
    }
    depth.forEach((_, token) => {
      const left = x(times[token]), right = x(times[token] + step), kind = this.tokens.kind(token, state.layer);
      if (right <= left) return;
      paint(context, kind, left, 0, right - left, tall);
      if (kind in STRIPES) {
        context.fillStyle = color(STRIPES[kind]);
        context.fillRect(left, tall + 2, right - left + 0.5, stripe - 2);
        if (state.dropped === "outline") context.fillRect(left, 0, right - left + 0.5, 3);
      }
      if (state.scores) this.bar(context, token, left, right, tall);
      if (token === this.marked) ring(context, left - 6, 0, Math.max(right - left, 2) + 12, tall);
    });
    context.fillStyle = "#ffffff";
    if (state.second >= from && state.second <= to) context.fillRect(Math.max(0, x(state.second) - 1), 0, 2, tall);
    const count = summary(this.tokens, depth.map((_, token) => token), state.layer, "tokens");
    this.canvas.setAttribute("aria-label", `Sound of ${time(end)}: ${count}`);
  }

  bar(context, token, left, right, tall) {
    const worth = this.tokens.worth(token, state.layer);
    if (worth === null) return;
    context.fillStyle = heat(1);
    context.fillRect(left, tall * (1 - worth), right - left, tall * worth);
    context.fillStyle = "#ffffff";
    context.fillRect(left, tall * (1 - worth) - 1, right - left, 2);
  }

  name() {
    return "sound";
  }

  about(token) {
    return `${time(this.track.times[token])}\n${this.tokens.tell(token, state.layer)}`;
  }

  mark(token) {
    this.marked = token;
  }

  follow(token) {
    this.mark(token);
    change({ layer: this.tokens.last(token) });
  }

  key(event) {
    const { times } = this.track, last = times.length - 1;
    const here = this.marked >= 0 ? this.marked : this.under((state.second - this.span[0]) / (this.span[1] - this.span[0]));
    const to = {
      ArrowLeft: here - (this.marked >= 0), ArrowRight: here + (this.marked >= 0), Home: 0, End: last, PageUp: here - 10, PageDown: here + 10,
    }[event.key];
    if (event.key === "Enter" && this.marked >= 0) this.follow(this.marked);
    else if (to !== undefined) {
      this.mark(clamp(to, 0, last));
      change({ second: times[this.marked] });
    } else return;
    event.preventDefault();
    const text = this.about(this.marked), box = this.canvas.getBoundingClientRect(), [from, end] = this.span;
    showTip(text, box.left + ((times[this.marked] - from) / (end - from)) * box.width, box.top + box.height / 2);
    announce(text);
  }
}
