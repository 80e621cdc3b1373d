// Where each token went. A dropped token never comes back, so `depth`, the number of layers it entered, says it all.

// Scores of all tokens of a track in a layer; NaN for those that do not enter it. null: none were recorded.
function scoresIn(track, layer) {
  if (!track.scores || layer < 0) return null;
  if (track.known?.layer !== layer) {
    let place = 0;
    const values = track.depth.map((depth) => (depth > layer ? track.scores[layer][place++] ?? NaN : NaN));
    track.known = { layer, values };
  }
  return track.known.values;
}

// All scores of a prompt in a layer, the best first.
function ranking(view, layer) {
  if (layer < 0) return [];
  if (view.known?.layer !== layer) {
    const rows = view.tracks.flatMap((track) =>
      (scoresIn(track, layer) ?? []).map((score, token) => ({ track, token, score })).filter(({ score }) => score >= 0));
    view.known = { layer, rows: rows.sort((a, b) => b.score - a.score) };
  }
  return view.known.rows;
}

const lastLayer = (depth, view) =>
  depth === 0 ? "dropped before layer 0" : depth >= view.layers ? "reaches the last layer" : `last layer: ${depth - 1}`;

// A track of one prompt: a token is "kept" in a layer or "dropped".
class Tokens {
  static kinds = ["kept", "dropped"];

  constructor(view, track) {
    Object.assign(this, { view, track });
  }

  kind(token, layer) {
    return this.track.depth[token] > layer ? "kept" : "dropped";
  }

  // Score relative to the best of the layer, 0 to 1; null where there is none.
  worth(token, layer) {
    const score = scoresIn(this.track, layer)?.[token];
    return score >= 0 ? score / (ranking(this.view, layer)[0].score || 1) : null;
  }

  last(token) {
    return this.track.depth[token] - 1;
  }

  tell(token, layer) {
    const text = lastLayer(this.track.depth[token], this.view);
    const score = scoresIn(this.track, layer)?.[token];
    if (!(score >= 0)) return text;
    const rows = ranking(this.view, layer);
    const rank = 1 + rows.filter((row) => row.score > score).length;
    return `${text}\nscore in layer ${layer}: ${score.toPrecision(3)} (rank ${rank} of ${rows.length})`;
  }
}

// The same track of two prompts: a token is in both, in one of them, or in neither.
class Compared {
  static kinds = ["both", "a", "b", "neither"];

  constructor(a, b) {
    Object.assign(this, { a, b, view: a.view, track: a.track });
  }

  kind(token, layer) {
    const a = this.a.track.depth[token] > layer, b = this.b.track.depth[token] > layer;
    return a && b ? "both" : a ? "a" : b ? "b" : "neither";
  }

  worth() {
    return null;
  }

  last(token) {
    return Math.max(this.a.last(token), this.b.last(token));
  }

  tell(token) {
    return ["a", "b"].map((name) => `${name.toUpperCase()}: ${lastLayer(this[name].track.depth[token], this[name].view)}`).join("\n");
  }
}

const KIND_NAMES = { kept: "kept", dropped: "dropped", both: "both", a: "A only", b: "B only", neither: "neither" };

// "4 of 9 patches in layer 3", or the four numbers of a comparison.
function summary(tokens, range, layer, noun) {
  const counts = Object.fromEntries(tokens.constructor.kinds.map((kind) => [kind, 0]));
  for (const token of range) counts[tokens.kind(token, layer)]++;
  const where = layer < 0 ? "of the prompt" : `in layer ${layer}`;
  if ("kept" in counts) return `${counts.kept} of ${range.length} ${noun} ${where}`;
  return `${Object.entries(counts).map(([kind, count]) => `${KIND_NAMES[kind]} ${count}`).join(", ")} of ${range.length} ${noun} ${where}`;
}
