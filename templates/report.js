"use strict";

// Without this script the page is pictures and tables. With it, each picture is a group of
// buttons with one tab stop, tied to its table, and clicks add up to one command.

const [tip, bar, command] = ["tip", "bar", "command"].map((id) => document.getElementById(id));
const REACH = 28; // how near to a point the pointer must be, in pixels
const GAP = 13; // between a point and its tip
const DOES = { c: "exclude it", p: "unpin it", n: "pin it", o: "pin it", h: "let it back in" };
const GETS = { c: "excluded", p: "no longer pinned", n: "pinned", o: "pinned", h: "let back in" };
const changed = new Map(); // each changed row, with its repo's section
const pointOf = new WeakMap(); // each row's point
let isTouch = false; // whether the last pointer event came from a finger
let dismiss = () => {};

for (const panel of document.querySelectorAll(".panel")) setUp(panel);
addEventListener("keydown", (event) => event.key === "Escape" && dismiss());
for (const type of ["pointerdown", "pointermove"])
  addEventListener(type, (event) => (isTouch = event.pointerType === "touch"), true);
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details.warnings")) details.open = true;
});
document.getElementById("copy").addEventListener("click", copy);
document.getElementById("undo").addEventListener("click", () => {
  for (const row of [...changed.keys()]) toggle(row);
});

function setUp(panel) {
  const table = panel.querySelector("table");
  const rows = Array.from(table.rows).slice(1);
  table.addEventListener("click", (event) => {
    if (event.target.closest("a, thead") || !getSelection().isCollapsed) return;
    toggle(event.target.closest("tr"));
  });
  const plot = panel.querySelector(".plot");
  if (!plot) return;

  const svg = plot.firstElementChild;
  const points = []; // in the order of rows: runs with a place come first, by L0
  const places = [];
  let on = -1; // the highlighted run
  let current = -1; // the run that Tab focuses
  let before = -1; // the run whose tip was open when a finger came down

  svg.setAttribute("role", "group");
  for (const point of svg.querySelectorAll("[data-row]")) points[point.dataset.row] = point;
  for (const [i, point] of points.entries()) {
    const { run, l0, nmse, fate, warnings } = facts(rows[i]);
    pointOf.set(rows[i], point);
    point.setAttribute("role", "button");
    point.setAttribute("aria-label", `${run}, L0 ${l0}, NMSE ${nmse}, ${fate}${warnings}`);
    point.setAttribute("tabindex", -1);
    places.push(["x", "y"].map((a) => parseFloat(point.getAttribute(a) ?? point.getAttribute(`c${a}`))));
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
    halo.setAttribute("cx", `${places[i][0]}%`);
    halo.setAttribute("cy", `${places[i][1]}%`);
    svg.append(halo);
  }

  function show(i) {
    if (i === on && isOpen()) return;
    light(i);
    fill(rows[i]);
    plot.append(tip);
    tip.hidden = false;
    place(...at(i));
    reveal(rows[i]);
    dismiss = () => (tip.hidden = true);
  }

  // Where a run stands, in pixels of the plot.
  function at(i) {
    return [(places[i][0] * plot.clientWidth) / 100, (places[i][1] * plot.clientHeight) / 100];
  }

  // Put the tip beside a point, within the plot, where it covers the fewest others.
  function place(x, y) {
    const [width, height] = [tip.offsetWidth, tip.offsetHeight];
    const [right, bottom] = [plot.clientWidth - width, plot.clientHeight - height];
    const all = places.map((_, i) => at(i));
    let least = Infinity;
    for (const from of [x + GAP, x - GAP - width, x - width / 2])
      for (const to of [y - GAP - height, y + GAP, y - height / 2]) {
        const [left, top] = [Math.max(0, Math.min(from, right)), Math.max(0, Math.min(to, bottom))];
        const isIn = ([a, b], by = 5) => a > left - by && a < left + width + by && b > top - by && b < top + height + by;
        const cost = all.filter((of) => isIn(of)).length + (isIn([x, y], GAP - 1) ? all.length : 0);
        if (cost >= least) continue;
        least = cost;
        tip.style.left = `${left}px`;
        tip.style.top = `${top}px`;
      }
  }

  function isOpen() {
    return tip.parentElement === plot && !tip.hidden;
  }

  function leave() {
    plot.classList.remove("near");
    if (svg.contains(document.activeElement)) return show(current);
    light(-1);
    if (tip.parentElement === plot) tip.hidden = true;
  }

  function nearest(event) {
    const box = plot.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let best = -1;
    let least = REACH ** 2;
    for (const [i, [left, top]] of places.entries()) {
      const far = (x - (left * box.width) / 100) ** 2 + (y - (top * box.height) / 100) ** 2;
      // Where points coincide, the chosen one lies on top.
      if (far < least || (far === least && points[i].matches(".c, .p"))) [best, least] = [i, far];
    }
    return best;
  }

  plot.addEventListener("pointerdown", () => (before = isOpen() ? on : -1));
  plot.addEventListener("pointermove", (event) => {
    if (isTouch) return;
    const i = nearest(event);
    plot.classList.toggle("near", i >= 0);
    if (i >= 0) show(i);
    else leave();
  });
  plot.addEventListener("pointerleave", () => isTouch || leave());
  plot.addEventListener("click", (event) => {
    const i = nearest(event);
    if (i < 0) return leave();
    points[i].focus({ preventScroll: true });
    show(i);
    // A finger can't hover, so it takes a second tap to change a run.
    if (!isTouch || before === i) toggle(rows[i]);
  });
  // Not on the svg, which Chromium would make focusable for having focus listeners.
  plot.addEventListener("focusin", (event) => {
    const i = points.indexOf(event.target);
    stopAt(i);
    show(i);
  });
  plot.addEventListener("focusout", (event) => {
    if (svg.contains(event.relatedTarget)) return;
    light(-1);
    tip.hidden = true;
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
    else if (event.key === "Enter" || event.key === " ") toggle(rows[current]);
    else return;
    event.preventDefault();
  });
  table.addEventListener("pointerover", (event) => {
    const i = rows.indexOf(event.target.closest("tr"));
    light(i < points.length ? i : -1);
  });
  table.addEventListener("pointerleave", () => light(isOpen() ? current : -1));
}

