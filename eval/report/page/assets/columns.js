// Which columns are shown; those of cost are hidden at first, but for the bytes.

const NARROW = 640; // on phones, where key columns beside the method leave no room for numbers
const hidden = new Set();
const sheet = new CSSStyleSheet();
document.adoptedStyleSheets = [sheet];

function hideColumns() {
  const cells = [...hidden].map((index) => `#results-table tr:not(.heading) > :nth-child(${index + 1})`);
  sheet.replaceSync(cells.length ? `${cells.join(", ")} { display: none; }` : "");
  const count = heads.length - hidden.size;
  byId("columns").firstElementChild.textContent = `Columns (${count} of ${heads.length})`;
}

function startColumns() {
  const list = byId("column-list");
  heads.forEach((head, index) => {
    const column = columns[index - FIRST];
    if (column && !column.judged && column.key !== "weight_mb") hidden.add(index);
    if (innerWidth < NARROW && index && index < FIRST) hidden.add(index);
    if (!index) return; // the method tells the rows apart
    const box = make("input", { type: "checkbox", checked: !hidden.has(index), onchange: () => {
      if (box.checked) hidden.delete(index);
      else hidden.add(index);
      hideColumns();
    } });
    list.append(make("label", { class: "check" }, box, ` ${column ? columnHead(column) : head.textContent}`));
  });
  hideColumns();
}
