"use strict";
// Two fields for each setting, a number and a slider over its logarithm, and one request when they rest.
const knobs = [...document.querySelectorAll("[data-knob]")].map((box) => ({
  name: box.dataset.knob,
  whole: box.dataset.whole === "yes",
  number: box.querySelector("input[type=number]"),
  slider: box.querySelector("input[type=range]"),
}));
const results = document.getElementById("results");
const rows = document.getElementById("rows");
const problem = document.getElementById("problem");
const warnings = document.getElementById("warnings");
const command = document.getElementById("command");
const state = document.getElementById("state");
let resting = null, asking = null;

function rounded(value, whole) {
  return whole ? Math.round(value) : Number(value.toPrecision(3));
}

function fromSlider(knob) {
  knob.number.value = rounded(Math.exp(Number(knob.slider.value)), knob.whole);
  knob.slider.setAttribute("aria-valuetext", knob.number.value);
}

function toSlider(knob) {
  const value = Number(knob.number.value);
  if (value > 0) knob.slider.value = Math.log(value);
  knob.slider.setAttribute("aria-valuetext", knob.number.value);
}

function later() {
  results.setAttribute("aria-busy", "true");
  state.textContent = rows.children.length ? "Computing … Below are the settings before." : "Computing …";
  clearTimeout(resting);
  resting = setTimeout(ask, 300);
}

async function ask() {
  if (asking) asking.abort();
  asking = new AbortController();
  const values = new URLSearchParams(knobs.map((knob) => [knob.name, knob.number.value]));
  try {
    const reply = await fetch("plan?" + values, { signal: asking.signal, cache: "no-store" });
    show(await reply.json());
  } catch (error) {
    if (error.name !== "AbortError") show({ error: "The explorer has stopped. Start it again: reticent plan --open" });
  }
}

function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function show(found) {
  if (found.superseded) return;
  results.setAttribute("aria-busy", "false");
  state.textContent = found.error ? "" : `${found.rows[0][0]}: ${found.rows[0][1]}. Computed by the library's own accounting.`;
  problem.hidden = !found.error;
  problem.textContent = found.error || "";
  if (found.error) {
    for (const told of [rows, warnings, command]) told.replaceChildren();
    return;
  }
  rows.replaceChildren(...found.rows.map(([name, value, meaning]) => {
    const row = document.createElement("div");
    const told = document.createElement("dd");
    told.append(element("span", value), element("small", meaning));
    row.append(element("dt", name), told);
    return row;
  }));
  warnings.replaceChildren(...found.warnings.map((text) => {
    const line = element("p", text);
    line.className = "warning";
    return line;
  }));
  command.textContent = found.command;
}

for (const knob of knobs) {
  knob.slider.addEventListener("input", () => { fromSlider(knob); later(); });
  knob.number.addEventListener("input", () => { toSlider(knob); later(); });
  toSlider(knob);
}
document.querySelector("form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
later();
