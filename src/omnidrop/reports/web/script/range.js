// The range of seconds on view: two numbers above, or a drag over a spectrogram or map. A press without a drag is a click.
const DRAG = 6; // pixels from which on a press is a drag
const SHORTEST = 0.5; // seconds

function setRange(a, b) {
  const from = clamp(Math.min(a, b), 0, end - SHORTEST), to = clamp(Math.max(a, b), from + SHORTEST, end);
  change({ from, to, second: clamp(state.second, from, to) });
}

// `second` turns a share of the element's width into seconds, or null where there are none.
function selectRange(element, second, click) {
  let start = null;
  const box = make("div", { className: "selection", hidden: true });
  element.after(box);
  element.addEventListener("pointerdown", (event) => {
    if (event.button === 0) start = event;
  });
  element.addEventListener("pointermove", (event) => {
    const dragged = start && event.pointerType !== "touch" && Math.abs(event.clientX - start.clientX) > DRAG;
    box.hidden = !dragged;
    if (!dragged) return;
    element.setPointerCapture(event.pointerId);
    const left = element.offsetLeft, [a, b] = [shares(start, element)[0], shares(event, element)[0]].sort((p, q) => p - q);
    Object.assign(box.style, {
      left: `${left + a * element.clientWidth}px`, width: `${(b - a) * element.clientWidth}px`,
      top: `${element.offsetTop}px`, height: `${element.clientHeight}px`,
    });
  });
  element.addEventListener("pointerup", (event) => {
    if (!start) return;
    const dragged = !box.hidden, [a] = shares(start, element), [b, y] = shares(event, element);
    start = null;
    box.hidden = true;
    if (!dragged) return click(b, y);
    if (second(a) !== null && second(b) !== null) setRange(second(a), second(b));
  });
  element.addEventListener("pointercancel", () => {
    start = null;
    box.hidden = true;
  });
}

function rangeControls() {
  const from = one("#from"), to = one("#to"), whole = one("#whole");
  for (const input of [from, to]) {
    input.max = end.toFixed(1);
    input.addEventListener("change", () => setRange(Number(from.value) || 0, Number(to.value) || end));
  }
  whole.addEventListener("click", () => change({ from: 0, to: end }));
  listeners.push(() => {
    [from.value, to.value] = [state.from.toFixed(1), state.to.toFixed(1)];
    whole.disabled = state.from === 0 && state.to === end;
  });
}
