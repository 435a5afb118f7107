// Which runs are shown. Table, charts and pictures follow.

const { columns, rows, keys, main } = data("data-rows");
for (const row of rows) {
  row.values = row.values.map((value) => value && value.map(number));
  row.text = `${row.label} ${row.group} ${row.precision}`.toLowerCase();
}
const valueOf = (row, column) => rows[row].values[column]?.[0] ?? null;
const listeners = [];
let shown = rows.map((_, index) => index);

const columnName = (column) => [column.title, column.detail].filter(Boolean).join(" ");
const columnHead = (column) => columnName(column) + (column.unit ? `, ${column.unit}` : "");
const columnIndex = (key) => columns.findIndex((column) => column.key === key);

/** A word of the search as a test of a row: "psnr>30" compares a number, other words are looked for. */
function asTest(word) {
  const parts = word.match(/^(.+?)(<=|>=|<|>)(-?[\d.]+(?:e-?\d+)?)$/);
  const column = parts ? columns.findIndex((each) => columnName(each).toLowerCase().replaceAll(" ", "_").startsWith(parts[1])) : -1;
  if (column < 0) return (row) => rows[row].text.includes(word);
  const limit = Number(parts[3]);
  const compare = {
    "<": (value) => value < limit, ">": (value) => value > limit,
    "<=": (value) => value <= limit, ">=": (value) => value >= limit,
  }[parts[2]];
  return (row) => valueOf(row, column) !== null && compare(valueOf(row, column));
}

function filterRows() {
  const tests = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean).map(asTest);
  const group = byId("group").value;
  shown = rows.map((_, index) => index)
    .filter((row) => (!group || rows[row].group === group) && tests.every((test) => test(row)));
  byId("count").textContent = `${shown.length} of ${rows.length} runs`;
  for (const listener of listeners) listener();
}

const groups = [...new Set(rows.map((row) => row.group))];
/** Groups of the runs that are shown, in the order of the table. */
const shownGroups = () => groups.filter((group) => shown.some((row) => rows[row].group === group));
