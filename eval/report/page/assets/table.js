// The table: order, search, groups, and cells that the arrow keys reach.

const table = byId("results-table");
const lines = [...table.querySelectorAll("tr[data-row]")];
const headings = new Map([...table.tBodies].map((body) => [body.rows[0].textContent, body]));
const flat = make("tbody");
const heads = [...table.tHead.rows[0].cells];
const FIRST = keys.length; // column of the first number
const late = lines.filter((line) => line.classList.contains("late"));
let limit = lines.length - late.length; // rows at once: more make each change slow
let order = null; // {column, up}

/** What a row is sorted by: its number, or the text of a key column. */
function sortValue(row, column) {
  if (column >= FIRST) return valueOf(row, column - FIRST);
  const text = lines[row].cells[column].textContent;
  return text !== "" && !Number.isNaN(Number(text)) ? Number(text) : text;
}

/** Numbers before texts, and what is missing last, whichever the direction. */
function compare(a, b, up) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  const less = typeof a === "number" ? (a > b) - (a < b) : a.localeCompare(b, undefined, { numeric: true });
  return up ? less : -less;
}

function sorted(members) {
  if (!order) return members;
  const { column, up } = order;
  const values = new Map(members.map((row) => [row, sortValue(row, column)]));
  return [...members].sort((a, b) => compare(values.get(a), values.get(b), up) || a - b);
}

function layOut() {
  hideTip();
  const grouped = byId("grouped").checked;
  const bodies = [];
  let left = limit;
  const place = (body, members, first) => {
    const kept = sorted(members).slice(0, left);
    left -= kept.length;
    body.replaceChildren(...first, ...kept.map((row) => lines[row]));
    if (kept.length) bodies.push(body);
  };
  if (grouped) for (const group of shownGroups()) {
    const body = headings.get(group);
    place(body, shown.filter((row) => rows[row].group === group), [body.rows[0]]);
  } else place(flat, shown, []);
  for (const body of [...table.tBodies]) if (!bodies.includes(body)) body.remove();
  table.append(...bodies);
  const more = byId("more");
  more.hidden = shown.length <= limit;
  more.firstElementChild.textContent = `Show all ${shown.length} runs (${limit} are shown)`;
  enter(table.querySelector("[tabindex='0']") ?? table.querySelector("tr[data-row] > *"), false);
}

function sortBy(column) {
  const better = column >= FIRST ? columns[column - FIRST]?.better : "lower";
  const first = better !== "higher";
  if (!order || order.column !== column) order = { column, up: first };
  else order = order.up === first ? { column, up: !first } : null;
  heads.forEach((head, index) => {
    if (order && index === column) head.setAttribute("aria-sort", order.up ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  });
  layOut();
}

/** One cell is in the order of the Tab key; arrows move it. */
function enter(cell, focus = true) {
  for (const old of table.querySelectorAll("tbody [tabindex='0']")) if (old !== cell) old.removeAttribute("tabindex");
  if (!cell) return;
  cell.setAttribute("tabindex", "0");
  if (focus) cell.focus();
}

function isVisible(cell) {
  return cell.getClientRects().length > 0;
}

function neighbour(cell, key) {
  const every = [...table.querySelectorAll("tr[data-row]")];
  const at = every.indexOf(cell.parentElement);
  const step = { ArrowUp: -1, ArrowDown: 1 }[key];
  if (step) return every[at + step]?.cells[cell.cellIndex];
  const cells = [...cell.parentElement.cells].filter(isVisible);
  if (key === "Home") return cells[0];
  if (key === "End") return cells[cells.length - 1];
  return cells[cells.indexOf(cell) + { ArrowLeft: -1, ArrowRight: 1 }[key]];
}

table.addEventListener("keydown", (event) => {
  const cell = event.target.closest("tr[data-row] > *");
  if (!cell || event.target !== cell) return;
  if (event.key === "Enter" || event.key === " ") {
    openCell(cell);
    event.preventDefault();
  } else if (/^(Arrow|Home|End)/.test(event.key)) {
    const next = neighbour(cell, event.key);
    if (next) enter(next);
    event.preventDefault();
  }
});

table.addEventListener("click", (event) => {
  const cell = event.target.closest("tr[data-row] > *");
  if (!cell || event.target.closest("a")) return;
  enter(cell);
  openCell(cell);
});

function startTable() {
  heads.slice(0, -1).forEach((head, index) => {
    head.replaceChildren(make("button", { type: "button", class: "sort", onclick: () => sortBy(index) }, ...head.childNodes));
  });
  byId("group").append(...groups.map((group) => make("option", { value: group }, group)));
  byId("search").addEventListener("input", filterRows);
  byId("group").addEventListener("change", filterRows);
  byId("grouped").addEventListener("change", layOut);
  byId("tools").addEventListener("submit", (event) => event.preventDefault());
  byId("more").firstElementChild.addEventListener("click", () => {
    limit = Infinity;
    layOut();
  });
  listeners.push(layOut);
  for (const line of late) line.classList.remove("late"); // they are taken out before the first layout
}
