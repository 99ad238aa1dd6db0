"use strict";
// Texts come from a model, so that they may reach the page only as textContent.
const data = JSON.parse(document.getElementById("data").textContent);
const SHADES = 15, LOWEST = 0.01, PART = 300;
const by = (id) => document.getElementById(id);
const make = (name, className, text) => {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};

let current = 0; // the response on the page
let columns = []; // one per checkpoint: {text, tokens}
let here = null; // [column, token] that the tip describes

const shade = (h) => (h < LOWEST ? 0 : 1 + Math.min(SHADES - 1, Math.floor((h / data.scale) * SHADES)));

// Rank of each token by falling entropy over all responses of a checkpoint. Of equal entropies, the earlier ranks first.
const total = data.responses.reduce((n, r) => n + r.tokens.length, 0);
const starts = [];
data.responses.reduce((n, r) => (starts.push(n), n + r.tokens.length), 0);
const places = [], ordered = [];
for (let v = 0; v < data.names.length; v++) {
  const h = new Float64Array(total);
  data.responses.forEach((r, i) => h.set(r.views[v].h, starts[i]));
  const order = Uint32Array.from({ length: total }, (_, i) => i).sort((a, b) => h[b] - h[a] || a - b);
  const place = new Uint32Array(total);
  order.forEach((token, i) => (place[token] = i));
  places.push(place);
  ordered.push(h.sort().reverse());
}

// rho is in whole percents, because 100 * 0.07 is above 7 in floating point.
const keptCount = () => Math.ceil((total * Number(by("rho").value)) / 100);
const isKept = (v, i) => places[v][starts[current] + i] < keptCount();

function mark() {
  const kept = keptCount();
  columns.forEach((column, v) => {
    let count = 0;
    const place = places[v], start = starts[current];
    column.tokens.forEach((span, i) => {
      const now = place[start + i] < kept;
      count += now;
      if (now !== span.kept) span.classList.toggle("k", (span.kept = now));
    });
    const threshold = kept > 0 ? `, entropy ${ordered[v][kept - 1].toFixed(3)} nats and above` : "";
    column.count.textContent = `${count} of ${column.tokens.length} tokens kept here${threshold}`;
  });
  by("kept").textContent = `${(Number(by("rho").value) / 100).toFixed(2)}: ${kept} of ${total} tokens`;
  if (here) describe(...here);
}

function draw(index) {
  current = index;
  hide();
  const response = data.responses[index];
  by("prompt").textContent = response.prompt;
  columns = response.views.map((view, v) => {
    const section = make("section"), text = make("div", "text");
    section.append(make("h2", "", data.names[v]));
    const count = make("p", "count");
    section.append(count, text);
    text.tabIndex = 0;
    text.setAttribute("role", "group");
    text.setAttribute("aria-label", `${data.names[v]}: ${response.tokens.length} tokens; arrow keys move from token to token`);
    let part = make("div", "part"), length = 0;
    const tokens = response.tokens.map((number, i) => {
      const span = make("span", `t c${shade(view.h[i])}`, data.texts[number]);
      span.place = i;
      span.kept = false;
      part.append(span);
      // A part ends at the end of a line, so that the parts are invisible.
      if (++length >= PART && data.texts[number].endsWith("\n")) {
        text.append(part);
        part = make("div", "part");
        length = 0;
      }
      return span;
    });
    text.append(part);
    text.addEventListener("keydown", (event) => move(event, v));
    return { section, text, tokens, count };
  });
  by("views").replaceChildren(...columns.map((column) => column.section));
  mark();
}

function describe(v, i) {
  const response = data.responses[current], view = response.views[v], tip = by("tip");
  const lines = [make("div", "token", data.texts[response.tokens[i]].replace(/\n$/, ""))];
  const say = (text) => lines.push(make("div", "", text));
  say(`token ${i + 1} of ${response.tokens.length}, ${isKept(v, i) ? "kept" : "not kept"}`);
  say(`entropy ${view.h[i].toFixed(4)} nats`);
  if (view.p) say(`probability ${percent(view.p[i])}`);
  if (view.kept) say(view.kept[i] ? "trained on" : "not trained on");
  if (view.a) {
    const options = view.a[i];
    for (let k = 0; k < options.length; k += 2) {
      const chosen = options[k] === response.tokens[i];
      const row = make("div", chosen ? "option chosen" : "option");
      row.append(make("span", "share", percent(options[k + 1])), make("span", "", data.texts[options[k]].replace(/\n$/, "")));
      lines.push(row);
    }
  }
  response.views.forEach((other, w) => {
    const chance = other.p ? `, probability ${percent(other.p[i])}` : "";
    if (w !== v) say(`${data.names[w]}: entropy ${other.h[i].toFixed(4)}${chance}`);
  });
  tip.replaceChildren(...lines);
}

const percent = (logp) => {
  const share = 100 * Math.exp(logp);
  return share >= 0.01 || share === 0 ? `${share.toFixed(2)}%` : `${share.toExponential(1)}%`;
};

function show(v, i) {
  if (here && here[0] === v && here[1] === i) return;
  hide();
  here = [v, i];
  columns.forEach((column) => column.tokens[i].classList.add("here"));
  describe(v, i);
  const tip = by("tip");
  tip.hidden = false;
  const box = columns[v].tokens[i].getClientRects()[0], size = tip.getBoundingClientRect();
  const below = box.bottom + 6 + size.height < innerHeight;
  tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - size.width - 4))}px`;
  tip.style.top = `${below ? box.bottom + 6 : Math.max(4, box.top - size.height - 6)}px`;
}

function hide() {
  if (here) columns.forEach((column) => column.tokens[here[1]].classList.remove("here"));
  here = null;
  by("tip").hidden = true;
}

function move(event, v) {
  const count = columns[v].tokens.length, at = here ? here[1] : -1;
  const seek = (step) => {
    let i = at + step;
    while (i >= 0 && i < count && !isKept(v, i)) i += step;
    return i;
  };
  const goals = {
    ArrowRight: () => at + 1, ArrowLeft: () => at - 1, Home: () => 0, End: () => count - 1, n: () => seek(1), p: () => seek(-1),
  };
  if (event.key === "Escape") hide();
  if (!(event.key in goals) || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const i = goals[event.key]();
  if (i < 0 || i >= count) return;
  columns[v].tokens[i].scrollIntoView({ block: "center" });
  show(v, i);
}

// One listener for all tokens. A token that the keys scroll under a resting pointer does not count as pointed at.
let pointer = "";
const over = (event) => {
  const span = event.target, before = pointer;
  pointer = `${event.clientX} ${event.clientY}`;
  if (event.type !== "click" && pointer === before) return;
  if (span.place === undefined) return hide();
  show(columns.findIndex((column) => column.text.contains(span)), span.place);
};
by("views").addEventListener("mouseover", over);
by("views").addEventListener("click", over);
by("views").addEventListener("mouseleave", over);
by("rho").addEventListener("input", mark);
by("response").addEventListener("change", (event) => draw(Number(event.target.value)));

by("rho").value = Math.round(100 * data.rho);
by("highest").textContent = data.scale.toFixed(2);
for (let s = 1; s <= SHADES; s++) by("ramp").append(make("span", `t c${s}`));
by("choice").hidden = data.responses.length < 2;
data.responses.forEach((response, i) => {
  const option = make("option", "", response.title);
  option.value = i;
  by("response").append(option);
});
if (data.responses.length) draw(0);