function facts(row) {
  const [run, l0, nmse, , fate] = row.cells;
  const logged = [l0, nmse].map((cell) => cell.querySelector("small")?.textContent);
  return {
    run: run.textContent,
    l0: l0.firstChild.data,
    nmse: nmse.firstChild.data,
    logged: logged[0] && `As logged: L0 ${logged[0]}, NMSE ${logged[1]}`,
    fate: fate.firstChild.data.trim(),
    warnings: Array.from(fate.querySelectorAll(".warning"), (warning) => `, ${warning.textContent}`).join(""),
  };
}

// What a click does to a run, as a key of DOES; undefined for a dropped run.
function kind(row) {
  return row.matches(".h") ? "h" : row.matches(".d") ? undefined : row.classList[0];
}

function fill(row) {
  const { run, l0, nmse, logged, fate } = facts(row);
  const [name, numbers, old, hint] = tip.children;
  tip.className = `tip ${row.classList[0]}`;
  name.firstElementChild.textContent = run;
  name.lastElementChild.textContent = fate;
  numbers.textContent = `L0 ${l0} · NMSE ${nmse}`;
  old.textContent = logged ?? "";
  const act = changed.has(row) ? "undo that" : DOES[kind(row)];
  hint.textContent = act ? `${isTouch ? "Tap again" : "Click"} to ${act}` : "Can't be pinned";
}

// Scroll a row into view within its table's box, without moving the page.
function reveal(row) {
  const box = row.closest(".rows");
  const [inner, outer] = [row.getBoundingClientRect(), box.getBoundingClientRect()];
  const top = outer.top + row.closest("table").tHead.offsetHeight;
  if (inner.top < top) box.scrollTop -= top - inner.top;
  else if (inner.bottom > outer.bottom) box.scrollTop += inner.bottom - outer.bottom;
}

// Change a run's fate, or take the change back, and rewrite the command.
function toggle(row) {
  const { run, fate } = facts(row);
  const gets = GETS[kind(row)];
  if (!gets) return say(`${run} can't be pinned, it was ${fate}`);
  const isNew = !changed.delete(row);
  if (isNew) changed.set(row, row.closest(".repo"));
  row.classList.toggle("changed", isNew);
  pointOf.get(row)?.classList.toggle("changed", isNew);
  pointOf.get(row)?.setAttribute("aria-pressed", isNew);
  row.cells[4].dataset.gets = isNew ? gets : "";
  if (!tip.hidden && row.matches(".on")) fill(row);
  command.textContent = write();
  const n = changed.size;
  say(`${run} ${isNew ? gets : "as it was"}. ${n === 1 ? "1 change" : `${n} changes`} in all${n ? ":" : "."}`);
}

// The command that makes all the changes and keeps what was pinned and excluded before.
function write() {
  if (!changed.size) return "";
  const touched = new Set(changed.values());
  const isOne = touched.size === 1;
  const scope = isOne ? [...touched] : [document.body, ...document.querySelectorAll(".repo")];
  const { n, ...given } = document.body.dataset;
  const words = ["make dry-run"];
  if (isOne) words.push(`REPO=${scope[0].dataset.slug}`);
  if (n) words.push(`N=${n}`);
  for (const [name, kinds] of [["pin", "no"], ["exclude", "c"]]) {
    const ids = new Set(scope.flatMap((of) => of.dataset[name].split(" ").filter(Boolean)));
    for (const row of changed.keys()) {
      const { run } = facts(row);
      if (kinds.includes(kind(row))) ids.add(run);
      else ids.delete(run);
    }
    // An empty value overrides what the environment or .env names.
    if (ids.size || given[name]) words.push(`${name.toUpperCase()}="${[...ids].join(" ")}"`);
  }
  return words.join(" ");
}

function say(text) {
  bar.classList.remove("away");
  bar.classList.toggle("empty", !changed.size);
  document.getElementById("count").textContent = text;
}

async function copy() {
  try {
    await navigator.clipboard.writeText(command.textContent);
    say("Copied.");
  } catch {
    getSelection().selectAllChildren(command);
    say("The browser doesn't let a page copy here; the command is selected, press Ctrl-C.");
  }
}
