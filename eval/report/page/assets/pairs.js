// What a number was paired with: a dialog.

const dialog = byId("dialog");
let pairsBy = null; // "row metric" -> pairs

function pairsOf(row, key) {
  const { metrics, pairs } = data("data-pairs");
  if (!pairsBy) {
    pairsBy = new Map();
    for (const pair of pairs) {
      for (const member of [pair[0], pair[1]]) {
        const place = `${member} ${metrics[pair[2]]}`;
        if (!pairsBy.has(place)) pairsBy.set(place, []);
        pairsBy.get(place).push(pair);
      }
    }
  }
  return pairsBy.get(`${row} ${key}`) ?? [];
}

const nameOf = (row) => (row < 0 ? "unquantized" : rows[row].label);

function pairRow([a, b, , amount, verdict, ahead, bytes, count, p]) {
  const word = data("data-pairs").verdicts[verdict];
  const other = b >= 0 && rows[a].precision !== rows[b].precision ? ` (${rows[b].precision})` : "";
  return make("tr", {},
    make("th", { scope: "row", class: "key" }, `${nameOf(a)} vs ${nameOf(b)}${other}`),
    make("td", {}, amount),
    make("td", { class: `key ${["better", "worse", "tie"][verdict]}` }, word),
    make("td", { class: "key" }, ["", nameOf(a), nameOf(b)][ahead]),
    make("td", {}, bytes), make("td", {}, p), make("td", {}, count));
}

function pairsTable(pairs) {
  const titles = ["pair", "difference or ratio", "the first is", "ahead", "bytes", "adjusted p", "n"];
  const left = [0, 2, 3];
  return make("div", { class: "wide" }, make("table", { class: "pairs" },
    make("caption", {}, "First minus second, or first divided by second, with its 95 % paired interval."),
    make("thead", {}, make("tr", {}, titles.map((title, index) =>
      make("th", { scope: "col", class: left.includes(index) ? "key" : null }, title)))),
    make("tbody", {}, pairs.map(pairRow))));
}

function openDialog(title, ...content) {
  hideTip();
  byId("dialog-head").textContent = title;
  byId("dialog-body").replaceChildren(...content);
  if (!dialog.open) dialog.showModal();
}

function openCell(cell) {
  const column = columns[cell.cellIndex - FIRST];
  const row = Number(cell.parentElement.dataset.row);
  if (!column) return openRow(row, cell.parentElement);
  const pairs = pairsOf(row, column.key);
  const value = make("p", {}, `${columnHead(column)}: ${cellText(row, cell.cellIndex - FIRST)}`);
  openDialog(`${rows[row].label}, ${rows[row].group}`, value,
    pairs.length ? pairsTable(pairs) : make("p", {}, "Nothing was paired with this number."));
}

function cellText(row, index) {
  const value = rows[row].values[index];
  if (!value) return "–";
  return told(value[0]) + (value.length > 1 ? ` [${told(value[1])}, ${told(value[2])}]` : "");
}

/** Every number of a run, and its files. */
function openRow(row, line) {
  const links = [...line.lastElementChild.childNodes].map((node) => node.cloneNode(true));
  const numbers = columns.map((column, index) => [columnHead(column), cellText(row, index)])
    .filter(([, value]) => value !== "–");
  openDialog(`${rows[row].label}, ${rows[row].group}`, make("p", {}, ...links),
    make("table", { class: "facts" }, make("caption", {}, "All numbers of this run"), make("tbody", {}, numbers.map(([name, value]) =>
      make("tr", {}, make("th", { scope: "row", class: "key" }, name), make("td", {}, value))))));
}

dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close();
});
