// The tab Live: camera and microphone of this browser, sent in pieces to live/push of this server (omnidrop.app.route).
window.omnidropLive = (() => {
  const PERIOD = 500, SIDE = 640, QUALITY = 0.85; // milliseconds from piece to piece; pixels, and quality, of a picture
  const WAITING = 200000, OFF = 0.5, TRIES = 10; // samples that may wait; seconds of sound astray; pieces that may fail
  // sound as it comes, as 16-bit samples; it is handed on 2048 at a time
  const EAR = `registerProcessor("omnidrop-ear", class extends AudioWorkletProcessor {
    constructor() { super(); this.block = new Int16Array(2048); this.filled = 0; }
    process([[channel]]) {
      for (const value of channel || []) {
        this.block[this.filled++] = Math.max(-1, Math.min(1, value)) * 32767;
        if (this.filled === this.block.length) { this.port.postMessage(this.block.slice()); this.filled = 0; }
      }
      return true;
    }
  });`;
  let run = null; // the stream that is open, or is being opened

  const part = (name) => document.querySelector("#od-live-" + name);
  const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

  const say = (text) => {
    const box = part("said");
    if (!box) return;
    box.textContent = text;
    box.hidden = !text;
  };

  const running = (is) => {
    for (const [name, off] of [["start", is], ["stop", !is]]) if (part(name)) part(name).disabled = off;
  };

  const post = async (what, me, body, keepalive = false) => {
    const headers = me.token ? { "x-omnidrop-stream": me.token } : {};
    const signal = keepalive ? undefined : AbortSignal.timeout(30000);
    const answer = await fetch("live/" + what, { method: "POST", body, headers, keepalive, signal });
    const said = await answer.json();
    if (!answer.ok) throw Object.assign(new Error(said.detail), { status: answer.status });
    return said;
  };

  // Browsers have no mediaDevices in a page that came unencrypted from another machine.
  const check = () => {
    const there = isSecureContext && navigator.mediaDevices;
    if (!there) say("Browsers give camera and microphone to pages of the same machine (http://localhost) or over HTTPS "
      + `only, and this page is ${location.origin}. Open it so: docs/app.md, "Live".`);
    return there;
  };

  const listen = async (me) => {
    me.context = new AudioContext({ sinkId: { type: "none" } }); // where browsers know that, no loudspeaker is needed
    const script = URL.createObjectURL(new Blob([EAR], { type: "text/javascript" }));
    await me.context.audioWorklet.addModule(script);
    URL.revokeObjectURL(script);
    const ear = new AudioWorkletNode(me.context, "omnidrop-ear", { channelCount: 1, channelCountMode: "explicit" });
    ear.port.onmessage = ({ data }) => {
      me.sound.push(data);
      while (me.sound.length * data.length > WAITING) me.sound.shift();
    };
    me.context.createMediaStreamSource(me.media).connect(ear).connect(me.context.destination); // it plays nothing
    await me.context.resume();
  };

  const watch = async (me) => {
    me.video = Object.assign(document.createElement("video"), { muted: true, playsInline: true, srcObject: me.media });
    await me.video.play();
    const { videoWidth: width, videoHeight: height } = me.video, factor = Math.min(1, SIDE / Math.max(width, height));
    me.canvas = Object.assign(document.createElement("canvas"), {
      width: Math.round(width * factor), height: Math.round(height * factor),
    });
    const shown = part("video");
    if (shown) { shown.srcObject = me.media; shown.play().catch(() => {}); }
  };

  // The picture of now, as a JPEG. All have one size; a telephone that is turned gets bars.
  const picture = (me) => {
    const { canvas, video } = me, paper = canvas.getContext("2d");
    const factor = Math.min(canvas.width / video.videoWidth, canvas.height / video.videoHeight);
    const width = video.videoWidth * factor, height = video.videoHeight * factor;
    paper.fillRect(0, 0, canvas.width, canvas.height);
    paper.drawImage(video, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
    return new Promise((done) => canvas.toBlob(done, "image/jpeg", QUALITY));
  };

  // A piece: the length of the picture, the picture, all samples since the last piece.
  const send = async (me) => {
    const now = () => (performance.now() - me.zero) / 1000, query = new URLSearchParams({ after: me.after });
    if (me.video) query.set("time", now());
    const jpeg = me.video ? await picture(me) : new Blob();
    const sound = me.sound.splice(0), length = sound.reduce((sum, block) => sum + block.length, 0);
    if (length) {
      const seconds = length / me.rate, begins = Math.max(0, now() - seconds);
      if (me.heard === null || Math.abs(begins - me.heard) > OFF) query.set("sound_time", me.heard = begins);
      me.heard += seconds;
    }
    const head = new DataView(new ArrayBuffer(4));
    head.setUint32(0, jpeg.size, true);
    show(me, await post("push?" + query, me, new Blob([head, jpeg, ...sound])));
  };

  const start = async (kind, method, keep) => {
    if (run || !check()) return;
    const me = run = { sound: [], heard: null, after: 0, rate: 16000, failed: 0 };
    say("");
    running(true);
    part("answers").replaceChildren();
    part("state").textContent = "Waiting for camera and microphone ...";
    try {
      const sound = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
      me.media = await navigator.mediaDevices.getUserMedia({
        video: kind !== "Microphone" && { width: { ideal: SIDE } }, audio: kind !== "Camera" && sound,
      });
      for (const track of me.media.getTracks()) track.onended = () => stop(`The ${track.kind} device has ended.`);
      if (kind !== "Microphone") await watch(me);
      if (kind !== "Camera") { await listen(me); me.rate = me.context.sampleRate; }
      Object.assign(me, await post("open", me, JSON.stringify({ kind, method, keep, rate: me.rate })));
      me.zero = performance.now();
      me.sound.length = 0;
      while (run === me) {
        const begun = performance.now();
        try {
          await send(me);
          me.failed = 0;
        } catch (error) { // a network that is away for a moment, or too much at once
          if ((error.status && error.status !== 429) || ++me.failed > TRIES) throw error;
        }
        await pause(Math.max(50, PERIOD - (performance.now() - begun)));
      }
    } catch (error) {
      const why = error.status ? error.message : `${error.name}: ${error.message}`;
      if (run === me) say((me.token ? "Ended: " : "Not started: ") + why);
    } finally {
      if (run === me) run = null;
      leave(me);
    }
  };

  // Devices first: their lamp goes out at once.
  const leave = (me, keepalive = false) => {
    for (const track of me.media ? me.media.getTracks() : []) track.stop();
    if (me.context && me.context.state !== "closed") me.context.close();
    if (me.token && !me.closed) { me.closed = true; post("close", me, undefined, keepalive).catch(() => {}); }
    running(false);
    if (part("video")) part("video").srcObject = null;
    if (part("state")) part("state").textContent = "Not running.";
  };

  const stop = (why = "") => { // the piece that is on its way ends the loop of `start`
    if (run && why) say(why);
    run = null;
  };

  addEventListener("pagehide", () => { const me = run; run = null; if (me) leave(me, true); });

  const ask = async (what, question) => {
    if (!run || !run.token) return say("Start the stream first.");
    const me = run;
    try {
      say("");
      show(me, await post(what, me, JSON.stringify({ question })));
    } catch (error) { say(error.message); }
  };

  const seconds = (value) => value.toFixed(value < 10 ? 1 : 0) + " s";

  const units = (count) => count + (count === 1 ? " unit" : " units");

  const show = (me, state) => {
    if (run !== me || !part("state")) return;
    const lost = Object.entries(state.filled).filter(([, value]) => value >= OFF);
    const rows = [
      ["Running for", seconds(state.seconds)],
      ["Held", `${seconds(state.held_seconds)} in ${units(state.units)}`],
      ["Tokens held", `${state.held_tokens} (${(state.held_bytes / 1e6).toFixed(1)} MB)`],
      ["Waiting", units(state.waiting_units)],
      ["Skipped", state.skipped_seconds ? `${seconds(state.skipped_seconds)}: the model is too slow` : "nothing"],
      ...lost.map(([name, value]) => [`Without ${name}`, seconds(value)]),
      ...(state.lost_seconds ? [["Before the first picture", seconds(state.lost_seconds)]] : []),
      ...(state.standing ? [["Standing question", state.standing]] : []),
    ];
    const list = document.createElement("dl");
    list.className = "od-numbers";
    for (const row of rows) list.append(...["dt", "dd"].map((tag, place) => tagged(tag, row[place])));
    part("state").replaceChildren(list);
    part("now").replaceChildren(...(state.asking ? [answer({ ...state.asking, busy: true })] : []));
    for (const each of state.answers) {
      if (each.number <= me.after) continue; // of two requests at a time
      me.after = each.number;
      part("answers").prepend(answer(each));
    }
  };

  const tagged = (tag, text, name = "") => Object.assign(document.createElement(tag), { textContent: text, className: name });

  const answer = ({ question, text, error, standing, at, kept, first, busy }) => {
    const box = tagged("section", "", "od-card"), by = [];
    if (busy) box.setAttribute("aria-busy", "true");
    if (standing) by.push("standing question");
    if (at !== undefined) by.push(`at ${seconds(at)}`, `kept ${kept}`, `first token ${first.toFixed(2)} s`);
    box.append(tagged("h3", question), tagged("p", by.join(", "), "od-by"));
    box.append(error ? tagged("p", error, "od-message od-error") : tagged("p", text, "od-answer"));
    return box;
  };

  return { start, stop, ask, check };
})();
