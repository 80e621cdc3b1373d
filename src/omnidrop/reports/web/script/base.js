// Shorthands. Text from outside is only ever set as textContent (also by `make`, whose children are nodes or texts).
const data = JSON.parse(document.getElementById("data").textContent);
const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const make = (name, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};
const colors = new Map(); // of page.css, by name; emptied when the theme changes
const color = (name) => {
  if (!colors.has(name)) colors.set(name, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
  return colors.get(name);
};
const percent = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(1)} %` : "–");
const time = (seconds) => `${seconds.toFixed(1)} s`;
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const framed = parent !== window; // as `omnidrop app` shows the page
