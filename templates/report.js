
"use strict";

// Without this script the page is pictures and tables. It makes each picture a group of
// buttons, one tab stop in all, and ties it to its table.

const card = document.getElementById("card");
const toast = document.getElementById("toast");
const REACH = 28; // how many pixels from a point still mean it
const GAP = 12; // between a point and its card
const CHANGES = {
  c: "excludes it",
  p: "unpins it",
  n: "pins it",
  o: "pins it",
  d: "lets it back in",
};
let dismiss = () => {};
let fading;

for (const panel of document.querySelectorAll(".panel")) setUp(panel);
addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  dismiss();
  toast.replaceChildren();
});

function setUp(panel) {
  const tbody = panel.querySelector("tbody");
  const rows = Array.from(tbody.rows);
  tbody.addEventListener("click", (event) => {
    if (event.target.closest("a") || !getSelection().isCollapsed) return;
    change(event.target.closest("tr"));
  });
  const plot = panel.querySelector(".plot");
  if (!plot) return;

  const svg = plot.firstElementChild;
  const points = []; // by row: those with a place come first, by L0
  const places = [];
  let on = -1; // the run that is lit
  let current = -1; // the run that Tab comes to

  svg.setAttribute("role", "group");
  for (const point of svg.querySelectorAll("use")) points[point.dataset.row] = point;
  for (const [i, point] of points.entries()) {
    const [run, l0, nmse, date, fate] = texts(rows[i]);
    point.setAttribute("role", "button");
    point.setAttribute("aria-label", `${run}, L0 ${l0}, NMSE ${nmse}, ${date}, ${fate}`);
    point.setAttribute("tabindex", -1);
    places.push([parseFloat(point.getAttribute("x")), parseFloat(point.getAttribute("y"))]);
    rows[i].querySelector("a")?.setAttribute("tabindex", -1); // its card has the link
  }
  const halo = document.createElementNS(svg.namespaceURI, "circle");
  halo.setAttribute("class", "halo");
  halo.setAttribute("r", 10);
  stopAt(Math.max(0, points.findIndex((point) => point.matches(".c"))));

  function stopAt(i) {
    points[current]?.setAttribute("tabindex", -1);
    points[i].setAttribute("tabindex", 0);
    current = i;
  }

  function light(i) {
    rows[on]?.classList.remove("on");
    on = i;
    if (i < 0) return halo.remove();
    rows[i].classList.add("on");
    halo.setAttribute("cx", points[i].getAttribute("x"));
    halo.setAttribute("cy", points[i].getAttribute("y"));
    svg.append(halo);
  }

  function show(i) {
    if (i === on && isOpen()) return;
    light(i);
    fill(rows[i]);
    plot.append(card);
    card.hidden = false;
    place(...at(i));
    reveal(rows[i]);
    dismiss = () => {
      if (card.contains(document.activeElement)) points[current].focus({ preventScroll: true });
      card.hidden = true;
    };
  }

  // Where a run stands, in pixels of the plot.
  function at(i) {
    return [(places[i][0] * plot.clientWidth) / 100, (places[i][1] * plot.clientHeight) / 100];
  }

  // Put the card over, under, left or right of a point, where it covers the fewest others.
  function place(x, y) {
    const [width, height] = [card.offsetWidth, card.offsetHeight];
    const top = plot.getBoundingClientRect().top;
    const all = places.map((_, i) => at(i));
    let least = Infinity;
    for (const from of [x - 40, x + 40 - width])
      for (const to of [y + GAP, y - GAP - height]) {
        const left = Math.max(Math.min(from, plot.clientWidth - width + 8), -42);
        const isIn = ([a, b]) => a > left && a < left + width && b > to && b < to + height;
        const isSeen = top + to > 0 && top + to + height < innerHeight;
        const cost = all.filter(isIn).length + (isSeen ? 0 : all.length);
        if (cost >= least) continue;
        least = cost;
        card.style.left = `${left}px`;
        card.style.top = `${to}px`;
        card.style.setProperty("--point", `${x - left}px`);
      }
  }

  function isOpen() {
    return card.parentElement === plot && !card.hidden;
  }

  function close() {
    light(-1);
    if (card.parentElement === plot) card.hidden = true;
    plot.classList.remove("near");
  }

  function leave() {
    if (plot.contains(document.activeElement)) show(current);
    else close();
  }

  function nearest(event) {
    const box = plot.getBoundingClientRect();
    let best = -1;
    let least = REACH ** 2;
    for (const [i, point] of points.entries()) {
      const [x, y] = at(i);
      const far = (x + box.left - event.clientX) ** 2 + (y + box.top - event.clientY) ** 2;
      // Of points in one place the chosen lies on top.
      if (far < least || (far === least && point.matches(".c, .p"))) [best, least] = [i, far];
    }
    return best;
  }

  plot.addEventListener("pointermove", (event) => {
    if (card.contains(event.target)) return;
    const i = nearest(event);
    plot.classList.toggle("near", i >= 0);
    if (i >= 0) show(i);
    else leave();
  });
  plot.addEventListener("pointerleave", leave);
  plot.addEventListener("click", (event) => {
    if (event.target.closest("a") || !getSelection().isCollapsed) return;
    const i = card.contains(event.target) ? on : nearest(event);
    if (i < 0) return;
    if (!card.contains(event.target)) points[i].focus({ preventScroll: true });
    change(rows[i]);
  });
  plot.addEventListener("focusin", (event) => {
    const i = card.contains(event.target) ? on : points.indexOf(event.target);
    stopAt(i);
    show(i);
  });
  plot.addEventListener("focusout", (event) => {
    if (!plot.contains(event.relatedTarget)) close();
  });
  svg.addEventListener("keydown", (event) => {
    const last = points.length - 1;
    const to = {
      ArrowRight: Math.min(current + 1, last),
      ArrowDown: Math.min(current + 1, last),
      ArrowLeft: Math.max(current - 1, 0),
      ArrowUp: Math.max(current - 1, 0),
      Home: 0,
      End: last,
    }[event.key];
    if (to !== undefined) points[to].focus({ preventScroll: true });
    else if (event.key === "Enter" || event.key === " ") change(rows[current]);
    else return;
    event.preventDefault();
  });
  tbody.addEventListener("pointerover", (event) => {
    const i = rows.indexOf(event.target.closest("tr"));
    if (i < points.length) light(i);
  });
  tbody.addEventListener("pointerleave", () => light(isOpen() ? current : -1));
}

