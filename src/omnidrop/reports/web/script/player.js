// Time that runs, with sound where the page holds some: all of it, or only what the layer shown keeps. Decoded in the
// page itself (no media element), so that the content security policy has nothing to allow.
const RAMP = 0.004; // seconds over which sound is switched, so that it does not click
const TICK = 100; // milliseconds between two views while playing

const player = {
  context: null,
  buffers: new Map(),
  now: null, // {tokens, kept, source, gain, began, offset}
};

// The decoded recording.
async function buffer(number) {
  if (!player.buffers.has(number)) {
    const bytes = Uint8Array.from(atob(data.audio[number]), (letter) => letter.charCodeAt(0));
    player.buffers.set(number, await player.context.decodeAudioData(bytes.buffer));
  }
  return player.buffers.get(number);
}

// Stretches of kept sound in a layer: [start, end] in seconds, neighbours joined.
function keptStretches(track, layer) {
  const found = [];
  track.depth.forEach((depth, token) => {
    if (depth <= layer) return;
    const from = track.times[token], to = from + track.step, last = found[found.length - 1];
    if (last && from - last[1] < 1e-3) last[1] = to;
    else found.push([from, to]);
  });
  return found;
}

// Silence what is dropped, from the moment that is playing.
function gate() {
  const { gain, tokens, began, offset, kept } = player.now, level = gain.gain, { currentTime } = player.context;
  level.cancelScheduledValues(0);
  if (!kept) return level.setValueAtTime(1, currentTime);
  level.setValueAtTime(0, currentTime);
  for (const [from, to] of keptStretches(tokens.track, state.layer)) {
    const [start, stop] = [began + from - offset, began + to - offset];
    if (stop <= currentTime) continue;
    level.setValueAtTime(0, Math.max(start, currentTime));
    level.linearRampToValueAtTime(1, Math.max(start, currentTime) + RAMP);
    level.setValueAtTime(1, stop);
    level.linearRampToValueAtTime(0, stop + RAMP);
  }
}

const clock = () => (player.now.source ? player.context.currentTime : performance.now() / 1000);

async function play(tokens, kept) {
  stop();
  const last = Math.min(state.to, tokens ? tokens.track.end : end);
  if (state.second >= last - 0.05) change({ second: state.from });
  const now = { tokens, kept, last, timer: null, source: null, layer: state.layer };
  player.now = now;
  showPlayer();
  if (tokens) {
    let sound;
    try {
      player.context ??= new AudioContext();
      await player.context.resume();
      sound = await buffer(tokens.track.audio);
    } catch {
      if (player.now === now) stop();
      return refuse();
    }
    if (player.now !== now) return; // stopped, or another began, while this one was decoded
    now.source = player.context.createBufferSource();
    now.gain = player.context.createGain();
    now.source.buffer = sound;
    now.source.connect(now.gain).connect(player.context.destination);
  }
  [now.began, now.offset] = [clock(), state.second];
  now.second = now.offset; // a move before the first tick is a move too
  if (tokens) {
    gate();
    now.source.start(0, now.offset);
  }
  now.timer = setInterval(tick, TICK);
}

function stop() {
  if (!player.now) return;
  clearInterval(player.now.timer);
  if (player.now.timer !== null) player.now.source?.stop();
  player.now = null;
  showPlayer();
}

function tick() {
  const { now } = player, second = now.offset + clock() - now.began;
  now.second = second;
  change({ second: Math.min(second, now.last) });
  if (second >= now.last) stop();
}

// Somebody moved while it played: go on from there, or with what the other layer keeps.
function follow() {
  const { now } = player;
  if (!now || now.timer === null) return;
  if (now.second !== undefined && Math.abs(state.second - Math.min(now.second, now.last)) > 0.3) play(now.tokens, now.kept);
  else if (now.source && now.layer !== state.layer) {
    now.layer = state.layer;
    gate();
  }
}

const buttons = [];

function refuse() {
  const text = "This browser cannot play the sound of this page.", box = document.activeElement.getBoundingClientRect();
  showTip(text, box.left, box.top);
  announce(text);
}

function playButton(button, tokens) {
  const kept = button.dataset.play === "kept", name = button.textContent;
  const mine = () => player.now && player.now.tokens === tokens() && player.now.kept === kept;
  button.addEventListener("click", () => (mine() ? stop() : play(tokens(), kept)));
  buttons.push(() => {
    const on = Boolean(mine());
    button.setAttribute("aria-pressed", String(on));
    button.textContent = on ? "Pause" : name;
  });
}

const showPlayer = () => buttons.forEach((show) => show());
