// How a token looks: by what became of it, by the reader's choice for dropped ones, and by its score.
const SHADE = "rgba(9, 11, 15, 0.68)";
const HIDDEN = "#0b0d11"; // the ground of the stages in page.css
const KEPT = "#ffd84d"; // the border of kept patches: seen on dark and light pictures
const TINTS = { a: "rgba(40, 120, 255, 0.55)", b: "rgba(255, 120, 20, 0.55)" };
const STRIPES = { kept: "audio", both: "kept", a: "only-a", b: "only-b" }; // variables of page.css
const LOST = new Set(["dropped", "neither"]);

function paint(context, kind, x, y, width, height) {
  if (kind in TINTS) {
    context.fillStyle = TINTS[kind];
    context.fillRect(x, y, width, height);
  }
  if (!LOST.has(kind) || state.dropped === "outline") return;
  if (state.dropped === "hide") {
    context.fillStyle = HIDDEN;
    context.fillRect(x, y, width, height);
    return;
  }
  context.globalCompositeOperation = "saturation"; // loses its colour and most of its light
  context.fillStyle = "#808080";
  context.fillRect(x, y, width, height);
  context.globalCompositeOperation = "source-over";
  context.fillStyle = SHADE;
  context.fillRect(x, y, width, height);
}

// `worth`: the score relative to the best one. The square root keeps small scores visible.
const heat = (worth) => `rgba(255, 60, 30, ${(0.6 * Math.sqrt(worth)).toFixed(3)})`;

function ring(context, x, y, width, height) {
  context.lineWidth = 4;
  context.strokeStyle = "#000000";
  context.strokeRect(x + 4, y + 4, width - 8, height - 8);
  context.lineWidth = 2;
  context.strokeStyle = "#ffffff";
  context.strokeRect(x + 4, y + 4, width - 8, height - 8);
}

function label(context, text, x, y) {
  context.font = "600 15px system-ui, sans-serif";
  context.textBaseline = "bottom";
  context.lineWidth = 3;
  context.strokeStyle = "#000000";
  context.strokeText(text, x, y);
  context.fillStyle = "#ffffff";
  context.fillText(text, x, y);
}
