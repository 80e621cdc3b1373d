// What is said of the token under the pointer, or of the one that the keyboard is on; the latter also to screen readers.
const tip = one("#tip"), live = one("#live");

function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = !text;
  tip.style.left = `${clamp(x + 14, 8, Math.max(8, document.documentElement.clientWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${y + 18}px`;
}

const hideTip = () => (tip.hidden = true);
const announce = (text) => (live.textContent = text.replaceAll("\n", ", "));

// Where a pointer is, as shares of an element's width and height.
function shares(event, element) {
  const box = element.getBoundingClientRect();
  const at = (value, length) => clamp(value / length, 0, 0.999999);
  return [at(event.clientX - box.left, box.width), at(event.clientY - box.top, box.height)];
}

function hover(element, about) {
  element.addEventListener("pointermove", (event) => showTip(about(...shares(event, element)), event.clientX, event.clientY));
  element.addEventListener("pointerleave", hideTip);
}
