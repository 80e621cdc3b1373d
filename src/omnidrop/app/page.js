// Height of the report's frame: it sends its height, and no other window is believed.
addEventListener("message", (event) => {
  const height = Number(event.data && event.data.omnidropHeight);
  const frame = document.querySelector("iframe.od-frame");
  if (height > 0 && frame && event.source === frame.contentWindow) frame.style.height = Math.ceil(height) + "px";
});

// Saves the report (what the frame shows) or a trace (the hidden text of its button). No request leaves the page.
addEventListener("click", (event) => {
  const button = event.target.closest && event.target.closest("button.od-save");
  if (!button) return;
  const trace = button.querySelector("[hidden]");
  const text = trace ? trace.textContent : document.querySelector("iframe.od-frame").srcdoc;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: trace ? "application/json" : "text/html" }));
  link.download = button.dataset.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
});

// Brings the answers into view, where less than half of the window shows them.
window.omnidropShowAnswers = () => {
  const results = document.querySelector("#od-results");
  results.style.minHeight = "100vh"; // there may be little below them yet
  const top = results.getBoundingClientRect().top;
  if (top >= 0 && top < innerHeight / 2) return;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  results.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
};

// Enter in a question asks; Shift+Enter starts a new line, and Enter that ends a word of an input method does not ask.
addEventListener("keydown", (event) => {
  const typing = event.target.matches && event.target.matches("textarea") && event.target.closest("[id$=-question]");
  if (!typing || event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  document.getElementById(typing.id.replace("question", "ask")).click();
}, true);