function texts(row) {
  return Array.from(row.cells, (cell) => cell.textContent);
}

function fill(row) {
  const [run, l0, nmse, date, fate] = texts(row);
  const [name, link, button] = ["b", "a", "button"].map((tag) => card.querySelector(tag));
  name.textContent = run;
  for (const [i, text] of [l0, nmse, date].entries()) card.querySelectorAll("dd")[i].textContent = text;
  card.querySelector(".fate").textContent = fate;
  card.className = `card ${row.className.replace("on", "")}`;
  const href = row.querySelector("a")?.getAttribute("href");
  link.parentElement.hidden = !href;
  if (href) link.setAttribute("href", href);
  button.hidden = !row.dataset.command;
  card.querySelector(".never").hidden = !button.hidden;
  button.firstElementChild.textContent = `Click or Enter copies what ${CHANGES[kind(row)]}:`;
  button.lastElementChild.textContent = row.dataset.command ?? "";
}

function kind(row) {
  return row.className[0];
}

// Bring a row into sight within its table's box, without moving the page.
function reveal(row) {
  const box = row.closest(".rows");
  const [inner, outer] = [row.getBoundingClientRect(), box.getBoundingClientRect()];
  const top = outer.top + row.closest("table").tHead.offsetHeight;
  if (inner.top < top) box.scrollTop -= top - inner.top;
  else if (inner.bottom > outer.bottom) box.scrollTop += inner.bottom - outer.bottom;
}

async function change(row) {
  const [run, , , , fate] = texts(row);
  if (!row.dataset.command) return tell(`${run} can't be pinned, it was ${fate}`);
  const code = document.createElement("code");
  code.textContent = row.dataset.command;
  if (await copy(row.dataset.command)) return tell(`Copied what ${CHANGES[kind(row)]}: `, code);
  tell("Nothing could be copied here; copy it by hand: ", code);
  getSelection().selectAllChildren(code);
}

function tell(...nodes) {
  toast.replaceChildren(...nodes);
  clearTimeout(fading);
  fading = setTimeout(() => toast.replaceChildren(), 10_000);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyTheOldWay(text); // a browser may keep its clipboard from a page of file://
  }
}

function copyTheOldWay(text) {
  const before = document.activeElement;
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "copying";
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  before.focus({ preventScroll: true });
  return done;
}
